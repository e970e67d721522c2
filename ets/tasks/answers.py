r"""The answer in a text, by the same four steps for all benchmarks.

The first step that gives an answer decides:

1. the task's mark, for example ``####`` in GSM8K;
2. the last whole, non-empty ``\boxed{}``;
3. the last statement, for example "The answer is 5", "**Answer:** 5", "<answer>5</answer>", or a heading
   "Final Answer" with the value on the next line;
4. the task's fallback.

Only the text after thinking sections counts, up to a special token of any model family. A box, a mark or a statement
counts only if its whole content is an answer of the task: "The answer is a single digit" states no number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

from ets.tasks.latex import last_boxed
from ets.thinking import Tags, after_thinking, without_special

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Parser = Callable[[str], T | None]
"""Maps a string to the answer that the whole string is, or None."""

LONGEST = 400
"""Longer statements (in characters) are no answers."""
MOST = 30
"""Number of statements that are tried, from the last one backwards."""

_DECORATION = r"[\s*_#>\"'`]*"
_MARGIN = r"[ \t*_#>\"'`]*"
_ARROW = r"→|⇒|->|=>|\\to\b|\\(?:long)?[rR]ightarrow\b"
_VERB = r"(?:is|are|was|equals|(?:would|should|must|will|has\s+to|can\s+only)\s+be|comes\s+(?:out\s+)?to)\b"
_ADVERB = r"(?:therefore|thus|then|hence|simply|just|indeed|now|equal\s+to|given\s+by|found\s+to\s+be)\b"
_ABOUT = r"(?:\s+(?:in|to|for|of|as)\b[^.:=\n]{0,80}?)?"
_STATED = re.compile(
    rf"""
    \b(?:answers?|ANSWERS?|Answers?){_ABOUT}{_DECORATION}(?:{_VERB}|:|=|{_ARROW})(?:{_DECORATION}(?:{_ADVERB}|:|=))*
    | ^{_MARGIN}(?:A|Ans\.?){_DECORATION}:                                       # "A: 5"
    | \bAns\.?{_DECORATION}[:=]
    | ^{_MARGIN}(?:(?:[Tt]he|[Mm]y)\s)?(?:[Ff]inal[ \t]+)?[Aa]nswer[ \t*_#]*$     # a heading
    | <(?:final_)?answer>
    """,
    re.MULTILINE | re.VERBOSE | re.IGNORECASE,
)
_LEADING = re.compile(r"[\s*_#>:}\"'`]*")
_TAG = re.compile(r"</?[a-zA-Z_]+>|<\|")
_BEFORE_PROSE = (
    "because|since|as|which|where|when|if|so|not|in|of|for|with|from|at|by|than|that|but|while|due|per|is|are|though"
)
_CUT = re.compile(
    rf"""
    \.(?=[\s*_"'”’)]|$) | ; | :(?=\s) | \*\*
    | !(?=\s+[A-Z]) | ,(?=\s+[A-Za-z]{{2}}) | \s+(?=\() | \s[-–—]+\s(?=[A-Za-z]{{2}})
    | \s+(?=(?:{_BEFORE_PROSE})\b) | \s+(?=(?:and|or)\s+[a-z]{{2}})
    """,
    re.VERBOSE,
)


class AnswerReader(Protocol[T_co]):
    """The properties of a task that `answer_in` reads."""

    @property
    def mark(self) -> re.Pattern[str] | None:
        """The mark before an answer in the task's format, or None."""

    @property
    def box_decides(self) -> bool:
        """Whether a last box without an answer means that the text has no answer."""

    @property
    def thinking(self) -> Tags | None:
        """The tags around thinking sections, or None."""

    def whole(self, stated: str) -> T_co | None:
        """The answer that the whole string is, or None."""

    def boxed(self, content: str) -> T_co | None:
        """The answer in a box, or None."""

    def fallback(self, text: str) -> T_co | None:
        """The answer in a text (without thinking sections) that has no box and no statement."""


def answer_in(text: str, reader: AnswerReader[T]) -> T | None:
    """Return the answer in a text by the steps of this module. None without an answer, or in an unclosed section."""
    thought = after_thinking(text, reader.thinking)
    if thought is None:
        return None
    answer = without_special(thought)
    found = last_stated(answer, reader.whole, reader.mark) if reader.mark else None
    content = last_boxed(answer)
    if found is None and content is not None:
        found = reader.boxed(content)
        if found is None and reader.box_decides:
            return None
    found = last_stated(answer, reader.whole) if found is None else found
    return reader.fallback(answer) if found is None else found


def last_stated(text: str, whole: Parser[T], mark: re.Pattern[str] = _STATED) -> T | None:
    """Return the answer of the last statement that is an answer as a whole. A statement begins after a mark."""
    for found in list(mark.finditer(text))[: -MOST - 1 : -1]:
        for stated in _candidates(text, found.end()):
            value = whole(stated)
            if value is not None:
                return value
    return None


def _candidates(text: str, start: int) -> Iterator[str]:
    """Yield the line or the displayed maths after a mark, then shorter parts of the line: "5, not 6." and "5"."""
    start += len(_LEADING.match(text, start).group())  # type: ignore[union-attr]  # the pattern matches the empty string
    for opening, closing in ((r"\[", r"\]"), ("$$", "$$")):
        end = text.find(closing, start + 2, start + LONGEST) if text.startswith(opening, start) else -1
        if end >= 0:
            yield text[start + 2 : end].replace("\n", " ").strip()
    line = _TAG.split(text[start : start + LONGEST + 1].split("\n", 1)[0], maxsplit=1)[0]
    ends = [found.start() for found in _CUT.finditer(line)]
    for end in [len(line)] * (len(line) <= LONGEST) + ends[::-1]:
        if stated := line[:end].strip():
            yield stated
