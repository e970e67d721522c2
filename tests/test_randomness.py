"""Keys and uniforms: reproducible, distinct and uniform."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from ets.randomness import Purpose, chain_key, derive, uniform
from ets.testing import check_law
from ets.types import Keys

KEY = np.array(chain_key(0, "a problem", 0), np.uint64)


def grid(key: Keys, steps: int, candidates: int, rollouts: int, positions: int) -> Keys:
    """Keys of every (step, purpose, m, k, position), absorbed in the order in which the kernel absorbs them."""
    axes = np.ix_(np.arange(steps), np.array(Purpose), np.arange(candidates), np.arange(rollouts), np.arange(positions))
    return derive(key, *axes)


def test_purposes_keep_the_numbers_that_stored_results_depend_on() -> None:
    assert {purpose.name: int(purpose) for purpose in Purpose} == {
        "CANDIDATE": 1,
        "ROLLOUT": 2,
        "CHOICE": 3,
        "COMPLETION": 4,
        "POSITION": 5,
    }


def test_the_order_and_the_number_of_fields_matter() -> None:
    fields = [(), (0,), (0, 0), (1,), (1, 0), *permutations((1, 2, 3))]
    assert len({int(derive(KEY, *field)) for field in fields}) == len(fields)


def test_no_two_places_of_a_dense_grid_share_a_key() -> None:
    keys = np.stack([grid(np.array(chain_key(0, name, 0), np.uint64), 8, 16, 8, 64) for name in ("a", "b")])
    assert keys.shape == (2, 8, 5, 16, 8, 64)
    assert len(np.unique(keys)) == keys.size


def test_no_number_of_an_order_is_the_number_of_a_token() -> None:
    """Orders absorb POSITION, step and position, tokens step and position: also where a step has the number 5."""
    steps, places = np.arange(64)[:, None], np.arange(256)
    tokens, orders = derive(KEY, steps, places), derive(KEY, int(Purpose.POSITION), steps, places)
    assert len(np.unique([tokens, orders])) == tokens.size + orders.size


def test_no_two_chains_share_a_key() -> None:
    places = [(seed, f"task-{n}", sample) for seed in range(-5, 5) for n in range(20) for sample in range(10)]
    assert len({chain_key(*place) for place in places}) == len(places)


def test_uniforms_fill_the_half_open_interval_with_all_53_bits() -> None:
    values = uniform(grid(KEY, 4, 8, 8, 32))
    assert values.dtype == np.float64 and values.min() >= 0 and values.max() < 1
    bits = np.ldexp(values, 53)
    assert np.array_equal(bits, np.floor(bits))
    shares = [np.mean(bits.astype(np.uint64) >> np.uint64(bit) & np.uint64(1)) for bit in range(53)]
    assert np.allclose(shares, 0.5, atol=0.03)  # more than five standard errors of 32,768 bits


def test_the_extreme_keys_give_the_extreme_uniforms() -> None:
    assert uniform(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0.0, 1 - 2.0**-53]


@pytest.mark.parametrize("what", ["positions of one row", "first positions of neighbouring rows", "seeds"])
def test_neighbouring_places_give_uniform_numbers(what: str) -> None:
    numbers, level = np.arange(40_000), 1e-4
    values = {
        "positions of one row": uniform(KEY, 3, numbers),
        "first positions of neighbouring rows": uniform(KEY, numbers, 0),
        "seeds": uniform(numbers.astype(np.uint64), 0),
    }[what]
    check_law((values * 20).astype(int).tolist(), dict.fromkeys(range(20), 1 / 20), level=level, what=what)


def test_consecutive_positions_are_independent_in_pairs() -> None:
    cells = (uniform(KEY, np.arange(40_000)) * 5).astype(int)
    law = {(first, second): 1 / 25 for first in range(5) for second in range(5)}
    check_law(zip(cells[::2].tolist(), cells[1::2].tolist(), strict=True), law, level=1e-4)


def test_broadcasting_gives_what_one_by_one_derivation_gives() -> None:
    keys, steps, positions = np.array([7, 2**63, 2**64 - 1], np.uint64), np.array([0, 1, 5]), np.arange(4)
    together = derive(keys[:, None], steps[:, None], int(Purpose.ROLLOUT), positions)
    assert together.shape == (3, 4) and together.dtype == np.uint64
    for b, m in np.ndindex(together.shape):
        assert derive(keys[b], int(steps[b]), int(Purpose.ROLLOUT), int(positions[m])) == together[b, m]


def test_fields_of_any_integer_type_give_the_same_key() -> None:
    fields: list[Any] = [5, np.int32(5), np.int64(5), np.uint64(5), np.array(5)]
    assert len({int(derive(KEY, field)) for field in fields}) == 1


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ((0, "arithmetic-0", 0), 1021075733593452754),
        ((20260121, "é/π", 3), 1664908094244001205),
        ((-1, "a", 0), 17022175869501063787),
    ],
)
def test_chain_keys_are_those_of_every_other_process(place: tuple[int, str, int], expected: int) -> None:
    assert chain_key(*place) == expected


@pytest.mark.parametrize("seed", [-1, 1 - 2**63, 2**63 + 1, 2**64 - 2, 2**70 + 5, -(2**100) - 3])
def test_negative_and_large_seeds_are_accepted_and_differ(seed: int) -> None:
    key = chain_key(seed, "a", 0)
    assert isinstance(key, int) and 0 <= key < 2**64
    assert key not in {chain_key(seed + 1, "a", 0), chain_key(-seed, "a", 0)}
