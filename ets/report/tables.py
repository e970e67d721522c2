"""The text of a comparison: a table and a summary for each budget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ets.evaluation.bootstrap import Difference, paired_difference
from ets.evaluation.comparison import Entry
from ets.evaluation.intervals import Accuracy, accuracy

COSTS = {
    "generated": "tokens",
    "positions": "positions",
    "row_forwards": "row-forwards",
    "seconds": "seconds",
    "reward_seconds": "reward seconds",
    "depth": "serial depth",
}
"""Costs per sample and their headings; a table leaves out a cost that is 0 in every entry."""
UNEQUAL = 0.1
"""The summary names relative differences in cost above this."""
VERDICTS = {"better": "Better than", "worse": "Worse than", "open": "Not significantly different from"}


@dataclass(frozen=True)
class Setting:
    """The setting of a comparison.

    Parameters
    ----------
    task, model : str
    problems : int
    repeats : int
        Samples of each problem.
    currency : str
        The unit of the budgets, a key of `COSTS`.
    against : str, optional
        The method that every other method is compared with.
    notes : sequence of str
        Lines about the run: targets of weighed draws, and why the draws of a server are approximate.
    shown : mapping of str to value
        Further settings that the results depend on.
    """

    task: str
    model: str
    problems: int
    repeats: int
    currency: str
    against: str | None = None
    notes: Sequence[str] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def score(self) -> str:
        """The name of the scores: pass@1, or avg@k."""
        return "pass@1" if self.repeats == 1 else f"avg@{self.repeats}"


def markdown(entries: Sequence[Entry], setting: Setting) -> str:
    """Return the setting, a table and a summary for each budget, further scores, ratios and notes."""
    shown = ", ".join(f"{name} {value}" for name, value in setting.shown.items() if value is not None)
    samples = "1 sample" if setting.repeats == 1 else f"{setting.repeats} samples"
    heading = f"{setting.task}, model {setting.model}: {setting.problems} problems, {samples} of each. {shown}"
    budgets = sorted({entry.budget for entry in entries if entry.budget is not None})
    sections = [part for budget in budgets for part in _section(entries, setting, budget)]
    if len(budgets) < 2:
        sections = [table(entries, setting), summary(entries, setting)]
    caveat = (
        f"Each interval and each verdict is at 95% for itself alone. Among about {len(entries)} comparisons, one in "
        "twenty would find a difference by chance where there is none."
    )
    ratios = [f"{entry.label}: {entry.ratios}" for entry in entries if entry.ratios and entry.ratios.rollouts]
    last = [further_table(entries), *ratios, *setting.notes, caveat if setting.against else ""]
    return "\n\n".join(filter(None, [heading, *sections, *last]))


def _section(entries: Sequence[Entry], setting: Setting, budget: int) -> Iterator[str]:
    """The heading, table and summary of a budget; entries without a budget belong to every section."""
    members = [entry for entry in entries if entry.budget in (budget, None)]
    of_budget = [entry for entry in members if entry.budget == budget]
    typical = next((entry for entry in of_budget if entry.method == "ets"), of_budget[0])
    spent = f"{typical.cost[setting.currency]:,.0f} {COSTS[setting.currency]}"
    yield f"### Budget {budget + 1}: about {spent} a problem"
    yield table(members, setting)
    yield summary(members, setting)


def table(entries: Sequence[Entry], setting: Setting) -> str:
    """A Markdown table: scores with intervals, differences from `setting.against` at equal cost, and costs."""
    costs = {name: title for name, title in COSTS.items() if any(entry.cost[name] >= 0.005 for entry in entries)}
    rival = (f"minus {setting.against} at equal cost, points",) if setting.against else ()
    titles = ("method", setting.score, "95% interval", *rival, *costs.values())
    return aligned([titles, *(_cells(entry, list(costs), bool(rival)) for entry in entries)])


def _cells(entry: Entry, costs: Sequence[str], with_rival: bool) -> tuple[str, ...]:
    share = interval(entry)
    shown = (f"{entry.cost[name]:,.2f}" if "seconds" in name else f"{entry.cost[name]:,.0f}" for name in costs)
    difference = ""
    if entry.rival is not None:
        difference = f"{points(paired_difference(entry.scores, entry.rival.scores))}, {entry.rival.label}"
    rival = (difference,) if with_rival else ()
    return entry.label, f"{share.mean:.1%}", f"{share.low:.1%} to {share.high:.1%}", *rival, *shown


def further_table(entries: Sequence[Entry]) -> str:
    """A table of the task's further scores, such as lm-eval's; empty if there are none."""
    entries = [entry for entry in entries if entry.further and entry.readout == "last"]
    if not entries:
        return ""
    names = list(entries[0].further)
    headings = ("method", *(f"lm-eval: {name}" for name in names))
    return aligned([headings, *((each.label, *(f"{each.further[name]:.1%}" for name in names)) for each in entries)])


def aligned(cells: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table of lines of cells, the first of them the headings; all columns but the first to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]

    def padded(line: tuple[str, ...]) -> str:
        shown = (cell.rjust(w) if n else cell.ljust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True)))
        return "| " + " | ".join(shown) + " |"

    rule = "| " + " | ".join("-" * (w - 1) + ":" if n else "-" * w for n, w in enumerate(widths)) + " |"
    return "\n".join([padded(cells[0]), rule, *map(padded, cells[1:])])


def interval(entry: Entry) -> Accuracy:
    """Accuracy over problems; a little too wide where scores are expectations over a method's choice."""
    return accuracy(list(entry.scores.values()), entry.draws)


def points(difference: Difference) -> str:
    """A difference in points of accuracy, with its interval."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def summary(entries: Sequence[Entry], setting: Setting) -> str:
    """List the methods that are better, worse, or not significantly different at equal cost.

    A label names the ratio of costs where the costs differ by more than a tenth.
    """
    verdicts: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    for entry in entries:
        if entry.rival is not None:
            found = paired_difference(entry.scores, entry.rival.scores)
            verdict = "open" if not found.significant else "better" if found.mean > 0 else "worse"
            ratio = entry.cost[setting.currency] / entry.rival.cost
            unequal = f" (at {ratio:.2f} times its {COSTS[setting.currency]})" if abs(ratio - 1) > UNEQUAL else ""
            verdicts[verdict].append(entry.label + unequal)
    return "\n".join(
        f"- {VERDICTS[verdict]} {setting.against} at equal cost: {'; '.join(labels)}."
        for verdict, labels in verdicts.items()
        if labels
    )
