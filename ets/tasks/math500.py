r"""MATH-500: competition problems, whose answers are expressions in LaTeX.

An example row (invented, in the dataset's format)::

    problem:   What is half of $\frac{3}{2}$?
    solution:  Half of $\frac{3}{2}$ is $\frac{1}{2} \cdot \frac{3}{2} = \boxed{\frac{3}{4}}.$
    answer:    \frac{3}{4}
    subject:   Prealgebra
    level:     1
    unique_id: test/prealgebra/1.json

lm-eval replaces the answer by its normal form, so `truth` reads the right answer from the solution.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ets.tasks.answers import last_stated
from ets.tasks.expressions import Expression, extracted, require_math_verify
from ets.tasks.latex import balanced, last_boxed
from ets.tasks.task import AnswerBenchmark

_TEXT = re.compile(r"\\text\s*\{[^{}]*\}|\\(?:begin|end)\s*\{[^{}]*\}|\\[a-zA-Z]+")
_FUNCTION = re.compile(r"sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|log|exp|max|min|gcd|lcm|mod|and|or|det")
_SHORT_WORD = re.compile(r"an|as|at|be|by|do|go|he|if|in|is|it|me|my|no|of|on|so|to|up|us|we")
_WORD = re.compile(r"(?<![a-zA-Z])(?:[A-Za-z]{2,})(?![a-zA-Z])")
_THREE = re.compile(r"(?!abc|ade)(?=[a-z]*[aeiou])[a-z]{3}")
_ALONE = re.compile(r"(?:\\text\s*\{)?[A-Za-z][A-Za-z'’-]*\}?")
_UNFINISHED = re.compile(r"(?:[-+*/^=<>(,&]|\\(?:cdot|times|frac|sqrt|le|ge|cup|in|pm)|\b(?:and|or))\s*$")
_LISTED = re.compile(r"\s*,?(?:\s+(?:and|or)\s+|\s*\\text\s*\{\s*(?:and|or)\s*\}\s*)")


class Math500(AnswerBenchmark):
    r"""An expression. `ets.tasks.expressions` decides by math-verify which expressions are equal.

    The last whole ``\boxed{…}`` decides, else the last "answer is …" that states an expression, else the answer
    that math-verify extracts from the text.
    """

    name = "math500"
    lm_eval = "minerva_math500"
    packages = ("math-verify",)
    main_thread = True
    box_decides = True

    def require(self) -> None:
        require_math_verify()

    def whole(self, stated: str) -> Expression | None:
        answer = _expression(stated)
        return None if answer is None or _prose(answer) else answer

    def boxed(self, content: str) -> Expression | None:
        return Expression(content) or None

    def fallback(self, text: str) -> Expression | None:
        if not balanced(text):  # cut off in the middle of an expression
            return None
        word = last_stated(text, _word)
        if word is not None:
            return word
        found = extracted(text)
        return Expression(found) or None if found else None

    def truth(self, row: Mapping[str, Any]) -> Expression:
        found = last_boxed(str(row.get("solution", ""))) or str(row.get("answer", ""))
        if not found:
            raise self.no_truth(row, r"solution with a \boxed answer")
        return Expression(found)


def _expression(stated: str) -> Expression | None:
    """A stated string as an expression, None for an incomplete expression. "$1$ and $2$" is the list of both."""
    if not balanced(stated):
        return None
    answer = Expression(last_boxed(stated) or stated)
    if not re.search(r"[<>]|\\[lg]e", answer):
        answer = Expression(_LISTED.sub(", ", answer))
    complete = re.search(r"\w", answer) and "?" not in answer and not _UNFINISHED.search(answer)
    return answer if complete else None


def _prose(answer: str) -> bool:
    """Whether an expression holds words that are neither marked as text nor names of functions."""
    words = (word.lower() for word in _WORD.findall(_TEXT.sub(" ", answer)))
    return any(_spoken(word) for word in words if not _FUNCTION.fullmatch(word))


def _spoken(word: str) -> bool:
    """Whether letters are rather a word than a product of variables."""
    return len(word) > 3 or bool(_SHORT_WORD.fullmatch(word)) or bool(_THREE.fullmatch(word))


def _word(stated: str) -> Expression | None:
    """A single word: a name, or "even"."""
    answer = _expression(stated)
    return answer if answer is not None and _ALONE.fullmatch(answer) else None
