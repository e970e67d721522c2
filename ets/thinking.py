"""Thinking sections and leftover special tokens around the answer in a generated text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

Tags: TypeAlias = tuple[str, str]
"""The opening tag and the closing tag."""

THINKING: Tags = ("<think>", "</think>")
"""The tags that most models use."""


def is_thinking(text: str, tags: Tags) -> bool:
    """Whether a text ends within a section: the last tag is an opening tag."""
    opening, closing = tags
    return text.rfind(opening) > text.rfind(closing)


def begun(prompt: str, tags: Tags | None) -> str:
    """The opening tag if a prompt ends with this tag, else "". (Some chat templates open the section in the prompt.)"""
    return tags[0] if tags is not None and prompt.rstrip().endswith(tags[0]) else ""


def after_thinking(text: str, tags: Tags | None = THINKING) -> str | None:
    """The text after the last thinking section; None if a section has no end.

    The opening tag may be missing, as some chat templates put the tag into the prompt.

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
        The tags around thinking sections, or None.
    before : str
        The opening tag before the text, if any: see `begun`.

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
    """The text after leading special tokens, up to the next special token, which starts another text.

    A checkpoint writes the special tokens of other model families as plain text.

    >>> without_special("5<|endoftext|>Question: ...")
    '5'
    """
    begin = _BEGIN.match(text)
    return _END.split(text[begin.end() :] if begin else text, maxsplit=1)[0]
