r'''HumanEval+ and MBPP+ (Liu et al. 2023, arXiv 2305.01210): HumanEval, and 378 tasks of MBPP, with more hidden inputs.

An example row of HumanEval+ (invented, in the format of HumanEvalPlus.jsonl)::

    task_id:            HumanEval/900
    entry_point:        halves
    prompt:             def halves(values: list) -> list:
                            """The half of each value.
                            >>> halves([1, 3])
                            [0.5, 1.5]
                            """
    canonical_solution:     return [value / 2 for value in values]
    base_input:         [[[1, 3]], [[]]]
    plus_input:         [[[1000000007]], [[-1, 0.25]]]
    atol:               0

A row of MBPP+ has a docstring alone as its prompt, which shows a call, and the whole function as its solution. Each
input is the list of a call's arguments. The right value is the value of `canonical_solution`, which runs in the sandbox
of the hidden tests.
'''

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from ets.sandbox.examination import examined, literal_text, plain_data, source_of
from ets.tasks.code import CodeTask, Example
from ets.tasks.data import read_rows
from ets.tasks.humaneval import examples_of
from ets.thinking import THINKING, Tags
from ets.types import InputError, Problem

TOTAL_SECONDS = 60.0
"""Time limit for all base inputs of an answer, and for all plus inputs."""
NO_REFERENCE = 86
"""Exit status of the tests if the canonical solution fails."""

Arguments: TypeAlias = "tuple[Any, ...]"
Oracle: TypeAlias = Callable[[Any, Any, Arguments, float], bool]
"""Whether a value is right, by (value, value of the canonical solution, arguments, tolerance)."""


class EvalPlus(CodeTask):
    """A benchmark in evalplus's format: a text is right if its program is right on all base inputs and plus inputs.

    Parameters
    ----------
    data : str or Path, optional
        The file of the release (`.jsonl` or `.jsonl.gz`), or a folder with this file.
    seconds : float
        Time limit for all examples, and for the call of each hidden input; a call may also take four times as long
        as the canonical solution's. All calls together end after `TOTAL_SECONDS`.
    stop, unsafe, thinking
        As for `CodeTask`.
    """

    file: ClassVar[str]
    """The begin of the file's name."""
    release: ClassVar[str]
    """The address of the file."""
    oracles: ClassVar[Mapping[str, Oracle]]
    """By entry point: the comparison, where equality is no criterion."""

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        stop: tuple[str, ...] | None = None,
        seconds: float = 5.0,
        unsafe: bool = False,
        thinking: Tags | None = THINKING,
    ) -> None:
        super().__init__(stop=stop, seconds=seconds, unsafe=unsafe, thinking=thinking)
        self.data = None if data is None else Path(data)

    def rows(self) -> list[dict[str, Any]]:
        path = self._path()
        return [self._checked(row, f"row {number} of {str(path)!r}") for number, row in enumerate(read_rows(path), 1)]

    def arguments(self, row: Mapping[str, Any], inputs: list[Any]) -> Arguments:
        """The arguments of a call from an input of the file, which holds neither tuples nor sets."""
        return tuple(inputs)

    def observed(self, row: Mapping[str, Any], program: str) -> str:
        """The program whose function returns what the oracle compares."""
        return program

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the code agrees with the canonical solution on all inputs.

        Raises
        ------
        InputError
            If the canonical solution of the row fails.
        """
        return self._agrees(problem, text, "base_input") and self._agrees(problem, text, "plus_input")

    def scores(self, problem: Problem, text: str) -> dict[str, float]:
        """`base_tests`: 1 if the code agrees on the base inputs, which are those of HumanEval and MBPP."""
        return {"base_tests": float(self._agrees(problem, text, "base_input"))}

    def _agrees(self, problem: Problem, text: str, part: str) -> bool:
        row, program = problem.doc, self.program(problem, text)
        if program is None:
            return False
        name, right = row["entry_point"], row["prompt"] + row["canonical_solution"]
        oracle = self.oracles.get(name, equal)
        options = {"seconds": self.seconds, "unsafe": self.unsafe}
        programs = self.observed(row, program), self.observed(row, right)
        try:
            return _agree(*programs, name, tuple(row[part]), oracle, row["atol"], **options)
        except InputError as error:
            raise InputError(f"{row['task_id']}: {error}") from error

    def _path(self) -> Path:
        wanted = f"download {self.release}, and give the file or its folder: DATA=FILE (--data FILE)"
        if self.data is None:
            raise InputError(f"no data for {self.name}: {wanted}")
        places = [self.data]
        for folder in (self.data / self.name, self.data):
            places += [folder / f"{self.file}{ending}" for ending in (".jsonl", ".jsonl.gz")]
            places += sorted(folder.glob(f"{self.file}*.jsonl*"))
        found = next((path for path in places if path.is_file()), None)
        if found is None:
            raise InputError(f"no data for {self.name} at {str(self.data)!r}: {wanted}")
        return found

    def _checked(self, row: Any, place: str) -> dict[str, Any]:
        """The columns of a row, with each input as the literal of a tuple of arguments."""
        if not isinstance(row, dict):
            raise InputError(f"{place} is {str(row)[:60]!r}, not an object; take the file of {self.release}")
        kinds: dict[str, Any] = dict.fromkeys(("task_id", "entry_point", "prompt", "canonical_solution"), str)
        kinds |= {"base_input": list, "plus_input": list, "atol": int | float}
        for column, kind in kinds.items():
            if not isinstance(row.get(column), kind):
                found = f"{str(row[column])[:60]!r} as" if column in row else "no"
                raise InputError(f"{place} has {found} {column}; take the file of {self.release}")
        if row["entry_point"] not in _functions(self.head(row)):
            raise InputError(f"{place} has a prompt without the function {row['entry_point']!r}; correct the row")
        try:
            self.examples(row)
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{place} has a prompt whose examples are no Python ({error}); correct the row") from error
        try:
            calls = {
                part: [plain_data(self.arguments(row, inputs), exact=True) for inputs in row[part]]
                for part in ("base_input", "plus_input")
            }
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise InputError(f"{place} has inputs that are no arguments ({error}); correct the row") from error
        return {column: row[column] for column in kinds} | calls


def _functions(program: str) -> set[str]:
    try:
        return {node.name for node in ast.parse(program).body if isinstance(node, ast.FunctionDef)}
    except (SyntaxError, ValueError):
        return set()


@lru_cache(maxsize=2**14)
def _agree(
    program: str,
    right: str,
    entry_point: str,
    calls: tuple[str, ...],
    oracle: Oracle,
    tolerance: float,
    seconds: float,
    unsafe: bool,
) -> bool:
    shipped: list[Callable[..., Any]] = [close, all_floats, compare, equal, *[oracle] * (oracle is not equal)]
    call = f"compare(candidate, {right!r}, {entry_point!r}, {calls!r}, {oracle.__name__}, {tolerance!r}, {seconds!r})"
    tests = f"{source_of(*shipped)}\ndef check(candidate):\n    {call}\n"
    outcome = examined(program, prelude="", tests=tests, entry_point=entry_point, seconds=TOTAL_SECONDS, unsafe=unsafe)
    if outcome.status == NO_REFERENCE:
        reason = outcome.stderr.strip().splitlines()[-1:]
        raise InputError(f"the canonical solution fails ({''.join(reason)}); correct the file of the data")
    return outcome.ended == "ok"


# The following functions run in the sandbox, under the system's Python and without this module.


def compare(
    candidate: Callable[..., Any],
    source: str,
    entry_point: str,
    calls: Sequence[str],
    oracle: Oracle,
    tolerance: float,
    seconds: float,
) -> None:
    """Raise an error at the first call whose value is not right, and end with status 86 if `source` fails."""
    import signal
    import sys
    import time
    from copy import deepcopy

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)  # the default action is ignored, as the process is the first of its namespace
    scope: dict[str, Any] = {"__name__": "solution"}
    for call in calls:
        arguments = eval(call)
        began = time.monotonic()
        try:
            if entry_point not in scope:
                exec(compile(source, "solution.py", "exec", dont_inherit=True), scope)
            right = scope[entry_point](*deepcopy(arguments))
        except BaseException as error:
            print(f"{type(error).__name__} for the arguments {call[:100]}", file=sys.stderr)
            raise SystemExit(86) from None
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 4 * (time.monotonic() - began)))
        value = candidate(*arguments)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if tolerance == 0 and all_floats(right):
            tolerance = 1e-6  # for the following calls too, as in evalplus
        if not oracle(value, right, arguments, tolerance):
            raise AssertionError(call)


def all_floats(value: Any) -> bool:
    """Whether a value is a float, or a list or tuple of floats."""
    items = value if isinstance(value, (list, tuple)) and value else [value]
    return all(isinstance(item, float) for item in items)


def equal(value: Any, right: Any, arguments: Arguments, tolerance: float) -> bool:
    """Equality; with a tolerance, also numbers that are close, in lists and tuples of the same shape."""
    return bool(value == right) or (tolerance != 0 and type(value) is type(right) and close(value, right, tolerance))


def close(value: Any, right: Any, tolerance: float) -> bool:
    """Whether numbers differ by at most `tolerance` plus 1e-7 of the right number."""
    if isinstance(right, (list, tuple)):
        same = isinstance(value, (list, tuple)) and len(value) == len(right)
        return same and all(close(*pair, tolerance) for pair in zip(value, right))  # noqa: B905  Python 3.9
    if not isinstance(value, (int, float, complex)) or not isinstance(right, (int, float, complex)):
        return False
    return bool(value == right) or abs(value - right) <= tolerance + 1e-7 * abs(right) < float("inf")


def is_root(value: Any, right: Any, arguments: Arguments, tolerance: float) -> bool:
    """A polynomial with the coefficients of the argument is zero at the value."""
    import math

    terms = (factor * math.pow(value, power) for power, factor in enumerate(arguments[0]))
    return abs(sum(terms)) <= tolerance


def any_value(value: Any, right: Any, arguments: Arguments, tolerance: float) -> bool:
    """Every value is right, as in evalplus: the problem does not determine the value."""
    return True


def equal_or_zero(value: Any, right: Any, arguments: Arguments, tolerance: float) -> bool:
    return bool(value == 0) or equal(value, right, arguments, tolerance)


def same_items(value: Any, right: Any, arguments: Arguments, tolerance: float) -> bool:
    """The same items, in any order and number."""
    return set(value) == set(right)


def pyramid_surface(value: Any, right: Any, arguments: Arguments, tolerance: float) -> bool:
    """Also the surface for a height that is perpendicular to the base, rounded."""
    edge, height = arguments
    surface = edge**2 + 2 * edge * ((edge / 2) ** 2 + height**2) ** 0.5
    return equal(value, right, arguments, tolerance) or abs(value - round(surface)) <= tolerance


def digit_distance(value: Any, right: Any, arguments: Arguments, tolerance: float) -> bool:
    """Also the sum over digits of the distance between two numbers with leading zeros."""
    first, second = map(str, arguments)
    size = max(len(first), len(second))
    pairs = zip(first.zfill(size), second.zfill(size))  # noqa: B905  Python 3.9
    return equal(value, right, arguments, tolerance) or value == sum(abs(int(a) - int(b)) for a, b in pairs)


class HumanEvalPlus(EvalPlus):
    """HumanEval's 164 problems with more hidden inputs."""

    name = "humaneval-plus"
    file = "HumanEvalPlus"
    release = "https://github.com/evalplus/humanevalplus_release/releases/download/v0.1.10/HumanEvalPlus.jsonl.gz"
    oracles: ClassVar[Mapping[str, Oracle]] = {"find_zero": is_root}

    def examples(self, row: Mapping[str, Any]) -> tuple[Example, ...]:
        return examples_of(row["prompt"], row["entry_point"])


_SET_TASKS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum"),
    *("intersection_array", "find_dissimilar", "Diff"),
)
_MATCH_TASKS = ("check_str", "text_match_three", "text_starta_endb")
"""Functions that may return any object for a match, and None for no match."""
_MATCHES = """
def _matches(function):
    def called(*arguments):
        value = function(*arguments)
        return value if isinstance(value, bool) else value is not None
    return called
{name} = _matches({name})
"""


class MbppPlus(EvalPlus):
    """378 tasks of MBPP with more hidden inputs. The prompt shows one call, in an assert."""

    name = "mbpp-plus"
    file = "MbppPlus"
    release = "https://github.com/evalplus/mbppplus_release/releases/download/v0.2.0/MbppPlus.jsonl.gz"
    completion_stops = ('\n"""', "\nassert", "\nprint", "\nif __name__", "\n```")
    oracles: ClassVar[Mapping[str, Oracle]] = {
        **dict.fromkeys(_SET_TASKS, same_items),
        "are_equivalent": any_value,
        "sum_div": equal_or_zero,
        "surface_Area": pyramid_surface,
        "digit_distance_nums": digit_distance,
    }

    def head(self, row: Mapping[str, Any]) -> str:
        return f"def {row['entry_point']}(*arguments):\n    pass\n"

    def examples(self, row: Mapping[str, Any]) -> tuple[Example, ...]:
        return asserted(row["prompt"])

    def arguments(self, row: Mapping[str, Any], inputs: list[Any]) -> Arguments:
        number = row["task_id"].rpartition("/")[2]
        return CONVERSIONS.get(int(number) if number.isdigit() else -1, tuple)(inputs)

    def observed(self, row: Mapping[str, Any], program: str) -> str:
        name = row["entry_point"]
        return program + (_MATCHES.format(name=name) if name in _MATCH_TASKS else "")


@cache
def asserted(prompt: str) -> tuple[Example, ...]:
    """The examples in the asserts of a docstring: `f(1) == 2` is the call f(1) and the value 2.

    Another condition, such as `set(f(1)) == set([2])`, is an example with the value True.
    """
    try:
        doc = ast.get_docstring(ast.parse(prompt)) or ""
        found = re.search(r"^assert\b", doc, re.MULTILINE)
        nodes = ast.parse(doc[found.start() :] if found else "").body
    except (SyntaxError, ValueError):
        return ()
    return tuple(_example(node.test) for node in nodes if isinstance(node, ast.Assert))


def _example(test: ast.expr) -> Example:
    if isinstance(test, ast.Compare) and [type(each) for each in test.ops] == [ast.Eq]:
        expected = literal_text(ast.unparse(test.comparators[0]))
        if expected is not None:
            return Example(ast.unparse(test.left), expected)
    condition = re.sub(r"(?<![\w.])math\.", "__import__('math').", ast.unparse(test))
    return Example(f"bool({condition})", "=1")


def _each(convert: Callable[[Any], Any]) -> Callable[[list[Any]], Arguments]:
    return lambda inputs: tuple(map(convert, inputs))


def _at(place: int, convert: Callable[[Any], Any]) -> Callable[[list[Any]], Arguments]:
    return lambda inputs: tuple(convert(each) if at == place else each for at, each in enumerate(inputs))


def _tuples(value: list[Any]) -> list[Any]:
    return [tuple(item) for item in value]


def _two_deep(value: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _all_deep(value: Any) -> Any:
    return tuple(map(_all_deep, value)) if isinstance(value, list) else value


def _sets(value: list[Any]) -> list[Any]:
    return [set(item) if isinstance(item, list) and item else {} for item in value]


def _values_as_tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(each) for key, each in value.items()}


_TUPLES = (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809)
CONVERSIONS: dict[int, Callable[[list[Any]], Arguments]] = {
    **dict.fromkeys(_TUPLES, _each(tuple)),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), _each(_tuples)),
    **dict.fromkeys((75, 413, 444, 753), _at(0, _tuples)),
    **dict.fromkeys((106, 750), _at(1, tuple)),
    **dict.fromkeys((250, 307, 405, 446, 617, 720, 763, 808), _at(0, tuple)),
    **dict.fromkeys((259, 401, 445), _each(_two_deep)),
    **dict.fromkeys((580, 615, 791), _each(_all_deep)),
    115: _at(0, _sets),
    124: lambda inputs: (float(inputs[0]), complex(inputs[1])),
    252: lambda inputs: (complex(inputs[0]),),
    278: _at(0, _two_deep),
    722: _at(0, _values_as_tuples),
}
"""By number of the task in MBPP: the arguments of an input, since JSON has no tuples, sets and complex numbers."""
