r"""MATH-500: competition problems, whose answers are expressions in LaTeX.

An example row (invented, in the dataset's format)::

    problem:   What is half of $\frac{3}{2}$?
    solution:  Half of $\frac{3}{2}$ is $\frac{1}{2} \cdot \frac{3}{2} = \boxed{\frac{3}{4}}.$
    answer:    \frac{3}{4}
    subject:   Prealgebra
    level:     1
    unique_id: test/prealgebra/1.json

lm-eval passes it on with its own normal form of the answer, so the right one is read from the solution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ets.tasks.expressions import Expression, require_math_verify
from ets.tasks.latex import balanced, last_boxed
from ets.tasks.task import Benchmark
from ets.types import Problem

_STATED = re.compile(r"final answer is:?[\s*]*(.+?)(?:\s*I hope it is correct|\n|$)", re.IGNORECASE)
_SEGMENT = re.compile(r"(?<!\\)\$+((?:\\.|[^$\\])+)\$+|\\\((.+?)\\\)|\\\[(.+?)\\\]")


class Math500(Benchmark):
    r"""An expression; math-verify decides which are equal.

    The first whole "final answer is …" decides, else the last whole ``\boxed{…}``.
    """

    name = "math500"
    lm_eval = "minerva_math500"
    packages = ("math-verify",)
    main_thread = True

    def require(self) -> None:
        require_math_verify()

    def extract(self, problem: Problem, text: str) -> Expression | None:
        found = _stated(text) or last_boxed(text)
        return Expression(found) or None if found else None

    def truth(self, row: Mapping[str, Any]) -> Expression:
        found = last_boxed(str(row.get("solution", ""))) or str(row.get("answer", ""))
        if not found:
            raise self.no_truth(row, r"solution with a \boxed answer")
        return Expression(found)


def _stated(text: str) -> str | None:
    """What a text says that the final answer is, if it says so to the end."""
    for found in _STATED.finditer(text):
        said = found.group(1).lstrip(" *").rstrip(" *.")
        if not balanced(said):
            continue
        segments = ["".join(filter(None, groups)).strip() for groups in _SEGMENT.findall(said)]
        answer = ", ".join(segments) or said
        answer = last_boxed(answer) or answer
        if re.search(r"\w", answer):
            return answer
    return None
