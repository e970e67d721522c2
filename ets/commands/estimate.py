"""`ets estimate`: what a run of `ets eval` will take, measured on its first problems."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ets.commands import evaluate
from ets.types import InputError

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
    if options.problems < 1:
        raise InputError(f"problems is {options.problems}; give at least 1")
    for setup, plan in evaluate.prepared(options):
        problems = setup.problems[: options.problems]
        with tempfile.TemporaryDirectory(prefix="ets-estimate-") as folder:
            entries = evaluate.entries_of(setup.with_problems(problems), plan, Path(folder))
        if setup.ranks.first:
            _print(entries, len(setup.problems), len(problems), plan.repeats)
