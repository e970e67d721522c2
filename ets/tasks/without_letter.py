"""Without a letter: texts in which no word has a letter, such as a story without an e.

An example row::

    {"prompt": "Write a few sentences about a storm without the letter e.", "letter": "e", "least": 12}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ets.rewards.rows import RowReward, demand
from ets.step import of_prefixes
from ets.tasks.words import words_of


@of_prefixes
@RowReward
def without_letter(row: Mapping[str, Any], text: str) -> float:
    """The share of the words without the letter, times the share of the `least` words (default: 10) that are there.

    It is 1 for a text of enough words, all of them without the letter. A letter that stands in the first words stays.
    """
    letter = demand(row, "letter", str, "a letter").lower()
    least = demand({"least": 10, **row}, "least", int, "a number of words")
    words = words_of(text)
    free = sum(letter not in word.lower() for word in words)
    return free / max(len(words), least)
