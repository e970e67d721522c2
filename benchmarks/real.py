"""Results folders of `scripts/real.sh` side by side: the tables of docs/real.md.

    REPEATS=3 OUT=results/tone bash scripts/real.sh
    REPEATS=3 TASK=must-contain OUT=results/must-contain bash scripts/real.sh
    python benchmarks/real.py results/tone results/must-contain

A table for each folder, methods by budgets: tokens, the mean reward with its 95% interval, and a bound on E[r] - λ KL.
▲ and ▼: significantly more or less reward than one step at equal cost.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ets.evaluation.bootstrap import paired_difference
from ets.evaluation.comparison import Entry, entry_of
from ets.evaluation.journal import require_version
from ets.report.summary import SUMMARY
from ets.report.tables import aligned, reward_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        require_version(content, folder)
        print(page(content), end="\n\n")


def page(content: dict[str, Any]) -> str:
    """The heading of a folder, the line about p*, and its table."""
    setting, entries = content["setting"], [entry_of(each) for each in content["entries"]]
    optimum = content["optimum"]
    heading = f"### {setting['task']}, {setting['model'].rpartition('/')[2]}"
    star = ""
    if optimum is not None:
        numbers = {name: _estimate(optimum[name]) for name in ("reward", "divergence", "log_z", "objective")}
        star = (
            f"p\\* by estimate from {optimum['texts']} texts of p_ref a prompt ({optimum['effective']:.1f} effective): "
            "mean reward {reward}, KL {divergence} nats, log Z {log_z}, λ log Z {objective}."
        ).format(**numbers)
    return "\n\n".join(filter(None, [heading, star, table(entries)]))


def table(entries: list[Entry]) -> str:
    """A row for each method, and three columns for each budget."""
    budgets = sorted({entry.budget for entry in entries if entry.budget is not None})
    rows = [("method", *(title for _ in budgets for title in ("tokens", "mean reward", "E[r] - λ KL, at most")))]
    for method in dict.fromkeys(entry.method for entry in entries):
        cells = [method]
        for budget in budgets:
            entry = next(e for e in entries if e.method == method and e.budget in (budget, None))
            cells += [f"{entry.cost['generated']:.0f}", mean(entry), objective(entry)]
        rows.append(tuple(cells))
    return aligned(rows)


def mean(entry: Entry) -> str:
    """The mean reward with its interval, and an arrow for a significant difference from one step at equal cost."""
    found = reward_interval(entry)
    if found is None:
        return "-inf"
    against = paired_difference(entry.rewards, entry.rival.rewards) if entry.rival else None
    arrow = "" if against is None or not against.significant else " ▲" if against.mean > 0 else " ▼"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f}){arrow}"


def objective(entry: Entry) -> str:
    found = entry.objective
    return "" if found is None else f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _estimate(values: dict[str, float]) -> str:
    return f"{values['mean']:.3f} ({values['low']:.3f} to {values['high']:.3f})"


if __name__ == "__main__":
    main()
