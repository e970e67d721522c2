"""PNG files of a run and of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ets.evaluation.comparison import Entry
from ets.evaluation.curves import CurvePoint
from ets.report.charts import COLOURS, Axes, Series, log_ticks
from ets.report.figures import REWARD, compared, sample_curves, scaling
from ets.report.tables import COSTS, Setting, by_reward, interval, reward_interval
from ets.types import not_installed


def require_matplotlib() -> None:
    """Raise `InputError` if matplotlib is missing, before a run computes anything."""
    if find_spec("matplotlib") is None:
        raise not_installed("matplotlib", "eval")


def plot_accuracies(entries: Sequence[Entry], setting: Setting, path: Path) -> None:
    """Write a PNG with a bar for each entry: its score or mean reward, the 95% interval and the cost per problem."""
    rewarded = by_reward(entries)
    found = [(entry, reward_interval(entry) if rewarded else interval(entry)) for entry in entries]
    entries, scale = [entry for entry, share in found if share], 1 if rewarded else 100
    shares = [share for _, share in found if share]
    figure, axes = _figure(8, 1.2 + 0.6 * len(entries))
    means = [scale * share.mean for share in shares]
    spread = [scale * (s.mean - s.low) for s in shares], [scale * (s.high - s.mean) for s in shares]
    colours = [COLOURS[0] if entry.method.startswith("ets") else "#a0aec0" for entry in entries]
    costs = [f"{e.cost['generated']:,.0f} tokens, {e.cost['positions']:,.0f} positions per problem" for e in entries]
    labels = [f"{entry.label}\n{cost}" for entry, cost in zip(entries, costs, strict=True)]
    axes[0].barh(labels, means, xerr=spread, color=colours, capsize=4, height=0.6)
    if not rewarded:
        axes[0].set_xlim(0, 100)
    axes[0].set_xlabel(REWARD if rewarded else f"accuracy ({setting.score}, %) with 95% interval")
    axes[0].set_title(f"{setting.task}: {setting.model}", parse_math=False)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=150)


def plot_accuracy_by_cost(entries: Sequence[Entry], setting: Setting, path: Path) -> None:
    """Write a PNG: accuracy or mean reward with its 95% interval against cost, a line for each method and readout."""
    figure, axes = _figure(9, 5.5)
    _draw(axes[0], *compared(entries, setting))
    axes[0].set_title(f"{setting.task}: {setting.model}", parse_math=False)
    axes[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def plot_curves(points: Sequence[CurvePoint], setting: Setting, path: Path) -> None:
    """Write a PNG: pass@k and maj@k of the complete samples, with their 95% intervals."""
    figure, axes = _figure(6, 4)
    _draw(axes[0], *sample_curves(points))
    axes[0].set_title(f"{setting.task}: {setting.model}", parse_math=False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


def plot_scaling(panels: Mapping[str, Sequence[tuple[float, Entry]]], setting: Setting, path: Path) -> None:
    """Write a PNG with a panel for each of M, K and I: accuracy of ETS, its interval, and the cost at each point."""
    figure, axes = _figure(4 * len(panels), 4, columns=len(panels))
    for place, (name, values) in zip(axes, panels.items(), strict=True):
        named, series = scaling(name, values, setting)
        _draw(place, named, series)
        for point in series[0].points:
            at = {"xytext": (4, -12), "textcoords": "offset points", "fontsize": "x-small"}
            place.annotate(point.label, (point.x, point.y), **at)
        place.set_xlabel(f"{name} (at the points: {COSTS[setting.currency]} per problem)", fontsize="small")
        place.label_outer()
    figure.savefig(path, dpi=150)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for place in axes:
        place.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _draw(place: Any, axes: Axes, series: Sequence[Series]) -> None:
    for number, each in enumerate(series):
        look = number if each.look is None else each.look
        style = {"marker": "osD^vP*X"[look % 8], "color": COLOURS[look % len(COLOURS)], "capsize": 3}
        xs, means = [point.x for point in each.points], [point.y for point in each.points]
        spread = [point.y - point.low for point in each.points], [point.high - point.y for point in each.points]
        place.errorbar(xs, means, yerr=spread, label=each.name, linestyle=":" if each.dashed else "-", **style)
    place.set_xscale("log")
    xs = sorted({point.x for each in series for point in each.points})
    ticks = xs if axes.exact else log_ticks(xs[0], xs[-1]) if xs and xs[0] > 0 else []
    if ticks:
        place.set_xticks(ticks, [f"{x:,.6g}" for x in ticks])
        place.minorticks_off()
    place.set_xlabel(axes.x)
    place.set_ylabel(axes.y)
