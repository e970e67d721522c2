"""Plots that are written as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ets.evaluation.evaluate import Row

from ets.evaluation.intervals import Accuracy
from ets.report.plots import plot_accuracies

ROWS = [
    Row("plain", "plain sampling (mean of 9)", Accuracy(0.3, 0.2, 0.41), 1234.5, 1300.0, 0.5),
    Row("majority", "majority voting (9 samples)", Accuracy(0.55, 0.44, 0.66), 1230.0, 1300.0, 0.5),
    Row("ets", "ETS (M 8, K 3)", Accuracy(0.7, 0.58, 0.8), 1240.0, 1400.0, 0.7),
]


def plotted(rows: list[Row], path: Path) -> Any:
    """The pixels `[height, width, 4]` of the plot that was written."""
    from matplotlib.image import imread

    plot_accuracies(rows, "arithmetic: embedded", path)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    return imread(path)


def blue(pixels: Any) -> int:
    """How many blue pixels a line of the plot holds at most: the length of ETS's bar."""
    return int(is_blue(pixels).sum(axis=1).max())


def is_blue(pixels: Any) -> Any:
    return pixels[..., 2] - pixels[..., 0] > 0.4


def test_a_png_with_a_bar_for_each_method_is_written(tmp_path: Path) -> None:
    all_rows, without_ets = plotted(ROWS, tmp_path / "all.png"), plotted(ROWS[:2], tmp_path / "two.png")
    assert all_rows.shape[0] > without_ets.shape[0] > 200 and all_rows.shape[1] == without_ets.shape[1] > 800
    assert blue(all_rows) > 200 and blue(without_ets) == 0


def test_bars_are_as_long_as_the_accuracies(tmp_path: Path) -> None:
    half = Row("ets", ROWS[2].label, Accuracy(0.35, 0.28, 0.42), 1240.0, 1400.0, 0.7)
    full, shorter = plotted(ROWS, tmp_path / "full.png"), plotted([*ROWS[:2], half], tmp_path / "half.png")
    assert blue(shorter) / blue(full) == pytest.approx(0.5, abs=0.05)


def test_bounds_of_zero_and_one_can_be_plotted(tmp_path: Path) -> None:
    rows = [
        Row("plain", "none right", Accuracy(0.0, 0.0, 0.28), 1.0, 1.0, 1.0),
        Row("ets", "all right", Accuracy(1.0, 0.72, 1.0), 1.0, 1.0, 1.0),
    ]
    pixels = plotted(rows, tmp_path / "plot.png")
    assert np.flatnonzero(is_blue(pixels).any(axis=0)).max() > 0.95 * pixels.shape[1]  # all the way to 100%


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_runs_with_every_problem_right_or_wrong_can_be_plotted(tmp_path: Path, score: float) -> None:
    from ets.evaluation.intervals import accuracy

    for count in range(5, 15):
        row = Row("ets", "ETS", accuracy([score] * count), 1.0, 1.0, 1.0)
        plot_accuracies([row], "title", tmp_path / f"{count}.png")
