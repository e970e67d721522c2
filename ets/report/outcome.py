"""The outcome of a run in sentences, and a line for each symbol of its table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ets.evaluation.comparison import Entry
from ets.report.before_after import at_largest_budget, best_of, mean_of
from ets.report.tables import Setting, by_reward, difference_of, interval, mean_reward
from ets.types import counted

SYMBOLS = {
    "M": "candidates in each guide step",
    "K": "rollouts, the completions of a candidate that estimate its energy",
    "λ": "how much the reward counts: of two texts that the model finds equally likely, p* makes the one whose "
    "reward is larger by λ e times as likely",
    "p_ref": "the model's own law of texts, at this temperature",
    "p*": "the law p_ref · exp(r/λ), normalised: the optimum of reinforcement learning with a KL penalty",
    "target": "the law or the text that a method tends to as its budget grows",
    "pass@1": "the share of the problems that one use of the method answers right",
    "avg@": "the share of right answers, a mean over the samples of each problem",
    "tokens": "generated tokens of one use of the method on a problem; of one sample for plain sampling",
    "positions": "token positions that the model computed, prompts included",
    "row-forwards": "forward passes, one for each row of a batch",
    "serial depth": "tokens or denoising steps that are drawn one after the other, which no batch shortens",
    "E[r] - λ KL": "the mean reward minus λ times the divergence from the model, which p* maximises",
}
"""By symbol, as it stands in the table: what it means."""


def sentences(entries: Sequence[Entry], setting: Setting) -> list[str]:
    """Return what was asked, and what came out with 95% intervals: a method next to plain sampling, and the highest."""
    if not entries:
        return []
    lam = setting.shown.get("lam")
    reward = f", with the reward {setting.reward}" if setting.reward else ""
    size = f"{counted(setting.problems, 'problem')} of {setting.task}, {counted(setting.repeats, 'sample')} of each"
    asked = f"{size}, by the model {setting.model}{reward}{'' if lam is None else f' and λ {lam:g}'}."
    scored = "mean reward" if by_reward(entries) else "accuracy"
    highest = max(entries, key=lambda entry: mean_of(entry, by_reward(entries)))
    plain = next((entry for entry in entries if entry.method == "plain"), None)
    others = [entry for entry in at_largest_budget(entries, setting.currency) if entry.method != "plain"]
    if plain is None or not others:
        return [asked, f"The highest observed {scored} is that of {highest.label}: {_shown(highest, entries)}."]
    guided, _ = best_of(others, by_reward(entries))
    found = f"{guided.label} reaches {scored} {_shown(guided, entries)}, plain sampling {_shown(plain, entries)}"
    result = [asked, f"{found}; {_compared(guided, plain, entries)}."]
    rivals = sum(entry.target.startswith("p*") for entry in others) or len(others)
    if rivals > 1:
        result.append(f"It is the highest of {rivals} methods, so its lead is partly the choice of the highest.")
    higher = _shown(highest, entries).split(" ")[0] != _shown(guided, entries).split(" ")[0]
    if higher and highest not in (guided, plain):
        result.append(f"The highest observed {scored} is that of {highest.label}: {_shown(highest, entries)}.")
    return result


def symbols(table: str) -> list[tuple[str, str]]:
    """Return the symbols of `SYMBOLS` in a table's text, with their meanings."""
    columns = table.replace("lam ", "λ ")
    return [(name, meaning) for name, meaning in SYMBOLS.items() if _has(columns, name)]


def _has(text: str, symbol: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(symbol)}(?![A-Za-z])", text) is not None


def _shown(entry: Entry, entries: Sequence[Entry]) -> str:
    if by_reward(entries):
        return mean_reward(entry)
    share = interval(entry)
    return f"{share.mean:.1%} ({share.low:.1%} to {share.high:.1%})"


def _compared(guided: Entry, plain: Entry, entries: Sequence[Entry]) -> str:
    found, shown = difference_of(guided, plain, by_reward(entries))
    if found is None:
        return "a reward of -inf leaves no difference to compare"
    verdict = "" if found.significant else ", not significantly different"
    return f"paired by problem, the difference is {shown}{verdict}"
