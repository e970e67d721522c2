"""Weights in log space, and the index that a uniform selects."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ets.types import Cost, Step, Text
from ets.weights import (
    effective_sample_size,
    log_mean_exp,
    log_run_weight,
    normalised,
    pick,
)

BELOW_ONE = math.nextafter(1.0, 0.0)
moderate = st.lists(st.floats(-30, 30), min_size=1, max_size=8)
weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e6)), min_size=1, max_size=8).filter(any)
uniforms = st.one_of(st.floats(0, BELOW_ONE), st.sampled_from([0.0, BELOW_ONE]))


@settings(derandomize=True, max_examples=100)
@given(moderate)
def test_log_mean_exp_equals_the_direct_formula(values: list[float]) -> None:
    direct = math.log(sum(math.exp(value) for value in values) / len(values))
    assert log_mean_exp(np.array([values]), axis=1)[0] == pytest.approx(direct, abs=1e-12)


@settings(derandomize=True, max_examples=50)
@given(moderate, st.sampled_from([1e4, -1e4]))
def test_log_mean_exp_follows_shifts_that_exp_cannot_represent(values: list[float], shift: float) -> None:
    plain, shifted = log_mean_exp(np.array(values), axis=0), log_mean_exp(np.array(values) + shift, axis=0)
    assert shifted - shift == pytest.approx(plain, abs=1e-10)


def test_log_mean_exp_averages_along_the_named_axis() -> None:
    values = np.log([[1.0, 3.0], [5.0, 9.0]])
    assert np.allclose(log_mean_exp(values, axis=1), np.log([2.0, 7.0]))
    assert np.allclose(log_mean_exp(values, axis=0), np.log([3.0, 6.0]))


def test_log_mean_exp_counts_minus_infinity_as_a_zero() -> None:
    values = np.array([[-np.inf, -np.inf], [0.0, -np.inf], [0.0, 0.0]])
    assert log_mean_exp(values, axis=1).tolist() == [-np.inf, pytest.approx(math.log(0.5)), 0.0]


@settings(derandomize=True, max_examples=100)
@given(moderate, st.sampled_from([0.0, 1e4, -1e4]))
def test_normalised_weights_are_proportional_to_their_exponentials(values: list[float], shift: float) -> None:
    total = sum(math.exp(value) for value in values)
    expected = [math.exp(value) / total for value in values]
    assert normalised(np.array(values) + shift) == pytest.approx(expected, rel=1e-9)


def test_normalised_is_uniform_only_if_every_weight_is_zero() -> None:
    assert normalised(np.full(4, -np.inf)).tolist() == [0.25] * 4
    assert normalised(np.array([-np.inf, -1e5, -np.inf])).tolist() == [0.0, 1.0, 0.0]


@settings(derandomize=True, max_examples=100)
@given(st.lists(st.one_of(st.just(-math.inf), st.floats(-800, 800)), min_size=1, max_size=8))
def test_effective_sample_size_lies_between_one_and_the_number_of_possible_choices(values: list[float]) -> None:
    possible = sum(value > -math.inf for value in values) or len(values)
    assert 1 - 1e-12 <= effective_sample_size(np.array(values)) <= possible + 1e-9


def test_effective_sample_size_of_known_weights() -> None:
    assert effective_sample_size(np.full(5, -1234.5)) == pytest.approx(5)
    assert effective_sample_size(np.array([0.0, -1000.0, -np.inf])) == pytest.approx(1)
    assert effective_sample_size(np.log([0.5, 0.25, 0.25])) == pytest.approx(8 / 3)


def on_both_sides_of_every_edge(probabilities: list[float]) -> dict[float, int]:
    """Uniforms and the index that each must select, for probabilities whose sums are exact in binary."""
    edges = [0.0, *accumulate(probabilities)]
    assert edges[-1] == 1.0
    expected: dict[float, int] = {}
    for index, (low, high) in enumerate(pairwise(edges)):
        if low < high:
            expected |= {low: index, math.nextafter(high, 0.0): index}
    return expected


@pytest.mark.parametrize(
    "probabilities",
    [
        [1.0],
        [0.125, 0.25, 0.5, 0.125],
        [2.0**-40, 0.5, 0.5 - 2.0**-40],
        [0.0, 0.5, 0.5],
        [0.5, 0.0, 0.5],
        [0.5, 0.5, 0.0],
        [0.0, 0.0, 0.25, 0.0, 0.0, 0.75, 0.0, 0.0],
    ],
)
def test_pick_changes_over_exactly_at_the_cdf_edges_and_never_picks_a_zero(probabilities: list[float]) -> None:
    for uniform, index in on_both_sides_of_every_edge(probabilities).items():
        assert pick(np.array(probabilities), uniform) == index, uniform


@settings(derandomize=True, max_examples=200)
@given(weights, uniforms)
def test_pick_inverts_the_exact_cdf_of_unnormalised_weights(values: list[float], uniform: float) -> None:
    index = pick(np.array(values), uniform)
    exact = [Fraction(0), *accumulate(map(Fraction, values))]
    target, slack = Fraction(uniform) * exact[-1], exact[-1] * Fraction(1e-14)
    assert values[index] > 0
    assert exact[index] - slack <= target <= exact[index + 1] + slack


def test_pick_is_clamped_where_the_product_with_the_total_rounds_up_to_it() -> None:
    smallest = 5e-324
    assert smallest * BELOW_ONE == smallest  # so the cdf alone would select an index past the end
    assert pick(np.array([0.0, smallest, 0.0]), BELOW_ONE) == 1


def test_a_run_whose_weights_were_all_zero_once_has_weight_zero() -> None:
    """Also where the step that came after it had weights, and where a candidate was impossible."""
    impossible = Text((1,), "a", -1.0, False, -math.inf)
    rows, zeros = ((impossible,), (impossible,)), np.zeros((2, 1))
    dead = Step((impossible, impossible), rows, zeros, np.full(2, -np.inf), 0, Cost())
    text = Text((1,), "a", -1.0, True)
    alive = Step((text, text), ((text,), (text,)), zeros, np.zeros(2), 1, Cost())
    with np.errstate(all="raise"):
        assert log_run_weight([dead, alive]) == -math.inf
        mixed = Step((impossible, text), ((impossible,), (text,)), zeros, np.array([-np.inf, 0.0]), 1, Cost())
        assert log_run_weight([mixed, alive]) == pytest.approx(math.log(0.5))
