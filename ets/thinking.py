"""What stands around an answer in a generated text: thinking sections, and special tokens that were not removed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

Tags: TypeAlias = tuple[str, str]
"""The opening tag and the closing tag."""

THINKING: Tags = ("<think>", "</think>")
"""The tags that most models use."""


def is_thinking(text: str, tags: Tags) -> bool:
    """Whether a text ends within a section: its last tag is an opening one."""
    opening, closing = tags
    return text.rfind(opening) > text.rfind(closing)


def begun(prompt: str, tags: Tags | None) -> str:
    """The opening tag if a prompt ends with it, as some chat templates' do: then a generation begins in a section."""
    return tags[0] if tags is not None and prompt.rstrip().endswith(tags[0]) else ""


def after_thinking(text: str, tags: Tags | None = THINKING) -> str | None:
    """The text after the last thinking section; None if a section has no end, as the answer is then missing.

    The opening tag may be missing, as some chat templates put it into the prompt.

    >>> after_thinking("<think>9? No.</think>5")
    '5'
    """
    if tags is None:
        return text
    return None if is_thinking(text, tags) else text.rpartition(tags[1])[2]


def cut_at(text: str, stop: Iterable[str], tags: Tags | None = None, before: str = "") -> str:
    """The text up to the first stop string that stands outside of thinking sections.

    Parameters
    ----------
    text : str
    stop : iterable of str
    tags : (str, str), optional
        The tags around thinking sections; None if there are none.
    before : str
        What stands before the text, as far as tags are concerned: see `begun`.

    Examples
    --------
    >>> cut_at("<think>1. No</think>2. Yes", [". "], ("<think>", "</think>"))
    '<think>1. No</think>2'
    """
    places = (found.start() for string in stop for found in re.finditer(re.escape(string), text))
    outside = (at for at in sorted(places) if tags is None or not is_thinking(before + text[:at], tags))
    return text[: next(outside, len(text))]


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
