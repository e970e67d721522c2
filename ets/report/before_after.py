"""The texts of plain sampling next to those of the other methods, for the first problems of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from ets.evaluation.comparison import Entry
from ets.report.tables import Setting, by_reward, interval, mean_reward
from ets.templates import as_text, render
from ets.trace_view import elide

BOUND = 300_000
"""The most characters of the section; unless the whole texts are requested, texts are shortened until they fit."""
SHORT = 600
"""Characters of the longest prompt that is open."""
HEAD, TAIL = 80, 320
"""Characters of both ends of a longer prompt; after worked examples, its own question is at the end."""


def before_and_after(entries: Sequence[Entry], setting: Setting, limits: Iterable[int]) -> str:
    """Return the section as HTML; "" without plain sampling, without another method, or without texts.

    Parameters
    ----------
    entries : sequence of Entry
    setting : Setting
        Its `prompts` are those of the shown problems.
    limits : iterable of int
        Limits of a text's characters, tried one after the other until the section has at most `BOUND` characters.
    """
    plain = next((entry for entry in entries if entry.method == "plain" and entry.texts), None)
    others = _at_largest_budget([e for e in entries if e.method != "plain" and e.texts], setting)
    if plain is None or not others:
        return ""
    rewarded = by_reward(entries)
    best, sampling = _best(others, rewarded)
    further = [entry for entry in others if entry is not best]
    heads = {"before": _head(plain, rewarded), "after": _head(best, rewarded)}
    section = ""
    for limit in limits:
        rows = [_row(id, plain, best, further, setting, limit) for id in plain.texts if id in best.texts]
        section = render("before_after.html", rows=rows, **heads, score=_score(rewarded), sampling=sampling)
        if len(section) <= BOUND:
            break
    return section


def _at_largest_budget(entries: Sequence[Entry], setting: Setting) -> list[Entry]:
    """The entries of the budget that costs most, and those without a budget."""
    budgeted = [entry for entry in entries if entry.budget is not None]
    largest = max(budgeted, key=lambda entry: entry.cost[setting.currency], default=None)
    return [entry for entry in entries if entry.budget is None or (largest and entry.budget == largest.budget)]


def _best(entries: Sequence[Entry], rewarded: bool) -> tuple[Entry, bool]:
    """The entry of the highest score, and whether it is the best of those that sample p*; without any, of all."""
    sampling = [entry for entry in entries if entry.target.startswith("p*")]
    return max(sampling or entries, key=lambda entry: _mean(entry, rewarded)), bool(sampling)


def _mean(entry: Entry, rewarded: bool) -> float:
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


def _row(
    problem: str, plain: Entry, best: Entry, further: Sequence[Entry], setting: Setting, limit: int
) -> dict[str, Any]:
    turns = [(role, elide(text, 4 * limit)) for role, text in _turns(setting.prompts.get(problem, ""))]
    short = sum(len(text) for _, text in turns) <= SHORT
    return {
        "problem": problem,
        "turns": turns,
        "preview": "" if short else _ends(turns[-1][1]),
        "plain": _shown("plain sampling", plain.texts[problem], limit),
        "best": _shown(best.label, best.texts[problem], limit),
        "further": [_shown(each.label, each.texts[problem], limit) for each in further if problem in each.texts],
    }


def _turns(prompt: Any) -> list[tuple[str, str]]:
    """The roles and texts of a prompt; a prompt of text or token ids is one turn without a role."""
    if isinstance(prompt, Sequence) and prompt and isinstance(prompt[0], Mapping):
        return [(str(turn["role"]), str(turn["content"])) for turn in prompt]
    return [("", as_text(prompt))]


def _ends(text: str) -> str:
    between = len(text) - HEAD - TAIL
    return f"{text[:HEAD]} […{between:,} characters…] {text[-TAIL:]}" if between > 0 else text


def _shown(label: str, text: Mapping[str, Any], limit: int) -> dict[str, str]:
    """A text with its label and its grade, such as "right, reward 0.250"."""
    correct = text.get("correct")
    verdict = [] if correct is None else ["right" if correct else "wrong"]
    rewarded = [f"reward {_number(text['reward'])}"] if "reward" in text else []
    return {
        "label": label,
        "grade": ", ".join(verdict + rewarded),
        "text": elide(text["text"].lstrip("\n").rstrip(), limit),
    }


def _number(reward: float | None) -> str:
    """Three decimals, or two from 10 on, as in the tables; None is -inf."""
    return "−∞" if reward is None else f"{reward:.{3 if abs(reward) < 10 else 2}f}".replace("-", "−")
