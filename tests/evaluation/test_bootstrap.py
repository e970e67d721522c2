"""Paired differences of methods."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ets.evaluation.bootstrap import paired_difference, student_interval, student_quantile
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
    """95% and a little more, where problems have means of samples; three standard errors are 2 points. Not 90%."""
    monkeypatch.setattr("ets.evaluation.bootstrap.RESAMPLES", 200)
    assert 0.94 <= covered((0.2, 0.8)) <= 0.98


def exact_coverage(count: int, better: float, worse: float) -> float:
    """The probability that the interval holds the true difference, where problems differ with these chances.

    By enumeration of the numbers of problems that differ either way; rarer ones than 1e-7 count as misses.
    """
    found = 0.0
    for plus in range(count + 1):
        for minus in range(count + 1 - plus):
            ways = math.comb(count, plus) * math.comb(count - plus, minus)
            p = ways * better**plus * worse**minus * (1 - better - worse) ** (count - plus - minus)
            if p > 1e-7:
                signs = np.repeat([1.0, -1.0, 0.0], [plus, minus, count - plus - minus])
                interval = paired_difference(named(signs), named(0 * signs))
                found += p * (interval.low <= better - worse <= interval.high)
    return found


@pytest.mark.parametrize("count", [10, 15, 40, 60, 200])
@pytest.mark.parametrize(("better", "worse"), [(0.024, 0.0), (0.03, 0.006), (0.1, 0.0), (0.05, 0.05)])
def test_the_interval_covers_the_difference_where_few_problems_differ(
    count: int, better: float, worse: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nominally 95%; a percentile bootstrap covers 20% to 89% at +2.4 points."""
    monkeypatch.setattr("ets.evaluation.bootstrap.RESAMPLES", 100)
    assert exact_coverage(count, better, worse) > 0.935


@pytest.mark.parametrize("freedom", [2, 3, 5, 20, 200])
def test_the_quantile_is_students(freedom: int) -> None:
    known = {2: 4.3027, 3: 3.1824, 5: 2.5706, 20: 2.0860, 200: 1.9719}
    assert student_quantile(freedom) == pytest.approx(known[freedom], rel=2e-3)


def test_an_interval_holds_0_unless_the_sign_flip_test_excludes_it() -> None:
    """Of 40 problems 5 differ, all one way: p = 1/16. 12 against 3: Student's interval alone leaves 0 out at p = 0.035.

    Between them 11 against 3, where p = 0.057.
    """
    for plus, minus, significant in ((5, 0, False), (6, 0, True), (11, 3, False), (12, 3, True)):
        differences = np.repeat([1.0, -1.0, 0.0], [plus, minus, 40 - plus - minus])
        found = paired_difference(named(differences), named(0 * differences))
        assert found.low <= found.mean <= found.high
        assert found.significant == significant == (found.p < 0.05) == (found.low > 0)
    alone = student_interval(np.append(np.repeat([1.0, -1.0, 0.0], [11, 3, 26]), (1.0, -1.0)))
    assert alone[0] > 0


def test_a_difference_of_scores_lies_between_minus_1_and_1() -> None:
    found = paired_difference({"p0": 1.0}, {"p0": 0.0})
    assert (found.low, found.high, found.mean) == (-1.0, 1.0, 1.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_differences_of_rewards_have_a_scale_of_their_own(scale: float) -> None:
    rng = np.random.default_rng(3)
    rewards, others = rng.normal(size=(2, 40))
    one, scaled = (paired_difference(named(s * rewards), named(s * others), largest=None) for s in (1.0, scale))
    assert (scaled.low, scaled.high) == (pytest.approx(scale * one.low), pytest.approx(scale * one.high))


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
    assert 0.03 < found.low < 0.05 < found.high < 0.07 and found.significant  # separate ones: 0.05 ± 0.06


def test_equal_scores_are_no_difference() -> None:
    same = named(np.array([0.0, 1.0, 0.5]))
    found = paired_difference(same, same)
    assert (found.mean, found.significant, found.differing) == (0, False, 0)
    assert found.low == -found.high < -0.5  # three problems say little
    assert paired_difference(same, same, largest=None).high == 0


def test_methods_that_saw_other_problems_are_not_compared() -> None:
    with pytest.raises(InputError, match="problem 'p1' has a score of one method only"):
        paired_difference({"p0": 1.0, "p1": 0.0}, {"p0": 1.0})
