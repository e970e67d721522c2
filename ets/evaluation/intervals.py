"""Confidence intervals for accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Accuracy:
    """A mean of per-problem scores with its 95% interval, all in [0, 1]."""

    mean: float
    low: float
    high: float


def accuracy(scores: Sequence[float], samples: int = 1) -> Accuracy:
    """Wilson's interval over problems, for per-problem scores in [0, 1], each a mean over so many samples.

    Means over several samples vary less than single right-or-wrong scores would: Wilson's formula (1927) is
    used with the number of problems n scaled by p(1 - p) / variance, so that its standard error is the scores'
    own, but with no more than n times `samples`. For scores of 0 and 1 that is n itself. With means over
    samples of fewer than about 20 problems the interval is a little narrow (it covers 92% at 10).
    """
    values = np.asarray(scores, float)
    n, p = float(len(values)), float(values.mean())
    variance = float(values.var())
    if variance > 1e-12:  # more than the rounding of equal scores
        n *= min(p * (1 - p) / variance, samples)
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return Accuracy(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))
