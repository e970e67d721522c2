"""Sizes that cost what a budget is."""

from __future__ import annotations

import pytest

from ets.evaluation.sizes import PILOTS, size_for


@pytest.mark.parametrize("slope", [0.03, 0.2, 0.9, 5.0])
@pytest.mark.parametrize("first", [1, 7, 40])
def test_the_nearest_size_of_a_cost_that_grows_evenly(slope: float, first: int) -> None:
    size, share = size_for(lambda n: slope * n, first)
    if 1 / slope <= 16 * first:
        assert size == max(1, min((int(1 / slope), int(1 / slope) + 1), key=lambda n: abs(1 - slope * n)))
    assert share == pytest.approx(slope * size)


def test_a_cost_that_grows_ever_more_slowly_is_met() -> None:
    size, share = size_for(lambda n: n**0.5 / 5, 10)
    assert size == 25 and share == 1


def test_measurements_are_few() -> None:
    asked: list[int] = []

    def share_of(size: int) -> float:
        asked.append(size)
        return size / 1000

    size_for(share_of, 90)
    assert len(asked) <= PILOTS
