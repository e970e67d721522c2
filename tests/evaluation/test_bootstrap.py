"""Paired differences of methods."""

from __future__ import annotations

import numpy as np
import pytest

from ets.evaluation.bootstrap import paired_difference
from ets.types import InputError


def named(values: np.ndarray) -> dict[str, float]:
    return {f"p{n}": float(value) for n, value in enumerate(values)}


def covered(ease: tuple[float, float], repetitions: int = 1000) -> float:
    """How often the interval of 60 problems, 4 samples each, holds the true difference of 0.1."""
    rng, hits = np.random.default_rng(0), 0
    for repetition in range(repetitions):
        chances = rng.uniform(*ease, size=60)
        scores = [rng.binomial(4, chances + shift) / 4 for shift in (0.1, 0.0)]
        found = paired_difference(*map(named, scores), seed=repetition)
        hits += found.low <= 0.1 <= found.high
    return hits / repetitions


def test_the_interval_covers_the_difference_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """95% less what a percentile interval of 60 problems lacks; three standard errors are 2 points. Not 90%."""
    monkeypatch.setattr("ets.evaluation.bootstrap.RESAMPLES", 500)
    assert 0.92 <= covered((0.2, 0.8)) <= 0.97


def test_verdicts_are_rarely_wrong_where_differences_are_rare_and_lopsided(monkeypatch: pytest.MonkeyPatch) -> None:
    """One method always fails on 3% of problems, the other on 3% of samples: equal. A bootstrap alone errs in 16%.

    Of 300 repetitions at most 5% may be called different, and three standard errors more.
    """
    monkeypatch.setattr("ets.evaluation.bootstrap.RESAMPLES", 500)
    rng, wrong = np.random.default_rng(1), 0
    for repetition in range(300):
        stubborn = np.where(rng.random(60) < 0.03, 0.0, 1.0)
        noisy = rng.binomial(4, 0.97, size=60) / 4
        wrong += paired_difference(named(stubborn), named(noisy), seed=repetition).significant
    assert wrong / 300 <= 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_pairing_makes_intervals_narrower_than_two_separate_ones_would_be() -> None:
    rng = np.random.default_rng(1)
    ease = rng.uniform(0, 1, size=200)
    found = paired_difference(named(ease + 0.05), named(ease))
    assert found.low == pytest.approx(0.05) and found.high == pytest.approx(0.05) and found.significant


def test_equal_scores_are_no_difference() -> None:
    same = named(np.array([0.0, 1.0, 0.5]))
    found = paired_difference(same, same)
    assert (found.mean, found.low, found.high, found.significant) == (0, 0, 0, False)


def test_methods_that_saw_other_problems_are_not_compared() -> None:
    with pytest.raises(InputError, match="problem 'p1' has a score of one method only"):
        paired_difference({"p0": 1.0, "p1": 0.0}, {"p0": 1.0})
