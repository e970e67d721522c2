"""Thinking sections: what a model writes before its answer, between two tags."""

from __future__ import annotations

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
