"""Write docs/choosing.md: what M, K, I and λ do, exactly and on the embedded model. `python benchmarks/choosing.py`

The numbers are kept in docs/choosing/figures.json, from which `--page-only` writes page and pictures again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import choosing_demo
import choosing_laws
from choosing_plots import draw

from ets.report.tables import aligned

TEMPLATE = Path(__file__).with_name("choosing_template.md")
PAGE = Path(__file__).parents[1] / "docs" / "choosing.md"
Rows = Sequence[dict[str, Any]]
Columns = dict[str, Callable[[dict[str, Any]], str]]


def _right(row: dict[str, Any]) -> str:
    return f"{row['right']:.1%} ({row['low']:.0%} to {row['high']:.0%})"


def _distances(symbol: str, values: Sequence[int]) -> Columns:
    """A column for each value of I or K."""
    cells: Columns = {"reward": lambda row: row["reward"], "λ": lambda row: f"{row['lam']:g}"}
    return cells | {f"{symbol} = {value}": lambda row, value=value: f"{row[value]:.3f}" for value in values}


EXACT = _distances("I", choosing_laws.STEPS)
SHARED = _distances("K", choosing_laws.ROLLOUTS)
LAM: Columns = {
    "reward": lambda row: row["reward"],
    "λ": lambda row: f"{row['lam']:g}",
    "mean reward": lambda row: f"{row['mean']:.3f}",
    "right answers": _right,
    "effective / M": lambda row: f"{row['effective']:.2f}",
}
PAIRS: Columns = {
    "reward": lambda row: row["reward"],
    "candidates M": lambda row: f"{row['candidates']}",
    "rollouts K": lambda row: f"{row['rollouts']}",
    "tokens": lambda row: f"{row['tokens']:,.0f}",
    "right answers": _right,
}
STEPS: Columns = {
    "reward": lambda row: row["reward"],
    "block": lambda row: f"{row['block']}",
    "I, at most": lambda row: f"{-(-choosing_demo.LENGTH // row['block'])}",
    "candidates M": lambda row: f"{row['candidates']}",
    "tokens, by formula": lambda row: f"{row['formula']:,.0f}",
    "tokens": lambda row: f"{row['tokens']:,.0f}",
    "mean reward": lambda row: f"{row['mean']:.3f}",
    "right answers": _right,
}


def table(columns: Columns, rows: Rows) -> str:
    return aligned([tuple(columns), *(tuple(cell(row) for cell in columns.values()) for row in rows)])


def page(figures: dict[str, Any]) -> str:
    """The template with its tables and the numbers that its sentences quote."""
    laws, demo = figures["laws"], figures["demo"]
    graded, passing = laws["graded"], laws["pass"]
    return TEMPLATE.read_text(encoding="utf-8").format(
        tables=figures["tables"],
        problems=demo["problems"],
        best=graded["best"],
        limit=graded["limit"],
        graded_spread=graded["spread"],
        pass_spread=passing["spread"],
        small=graded["lam"][0],
        large=graded["lam"][-1],
        passed=passing["lam"][0],
        passed_needed=math.exp(passing["lam"][0]["kl"]),
        largest=choosing_laws.BUDGETS[-1],
        plain=demo["plain"],
        graded_demo=_at(demo["lam"], reward="graded"),
        shared_tokens=choosing_laws.SHARED,
        shared_steps=choosing_laws.GUIDE_STEPS,
        shared=table(SHARED, [_across(laws, name, lam, "shared", "rollouts") for name, lam in _compared(laws)]),
        exact_steps=table(EXACT, [_across(laws, name, lam, "steps", "guide_steps") for name, lam in _compared(laws)]),
        lam_demo=table(LAM, demo["lam"]),
        pairs_demo=table(PAIRS, demo["pairs"]),
        steps_demo=table(STEPS, demo["steps"]),
    )


def _compared(laws: dict[str, Any]) -> list[tuple[str, float]]:
    return [(name, lam) for name in laws for lam in choosing_laws.COMPARED]


def _across(laws: dict[str, Any], name: str, lam: float, question: str, column: str) -> dict[Any, Any]:
    """Distances by a column; of several budgets the last and largest stays."""
    rows = [row for row in laws[name][question] if row["lam"] == lam]
    return {"reward": name, "lam": lam, **{row[column]: row["distance"] for row in rows}}


def _at(rows: Rows, **values: object) -> dict[str, Any]:
    """The first row that has these values."""
    return next(row for row in rows if all(row[name] == value for name, value in values.items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, keep the numbers, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="problems of the demonstration")
    parser.add_argument("--tables", type=int, default=3, help="random models whose laws are averaged")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--page-only", action="store_true", help="write the page from the numbers that are there")
    options = parser.parse_args(arguments)
    folder = options.page.parent / "choosing"
    kept = folder / "figures.json"
    if not options.page_only:
        laws, demo = choosing_laws.figures(options.tables), choosing_demo.figures(options.count)
        folder.mkdir(parents=True, exist_ok=True)
        found = {"tables": options.tables, "laws": laws, "demo": demo}
        kept.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    figures = json.loads(kept.read_text(encoding="utf-8"))
    draw(figures, folder)
    options.page.write_text(page(figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
