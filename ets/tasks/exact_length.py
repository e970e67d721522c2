"""Exact length: texts of a number of words.

An example row::

    {"prompt": "Describe a lighthouse in exactly 20 words.", "words": 20}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ets.rewards.rows import RowReward, demand
from ets.tasks.words import words_of


@RowReward
def exact_length(row: Mapping[str, Any], text: str) -> float:
    """1 for a text of the wanted number of words, and less by the relative difference, down to 0.

    The length of an unfinished text says nothing, so it is no reward of prefixes.
    """
    wanted = demand(row, "words", int, "a number of words")
    return max(0.0, 1.0 - abs(len(words_of(text)) - wanted) / wanted)
