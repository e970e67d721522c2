"""The schedule of a canvas."""

from __future__ import annotations

import pytest

from ets.testing import CanvasSchedule
from ets.types import InputError


def test_the_schedule_gives_even_shares_the_remainder_first() -> None:
    schedule = CanvasSchedule(gen_length=10, block_length=5, steps=6, guide_steps=2)
    assert schedule.quotas == [2, 2, 1, 2, 2, 1]
    assert [schedule.step(revealed) for revealed in (0, 2, 4, 5, 7, 9, 10)] == list(range(7))
    assert [schedule.boundary(revealed) for revealed in (0, 2, 4, 5, 7, 9)] == [5] * 3 + [10] * 3
    assert schedule.block(4) == range(5) and schedule.block(5) == range(5, 10)


@pytest.mark.parametrize(
    "wrong", [{"block_length": 3}, {"steps": 3}, {"steps": 8}, {"guide_steps": 3}, {"steps": 0}, {"gen_length": 5}]
)
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        CanvasSchedule(**({"gen_length": 4, "block_length": 2, "steps": 4, "guide_steps": 2} | wrong))
