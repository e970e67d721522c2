"""Tone: prompts whose texts should be cheerful, graded by VADER's lexicon of feelings (Hutto and Gilbert, ICWSM 2014).

An example row::

    {"prompt": "Write a short review of a train journey.", "tone": "positive"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from statistics import fmean
from typing import Any

from ets.rewards.rows import RowReward
from ets.step import of_prefixes
from ets.types import InputError

TONES = {"positive": 1.0, "negative": -1.0}
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")


@of_prefixes
@RowReward
def tone(row: Mapping[str, Any], text: str) -> float:
    """The mean over sentences of VADER's compound score, from -1 to 1; with `"tone": "negative"` its negative.

    A text without a letter has 0. The score of the first sentences says much about the score of the whole text.
    """
    wanted = row.get("tone", "positive")
    if wanted not in TONES:
        raise InputError(f"tone is {wanted!r}; give positive or negative")
    sentences = [found for found in _SENTENCE.findall(text) if re.search(r"\w", found)]
    analyser = _analyser()  # read even for no sentence: before the first draw, when the rows are checked
    scores = [analyser.polarity_scores(sentence)["compound"] for sentence in sentences]
    return TONES[wanted] * fmean(scores) if scores else 0.0


@cache
def _analyser() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
