"""The command line: `ets` or `python -m ets`."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

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
_GUIDE = ("tokens", "candidates", "rollouts", "lam", "temperature", "block_size", "max_length", "reward", "seed")
_RUN = ("task", "model", "methods", "count", "shots", "budgets", "out", *_GUIDE)
COMMON: dict[str, tuple[str, ...]] = {
    "sample": ("model", "prompt", "prompt_file", "extract", "html", *_GUIDE),
    "eval": _RUN,
    "compare": _RUN,
    "estimate": (*_RUN, "problems"),
}
"""By command: the options that `--help` shows."""
JOURNALLED = ("eval", "compare")
"""Commands that go on where they were interrupted."""


QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""Variables that leave out bars of loading and warnings about options of `generate`, unless the user has set them."""


SIMILAR = 0.75
"""The least similarity of an unknown option and the option that its error suggests."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; `--help` shows the options of `common` alone, `--help-all` shows all."""

    common: tuple[str, ...] = ()
    commands: Mapping[str, argparse.ArgumentParser] = {}

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Raises `InputError` for an option that the command does not have, before argparse misses required ones."""
        if args and args[0] in self.commands:
            require_options(args[1:], self.commands[args[0]])
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def add_long_help(self, common: tuple[str, ...]) -> None:
        """Add `--help-all`, and make `--help` the short one."""
        self.common = common
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all options and exit")

    def format_help(self) -> str:
        if not self.common:
            return super().format_help()
        rest = [each for each in self._actions if not {each.dest, *each.option_strings} & {*self.common, *HELP}]
        helps, usage = [each.help for each in rest], self.usage
        for each in rest:
            each.help = argparse.SUPPRESS
        self.usage = "%(prog)s [options]    (the most used ones; --help-all shows all)"
        shown, self.usage = super().format_help(), usage
        for each, text in zip(rest, helps, strict=True):
            each.help = text
        return shown


HELP = ("--help", "--help-all")


class _HelpAll(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        parser.common = ()
        parser.print_help()
        parser.exit()


def require_options(words: Sequence[str], command: argparse.ArgumentParser) -> None:
    """Raise `InputError` for a word that is neither an option nor the beginning of one; it suggests the nearest."""
    known = [option for action in command._actions for option in action.option_strings]
    for word in words:
        name = word.partition("=")[0]
        if word == "--":
            break
        if re.fullmatch(r"--?[A-Za-z][\w-]*", name) and not any(option.startswith(name) for option in known):
            near = difflib.get_close_matches(name, known, 1, SIMILAR)
            remedy = f"did you mean {near[0]}?" if near else f"see {command.prog} --help"
            raise InputError(f"{name} is unknown; {remedy}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on standard error and exit status 2."""
    words = sys.argv[1:] if arguments is None else arguments
    goes_on = len(words) > 0 and words[0] in JOURNALLED
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with plain_warnings():
        return exit_status(reported_once(lambda: _execute(words)), KEPT if goes_on else NOTHING_KEPT)


def _execute(arguments: Sequence[str]) -> None:
    parser = parser_of()
    options = parser.parse_args(arguments)
    try:
        options.execute(options)
    except InputError as error:
        raise InputError(as_typed(str(error), arguments, options.flags)) from error


def as_typed(message: str, words: Sequence[str], flags: dict[str, str]) -> str:
    """An error with the options that were typed in place of the names of settings.

    With ``--block-size 64`` in the words, "block_size 64 is longer" becomes "--block-size 64 is longer".
    """
    for word, following in zip(words, (*words[1:], ""), strict=True):
        typed, joined, value = word.partition("=")
        if typed in flags:
            names = "|".join({flags[typed], typed.lstrip("-").replace("-", "_")})
            begin = re.escape((value if joined else following).strip("0").rstrip(".") or "0")
            prose = "".join(f"(?<!{each} )" for each in ("the", "unknown", "at"))
            message = re.sub(rf"{prose}(?<![\w-])({names})(?= (?:is )?['\"(]?-?0?{begin})", typed, message)
    return message


def parser_of() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    text = "Energy-guided test-time scaling."
    parser = _Parser(prog="ets", description=text, epilog=EXAMPLE, formatter_class=layout)
    parser.add_argument("--version", action="version", version=f"ets {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for name, (add_arguments, execute, example, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, epilog=example, formatter_class=layout)
        add_arguments(command)
        if name in COMMON:
            command.add_long_help(COMMON[name])
        flags = {option: action.dest for action in command._actions for option in action.option_strings}
        command.set_defaults(execute=execute, flags=flags)
    parser.commands = commands.choices
    return parser
