"""The command line: `ets` or `python -m ets`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from ets import __version__
from ets.commands import estimate, evaluate, export, sample, serve, view
from ets.evaluation.ranks import reported_once
from ets.exits import KEPT, NOTHING_KEPT, exit_status, plain_warnings
from ets.types import InputError

COMMANDS = {
    "sample": (sample.add_arguments, sample.execute, sample.EXAMPLE, "sample one text, and show its trace"),
    "eval": (evaluate.add_arguments, evaluate.execute, evaluate.EXAMPLE, "measure methods on a task"),
    "compare": (
        evaluate.add_compare_arguments,
        evaluate.execute,
        evaluate.COMPARE_EXAMPLE,
        "measure methods at several budgets",
    ),
    "estimate": (estimate.add_arguments, estimate.execute, estimate.EXAMPLE, "measure what a run of eval will take"),
    "serve": (serve.add_arguments, serve.execute, serve.EXAMPLE, "answer clients of OpenAI's interfaces over HTTP"),
    "view": (view.add_arguments, view.execute, view.EXAMPLE, "show a results folder, or an answer of serve, as HTML"),
    "export": (export.add_arguments, export.execute, export.EXAMPLE, "write a results folder as logs of other tools"),
}
"""By name: what adds its flags, what runs it, an example, and a line of help."""
EXAMPLE = """examples:
  ets sample --model embedded --extract '#### (-?[0-9]+)' --block-size 16 --max-length 96 --temperature 1.9 \\
      --prompt 'Question: Tom has 5 eggs. He buys 4 jars with 3 eggs each. How many eggs does Tom have now?
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
    with plain_warnings():
        return exit_status(reported_once(lambda: _execute(words)), KEPT if goes_on else NOTHING_KEPT)


def _execute(arguments: Sequence[str]) -> None:
    options = parser_of().parse_args(arguments)
    options.execute(options)


def parser_of() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    text = "Energy-guided test-time scaling."
    parser = _Parser(prog="ets", description=text, epilog=EXAMPLE, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"ets {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for name, (add_arguments, execute, example, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, epilog=example, formatter_class=layout)
        add_arguments(command)
        command.set_defaults(execute=execute)
    return parser
