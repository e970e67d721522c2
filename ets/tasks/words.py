"""The words of a text, for the rewards of ready tasks."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """The words: letters, with apostrophes and hyphens inside.

    >>> words_of("It's a well-known fact, 2 times.")
    ["It's", 'a', 'well-known', 'fact', 'times']
    """
    return _WORD.findall(text)


def holds(text: str, phrase: str) -> bool:
    """Whether a word or a phrase stands in a text, in any case and not within a longer word."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None
