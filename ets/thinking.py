"""What stands around an answer in a generated text: thinking sections, and special tokens that were not removed."""

from __future__ import annotations

import re
from typing import TypeAlias

Tags: TypeAlias = tuple[str, str]
"""The opening tag and the closing tag."""

THINKING: Tags = ("<think>", "</think>")
"""The tags that most models use."""


def answer_starts(text: str, tags: Tags | None) -> int | None:
    """The index after the last closing tag; None if a section is still open there.

    0 for a text without tags. The opening tag may be missing, as some chat templates put it into the prompt.
    """
    if tags is None:
        return 0
    opening, closing = tags
    found = text.rfind(closing)
    start = found + len(closing) if found >= 0 else 0
    return None if opening in text[start:] else start


def after_thinking(text: str, tags: Tags | None = THINKING) -> str | None:
    """The text after the last thinking section; None if a section has no end, as the answer is then missing.

    >>> after_thinking("<think>9? No.</think>5")
    '5'
    """
    start = answer_starts(text, tags)
    return None if start is None else text[start:]


_SPECIAL = r"<\|[\w ]{2,30}\|>|<｜[^｜\n]{2,30}｜>"
_BEGIN = re.compile(rf"(?:\s*(?:<s>|<bos>|<start_of_turn>|{_SPECIAL})(?:\s*(?:assistant|model)\s*\n)?)+")
_END = re.compile(rf"{_SPECIAL}|(?:</s>|<eos>|<end_of_turn>)(?=\s*$)", re.MULTILINE)


def without_special(text: str) -> str:
    """The text without special tokens at its beginning, and up to the first one after that: another text follows it.

    A checkpoint does not know the tokens of other families, and writes them as plain text.

    >>> without_special("5<|endoftext|>Question: ...")
    '5'
    """
    begin = _BEGIN.match(text)
    return _END.split(text[begin.end() :] if begin else text, maxsplit=1)[0]
