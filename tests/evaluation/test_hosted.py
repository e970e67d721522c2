"""Benchmarks that lm-eval hosts: its prompts and scores, our answers and grades, on small local files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ets.evaluation.hosted import Hosted, conditions, opened_task
from ets.evaluation.run import problem_digest
from ets.tasks import expressions
from ets.types import InputError, Problem
from scripts.paper_command import BENCHMARKS
from tests.sandboxed import needs_sandbox

DATA = Path(__file__).parents[1] / "data"
MINERVA = "so it is $\\frac34$.\nFinal Answer: The final answer is ${}$. I hope it is correct."


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """lm-eval's limit on math-verify is one of the clock, of which its first reading takes most on a busy machine."""
    assert expressions.equal("1", "1")


def first(name: str, count: int = 1, shots: int | None = None) -> tuple[Hosted, Problem]:
    task = opened_task(name, DATA)
    assert isinstance(task, Hosted)
    return task, task.problems(count, shots)[0]


@pytest.mark.parametrize(
    ("name", "shots", "begins", "ends", "stop", "examples"),
    [
        ("math500", None, "Problem:\nFind the domain", "$\\frac{3}{2}$?\n\nSolution:", "Problem:", 4),
        ("math500", 0, "Problem:\nWhat is half of", "Solution:", "Problem:", 0),
        ("gsm8k", None, "Question: ", "\nAnswer:", "Question:", 5),
        ("gsm8k", 0, "Question: ", "\nAnswer:", "Question:", 0),
        ("gpqa", 2, "Here are some example questions from experts.", "\nAnswer:", "Question:", 2),
        ("aime24", None, "Solve the following math problem", '"Answer:".', "</s>", 0),
    ],
)
def test_prompts_are_those_of_lm_eval(
    name: str, shots: int | None, begins: str, ends: str, stop: str, examples: int
) -> None:
    task, problem = first(name, shots=shots)
    assert isinstance(problem.prompt, str)
    assert problem.prompt.startswith(begins) and problem.prompt.endswith(ends)
    assert stop in problem.stop
    asks = {"math500": "Problem:\n", "gsm8k": "Question: ", "gpqa": "Question: ", "aime24": "Solve the following"}[name]
    assert problem.prompt.count(asks) == examples + 1 and task.shots == examples
    assert BENCHMARKS[problem.id.rsplit("-", 1)[0]] == name


def test_the_same_problems_come_again_whatever_the_count() -> None:
    for name, shots in (("gsm8k", 2), ("gpqa", 2)):
        task = opened_task(name, DATA)
        assert task.problems(3, shots) == opened_task(name, DATA).problems(None, shots)[:3]


@pytest.mark.parametrize(
    ("name", "text", "scores", "ours"),
    [
        ("math500", MINERVA.format("\\frac{3}{4}"), {"exact_match": 1, "math_verify": 1}, True),
        ("math500", MINERVA.format("\\frac{1}{4}"), {"exact_match": 0, "math_verify": 0}, False),
        ("math500", "It is $\\boxed{\\frac34}$.", {"exact_match": 0, "math_verify": 1}, True),
        ("aime24", "The answer is \\boxed{024}.", {"exact_match": 1}, True),
        ("aime24", "The answer is \\boxed{25}.", {"exact_match": 0}, False),
    ],
)
def test_the_scores_of_lm_eval_stand_beside_ours(name: str, text: str, scores: dict[str, float], ours: bool) -> None:
    task, problem = first(name)
    assert task.scores(problem, text) == scores
    assert task.grade(problem, text) is ours
    assert (task.extract(problem, text) is not None) is True


def test_each_filter_of_lm_eval_has_its_score() -> None:
    task, problem = first("gsm8k", shots=0)
    answer = problem.doc["answer"].split("####")[1].strip()
    strict, flexible = "exact_match,strict-match", "exact_match,flexible-extract"
    assert task.scores(problem, f"#### {answer}") == {strict: 1, flexible: 1}
    assert task.scores(problem, f"so it is {answer} in all") == {strict: 0, flexible: 1}
    assert task.scores(problem, "nothing") == {strict: 0, flexible: 0}


@pytest.mark.parametrize(
    ("name", "data", "count", "shots", "message"),
    [
        ("gsm8k", DATA, 100, 0, "100 problems of gsm8k asked for; choose 1 to 3"),
        ("gsm8k", DATA, 0, 0, "0 problems of gsm8k asked for"),
        ("gsm8k", DATA, 1, -1, "shots is -1; it must be 0 or more"),
        ("gsm8k", DATA, 1, 70, "worked examples"),
        ("math500", DATA / "nowhere", 1, None, "no data for math500 at"),
        ("gpqa", None, 1, None, "no data for gpqa"),
    ],
)
def test_bad_input_is_one_line(
    name: str, data: Path | None, count: int, shots: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message) as caught:
        opened_task(name, data).problems(count, shots)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("chess", {}, "unknown task 'chess'"),
        ("sums", {"data": DATA}, "the task sums brings its own problems, and takes no data"),
        ("humaneval", {"data": DATA}, "the task humaneval brings its own problems, and takes no data"),
        ("gsm8k", {"unsafe": True}, "the task gsm8k runs no code that a model wrote"),
        ("gsm8k", {"stops": "answer"}, "stops is 'answer', but the task gsm8k asks for no code; leave stops out"),
        ("humaneval", {"stops": "fences"}, "stops is 'fences'; choose from completion, answer"),
    ],
)
def test_a_task_takes_only_what_it_can_use(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened_task(name, **options)  # type: ignore[arg-type]


FENCED = "This adds them:\n```python\ndef add(x: int, y: int):\n    return x + y\n```"


def test_only_an_answer_goes_on_behind_a_fence() -> None:
    """An answer in a fence is cut off whole by the stop strings of a completion, and found where there are none."""
    from ets.sandbox.code_answers import program_of

    kept = {}
    for name in ("completion", "answer"):
        problem = opened_task("humaneval", unsafe=True, stops=name).problems(54)[53]
        text = min((FENCED.split(stop)[0] for stop in problem.stop), key=len, default=FENCED)
        kept[name] = program_of(problem.doc["prompt"], problem.doc["entry_point"], text) is not None
    assert kept == {"completion": False, "answer": True}


def test_what_results_depend_on_names_the_stops_and_the_packages() -> None:
    completion, answer = (conditions(opened_task("humaneval", unsafe=True, stops=s)) for s in ("completion", "answer"))
    assert completion == conditions(opened_task("humaneval", unsafe=True)) != answer
    assert set(conditions(opened_task("math500", DATA))) == {"lm_eval", "math-verify"}
    assert set(conditions(opened_task("gsm8k", DATA))) == {"lm_eval"}
    assert conditions(opened_task("sums")) == {}


def test_a_missing_math_verify_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "find_spec", lambda name: None)
    opened_task("gsm8k", DATA)
    with pytest.raises(InputError, match=r"^math-verify is not installed; in the folder of ets"):
        opened_task("math500", DATA)


def test_a_digest_tells_problems_apart() -> None:
    problem = Problem("a", "prompt", ("stop",), {"answer": 1})
    others = [Problem("b", "prompt", ("stop",), {"answer": 1}), Problem("a", "other", ("stop",), {"answer": 1}),
              Problem("a", "prompt", (), {"answer": 1}), Problem("a", "prompt", ("stop",), {"answer": 2})]  # fmt: skip
    assert len({problem_digest(other) for other in [problem, *others]}) == 5
    assert problem_digest(problem) == problem_digest(Problem("a", "prompt", ("stop",), {"answer": 1}))


@needs_sandbox
def test_answers_that_take_time_are_found_in_parallel_and_count_alike() -> None:
    """With HumanEval, whose answers are what code does on the visible examples."""
    from ets.rewards import agreement_share, majority
    from ets.rewards.registry import comparing
    from ets.tasks.humaneval import HumanEval
    from ets.types import Chain, Text

    task = HumanEval()
    problem = task.problems(1)[0]
    bodies = ["    return True\n", "    return 1 == 1\n", "    return False\n", "    return (\n"]
    rollouts = [Text((), body, 0.0, True) for body in bodies]
    chain = Chain(problem, 0, 0, rollouts[0])
    for reward, expected in ((agreement_share, [0.5, 0.5, 0.25, 0.0]), (majority, [1.0, 1.0, 0.0, 0.0])):
        found = comparing(reward, task, "chain", 1)(problem, rollouts, chain)
        assert list(found) == list(reward(task.extract)(problem, rollouts, chain)) == expected
