"""What methods are compared at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

import pytest
from ets.evaluation.budget import ComputedPositions, GeneratedTokens

from ets.evaluation.journal import Record
from ets.types import Cost

SAMPLE = 100.0


def record(problem: str, positions: float, **others: float) -> Record:
    return {"problem": problem, "cost": asdict(Cost(rollout=positions)), **others}  # type: ignore[arg-type]


def found(cost_of: Callable[[int], float], spent: float) -> tuple[int, list[int]]:
    """The number of samples for a known cost of n samples, and the numbers that were measured on the way."""
    asked: list[int] = []

    def pilot(number: int) -> list[Record]:
        asked.append(number)
        return [record("a", cost_of(number)), record("b", 3 * cost_of(number))]

    guided = [record("a", spent), record("b", 3 * spent), record("not in the pilot", 2 * spent)]
    return ComputedPositions(SAMPLE).samples(guided, pilot), asked


@pytest.mark.parametrize(
    "cost_of",
    [lambda n: SAMPLE * n, lambda n: 10 + 60 * n, lambda n: SAMPLE * n**0.6, lambda n: 40 * math.log1p(n) + n],
    ids=["nothing shared", "a first forward shared", "more and more shared", "hardly any growth"],
)
@pytest.mark.parametrize("number", [1, 2, 7, 40])
def test_the_number_that_costs_the_same_is_found(cost_of: Callable[[int], float], number: int) -> None:
    best, asked = found(cost_of, cost_of(number))
    assert best == number
    assert len(asked) <= 8


def test_the_nearer_of_two_neighbours_is_taken() -> None:
    assert found(lambda n: 60.0 * n, 60 * 7.4)[0] == 7
    assert found(lambda n: 60.0 * n, 60 * 7.6)[0] == 8


def test_a_cost_that_no_number_reaches_is_told() -> None:
    """Where every sample is alike, all further ones are free: it ends at 16 times what would cost as much unshared."""
    with pytest.warns(UserWarning, match="64 samples cost 50% of what ETS costs; to compare others, set samples"):
        best, asked = found(lambda n: 100.0, 200.0)
    assert best == max(asked) == 64


def test_generated_tokens_are_those_of_etss_first_rollouts() -> None:
    guided = [{"cost": {"generated": 120}, "sample_tokens": 10.0}, {"cost": {"generated": 80}, "sample_tokens": 30.0}]
    assert GeneratedTokens().samples(guided, lambda number: pytest.fail("no pilot is needed")) == 5
