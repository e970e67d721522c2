"""Paired comparisons of methods over the same problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ets.types import InputError

RESAMPLES = 10_000
"""Bootstrap resamples; at so many, the ends of an interval are off by about a fiftieth of its width."""


@dataclass(frozen=True)
class Difference:
    """The mean of per-problem differences of scores with its 95% interval, all in [-1, 1]."""

    mean: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves 0 out: at 5%, for this comparison alone, whatever else is compared."""
        return self.low > 0 or self.high < 0


def paired_difference(scores: Mapping[str, float], others: Mapping[str, float], *, seed: int = 0) -> Difference:
    """How much better the first method is: a percentile bootstrap over problems (Efron, 1979).

    Problems are what is drawn anew, so scores are first averaged over the samples of a problem. The interval covers
    what other problems of the same kind would give; that another run would draw other samples is in it too, because
    their noise is part of the differences' spread.

    Parameters
    ----------
    scores, others : mapping of str to float
        By problem: a method's mean score there.
    seed : int
        Of the resampling: the same for all comparisons over the same problems, so that equal inputs give equal ends.

    Raises
    ------
    InputError
        If the two have not seen the same problems.
    """
    if scores.keys() != others.keys():
        missing = sorted(scores.keys() ^ others.keys())[0]
        raise InputError(f"problem {missing!r} has a score of one method only; let the other finish first")
    differences = np.array([scores[problem] - others[problem] for problem in sorted(scores)])
    rng, count = np.random.default_rng(seed), len(differences)
    counts = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    low, high = np.quantile(counts @ differences / count, (0.025, 0.975))
    return Difference(float(differences.mean()), float(low), float(high))
