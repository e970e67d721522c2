"""`ets view`: a results folder as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """example:
  ets view results/arithmetic-1a2b3c4d
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the results folder of a run of ets eval or ets compare")
    parser.add_argument("--whole", action="store_true", help="leave the texts of traces whole, however large the file")


def execute(options: argparse.Namespace) -> None:
    """Write the report anew and print its path.

    Raises
    ------
    InputError
        For a folder without a finished run.
    """
    from ets.report.page import write_report

    print(write_report(options.folder, whole=options.whole))
