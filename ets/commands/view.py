"""`ets view`: a results folder, or an answer of `ets serve` with its traces, as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """examples:
  ets view results/arithmetic-1a2b3c4d
  ets view response.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "the results folder of a run of ets eval or ets compare, or a file with an answer of ets serve"
    parser.add_argument("path", type=Path, help=text)
    parser.add_argument("--whole", action="store_true", help="leave the texts of traces whole, however large the file")


def execute(options: argparse.Namespace) -> None:
    """Write the page anew and print its path.

    Raises
    ------
    InputError
        For a folder without a finished run, or a file without traces.
    """
    from ets.report.answer import write_answer
    from ets.report.page import write_report

    write = write_answer if options.path.is_file() else write_report
    print(write(options.path, whole=options.whole))
