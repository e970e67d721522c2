"""Paired comparisons of methods over the same problems."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ets.evaluation.intervals import Z95
from ets.types import Floats, InputError

RESAMPLES = 10_000
"""Bootstrap resamples; at so many, the ends of an interval are off by about a fiftieth of its width."""
ENDS = (0.025, 0.975)
"""The quantiles that are the ends of an interval."""


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
        """Whether the interval leaves 0 out, for this comparison alone."""
        return self.low > 0 or self.high < 0


def paired_difference(
    scores: Mapping[str, float], others: Mapping[str, float], *, largest: float | None = 1.0, seed: int = 0
) -> Difference:
    """How much better the first method is: Student's interval with two pseudo-problems, and a sign-flip test.

    Where few problems differ, the spread of the differences is known badly: a bootstrap covers too little, and has no
    width where no problem differs. So two pseudo-problems with the largest difference, one of each sign, join the
    problems (Bonett and Price, 2012, for right-or-wrong scores). The interval also holds 0 where the sign-flip test
    does not exclude it at 5%, so that interval and verdict agree. It covers other problems of the same kind, and other
    samples too, whose noise is part of the spread of the differences.

    Parameters
    ----------
    scores, others : mapping of str to float
        By problem: a method's mean score there.
    largest : float, optional
        The largest possible difference, 1 for scores. None, for rewards, is the largest difference of these problems;
        the interval then has no width where no problem differs.
    seed : int
        Seed of the sign flips. Equal inputs give equal results.

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
    flipped = np.random.default_rng(seed).choice((-1.0, 1.0), size=(RESAMPLES, len(differences))) @ differences
    p = (1 + float(np.sum(np.abs(flipped) >= abs(differences.sum()) - 1e-12))) / (1 + RESAMPLES)
    unit = float(np.abs(differences).max()) if largest is None else largest
    low, high = student_interval(np.append(differences, (unit, -unit)))
    if p >= 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    if largest is not None:
        low, high = max(low, -largest), min(high, largest)
    return Difference(float(differences.mean()), low, high, p, int(np.sum(differences != 0)))


def student_interval(values: Floats) -> tuple[float, float]:
    """Student's 95% interval of the mean of at least three values."""
    count = len(values)
    half = student_quantile(count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return float(values.mean()) - half, float(values.mean()) + half


def student_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t with at least 2 degrees of freedom, to three digits.

    From 3 degrees on by the expansion of Abramowitz and Stegun, 26.7.5; for 2 it has a closed form.
    """
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, n = Z95, 4.0 * freedom
    first, second = z**3 + z, (5 * z**5 + 16 * z**3 + 3 * z) / 6
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 6
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 360
    return z + first / n + second / n**2 + third / n**3 + fourth / n**4


def resampled(count: int, rng: np.random.Generator | None = None) -> npt.NDArray[np.int64]:
    """How often each of `count` problems is in each bootstrap resample `[RESAMPLES, count]`; by default from seed 0."""
    generator = np.random.default_rng(0) if rng is None else rng
    return generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
