"""Confidence intervals against numbers by hand, and their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ets.evaluation.intervals import accuracy


def right_of(right: int, count: int) -> list[float]:
    return [1.0] * right + [0.0] * (count - right)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [  # by hand: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
        (10, 10, 0.722467, 1.0),
        (0, 10, 0.0, 0.277533),
        (7, 20, 0.181192, 0.567146),
        (1, 2, 0.094531, 0.905469),
        (1, 1, 0.206549, 1.0),
        (81, 263, 0.255289, 0.366210),
    ],
)
def test_right_or_wrong_scores_get_wilsons_interval(right: int, count: int, low: float, high: float) -> None:
    found = accuracy(right_of(right, count))
    assert found.mean == right / count
    assert [found.low, found.high] == pytest.approx([low, high], abs=2e-6)


scores = st.lists(st.integers(0, 8).map(lambda n: n / 8), min_size=1, max_size=30)


@settings(derandomize=True, max_examples=200)
@given(scores)
def test_the_interval_is_mirrored_and_stays_within_zero_and_one(values: list[float]) -> None:
    found, mirrored = accuracy(values, 40), accuracy([1 - value for value in values], 40)
    assert found.low >= 0 and found.high <= 1
    assert (mirrored.low, mirrored.mean, mirrored.high) == pytest.approx(
        (1 - found.high, 1 - found.mean, 1 - found.low)
    )


@settings(derandomize=True, max_examples=200)
@given(scores)
def test_the_mean_lies_in_the_interval(values: list[float]) -> None:
    found = accuracy(values, samples=40)
    assert found.low <= found.mean + 1e-12 and found.mean <= found.high + 1e-12


def test_the_mean_lies_in_the_interval_to_the_last_digit() -> None:
    for count in range(1, 40):
        for found in (accuracy(right_of(0, count)), accuracy(right_of(count, count))):
            assert found.low <= found.mean <= found.high


def test_scores_averaged_over_samples_give_a_narrower_interval_than_single_ones_of_the_same_mean() -> None:
    single = accuracy(right_of(10, 20))
    averaged = accuracy([0.25] * 5 + [0.5] * 10 + [0.75] * 5, samples=40)
    assert averaged.mean == single.mean == 0.5
    assert single.high - single.low > 2 * (averaged.high - averaged.low) > 0


def test_a_large_sample_has_the_standard_error_of_its_scores() -> None:
    values = [0.25, 0.5, 0.5, 0.75, 1.0] * 400
    found = accuracy(values, samples=40)
    error = float(np.std(values)) / math.sqrt(len(values))
    assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=0.01)


@pytest.mark.parametrize(("count", "p"), [(20, 0.5), (40, 0.3), (100, 0.05), (264, 0.9)])
def test_exact_coverage_of_right_or_wrong_scores_is_95_percent_within_3(count: int, p: float) -> None:
    covered = 0.0
    for right in range(count + 1):
        found = accuracy(right_of(right, count))
        if found.low <= p <= found.high:
            covered += math.comb(count, right) * p**right * (1 - p) ** (count - right)
    assert covered == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("problems", "samples"), [(30, 4), (100, 8)])
def test_simulated_coverage_of_averaged_scores_is_95_percent_within_2(problems: int, samples: int) -> None:
    rng, runs = np.random.default_rng(0), 4000  # a standard error of 0.35%
    difficulty = rng.beta(1.2, 0.8, size=(runs, problems))  # of mean 0.6
    found = [accuracy(row, samples) for row in rng.binomial(samples, difficulty) / samples]
    assert np.mean([interval.low <= 0.6 <= interval.high for interval in found]) == pytest.approx(0.95, abs=0.02)


def test_scores_that_are_equal_but_for_rounding_are_equal() -> None:
    rounded = [1.0] * 99 + [0.9999999999999999]
    assert accuracy(rounded, 4) == pytest.approx(accuracy([1.0] * 100, 4))
