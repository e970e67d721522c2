"""The folder of a reward study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ets.evaluation.intervals import accuracy
from ets.evaluation.reward_study import Area, RewardStudy, Separation
from ets.report import reward_plots
from ets.report.reward_plots import LABELS, write_study


def a_study(right: int, wrong: int) -> RewardStudy:
    rng, area = np.random.default_rng(0), Area(0.75, 0.5, 1.0)
    each = [Separation(name, area, area, rng.normal(1, 1, right), rng.normal(0, 1, wrong)) for name in LABELS]
    return RewardStudy(10, 4, 8, accuracy([0.5] * 10, 4), tuple(each))


@pytest.mark.parametrize(("right", "wrong"), [(25, 15), (40, 0), (0, 40)])
def test_each_reward_has_a_panel_with_what_there_is(
    right: int, wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    panels = []

    def panel(axes: object, separation: Separation) -> None:
        drawn(axes, separation)
        panels.append(axes)

    drawn = reward_plots._panel
    monkeypatch.setattr(reward_plots, "_panel", panel)
    table = write_study(a_study(right, wrong), "a task: a model with $ and _", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"summary.json", "table.md", "rewards.png"}
    assert (tmp_path / "table.md").read_text() == f"{table}\n"
    assert (tmp_path / "rewards.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_xlabel() for axes in panels] == list(LABELS.values())
    for axes in panels:
        shown = {text.get_text() for text in axes.get_legend().get_texts()}
        assert shown == {f"{kind} ({n})" for kind, n in (("right", right), ("wrong", wrong)) if n}
