"""`ets estimate`: the cost of a run of `ets eval`, measured on its first problems."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ets.commands import evaluate
from ets.types import InputError, counted

if TYPE_CHECKING:
    from ets.evaluation.comparison import Entry

EXAMPLE = """the flags are those of ets eval: put estimate in the place of eval. Example:
  ets estimate --task arithmetic --model embedded --shots 0 --methods plain,majority,ets \\
      --candidates 8 --rollouts 3 --lam 0.1 --block-size 16 --max-length 96 --temperature 1.9 --problems 4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    evaluate.add_arguments(parser)
    text = "problems that are run, from the first on, and extrapolated from (default: 4)"
    parser.add_argument("--problems", type=int, default=4, help=text)


def execute(options: argparse.Namespace) -> None:
    """Run the first problems in a folder that is removed, and print the extrapolated cost of the whole run.

    Raises
    ------
    InputError
        As for `ets eval`, or for a number of problems below 1.
    """
    from ets.evaluation.journal import Journal

    if options.problems < 1:
        raise InputError(f"problems is {options.problems}; give at least 1")
    for setup, plan in evaluate.prepared(evaluate.plans_of(options)):
        problems = setup.problems[: options.problems]
        with (
            tempfile.TemporaryDirectory(prefix="ets-estimate-") as folder,
            Journal(Path(folder), setup.configuration, setup.ranks) as journal,
        ):
            entries, *_ = evaluate.entries_of(replace(setup, problems=problems), plan, journal)
        if setup.ranks.first:
            print(_table(entries, len(setup.problems), len(problems), plan.repeats))


def _table(entries: Sequence[Entry], problems: int, measured: int, repeats: int) -> str:
    """The cost of each method over all problems and repeats, extrapolated from the mean of the measured problems."""
    from ets.report.tables import COSTS, aligned

    costs = {name: title for name, title in COSTS.items() if name != "depth" and any(e.cost[name] for e in entries)}
    rows = [
        (entry.label, *(f"{entry.cost[name] * problems * min(repeats, entry.draws):,.0f}" for name in costs))
        for entry in entries
        if entry.readout == "last"
    ]
    heading = (
        f"expected for {counted(problems, 'problem')}, {repeats} of each, from {measured} of them on this machine:"
    )
    note = "loading, grading and plots come on top; methods that share complete samples draw them once"
    return f"{heading}\n\n{aligned([('method', *costs.values()), *rows])}\n\n{note}"
