"""`ets export`: a results folder in the formats of other tools."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLE = """example:
  ets export results/arithmetic-1a2b3c4d --to lm-eval
"""
FORMATS = ("lm-eval", "inspect")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="the results folder of a run of ets eval or ets compare")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format of the files")
    parser.add_argument("--out", type=Path, help="the folder of the files (default: FOLDER/lm-eval or FOLDER/inspect)")


def execute(options: argparse.Namespace) -> None:
    """Write the files and print their paths.

    Raises
    ------
    InputError
        For a folder without a finished run, or an output folder that cannot be written.
    """
    from ets.report.finished import finished_run
    from ets.report.inspect_log import write_inspect
    from ets.report.lm_eval_log import write_lm_eval

    write = {"lm-eval": write_lm_eval, "inspect": write_inspect}[options.to]
    for path in write(finished_run(options.folder), options.out or options.folder / options.to):
        print(path)
