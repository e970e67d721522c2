"""The command line: `ets` or `python -m ets`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ets import __version__
from ets.commands import compare as compare_command
from ets.commands import estimate as estimate_command
from ets.commands import eval as eval_command
from ets.commands import sample as sample_command
from ets.commands import view as view_command
from ets.evaluation.ranks import told_once
from ets.exits import KEPT, NOTHING_KEPT, exit_status
from ets.types import InputError

COMMANDS = {
    "sample": (sample_command, "sample one text, and show how it came about"),
    "eval": (eval_command, "measure methods on a task"),
    "compare": (compare_command, "measure many methods at equal budgets"),
    "estimate": (estimate_command, "measure what a run of eval will take"),
    "view": (view_command, "show a results folder as one HTML file"),
}
EXAMPLE = """examples:
  ets sample --model embedded --extract '#### (-?[0-9]+)' --block-size 16 --max-length 96 \\
      --prompt 'Question: Tom has 5 eggs. He buys 4. How many eggs does Tom have now?
Answer:'
  ets eval --help    # what a command takes, and an example of it
"""
JOURNALLED = ("eval", "compare")
"""Commands that go on where they were interrupted."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on standard error and exit status 2."""
    words = sys.argv[1:] if arguments is None else arguments
    goes_on = len(words) > 0 and words[0] in JOURNALLED
    return exit_status(told_once(lambda: _execute(words)), KEPT if goes_on else NOTHING_KEPT)


def _execute(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    options.execute(options)


def _parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    text = "Energy-guided test-time scaling."
    parser = _Parser(prog="ets", description=text, epilog=EXAMPLE, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"ets {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, epilog=module.EXAMPLE, formatter_class=layout)
        module.add_arguments(command)
        command.set_defaults(execute=module.execute)
    return parser
