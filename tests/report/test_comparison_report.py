"""A comparison in words, tables and plots."""

from __future__ import annotations

from pathlib import Path

import pytest

from ets.evaluation.comparison import Entry
from ets.report.comparison import Setting, budget_table, markdown, plot_accuracy_by_cost, plot_scaling, rival, summary
from ets.types import InputError

SETTING = Setting("letters", "a model", 4, "generated", "majority")


def entry(method: str, mean: float, *, budget: int | None = 0, readout: str = "last", spent: float = 100.0) -> Entry:
    """200 problems, a share of which is solved: the first ones."""
    scores = {f"p{n}": float(n < 200 * mean) for n in range(200)}
    cost = {"generated": spent, "positions": 2 * spent, "row_forwards": 0.0, "seconds": 0.5, "depth": 40.0}
    return Entry(budget, method, readout, f"{method} of 5" + (", vote" if readout == "vote" else ""), 5, scores, cost)


ENTRIES = [
    entry("majority", 0.5),
    entry("ets", 0.8),
    entry("ets", 0.52, readout="vote"),
    entry("plain", 0.3),
    entry("greedy", 0.5, budget=None),
    entry("majority", 0.6, budget=1, spent=200),
    entry("ets", 0.6, budget=1, spent=210),
]


def test_every_budget_has_its_table_and_searches_stand_in_all() -> None:
    text = markdown(ENTRIES, SETTING)
    assert text.count("greedy of 5") == 2 * 2  # table and summary, twice
    assert "### Budget 1: about 100 tokens a problem" in text and "### Budget 2: about 210 tokens a problem" in text


def test_differences_are_paired_with_the_method_that_was_named() -> None:
    lines = budget_table(ENTRIES[:4], ENTRIES[0], SETTING).splitlines()
    assert "minus majority, points" in lines[0] and "row-forwards" not in lines[0]
    assert "+30.0 (+24.0 to +36.5)" in lines[3]
    assert lines[2].split("|")[4].strip() == ""


def test_the_summary_says_plainly_what_is_not_significant() -> None:
    assert summary(ENTRIES[:5], ENTRIES[0]).splitlines() == [
        "- Better than majority of 5: ets of 5; ets of 5, vote.",
        "- Worse than majority of 5: plain of 5.",
        "- Not significantly different from majority of 5: greedy of 5.",
    ]


def test_a_rival_that_did_not_run_is_one_line() -> None:
    with pytest.raises(InputError, match="against is 'majority', which is not among the methods"):
        rival(ENTRIES[1:3], SETTING)


def test_plots_are_written(tmp_path: Path) -> None:
    plot_accuracy_by_cost(ENTRIES, SETTING, tmp_path / "cost.png")
    plot_scaling({"M": [(2, ENTRIES[1]), (4, ENTRIES[6])], "K": [(1, ENTRIES[1])]}, SETTING, tmp_path / "scaling.png")
    plot_scaling({"M": [(2, ENTRIES[1]), (4, ENTRIES[6])]}, SETTING, tmp_path / "one.png")
    for name in ("cost", "scaling", "one"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
