"""Plots of a run's rows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ets.evaluation.evaluate import Row
from ets.evaluation.tables import score_name, unit
from ets.types import InputError


def require_matplotlib() -> None:
    """Raise `InputError` if plots cannot be drawn, before anything that they would show is computed."""
    if find_spec("matplotlib") is None:
        raise InputError("matplotlib is not installed; install it with: pip install 'ets-sampling[eval]'")


def plot_accuracies(rows: Sequence[Row], title: str, path: Path) -> None:
    """A PNG with each method's accuracy, its 95% interval and its cost per problem."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.6 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    means = [100 * row.accuracy.mean for row in rows]
    low = [100 * (row.accuracy.mean - row.accuracy.low) for row in rows]
    high = [100 * (row.accuracy.high - row.accuracy.mean) for row in rows]
    colours = ["#2b6cb0" if row.method.startswith("ets") else "#a0aec0" for row in rows]
    costs = [f"{row.generated:,.0f} tokens, {row.positions:,.0f} positions per {unit(rows)}" for row in rows]
    labels = [f"{row.label}\n{cost}" for row, cost in zip(rows, costs, strict=True)]
    axes.barh(labels, means, xerr=(low, high), color=colours, capsize=4, height=0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"accuracy ({score_name(rows)}, %) with 95% interval")
    axes.set_title(title, parse_math=False)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
