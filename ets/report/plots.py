"""Plots of a run's rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ets.evaluation.evaluate import Row


def plot_accuracies(rows: Sequence[Row], title: str, path: Path) -> None:
    """A PNG with each method's accuracy, its 95% interval and its generated tokens per problem."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.6 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    means = [100 * row.accuracy.mean for row in rows]
    low = [100 * (row.accuracy.mean - row.accuracy.low) for row in rows]
    high = [100 * (row.accuracy.high - row.accuracy.mean) for row in rows]
    colours = ["#2b6cb0" if row.method.startswith("ets") else "#a0aec0" for row in rows]
    axes.barh([row.label for row in rows], means, xerr=(low, high), color=colours, capsize=4, height=0.6)
    for place, row in enumerate(rows):
        axes.text(1, place, f"{row.generated:,.0f} tokens", va="center", fontsize=9, color="white")
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (pass@1, %) with 95% interval; generated tokens per problem in the bars")
    axes.set_title(title)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
