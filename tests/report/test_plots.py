"""Plots that are written as PNG files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ets.evaluation.comparison import Entry
from ets.report.charts import Point, Series, chart
from ets.report.figures import APART, apart, compared, scaling
from ets.report.plots import plot_accuracies, plot_accuracy_by_cost, plot_scaling
from tests.report.test_tables import ENTRIES, SETTING, entry, rewarded, scores

ROWS = [entry("plain", 0.3), entry("majority", 0.55), entry("ets", 0.7)]


def plotted(rows: list[Entry], path: Path) -> Any:
    """The pixels `[height, width, 4]` of the plot that was written."""
    from matplotlib.image import imread

    plot_accuracies(rows, SETTING, path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(path)


def blue(pixels: Any) -> int:
    """The largest number of blue pixels in a line of the plot: the length of ETS's bar."""
    return int(is_blue(pixels).sum(axis=1).max())


def is_blue(pixels: Any) -> Any:
    return pixels[..., 2] - pixels[..., 0] > 0.4


def test_a_png_with_a_bar_for_each_entry_is_written(tmp_path: Path) -> None:
    all_rows, without_ets = plotted(ROWS, tmp_path / "all.png"), plotted(ROWS[:2], tmp_path / "two.png")
    assert all_rows.shape[0] > without_ets.shape[0] > 200 and all_rows.shape[1] == without_ets.shape[1] > 800
    assert blue(all_rows) > 200 and blue(without_ets) == 0


def test_bars_are_as_long_as_the_accuracies(tmp_path: Path) -> None:
    half = replace(ROWS[2], scores=scores(0.35))
    full, shorter = plotted(ROWS, tmp_path / "full.png"), plotted([*ROWS[:2], half], tmp_path / "half.png")
    assert blue(shorter) / blue(full) == pytest.approx(0.5, abs=0.05)


def test_bars_of_zero_and_one_can_be_plotted(tmp_path: Path) -> None:
    pixels = plotted([entry("plain", 0.0), entry("ets", 1.0)], tmp_path / "plot.png")
    assert np.flatnonzero(is_blue(pixels).any(axis=0)).max() > 0.95 * pixels.shape[1]  # all the way to 100%
    for count in range(5, 15):
        few = replace(ROWS[2], scores=dict.fromkeys(map(str, range(count)), float(count % 2)))
        plot_accuracies([few], SETTING, tmp_path / f"{count}.png")


def test_lines_and_panels_are_written(tmp_path: Path) -> None:
    plot_accuracy_by_cost(ENTRIES, SETTING, tmp_path / "cost.png")
    plot_scaling({"M": [(2, ENTRIES[1]), (4, ENTRIES[6])], "K": [(1, ENTRIES[1])]}, SETTING, tmp_path / "scaling.png")
    plot_scaling({"M": [(2, ENTRIES[1]), (4, ENTRIES[6])]}, SETTING, tmp_path / "one.png")
    for name in ("cost", "scaling", "one"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_rewards_are_plotted_where_there_are_no_right_answers(tmp_path: Path) -> None:
    """Below zero too; an entry with a reward of -inf has no bar and no point."""
    rows = [rewarded("plain", -0.8), rewarded("ets", 0.6), rewarded("ets", 0.7, budget=1)]
    forbidden = replace(rows[0], rewards={**rows[0].rewards, "p0": -math.inf})
    for name, shown in (("all", rows), ("two", [forbidden, *rows[1:]]), ("none", [forbidden])):
        assert plotted(shown, tmp_path / f"{name}.png").shape[1] > 800
        plot_accuracy_by_cost(shown, SETTING, tmp_path / "cost.png")
    axes, (plain, ets) = compared([forbidden, *rows[1:]], SETTING)
    assert axes.y.startswith("mean reward") and plain.points == []
    assert [point.y for point in ets.points] == pytest.approx([0.6, 0.7], abs=0.001)
    _, (point,) = scaling("M", [(2.0, rows[1])], SETTING)
    assert point.points[0].low < 0.6 < point.points[0].high
    assert "mean reward" in chart(*compared(rows, SETTING)) and chart(*compared([forbidden], SETTING)) == ""
    assert "0" in chart(*compared([replace(rows[0], rewards=dict.fromkeys(rows[0].rewards, 0.0))], SETTING))


def test_points_of_nearly_equal_cost_stand_next_to_each_other_and_others_stay() -> None:
    """Five methods at three budgets, and a cheap one: all intervals can be told apart, in the order of the series."""
    costs = [[budget * (1 + 0.02 * ((3 * n) % 5)) for budget in (200, 400, 800)] for n in range(5)] + [[48.0]]
    series = [Series(f"s{n}", [Point(x, n, n - 1, n + 1) for x in row]) for n, row in enumerate(costs)]
    moved = [[point.x for point in each.points] for each in apart(series)]
    gap = APART * math.log(max(map(max, costs)) / 48)
    for columns, original in zip(zip(*moved[:5], strict=True), zip(*costs[:5], strict=True), strict=True):
        assert np.diff(np.log(columns)) == pytest.approx([gap] * 4)
        assert np.mean(np.log(columns)) == pytest.approx(np.mean(np.log(original)))
    assert moved[5] == pytest.approx([48.0])
    assert [(p.y, p.low, p.high) for p in apart(series)[2].points] == [(2, 1, 3)] * 3


def test_groups_of_points_that_would_meet_are_one_group() -> None:
    series = [Series(f"s{n}", [Point(x, 0, 0, 0)]) for n, x in enumerate((100.0, 100.0, 100.0, 101.8, 300.0))]
    places = np.log([each.points[0].x for each in apart(series)])
    assert np.diff(places)[:3] == pytest.approx([APART * math.log(3)] * 3) and places[4] == pytest.approx(math.log(300))
    assert apart([]) == [] and apart([Series("none", [])])[0].points == []
