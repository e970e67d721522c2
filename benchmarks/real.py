"""Results folders of `scripts/real.sh` side by side: the tables of docs/real.md.

    REPEATS=3 OUT=results/tone bash scripts/real.sh
    REPEATS=3 TASK=must-contain OUT=results/must-contain bash scripts/real.sh
    python benchmarks/real.py results/tone results/must-contain

A table for each folder, methods by budgets: tokens, the mean reward with its 95% interval, and a bound on E[r] - λ KL.
▲ and ▼: significantly more or less reward than one step at equal cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ets.evaluation.comparison import Entry
from ets.report.summary import Summary, finished, read_summary
from ets.report.tables import aligned, mean_reward, paired_rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    for folder in parser.parse_args().folders:
        with finished(folder):
            summary = read_summary(folder)
        print(page(summary), end="\n\n")


def page(summary: Summary) -> str:
    """The heading of a folder, the line about p*, and its table."""
    setting, star = summary.setting, summary.optimum
    heading = f"### {setting.task}, {setting.model.rpartition('/')[2]}"
    line = "" if star is None else (
        f"p\\* by estimate from {star.texts} texts of p_ref a prompt ({star.effective:.1f} effective): mean reward "
        f"{star.reward}, KL {star.divergence} nats, log Z {star.log_z}, λ log Z {star.objective}."
    )  # fmt: skip
    return "\n\n".join(filter(None, [heading, line, table(summary.entries)]))


def table(entries: Sequence[Entry]) -> str:
    """A row for each method, and three columns for each budget."""
    budgets = sorted({entry.budget for entry in entries if entry.budget is not None})
    rows = [("method", *(title for _ in budgets for title in ("tokens", "mean reward", "E[r] - λ KL, at most")))]
    for method in dict.fromkeys(entry.method for entry in entries):
        cells = [method]
        for budget in budgets:
            entry = next(e for e in entries if e.method == method and e.budget in (budget, None))
            cells += [f"{entry.cost['generated']:.0f}", mean(entry), f"{entry.objective or ''}"]
        rows.append(tuple(cells))
    return aligned(rows)


def mean(entry: Entry) -> str:
    """The mean reward with its interval, and an arrow for a significant difference from one step at equal cost."""
    against = paired_rewards(entry, entry.rival)
    arrow = "" if against is None or not against.significant else " ▲" if against.mean > 0 else " ▼"
    return mean_reward(entry) + arrow


if __name__ == "__main__":
    main()
