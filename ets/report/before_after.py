"""The texts of plain sampling next to those of the other methods, for the first problems of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ets.evaluation.comparison import Entry
from ets.evaluation.journal import Record
from ets.evaluation.samples import Returned
from ets.report.tables import by_reward, interval, mean_reward
from ets.templates import as_text, render
from ets.trace_view import elide

SHOWN_PROBLEMS = 10
"""The section shows so many problems, from the first on."""
BOUND = 300_000
"""The most characters of the section; unless the whole texts are requested, texts are shortened until they fit."""
SHORT = 600
"""Characters of the longest prompt that is open."""
HEAD, TAIL = 80, 320
"""Characters of both ends of a longer prompt; after worked examples, its own question is at the end."""


def comparable(entries: Sequence[Entry]) -> bool:
    """Whether plain sampling and another method are among the entries."""
    return len({entry.method == "plain" for entry in entries}) == 2


def before_and_after(
    entries: Sequence[Entry], currency: str, problems: Sequence[Record], samples: Returned, limits: Iterable[int]
) -> str:
    """Return the section as HTML; "" without plain sampling, without another method, or without their texts.

    Parameters
    ----------
    entries : sequence of Entry
    currency : str
        The unit of the budgets.
    problems, samples
        As `ets.evaluation.samples.read_samples` returns them.
    limits : iterable of int
        Limits of a text's characters, tried one after the other until the section has at most `BOUND` characters.
    """
    entries = [entry for entry in entries if (entry.key, entry.readout) in samples]
    if not comparable(entries):
        return ""
    plain = next(entry for entry in entries if entry.method == "plain")
    others = at_largest_budget([entry for entry in entries if entry.method != "plain"], currency)
    rewarded = by_reward(entries)
    best, sampling = best_of(others, rewarded)
    shown = [replace(plain, label="plain sampling"), best, *(entry for entry in others if entry is not best)]
    heads = {"before": _head(plain, rewarded), "after": _head(best, rewarded)}
    section = ""
    for limit in limits:
        rows = [_row(problem, shown, samples, limit) for problem in problems[:SHOWN_PROBLEMS]]
        section = render("before_after.html", rows=rows, **heads, score=_score(rewarded), sampling=sampling)
        if len(section) <= BOUND:
            break
    return section


def at_largest_budget(entries: Sequence[Entry], currency: str) -> list[Entry]:
    """The entries of the budget that costs most, and those without a budget."""
    budgeted = [entry for entry in entries if entry.budget is not None]
    largest = max(budgeted, key=lambda entry: entry.cost[currency], default=None)
    return [entry for entry in entries if entry.budget is None or (largest and entry.budget == largest.budget)]


def best_of(entries: Sequence[Entry], rewarded: bool) -> tuple[Entry, bool]:
    """The entry of the highest score, and whether it is the best of those that sample p*; without any, of all."""
    sampling = [entry for entry in entries if entry.target.startswith("p*")]
    return max(sampling or entries, key=lambda entry: mean_of(entry, rewarded)), bool(sampling)


def mean_of(entry: Entry, rewarded: bool) -> float:
    """The mean score or reward of an entry; -inf without one."""
    values = entry.rewards if rewarded else entry.scores
    return fmean(values.values()) if values else -math.inf


def _score(rewarded: bool) -> str:
    return "mean reward" if rewarded else "accuracy"


def _head(entry: Entry, rewarded: bool) -> dict[str, str]:
    """The label of an entry, and its score over all problems with a 95% interval."""
    if rewarded:
        return {"label": entry.label, "score": mean_reward(entry)}
    share = interval(entry)
    return {"label": entry.label, "score": f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%})"}


def _row(problem: Record, shown: Sequence[Entry], samples: Returned, limit: int) -> dict[str, Any]:
    """The prompt of a problem, and the first sample of each entry: plain sampling, the best method, further ones."""
    turns = [(role, elide(text, 4 * limit)) for role, text in _turns(problem)]
    short = sum(len(text) for _, text in turns) <= SHORT
    plain, best, *further = (
        _card(entry.label, samples[entry.key, entry.readout][problem["id"]][0], limit) for entry in shown
    )
    return {
        "problem": problem["id"],
        "turns": turns,
        "preview": "" if short else _ends(turns[-1][1]),
        "plain": plain,
        "best": best,
        "further": further,
    }


def _turns(problem: Record) -> list[tuple[str, str]]:
    """The roles and texts of a prompt as it was given; a prompt of text or token ids is one turn without a role."""
    if problem["user_text"] is None and problem["messages"]:
        return [(str(turn["role"]), str(turn["content"])) for turn in problem["messages"]]
    return [("", as_text(problem["prompt"] if problem["user_text"] is None else problem["user_text"]))]


def _ends(text: str) -> str:
    between = len(text) - HEAD - TAIL
    return f"{text[:HEAD]} […{between:,} characters…] {text[-TAIL:]}" if between > 0 else text


def _card(label: str, sample: Record, limit: int) -> dict[str, str]:
    """A text with its label and its grade, such as "right, reward 0.250"."""
    grade = sample.get("chosen", sample)
    verdict = [] if grade["correct"] is None else ["right" if grade["correct"] else "wrong"]
    rewarded = [f"reward {_number(grade['reward'])}"] if "reward" in grade else []
    return {
        "label": label,
        "grade": ", ".join(verdict + rewarded),
        "text": elide(sample["text"].lstrip("\n").rstrip(), limit),
    }


def _number(reward: float | None) -> str:
    """Three decimals, or two from 10 on, as in the tables; None is -inf."""
    return "−∞" if reward is None else f"{reward:.{3 if abs(reward) < 10 else 2}f}".replace("-", "−")
