"""What the importance ratios of many chains add up to."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from ets.diagnostics import ratio_summary
from ets.evaluation.ratios import recorded_ratios, total_ratios
from ets.types import Cost, Step, Text

CLIP = (0.5, 2.0)


def step(ratios: list[list[float]], done: list[bool], choice: int) -> Step:
    """A step of which the complete candidates' rows are themselves."""
    candidates = tuple(Text((1,), "a", -1.0, ended) for ended in done)
    rows = zip(ratios, candidates, strict=True)
    texts = tuple(tuple(c if c.done else Text((1,), "a", -1.0, True, r) for r in row) for row, c in rows)
    zeros = np.zeros((len(ratios), len(ratios[0])))
    return Step(candidates, texts, zeros, zeros[:, 0], choice, Cost())


CHAINS: list[list[Step]] = [
    [
        step([[0.0, math.log(2)], [0.3, -math.inf]], [False, False], 0),
        step([[0.1, 0.2], [0.0, 0.0]], [False, True], 1),
        step([[math.log(0.5), 0.4], [0.0, 0.0]], [False, True], 0),
    ],
    [step([[1.0, 0.0], [0.0, 0.0]], [False, True], 1)],
    [step([[0.0, 0.0], [0.0, 0.0]], [True, True], 0)],  # no rollout at all
]


def recorded(chains: list[list[Step]]) -> list[dict[str, Any]]:
    """As they come back from a journal, whose lines are JSON without NaN."""
    lines = [json.dumps(recorded_ratios(trace, CLIP), allow_nan=False) for trace in chains]
    return [json.loads(line) for line in lines]


def test_the_shares_are_those_of_all_steps_together() -> None:
    total, pooled = total_ratios(recorded(CHAINS)), ratio_summary([s for trace in CHAINS for s in trace], CLIP)
    assert total.rollouts == pooled.rollouts == 10
    for name in ("effective", "mean", "spread", "impossible", "clipped", "complete_drawn", "complete_chosen"):
        assert 0 < getattr(pooled, name) < 2
        assert getattr(total, name) == pytest.approx(getattr(pooled, name)), name


def test_the_spread_is_that_within_a_step() -> None:
    """Problems whose ratios differ as wholes do not make a choice between candidates any harder."""
    ratios = [[0.0, 0.4], [0.2, 0.2]]
    near, far = step(ratios, [False, False], 0), step([[r + 9 for r in row] for row in ratios], [False, False], 0)
    total = total_ratios(recorded([[near], [far]]))
    assert total.spread == pytest.approx(np.std(ratios)) and not total.wide
    assert ratio_summary([near, far]).spread == pytest.approx(np.std(ratios))
    wide = total_ratios(recorded([[near], [step([[0.0, 9.0], [0.0, 9.0]], [False, False], 0)]]))
    assert wide.spread == pytest.approx(math.sqrt((np.var(ratios) + 4.5**2) / 2)) and wide.wide


def test_nothing_to_average_is_no_number() -> None:
    total = total_ratios(recorded(CHAINS[2:]))
    assert total.rollouts == 0 and math.isnan(total.effective) and math.isnan(total.spread)
