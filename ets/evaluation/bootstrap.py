"""Paired comparisons of methods over the same problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ets.types import InputError

RESAMPLES = 10_000
"""Bootstrap resamples; at so many, the ends of an interval are off by about a fiftieth of its width."""
ENDS = (0.025, 0.975)
"""The quantiles that are the ends of an interval."""


FEWEST = 10
"""The fewest problems on which two methods must differ for a significant difference: with fewer, a percentile
interval is far too narrow."""


@dataclass(frozen=True)
class Difference:
    """The mean of per-problem differences of scores or rewards with its 95% interval.

    Parameters
    ----------
    mean, low, high : float
    p : float
        Of the sign-flip test that the differences are as likely to be one way as the other.
    differing : int
        Problems on which the two differ.
    """

    mean: float
    low: float
    high: float
    p: float
    differing: int

    @property
    def significant(self) -> bool:
        """Whether interval and test both exclude 0 at 5%, on at least `FEWEST` problems, for this comparison alone."""
        return (self.low > 0 or self.high < 0) and self.p < 0.05 and self.differing >= FEWEST


def paired_difference(scores: Mapping[str, float], others: Mapping[str, float], *, seed: int = 0) -> Difference:
    """How much better the first method is: a percentile bootstrap over problems (Efron, 1979), and a sign-flip test.

    Near 0 and 1, where few problems differ, the bootstrap alone finds differences that are not there. The problems are
    resampled, so scores are first averaged over the samples of a problem. The interval covers other problems of the
    same kind, and other samples too, whose noise is part of the spread of the differences.

    Parameters
    ----------
    scores, others : mapping of str to float
        By problem: a method's mean score there.
    seed : int
        Seed of the resampling. Equal inputs give equal intervals.

    Raises
    ------
    InputError
        If the two methods have different problems.
    """
    if scores.keys() != others.keys():
        missing = sorted(scores.keys() ^ others.keys())[0]
        raise InputError(f"problem {missing!r} has a score of one method only; let the other finish first")
    differences = np.array([scores[problem] - others[problem] for problem in sorted(scores)])
    differences[np.abs(differences) < 1e-12] = 0.0  # rounding of equal scores
    rng, count = np.random.default_rng(seed), len(differences)
    low, high = np.quantile(resampled(count, rng) @ differences / count, ENDS)
    flipped = rng.choice((-1.0, 1.0), size=(RESAMPLES, count)) @ differences
    beyond = np.sum(np.abs(flipped) >= abs(differences.sum()) - 1e-12)
    p = (1 + float(beyond)) / (1 + RESAMPLES)
    return Difference(float(differences.mean()), float(low), float(high), p, int(np.sum(differences != 0)))


def resampled(count: int, rng: np.random.Generator | None = None) -> npt.NDArray[np.int64]:
    """How often each of `count` problems is in each bootstrap resample `[RESAMPLES, count]`; by default from seed 0."""
    generator = np.random.default_rng(0) if rng is None else rng
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
