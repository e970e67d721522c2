"""HumanEval+ and MBPP+: rows in evalplus's format, graded in the sandbox by values of the canonical solution."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ets.cli import main
from ets.evaluation.hosted import opened_task
from ets.tasks import code, evalplus, task_named
from ets.tasks.code import Example
from ets.tasks.evalplus import CONVERSIONS, EvalPlus, HumanEvalPlus, MbppPlus, asserted
from ets.tasks.task import Slow
from ets.types import Chain, InputError, Problem, Text
from tests.conftest import Refused
from tests.sandboxed import needs_sandbox

DATA = Path(__file__).parents[1] / "data"
HUMANEVAL, MBPP = DATA / "humaneval-plus", DATA / "mbpp-plus"
HALVES, MEAN, DESCENDING, QUOTIENT = HumanEvalPlus(HUMANEVAL, unsafe=True).problems()
VOWELS, AREA, SIMILAR = MbppPlus(MBPP, unsafe=True).problems()


def row(kind: str, name: str, solution: str, inputs: Sequence[Any], **values: Any) -> dict[str, Any]:
    """A row whose inputs are all plus inputs."""
    prompt = f'"""\nassert {name}(1) == 1\n"""\n' if kind == "Mbpp" else f'def {name}(*a):\n    """No example."""\n'
    return {
        "task_id": f"{kind}/9000",
        "entry_point": name,
        "prompt": prompt,
        "canonical_solution": solution,
        "base_input": [],
        "plus_input": list(inputs),
        "atol": 0,
    } | values


def graded(task_class: type[EvalPlus], folder: Path, found: dict[str, Any], text: str, **options: Any) -> bool:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(found) + "\n")
    task = task_class(path, **options)
    return task.grade(task.problems()[0], text)


def by_plus(name: str, solution: str, inputs: Sequence[Any], text: str, folder: Path, **values: Any) -> bool:
    """The grade of a text on a row of HumanEval+."""
    return graded(HumanEvalPlus, folder, row("HumanEval", name, solution, inputs, **values), text)


def by_mbpp(name: str, solution: str, inputs: Sequence[Any], text: str, folder: Path, **values: Any) -> bool:
    """The grade of a text on a row of MBPP+."""
    return graded(MbppPlus, folder, row("Mbpp", name, solution, inputs, **values), text)


def test_the_problems_are_the_rows_of_the_file() -> None:
    assert [problem.doc["entry_point"] for problem in (HALVES, VOWELS)] == ["halves", "vowels_in"]
    assert HALVES.id == "humaneval-plus-0" and HALVES.prompt == HALVES.doc["prompt"]
    assert SIMILAR.doc["base_input"] == ["((1, 2, 3), (3, 1))", "((1,), (2,))"]  # JSON has no tuples
    assert isinstance(HumanEvalPlus(), Slow) and "\nassert" in VOWELS.stop and "\ndef " not in VOWELS.stop


@pytest.mark.parametrize("place", ["HumanEvalPlus.jsonl.gz", "HumanEvalPlus-v0.1.10.jsonl", "HumanEvalPlus.jsonl"])
def test_files_are_found_as_they_are_released(place: str, tmp_path: Path) -> None:
    content = (HUMANEVAL / "HumanEvalPlus.jsonl").read_bytes()
    (tmp_path / place).write_bytes(gzip.compress(content) if place.endswith(".gz") else content)
    for data in (tmp_path, tmp_path / place):
        assert HumanEvalPlus(data, unsafe=True).problems(4) == [HALVES, MEAN, DESCENDING, QUOTIENT]


RIGHT = [
    (HALVES, "    return [v * 0.5 for v in values]\n"),
    (MEAN, "    return sum(values) / len(values) + 0.004\n"),  # within the row's tolerance
    (DESCENDING, "    return sorted(values, reverse=True)\n"),
    (QUOTIENT, "    return None if divisor == 0 else dividend // divisor\n"),
    (VOWELS, "def vowels_in(text):\n    return len([c for c in text if c in 'aeiouAEIOU'])\n"),
    (AREA, "Use pi:\n```python\nimport math\n\ndef circle_area(r):\n    return math.pi * r ** 2\n```\n"),
    (SIMILAR, "def similar_elements(a, b):\n    return list(set(a) & set(b))\n"),  # any order, number and type
]
BASE_ALONE = [
    (MEAN, "    return values[len(values) // 2]  if len(values) > 2 else sum(values) / len(values)\n"),
    (DESCENDING, "    return sorted(set(values), reverse=True)\n"),
    (QUOTIENT, "    return dividend // divisor\n"),  # raises an error for 0
    (QUOTIENT, "    while divisor == 0: pass\n    return dividend // divisor\n"),
    (VOWELS, "def vowels_in(text):\n    return len([c for c in text if c in 'aeiou'])\n"),
]
WRONG = [
    (HALVES, "    return [v // 2 for v in values]\n"),
    (HALVES, "    return tuple(v / 2 for v in values)\n"),  # equal items, another type
    (HALVES, "    return map(lambda v: v / 2, values)\n"),
    (MEAN, "    return sum(values) / len(values) + 0.02\n"),
    (DESCENDING, "    values.sort()\n"),  # changes its argument, which does not count
    (QUOTIENT, "    while True: pass\n"),
    (QUOTIENT, "    import os\n    os._exit(0)\n"),
    (QUOTIENT, "no code"),
    (AREA, "def circle_area(r):\n    return math.pi * r ** 2\n"),  # the import is missing
]


def task_of(problem: Problem) -> EvalPlus:
    task_class = HumanEvalPlus if problem.id.startswith("humaneval") else MbppPlus
    return task_class(HUMANEVAL, seconds=2)


@needs_sandbox
@pytest.mark.parametrize(
    ("texts", "right", "base"), [(RIGHT, True, 1.0), (BASE_ALONE, False, 1.0), (WRONG, False, 0.0)]
)
def test_a_text_is_right_if_it_agrees_on_base_and_plus_inputs(
    texts: list[tuple[Problem, str]], right: bool, base: float
) -> None:
    for problem, text in texts:
        task = task_of(problem)
        assert (task.grade(problem, text), task.scores(problem, text)) == (right, {"base_tests": base}), text


@needs_sandbox
def test_every_canonical_solution_is_right() -> None:
    for problem in (HALVES, MEAN, DESCENDING, QUOTIENT, VOWELS, AREA, SIMILAR):
        assert task_of(problem).grade_all([(problem, problem.doc["canonical_solution"])]) == [True]


@needs_sandbox
def test_an_endless_loop_ends_after_the_seconds_of_a_call() -> None:
    begun = time.monotonic()
    assert not HumanEvalPlus(HUMANEVAL, seconds=0.4).grade(QUOTIENT, "    while True: divisor += 1\n")
    assert time.monotonic() - begun < evalplus.TOTAL_SECONDS / 2


@needs_sandbox
@pytest.mark.parametrize(
    ("solution", "text", "atol", "right"),
    [
        ("    return 0.1 + 0.2\n", "    return 0.3\n", 0, True),  # floats alone are compared within 1e-6
        ("    return 0.1 + 0.2\n", "    return 0.31\n", 0, False),
        ("    return [0.1 + 0.2, 1.0]\n", "    return [0.3, 1.0]\n", 0, True),
        ("    return [0.1 + 0.2, 1.0]\n", "    return [0.3]\n", 0, False),
        ("    return [0.1 + 0.2, 1]\n", "    return [0.3, 1]\n", 0, False),  # not floats alone
        ("    return [0.1 + 0.2, 1]\n", "    return [0.3, 1]\n", 1e-3, True),
        ("    return [(0.1, 2), (0.3, 4)]\n", "    return [(0.10001, 2), (0.3, 4)]\n", 1e-3, True),
        ("    return 2.0\n", "    return 2\n", 0, True),  # equal
        ("    return 2.5\n", "    return '2.5'\n", 1e-3, False),
        ("    return {'a': 0.1}\n", "    return {'a': 0.1000001}\n", 1e-3, False),
        ("    return 1e12\n", "    return 1e12 + 1\n", 0, True),  # a ten-millionth of the right value
        ("    return float('inf')\n", "    return float('inf')\n", 0, True),
        ("    return float('inf')\n", "    return 1e300\n", 0, False),
        ("    return 10 ** 5000\n", "    return 10 ** 5000\n", 0, True),
        ("    return {1, 2}\n", "    return {2, 1}\n", 0, True),
        ("    return complex(1, -2)\n", "    return 1 - 2j\n", 0, True),
    ],
)
def test_values_are_compared_as_in_evalplus(solution: str, text: str, atol: float, right: bool, tmp_path: Path) -> None:
    assert by_plus("f", solution, [[1]], text, tmp_path, atol=atol) is right


@needs_sandbox
def test_what_an_input_holds_does_not_change_between_the_calls(tmp_path: Path) -> None:
    """Both functions empty their argument, and each gets its own copy."""
    drains = "    total = 0\n    while a[0]: total += a[0].pop()\n    return total\n"
    assert by_plus("f", drains, [[[1, 2, 3]]], drains, tmp_path)


@needs_sandbox
@pytest.mark.parametrize(
    ("name", "solution", "inputs", "text", "right"),
    [
        ("sum_div", "def sum_div(n): return 6", [[12]], "def sum_div(n): return 0", True),
        ("sum_div", "def sum_div(n): return 6", [[12]], "def sum_div(n): return 7", False),
        ("are_equivalent", "def are_equivalent(a, b): return 1", [[1, 2]], "def are_equivalent(a, b): return 3", True),
        ("are_equivalent", "def are_equivalent(a, b): return 1", [[1, 2]], "def are_equivalent(a, b): 1 / 0", False),
        ("Diff", "def Diff(a, b): return [1, 2]", [[1, 2]], "def Diff(a, b): return [2, 1, 1]", True),
        ("Diff", "def Diff(a, b): return [1, 2]", [[1, 2]], "def Diff(a, b): return [2]", False),
        ("surface_Area", "def surface_Area(a, b): return 33", [[3, 4]], "def surface_Area(a, b): return 35", True),
        ("surface_Area", "def surface_Area(a, b): return 33", [[3, 4]], "def surface_Area(a, b): return 34", False),
        ("digit_distance_nums", "def digit_distance_nums(a, b): return 4", [[1, 23]],
         "def digit_distance_nums(a, b): return 4 if a > 1 else 4", True),
        ("digit_distance_nums", "def digit_distance_nums(a, b): return 9", [[1, 23]],
         "def digit_distance_nums(a, b): return 4", True),
        ("digit_distance_nums", "def digit_distance_nums(a, b): return 9", [[1, 23]],
         "def digit_distance_nums(a, b): return 5", False),
        ("check_str", "import re\ndef check_str(s): return re.match('[aeiou]', s)", [["ab"], ["b"]],
         "import re\ndef check_str(s):\n    return re.search('^[aeiou]', s)", True),
        ("check_str", "import re\ndef check_str(s): return re.match('[aeiou]', s)", [["ab"], ["b"]],
         "def check_str(s):\n    return s[0] in 'aeiou'", True),
        ("check_str", "import re\ndef check_str(s): return re.match('[aeiou]', s)", [["ab"], ["b"]],
         "def check_str(s):\n    return s", False),
    ],
)  # fmt: skip
def test_functions_of_mbpp_without_one_right_value(
    name: str, solution: str, inputs: list[Any], text: str, right: bool, tmp_path: Path
) -> None:
    assert by_mbpp(name, solution, inputs, text + "\n", tmp_path) is right


@needs_sandbox
@pytest.mark.parametrize(("root", "right"), [("-2.00001", True), ("-2", True), ("-1.9", False)])
def test_every_root_of_a_polynomial_is_right(root: str, right: bool, tmp_path: Path) -> None:
    solution = "    return 2.0\n"  # of x**2 - 4
    found = by_plus("find_zero", solution, [[[-4, 0, 1]]], f"    return {root}\n", tmp_path, atol=1e-4)
    assert found is right


@pytest.mark.parametrize(
    ("task", "inputs", "arguments"),
    [
        (2, [[1], [2]], ((1,), (2,))),
        (63, [[[1, 2], [3]]], ([(1, 2), (3,)],)),
        (75, [[[1, 2]], 3], ([(1, 2)], 3)),
        (106, [[1], [2]], ([1], (2,))),
        (115, [[[1, 1], [], {}]], ([{1}, {}, {}],)),
        (124, ["0.5", "1+2j"], (0.5, 1 + 2j)),
        (250, [[1], 2], ((1,), 2)),
        (252, ["3j"], (3j,)),
        (259, [[[1], [2]], [[3]]], (((1,), (2,)), ((3,),))),
        (278, [[1, [2, [3]]]], ((1, (2, [3])),)),
        (307, [[1], 2, 3], ((1,), 2, 3)),
        (580, [[1, [2, [3]]]], ((1, (2, (3,))),)),
        (722, [{"a": [1, 2]}, 3], ({"a": (1, 2)}, 3)),
    ],
)
def test_inputs_become_tuples_sets_and_complex_numbers(task: int, inputs: list[Any], arguments: Any) -> None:
    assert CONVERSIONS[task](inputs) == arguments


@needs_sandbox
def test_complex_numbers_reach_the_program(tmp_path: Path) -> None:
    found = row("Mbpp", "turn", "def turn(z): return z * 1j", [["1+2j"]]) | {"task_id": "Mbpp/252"}
    assert graded(MbppPlus, tmp_path, found, "def turn(z):\n    return z * complex(0, 1)\n")
    assert not graded(MbppPlus, tmp_path, found, "def turn(z):\n    return z\n")


@pytest.mark.parametrize(
    ("doc", "examples"),
    [
        ("Text.\nassert f(1, 'a') == [2]", [("f(1, 'a')", "=[2]")]),
        ("Text.\nassert f(1) == 2\nassert f(2) == True", [("f(1)", "=2"), ("f(2)", "=1")]),
        ("assert set(f(1)) == set([2])", [("bool(set(f(1)) == set([2]))", "=1")]),
        ("assert not f(1)", [("bool(not f(1))", "=1")]),
        ("assert math.isclose(f(2), 12.5)", [("bool(__import__('math').isclose(f(2), 12.5))", "=1")]),
        ("Text.", []),
        ("assert f(1", []),
    ],
)
def test_examples_are_read_from_asserts(doc: str, examples: list[tuple[str, str]]) -> None:
    assert asserted(f'"""\n{doc}\n"""\n') == tuple(Example(*example) for example in examples)


@needs_sandbox
def test_votes_and_rewards_use_the_example_in_the_prompt() -> None:
    task = MbppPlus(MBPP, seconds=10)
    texts = [
        "def vowels_in(word):\n    return 3\n",
        VOWELS.doc["canonical_solution"],
        "def vowels_in(w):\n    return 4",
    ]
    assert task.extract_all((VOWELS, text) for text in [*texts, "?"]) == [("=3",), ("=3",), ("=4",), None]
    rollouts = [Text((), text, 0.0, True) for text in texts]
    assert task.visible_examples(VOWELS, rollouts, Chain(VOWELS, 0, 0, rollouts[0])) == [1.0, 1.0, 0.0]
    assert task.extract(AREA, AREA.doc["canonical_solution"]) == ("=1",)
    assert HumanEvalPlus(HUMANEVAL, seconds=10).extract(HALVES, RIGHT[0][1]) == ("=[0.5, 1.5]",)


def test_neither_votes_nor_rewards_see_the_hidden_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(code, "values", lambda program, expressions, **_: seen.extend([program, *expressions]))
    monkeypatch.setattr(evalplus, "examined", lambda *_, **options: pytest.fail("hidden inputs were used"))
    code._values.cache_clear()
    for problem, text in RIGHT:
        task_of(problem).extract(problem, text)
    code._values.cache_clear()
    assert len(seen) >= 2 * len(RIGHT) and not any("1000000007" in text for text in seen)


@needs_sandbox
@pytest.mark.parametrize("solution", ["    return 1 / 0\n", "    return ("])
def test_a_canonical_solution_that_fails_is_an_error_of_the_data(solution: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^HumanEval/9000: the canonical solution fails .*correct the file") as caught:
        by_plus("f", solution, [[1]], "    return 1\n", tmp_path)
    assert "\n" not in str(caught.value)


GOOD = row("HumanEval", "f", "    return 1\n", [[1]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("{broken", "cannot be read as jsonl"),
        ("[1]", r"row 1 of .* is '\[1\]', not an object"),
        (json.dumps({**GOOD, "plus_input": "x"}), "row 1 of .* has 'x' as plus_input; take the file of https"),
        (json.dumps({"task_id": "HumanEval/1", "prompt": "p", "test": "t"}), "row 1 of .* has no entry_point"),
        (
            json.dumps({**GOOD, "prompt": "def g():\n    '''g'''\n"}),
            "row 1 of .* has a prompt without the function 'f'",
        ),
        (json.dumps({**GOOD, "prompt": "def f():\n    '>>> f(1'\n"}), "row 1 of .* has a prompt whose examples are no"),
        (json.dumps({**GOOD, "plus_input": [3]}), "row 1 of .* has inputs that are no arguments"),
    ],
)
def test_rows_that_will_not_do_are_named_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        HumanEvalPlus(path, unsafe=True).problems()
    assert "\n" not in str(caught.value)


@needs_sandbox
@pytest.mark.parametrize(
    ("make", "name"), [(HumanEvalPlus, "humaneval-plus"), (MbppPlus, "mbpp-plus")], ids=["humaneval", "mbpp"]
)
def test_without_data_one_line_says_what_to_download(
    make: Callable[..., EvalPlus], name: str, tmp_path: Path, refused: Refused
) -> None:
    where = (
        rf"no data for {name}.*: download https://github.com/evalplus/\w+/releases/.*\.jsonl\.gz.*DATA=FILE \(--data"
    )
    for data in (None, tmp_path, tmp_path / "nowhere.jsonl"):
        with pytest.raises(InputError, match=where):
            make(data).problems()
    refused(
        ["eval", "--task", name, "--model", "embedded-small", "--methods", "plain"], f"no data for {name}: download"
    )


def test_the_settings_of_code_hold_for_them_too() -> None:
    task = opened_task("mbpp-plus", MBPP, unsafe=True, stops="answer")
    assert isinstance(task, MbppPlus) and task.unsafe and task.problems(2)[1].stop == ()
    with pytest.raises(InputError, match="stops is 'never'; choose from completion, answer"):
        opened_task("humaneval-plus", HUMANEVAL, stops="never")
    with pytest.raises(InputError, match="4 problems of mbpp-plus asked for; choose 1 to 3"):
        task.problems(4)
    assert isinstance(task_named("humaneval-plus"), HumanEvalPlus)


@needs_sandbox
@pytest.mark.parametrize(("name", "data"), [("humaneval-plus", HUMANEVAL), ("mbpp-plus", MBPP)])
def test_a_run_reports_the_base_tests_too(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"eval --task {name} --data {data} --model embedded-small --count 1 --methods plain,ets --candidates 2"
    main(f"{command} --rollouts 1 --block-size 8 --max-length 16 --out {tmp_path / 'run'}".split())
    assert "| base_tests |" in capsys.readouterr().out
