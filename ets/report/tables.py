"""The text of a comparison: a table and a summary for each budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ets.evaluation.bootstrap import Difference, paired_difference
from ets.evaluation.comparison import Entry, Rival
from ets.evaluation.curves import CurvePoint
from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.objective import Estimate, Optimum, estimated
from ets.types import counted

COSTS = {
    "generated": "tokens",
    "positions": "positions",
    "row_forwards": "row-forwards",
    "seconds": "seconds",
    "reward_seconds": "reward seconds",
    "depth": "serial depth",
}
"""Costs per sample and their headings; a table leaves out a cost that is 0 in every entry."""
GUIDED = ("ets", "ets-is", "ets-stopped")
"""Methods of guide steps, in which one candidate leaves no choice."""
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
    reward : str
        The reward of all rows.
    shots : int
        Worked examples in each prompt.
    amounts : sequence of float
        The budgets in the currency; empty where they are candidates of ETS.
    """

    task: str
    model: str
    problems: int
    repeats: int
    currency: str
    against: str | None = None
    notes: Sequence[str] = ()
    shown: Mapping[str, Any] = field(default_factory=dict)
    reward: str = ""
    shots: int = 0
    amounts: Sequence[float] = ()

    @property
    def score(self) -> str:
        """The name of the scores: pass@1, or avg@k."""
        return "pass@1" if self.repeats == 1 else f"avg@{self.repeats}"


LEADING = {"lam": "λ", "temperature": "temperature", "rollouts": "K"}
"""By setting: its name in the line before a run."""
LENGTHS = ("block_size", "block_length", "guide_steps", "steps", "max_length", "gen_length")
"""Settings of length in that line, as far as the engine has them."""


def settings_line(setting: Setting, budgets: Sequence[float]) -> str:
    """Return the line before a run: "arithmetic, 20 problems: λ 0.1, temperature 1.9, M 8, K 3, block_size 16 …"."""
    shown = [f"{name} {setting.shown[key]}" for key, name in LEADING.items() if key in setting.shown]
    budget = ", ".join(_amount(setting, n) for n in range(len(setting.amounts)))
    shown.insert(-1, budget or f"M {', '.join(map(str, budgets))}")
    shown += [f"{name} {setting.shown[name]}" for name in LENGTHS if name in setting.shown]
    reward = f", reward {setting.reward}" if setting.reward else ""
    return f"{setting.task}, {counted(setting.problems, 'problem')}: {', '.join(shown)}{reward}"


def markdown(
    entries: Sequence[Entry],
    setting: Setting,
    points: Sequence[CurvePoint] = (),
    optimum: Optimum | None = None,
) -> str:
    """Return the setting, a table and a summary for each budget, further scores, the curves, ratios and notes.

    The line about p* is the text of its estimate.
    """
    shown = ", ".join(f"{name} {value}" for name, value in setting.shown.items() if value is not None)
    size = f"{counted(setting.problems, 'problem')}, {counted(setting.repeats, 'sample')} of each"
    heading = f"{setting.task}, model {setting.model}: {size}. {shown}"
    budgets = sorted({entry.budget for entry in entries if entry.budget is not None})
    sections = [part for budget in budgets for part in _section(entries, setting, budget)]
    if len(budgets) < 2:
        budget = f"### Budget: {_amount(setting, 0)}" if setting.amounts else ""
        sections = [budget, head(setting), table(entries, setting), without_choice(entries), summary(entries, setting)]
    compared = sum(entry.rival is not None for entry in entries)
    caveat = (
        f"Each interval and each verdict is at 95% for itself alone. Among {compared} comparisons, one in twenty would "
        "find a difference by chance where there is none."
    )
    ratios = [f"{entry.label}: {entry.ratios}" for entry in entries if entry.ratios and entry.ratios.rollouts]
    further = further_table(entries, "lm-eval: " if "lm_eval" in setting.shown else "")
    last = [
        "" if optimum is None else str(optimum),
        further,
        curves_table(points),
        *ratios,
        *setting.notes,
    ]
    last.append(caveat if setting.against else "")
    return "\n\n".join(filter(None, [heading, *sections, *last]))


def _section(entries: Sequence[Entry], setting: Setting, budget: int) -> Iterator[str]:
    """The heading, table and summary of a budget; entries without a budget belong to every section."""
    members = [entry for entry in entries if entry.budget in (budget, None)]
    of_budget = [entry for entry in members if entry.budget == budget]
    typical = next((entry for entry in of_budget if entry.method == "ets"), of_budget[0])
    spent = f"about {typical.cost[setting.currency]:,.0f} {COSTS[setting.currency]} a problem"
    yield f"### Budget {budget + 1}: {_amount(setting, budget) if setting.amounts else spent}"
    yield head(setting)
    yield table(members, setting)
    yield without_choice(members)
    yield summary(members, setting)


def _amount(setting: Setting, budget: int) -> str:
    """A budget as it was given; the columns of the table show what each method spent."""
    return f"{setting.amounts[budget]:,.10g} {COSTS[setting.currency]} a problem"


def without_choice(entries: Sequence[Entry]) -> str:
    """A line about the methods with one candidate a guide step; empty without any."""
    labels = [e.label for e in entries if e.method in GUIDED and e.size == 1 and e.readout == "last"]
    remedy = "one candidate leaves no choice, so that its text is plain sampling; raise the budget"
    return f"note: {', '.join(labels)}: {remedy}" if labels else ""


def head(setting: Setting) -> str:
    """The line above a table that names its reward; empty without a name."""
    return setting.reward and f"Reward of all rows: {setting.reward}"


def by_reward(entries: Sequence[Entry]) -> bool:
    """Whether the task has no right answers, so that the mean reward compares its entries."""
    return not any(entry.scores for entry in entries)


def table(entries: Sequence[Entry], setting: Setting) -> str:
    """A Markdown table: targets, scores and rewards, each with its difference from `against` at equal cost, costs."""
    costs = {name: title for name, title in COSTS.items() if any(entry.cost[name] >= 0.005 for entry in entries)}
    columns: dict[str, list[str]] = {
        "method": [entry.label for entry in entries],
        "target": [entry.target for entry in entries],
    }
    graded, rival = not by_reward(entries), f"minus {setting.against} at equal cost"
    if graded:
        shares = [interval(entry) for entry in entries]
        columns[setting.score] = [f"{share.mean:.1%}" for share in shares]
        columns["95% interval"] = [f"{share.low:.1%} to {share.high:.1%}" for share in shares]
    if graded and setting.against:
        columns[f"{rival}, points"] = [_difference(entry) for entry in entries]
    if any(entry.rewards for entry in entries):
        columns["mean reward"] = [mean_reward(entry) for entry in entries]
        if setting.against:
            columns[f"{rival}, reward"] = [_reward_difference(entry, named=not graded) for entry in entries]
    if any(entry.objective for entry in entries):
        columns["E[r] - λ KL, at most"] = [_rewards(entry.objective) if entry.objective else "" for entry in entries]
    for name, title in costs.items():
        columns[title] = [f"{each.cost[name]:,.{2 if 'seconds' in name else 0}f}" for each in entries]
    return aligned([tuple(columns), *zip(*columns.values(), strict=True)])


def _difference(entry: Entry) -> str:
    rival = entry.rival
    return f"{points(paired_difference(entry.scores, rival.scores))}, {rival.label}" if rival else ""


def mean_reward(entry: Entry) -> str:
    """The mean with a 95% interval; without an interval if a reward is -inf."""
    mean = reward_interval(entry)
    return _rewards(mean) if mean else "-inf" if entry.rewards else ""


def _reward_difference(entry: Entry, named: bool) -> str:
    difference = paired_rewards(entry, entry.rival)
    if difference is None or entry.rival is None:
        return ""
    return _rewards(difference, "+") + (f", {entry.rival.label}" if named else "")


def paired_rewards(entry: Entry, rival: Entry | Rival | None) -> Difference | None:
    """The difference of the mean rewards of an entry and another; None without rewards, or with one of -inf."""
    rewards, others = entry.rewards, rival.rewards if rival else {}
    if not (rewards and others) or any(map(math.isinf, (*rewards.values(), *others.values()))):
        return None
    return paired_difference(rewards, others, largest=None)


def _rewards(difference: Difference | Estimate, sign: str = "") -> str:
    """A mean reward or a difference with its interval; three decimals, or two from 10 on."""
    if isinstance(difference, Difference) and difference.differing == 0:
        return f"{0:{sign}.3f} (no problem differs)"
    values = (difference.mean, difference.low, difference.high)
    places = 3 if max(map(abs, values)) < 10 else 2
    mean, low, high = (f"{round(value, places) + 0.0:{sign}.{places}f}" for value in values)
    return f"{mean} ({low} to {high})"


def curves_table(points: Sequence[CurvePoint]) -> str:
    """A table of pass@k and maj@k of the complete samples of p_ref; empty without points."""
    if not points:
        return ""
    shares = [[f"{each.mean:.1%} ({each.low:.1%} to {each.high:.1%})" for each in (p.passed, p.voted)] for p in points]
    rows = [(f"{point.k}", *cells) for point, cells in zip(points, shares, strict=True)]
    note = "Complete samples of p_ref, k at a time: whether a right one is among them, and their majority."
    return f"{note}\n\n{aligned([('k', 'pass@k', 'maj@k'), *rows])}"


def further_table(entries: Sequence[Entry], prefix: str = "") -> str:
    """A table of the task's further scores, with a prefix of their names; empty if there are none."""
    entries = [entry for entry in entries if entry.further and entry.readout == "last"]
    if not entries:
        return ""
    names = list(entries[0].further)
    headings = ("method", *(f"{prefix}{name}" for name in names))
    return aligned([headings, *((each.label, *(f"{each.further[name]:.1%}" for name in names)) for each in entries)])


def aligned(cells: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table of lines of cells, the first of them the headings; all columns but the first to the right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]

    def padded(line: tuple[str, ...]) -> str:
        shown = (cell.rjust(w) if n else cell.ljust(w) for n, (cell, w) in enumerate(zip(line, widths, strict=True)))
        return "| " + " | ".join(shown) + " |"

    rule = "| " + " | ".join("-" * (w - 1) + ":" if n else "-" * w for n, w in enumerate(widths)) + " |"
    return "\n".join([padded(cells[0]), rule, *map(padded, cells[1:])])


def reward_interval(entry: Entry) -> Estimate | None:
    """The mean reward with its interval, by a bootstrap over problems; None without rewards, or with one of -inf."""
    if not entry.rewards or any(map(math.isinf, entry.rewards.values())):
        return None
    return estimated(np.array([entry.rewards[problem] for problem in sorted(entry.rewards)]))


def interval(entry: Entry) -> Accuracy:
    """Accuracy over problems; a little too wide where scores are expectations over a method's choice."""
    return accuracy(list(entry.scores.values()), entry.draws)


def points(difference: Difference) -> str:
    """A difference in points of accuracy, with its interval."""
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    mean, low, high = (round(100 * value, 1) + 0.0 for value in (difference.mean, difference.low, difference.high))
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def difference_of(entry: Entry, rival: Entry | Rival, rewarded: bool) -> tuple[Difference | None, str]:
    """The paired difference of the scores or rewards of two entries, and its text: "+3.2 points (+0.1 to +6.3)"."""
    if rewarded:
        found = paired_rewards(entry, rival)
        return found, "" if found is None else _rewards(found, "+")
    found = paired_difference(entry.scores, rival.scores)
    mean, _, spread = points(found).partition(" ")
    return found, f"{mean} points {spread}"


def summary(entries: Sequence[Entry], setting: Setting) -> str:
    """List the methods that are better, worse, or not significantly different at equal cost, by score or by reward.

    A label names the ratio of costs where the costs differ by more than a tenth.
    """
    verdicts: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
    rewarded = by_reward(entries)
    for entry in entries:
        found = difference_of(entry, entry.rival, rewarded)[0] if entry.rival else None
        if found and entry.rival:
            verdict = "open" if not found.significant else "better" if found.mean > 0 else "worse"
            ratio = entry.cost[setting.currency] / entry.rival.cost
            unequal = f" (at {ratio:.2f} times its {COSTS[setting.currency]})" if abs(ratio - 1) > UNEQUAL else ""
            small = not rewarded and abs(found.mean) < 0.0005
            reason = " (by less than 0.05 points)" if small and verdict != "open" else ""
            verdicts[verdict].append(entry.label + unequal + reason)
    return "\n".join(
        f"- {VERDICTS[verdict]} {setting.against} at equal cost: {'; '.join(labels)}."
        for verdict, labels in verdicts.items()
        if labels
    )
