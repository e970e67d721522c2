"""A comparison as tables, sentences and plots, made of its entries alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from ets.evaluation.bootstrap import Difference, paired_difference
from ets.evaluation.comparison import Entry
from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.tables import aligned

COSTS = {
    "generated": "tokens",
    "positions": "positions",
    "row_forwards": "row-forwards",
    "seconds": "seconds",
    "depth": "serial depth",
}
"""Columns: costs per sample, and what they are called. Those that are 0 everywhere are left out."""
UNEQUAL = 0.1
"""Relative differences in cost that are told in words."""


@dataclass(frozen=True)
class Setting:
    """What a comparison was run on.

    Parameters
    ----------
    task, model : str
    problems : int
    seeds : int
        Samples of each problem.
    currency : str
        Of the budgets.
    against : str
        The method that others are set against.
    told : mapping of str to value
        The other settings that results depend on.
    """

    task: str
    model: str
    problems: int
    seeds: int
    currency: str
    against: str
    told: Mapping[str, Any] = field(default_factory=dict)


def at_budget(entries: Sequence[Entry], budget: int) -> list[Entry]:
    """The entries of a budget, and those that are the same at every one."""
    return [entry for entry in entries if entry.budget in (budget, None)]


def markdown(entries: Sequence[Entry], setting: Setting) -> str:
    """Everything that can be said in words and numbers: a table and a summary for each budget."""
    budgets = sorted({entry.budget for entry in entries if entry.budget is not None})
    parts = [part for budget in budgets for part in _section(at_budget(entries, budget), setting, budget)]
    return "\n\n".join([heading(setting), *parts, caveat(len(entries))])


def heading(setting: Setting) -> str:
    """What was compared on, with which settings."""
    told = ", ".join(f"{name} {value}" for name, value in setting.told.items() if value is not None)
    samples = "1 sample" if setting.seeds == 1 else f"{setting.seeds} samples"
    return f"{setting.task}, model {setting.model}: {setting.problems} problems, {samples} of each. {told}"


def caveat(comparisons: int) -> str:
    """How to read many intervals."""
    return (
        f"Each interval and each verdict is at 95% for itself alone. Among about {comparisons} comparisons, one in "
        "twenty would find a difference by chance where there is none."
    )


def _section(entries: Sequence[Entry], setting: Setting, budget: int) -> Iterator[str]:
    spent = next(entry for entry in entries if entry.budget == budget).cost[setting.currency]
    spent = next((entry.cost[setting.currency] for entry in entries if entry.method == "ets"), spent)
    yield f"### Budget {budget + 1}: about {spent:,.0f} {COSTS[setting.currency]} a problem"
    yield budget_table(entries, setting)
    yield summary(entries, setting)


def budget_table(entries: Sequence[Entry], setting: Setting) -> str:
    """A Markdown table: accuracies with their intervals, differences from another method at equal cost, and costs."""
    costs = {name: title for name, title in COSTS.items() if any(entry.cost[name] for entry in entries)}
    titles = ("method", "accuracy", "95% interval", f"minus {setting.against} at equal cost, points", *costs.values())
    return aligned([titles, *(_cells(entry, list(costs)) for entry in entries)])


def _cells(entry: Entry, costs: Sequence[str]) -> tuple[str, ...]:
    share = interval(entry)
    shown = (f"{entry.cost[name]:,.2f}" if name == "seconds" else f"{entry.cost[name]:,.0f}" for name in costs)
    return entry.label, f"{share.mean:.1%}", f"{share.low:.1%} to {share.high:.1%}", _versus(entry), *shown


def _versus(entry: Entry) -> str:
    if entry.rival is None:
        return ""
    return f"{points(paired_difference(entry.scores, entry.rival.scores))}, {entry.rival.label}"


def interval(entry: Entry) -> Accuracy:
    """Accuracy over problems; of scores that are expectations over a method's choice, a little too wide."""
    return accuracy(list(entry.scores.values()), entry.draws)


def points(difference: Difference) -> str:
    """In points of accuracy, with the interval."""
    # Adding 0 makes 0 of what is rounded to -0.
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def summary(entries: Sequence[Entry], setting: Setting) -> str:
    """Sentences: which methods are better than another one at equal cost, which worse, and of which neither is shown.

    Where costs are not equal within a tenth, it says so.
    """
    verdicts: dict[str, list[str]] = {"better": [], "worse": [], "open": []}
    for entry in entries:
        if entry.rival is not None:
            found = paired_difference(entry.scores, entry.rival.scores)
            kind = "open" if not found.significant else "better" if found.mean > 0 else "worse"
            verdicts[kind].append(f"{entry.label}{_unequal(entry, setting.currency)}")
    sentences = {
        "better": f"Better than {setting.against} at equal cost",
        "worse": f"Worse than {setting.against} at equal cost",
        "open": f"Not significantly different from {setting.against} at equal cost",
    }
    return "\n".join(f"- {sentences[kind]}: {'; '.join(labels)}." for kind, labels in verdicts.items() if labels)


def _unequal(entry: Entry, currency: str) -> str:
    assert entry.rival is not None
    ratio = entry.cost[currency] / entry.rival.cost
    return "" if abs(ratio - 1) <= UNEQUAL else f" (at {ratio:.2f} times its {COSTS[currency]})"


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
        _errorbars(axes, costs, [interval(entry) for entry in members], name, style, number)
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
        _errorbars(place, [value for value, _ in values], [interval(e) for e in entries], None, {}, 0)
        for value, entry in values:
            note = f"{entry.cost[setting.currency]:,.0f}"
            at = (value, 100 * fmean(entry.scores.values()))
            place.annotate(note, at, xytext=(4, -12), textcoords="offset points", fontsize="x-small")
        place.set_xscale("log", base=2)
        place.set_xticks([value for value, _ in values], [f"{value:g}" for value, _ in values])
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
