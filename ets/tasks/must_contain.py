"""Must contain: texts with all words of a list.

An example row::

    {"prompt": "Tell a story with the words lamp, river and bread.", "words": ["lamp", "river", "bread"]}
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ets.rewards.rows import RowReward, demand
from ets.step import of_prefixes
from ets.tasks.words import holds


@of_prefixes
@RowReward
def must_contain(row: Mapping[str, Any], text: str) -> float:
    """The share of the words or phrases that stand in the text, in any case. A word that is there stays there."""
    return fmean(holds(text, str(word)) for word in demand(row, "words", list, "a list of words"))
