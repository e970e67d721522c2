"""The option `--traces`: which chains keep their traces for the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ets.types import InputError

if TYPE_CHECKING:
    from ets.commands.opening import Opened
    from ets.evaluation.traces import Traces


def add_traces_argument(parser: argparse.ArgumentParser) -> None:
    text = "problems, from the first on, whose guided chains keep their traces for the report (default: 3)"
    parser.add_argument("--traces", type=int, default=3, help=text)


def require_traces(options: argparse.Namespace) -> None:
    """Raise `InputError` for a negative number."""
    if options.traces < 0:
        raise InputError(f"traces is {options.traces}; give a number of problems, or 0 for none")


def traces_of(found: Opened, folder: Path, options: argparse.Namespace) -> Traces:
    """What keeps the traces, a context."""
    from ets.evaluation.traces import Traces

    return Traces(folder, [problem.id for problem in found.problems[: options.traces]], found.ranks)
