"""The arithmetic tasks: prompts, answers and grades."""

from __future__ import annotations

import re

import pytest

from ets.demo.family import HELDOUT_SIZE
from ets.tasks import TASKS, task_named
from ets.tasks.arithmetic import SHOTS_SEED, Arithmetic, Sums, completion_of, prompt_of
from ets.types import InputError


@pytest.fixture(params=[Arithmetic, Sums], ids=lambda kind: kind.name)
def task(request: pytest.FixtureRequest) -> Arithmetic:
    return request.param()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has <<3+4=7>>7 shells.\n#### 7", 7),
        ("3+4=7\n#### 7", 7),
        ("#### 42", 42),
        ("####42", 42),
        ("####   42", 42),
        ("#### 42 shells.", 42),
        ("#### 42.", 42),
        ("#### -3", -3),
        ("#### 0", 0),
        ("#### 007", 7),
        (" a #### 5\n\nQuestion: b\nAnswer: c\n#### 6", 5),  # one that runs on is judged by its first answer
        ("#### none, no: #### 8", 8),
        ("", None),
        ("####", None),
        ("#### ", None),
        ("#### seven", None),
        ("#### - 7", None),
        ("### 7", None),
        ("# # # # 7", None),
        ("She has <<3+4=7>>7 shells.", None),
    ],
)
def test_the_answer_is_the_first_whole_number_after_four_hashes(
    task: Arithmetic, text: str, answer: int | None
) -> None:
    assert task.extract(task.problems(1, 0)[0], text) == answer


def test_every_worked_answer_is_graded_right_and_the_neighbours_wrong(task: Arithmetic) -> None:
    for problem, row in zip(task.problems(100, 0), task.family.heldout(100), strict=True):
        truth = problem.doc["answer"]
        assert task.grade(problem, row.answer) and task.grade(problem, f"it is #### 0{truth}")
        assert not task.grade(problem, f"#### {truth + 1}") and not task.grade(problem, f"#### -{truth}")


def test_a_text_without_an_answer_is_wrong(task: Arithmetic) -> None:
    problem = task.problems(1, 0)[0]
    assert not task.grade(problem, "") and not task.grade(problem, str(problem.doc["answer"]))


def test_without_examples_the_prompt_is_the_question_alone(task: Arithmetic) -> None:
    problem, row = task.problems(1, 0)[0], task.family.heldout(1)[0]
    assert problem.prompt == f"Question: {row.question}\nAnswer:"


@pytest.mark.parametrize("shots", [1, 3])
def test_prompts_open_with_that_many_solved_examples_from_training(task: Arithmetic, shots: int) -> None:
    problems = task.problems(5, shots)
    for problem, row in zip(problems, task.family.heldout(5), strict=True):
        prompt = str(problem.prompt)
        *examples, last = prompt.split("\n\n")
        assert last == prompt_of(row) and len(examples) == shots
        assert all(re.fullmatch(r"Question: .+\nAnswer: (?:.+\n)+#### \d+", example) for example in examples)
    shown = [row for row, _ in zip(task.family.training(SHOTS_SEED), range(shots), strict=False)]
    assert str(problems[0].prompt).startswith("".join(f"{prompt_of(row)}{completion_of(row)}\n\n" for row in shown))


def test_generations_stop_before_they_ask_the_next_question(task: Arithmetic) -> None:
    problem, row = task.problems(1, 2)[0], task.family.heldout(1)[0]
    runs_on = f"{completion_of(row)}\n\n{prompt_of(row)}"
    assert [runs_on.split(stop)[0] for stop in problem.stop] == [completion_of(row)]


def test_ids_are_unique_and_do_not_depend_on_how_many_problems_are_taken(task: Arithmetic) -> None:
    many, few = task.problems(300, 0), task.problems(5, 0)
    assert len({problem.id for problem in many}) == len({problem.prompt for problem in many}) == 300
    assert few == many[:5]


def test_all_problems_without_examples_are_the_default(task: Arithmetic) -> None:
    every = task.problems()
    assert len(every) == HELDOUT_SIZE and every[:3] == task.problems(3, 0)


def test_tasks_are_found_by_their_own_names() -> None:
    assert type(task_named("arithmetic")) is Arithmetic and type(task_named("sums")) is Sums
    assert all(task_named(name).name == name for name in TASKS)


def test_an_unknown_task_is_named_beside_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^unknown task 'gsm9k'; choose from .*arithmetic.*sums"):
        task_named("gsm9k")
