"""Paired differences of methods."""

from __future__ import annotations

import numpy as np
import pytest

from ets.evaluation.bootstrap import paired_difference
from ets.types import InputError


def named(values: np.ndarray) -> dict[str, float]:
    return {f"p{n}": float(value) for n, value in enumerate(values)}


def test_the_interval_covers_the_difference_as_often_as_it_says() -> None:
    """60 problems with 4 samples each, correlated between methods; 400 repetitions, 95% ± 3.5 standard errors."""
    rng, covered, repetitions = np.random.default_rng(0), 0, 400
    for _ in range(repetitions):
        ease = rng.uniform(0.2, 0.8, size=60)
        scores = [rng.binomial(4, ease + shift) / 4 for shift in (0.1, 0.0)]
        found = paired_difference(*map(named, scores))
        covered += found.low <= 0.1 <= found.high
    assert 0.91 <= covered / repetitions <= 0.985


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
