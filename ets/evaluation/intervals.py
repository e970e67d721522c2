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


def accuracy(scores: Sequence[float]) -> Accuracy:
    """Wilson's interval over problems, for per-problem scores in [0, 1].

    Where a score is a mean over several samples, the scores vary less than single right-or-wrong ones would:
    Wilson's formula (1927) is used with the number of problems n scaled by p(1 - p) / variance, so that its
    standard error is the scores' own. For scores of 0 and 1 that is n itself.
    """
    values = np.asarray(scores, float)
    n, p = float(len(values)), float(values.mean())
    variance = float(values.var())
    if variance > 0:
        n *= p * (1 - p) / variance
    centre = (p + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return Accuracy(p, max(0.0, centre - half), min(1.0, centre + half))
