"""What a trace tells about a proposal."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ets.diagnostics import ratio_summary
from ets.types import Cost, Step, Text


def text(log_ratio: float = 0.0, *, done: bool = True) -> Text:
    return Text((1,), "a", -1.0, done, log_ratio)


def step(candidates: list[Text], rollouts: list[list[Text]], choice: int) -> Step:
    cells = tuple(tuple(row) for row in rollouts)
    shape = (len(rollouts), len(rollouts[0]))
    return Step(tuple(candidates), cells, np.zeros(shape), np.zeros(shape[0]), choice, Cost())


def test_the_summary_is_of_the_open_candidates_rollouts() -> None:
    ended = text()
    mixed = step([text(done=False), ended], [[text(0.0), text(math.log(3))], [ended, ended]], 1)
    alone = step([text(done=False)], [[text(0.0), text(-math.inf)]], 0)
    found = ratio_summary([mixed, alone])
    assert found.rollouts == 4
    assert found.effective == pytest.approx((16 / 10 / 2 + 1 / 2) / 2)  # (Σw)² / Σw² over K, of each candidate
    within = (2 * np.var([0, math.log(3)]) + np.var([0])) / 3  # of each step's finite ones
    assert found.spread == pytest.approx(math.sqrt(within))
    assert found.mean == pytest.approx((1 + 3 + 1 + 0) / 4)
    assert found.impossible == pytest.approx(1 / 4)
    assert (found.complete_drawn, found.complete_chosen) == (0.5, 1.0)  # the step with both kinds
    assert not found.wide and "25.0% impossible" in str(found)


def test_clipped_ratios_are_counted_at_the_bounds() -> None:
    ratios = [math.log(0.1), math.log(10), 0.0, 1.0]
    found = ratio_summary([step([text(done=False)], [[text(ratio) for ratio in ratios]], 0)], clip=(0.1, 10))
    assert found.clipped == 0.5
    assert ratio_summary([step([text(done=False)], [[text(0.0)]], 0)], clip=(0, 10)).clipped == 0


def test_clipped_ratios_of_candidates_are_counted_apart() -> None:
    """A rollout's text carries its candidate's ratio too, which may be at a bound where its own part is not."""
    low, candidates = math.log(0.1), [text(math.log(0.1), done=False), text(0.5), text(0.7, done=False)]
    rollouts = [[text(low + 1), text(low + low)], [candidates[1]] * 2, [text(0.7), text(0.7)]]
    found = ratio_summary([step(candidates, rollouts, 0)], clip=(0.1, 10))
    assert found.candidates_clipped == pytest.approx(1 / 3) and found.clipped == pytest.approx(1 / 4)
    assert "25.0% clipped; 33.3% of candidates clipped" in str(found)
    assert ratio_summary([step(candidates, rollouts, 0)]).candidates_clipped == 0


def test_the_ratio_of_a_drawn_candidate_is_not_its_rollouts() -> None:
    own = 2.0
    found = ratio_summary([step([text(own, done=False)], [[text(own), text(own + 1)]], 0)])
    assert found.spread == pytest.approx(0.5)
    both = ratio_summary([step([text(own, done=False), text()], [[text(own)], [text()]], 0)])
    weights = np.exp([own, 0.0])
    assert both.candidates_effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum() / 2)


def test_nothing_to_average_is_nan_and_a_line_all_the_same() -> None:
    found = ratio_summary([step([text()], [[text()]], 0)])
    assert found.rollouts == 0 and math.isnan(found.effective) and str(found) == "0 rollouts of the proposal"


def test_one_rollout_a_candidate_cannot_tell_how_many_are_effective() -> None:
    found = ratio_summary([step([text(done=False)] * 2, [[text(-9.0)], [text(1.0)]], 0)])
    assert math.isnan(found.effective) and found.spread == pytest.approx(5.0)
