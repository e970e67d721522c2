"""A comparison as tables, sentences and plots, made of its entries alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ets.evaluation.bootstrap import Difference, paired_difference
from ets.evaluation.comparison import Entry
from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.tables import aligned
from ets.types import InputError

COSTS = {
    "generated": "tokens",
    "positions": "positions",
    "row_forwards": "row-forwards",
    "seconds": "seconds",
    "depth": "serial depth",
}
"""Columns: costs per sample, and what they are called. Those that are 0 everywhere are left out."""


@dataclass(frozen=True)
class Setting:
    """What a comparison was run on: the task, the model, samples per problem, the currency of its budgets."""

    task: str
    model: str
    seeds: int
    currency: str
    against: str


def at_budget(entries: Sequence[Entry], budget: int) -> list[Entry]:
    """The entries of a budget, and those that are the same at every one."""
    return [entry for entry in entries if entry.budget in (budget, None)]


def rival(entries: Sequence[Entry], setting: Setting) -> Entry:
    """The entry that others are compared with. Raises `InputError` if there is none."""
    found = [entry for entry in entries if (entry.method, entry.readout) == (setting.against, "last")]
    if not found:
        raise InputError(f"against is {setting.against!r}, which is not among the methods; add it, or name another")
    return found[0]


def markdown(entries: Sequence[Entry], setting: Setting) -> str:
    """Everything that can be said in words and numbers: a table and a summary for each budget."""
    budgets = sorted({entry.budget for entry in entries if entry.budget is not None})
    return "\n\n".join(part for budget in budgets for part in _section(at_budget(entries, budget), setting, budget))


def _section(entries: Sequence[Entry], setting: Setting, budget: int) -> Iterator[str]:
    other = rival(entries, setting)
    spent = next((entry for entry in entries if entry.method == "ets"), other).cost[setting.currency]
    yield f"### Budget {budget + 1}: about {spent:,.0f} {COSTS[setting.currency]} a problem"
    yield budget_table(entries, other, setting)
    yield summary(entries, other)


def budget_table(entries: Sequence[Entry], other: Entry, setting: Setting) -> str:
    """A Markdown table: accuracies with their intervals, differences from another method, costs per sample."""
    costs = {name: title for name, title in COSTS.items() if any(entry.cost[name] for entry in entries)}
    heading = ("method", "accuracy", "95% interval", f"minus {other.method}, points", *costs.values())
    return aligned([heading, *(_cells(entry, other, setting.seeds, list(costs)) for entry in entries)])


def _cells(entry: Entry, other: Entry, seeds: int, costs: Sequence[str]) -> tuple[str, ...]:
    share = interval(entry, seeds)
    versus = "" if entry is other else points(paired_difference(entry.scores, other.scores))
    shown = (f"{entry.cost[name]:,.2f}" if name == "seconds" else f"{entry.cost[name]:,.0f}" for name in costs)
    return entry.label, f"{share.mean:.1%}", f"{share.low:.1%} to {share.high:.1%}", versus, *shown


def interval(entry: Entry, seeds: int) -> Accuracy:
    """The mean over problems; scores that are expectations over a method's choice vary less than those of samples."""
    return accuracy(list(entry.scores.values()), seeds)


def points(difference: Difference) -> str:
    """In points of accuracy, with the interval."""
    mean, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def summary(entries: Sequence[Entry], other: Entry) -> str:
    """Sentences: which methods are better than another one, which worse, and for which nothing can be said."""
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for entry in entries:
        if entry is not other:
            found = paired_difference(entry.scores, other.scores)
            kind = "open" if not found.significant else "better" if found.mean > 0 else "worse"
            verdicts[kind].append(entry.label)
    sentences = {
        "better": f"Better than {other.label}",
        "worse": f"Worse than {other.label}",
        "open": f"Not significantly different from {other.label}",
    }
    return "\n".join(f"- {sentences[kind]}: {'; '.join(labels)}." for kind, labels in verdicts.items() if labels)


def ranking(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, best first."""
    return sorted(entries, key=lambda entry: -fmean(entry.scores.values()))


def plot_accuracy_by_cost(entries: Sequence[Entry], setting: Setting, path: Path) -> None:
    """A PNG: accuracy with its 95% interval against cost on a log scale, a line for each method and readout."""
    figure, axes = _figure(9, 5.5)
    lines: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        lines.setdefault((entry.method, entry.readout), []).append(entry)
    for number, ((method, readout), members) in enumerate(lines.items()):
        costs = [entry.cost[setting.currency] for entry in members]
        name = method if readout == "last" else f"{method}, {readout}"
        style = {"marker": "osD^vP*X"[number % 8], "linestyle": "-" if readout == "last" else ":"}
        _errorbars(axes, costs, [interval(entry, setting.seeds) for entry in members], name, style, number)
    axes.set_xscale("log")
    axes.set_xlabel(f"{COSTS[setting.currency]} per problem (log scale)")
    axes.set_title(f"{setting.task}: {setting.model}", parse_math=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def plot_scaling(panels: Mapping[str, Sequence[tuple[float, Entry]]], setting: Setting, path: Path) -> None:
    """A PNG with a panel for each of M, K and I: accuracy of ETS with its interval as one of them grows."""
    figure, axes = _figure(4 * len(panels), 4, columns=len(panels))
    for place, (name, values) in zip(axes if len(panels) > 1 else [axes], panels.items(), strict=True):
        entries = [entry for _, entry in values]
        _errorbars(place, [value for value, _ in values], [interval(e, setting.seeds) for e in entries], None, {}, 0)
        for value, entry in values:
            note = f"{entry.cost[setting.currency]:,.0f}"
            at = (value, 100 * fmean(entry.scores.values()))
            place.annotate(note, at, xytext=(4, -12), textcoords="offset points", fontsize="x-small")
        place.set_xscale("log", base=2)
        place.set_xlabel(f"{name} (beside the points: {COSTS[setting.currency]} per problem)", fontsize="small")
    figure.savefig(path, dpi=150)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, sharey=True)
    for place in axes if columns > 1 else [axes]:
        place.spines[["top", "right"]].set_visible(False)
    (axes[0] if columns > 1 else axes).set_ylabel("accuracy (%) with 95% interval")
    return figure, axes


def _errorbars(
    axes: Any, places: Sequence[float], shares: Sequence[Accuracy], name: str | None, style: dict[str, Any], number: int
) -> None:
    means = [100 * share.mean for share in shares]
    low, high = [100 * (s.mean - s.low) for s in shares], [100 * (s.high - s.mean) for s in shares]
    colour = f"C{number % 10}"
    axes.errorbar(places, means, yerr=(low, high), label=name, color=colour, capsize=3, **({"marker": "o"} | style))
