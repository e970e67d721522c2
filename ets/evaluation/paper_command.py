"""The paper's command form, translated into a call of `ets eval`.

    accelerate launch qwen/eval_qwen.py --tasks minerva_math500 --model qwen-ets --model_args model_path=…,block_size=64

becomes

    ets eval --task math500 --methods ets --model … --block-size 64 …

The options are those of lm-eval's command line; `ets.evaluation.paper_arguments` translates `--model_args`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from ets.evaluation.methods import METHODS
from ets.evaluation.paper_arguments import BENCHMARKS, PaperRun, read_arguments
from ets.exits import exit_status
from ets.settings import flag
from ets.types import InputError

IDLE = {
    "batch_size": "width in --model_args says how many problems advance together",
    "max_batch_size": "width in --model_args says how many problems advance together",
    "device": "the model takes a GPU where there is one, unless this is cpu",
    "seed": "it chooses the worked examples alone, and they are fixed: the seed of sampling is seed in --model_args",
    "log_samples": "the journal in the results folder holds every text",
    "include_path": "the prompts are those of the benchmark in ets.tasks",
}
"""Options of lm-eval without an effect, and the reason."""
REFUSED = {
    "config": "is not read here; write its options on the command line",
    "use_cache": "ignores the model's arguments; leave it out, finished problems are kept anyway",
    "cache_requests": "keeps prompts whatever DATA says; leave it out",
    "gen_kwargs": "would have no effect; write the settings in --model_args",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of lm-eval's command line that the paper's form knows.

    Raises
    ------
    InputError
        For other options, and those of `REFUSED`.
    """
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--tasks", "-t", help=f"comma-separated, from {', '.join(BENCHMARKS)}")
    parser.add_argument("--model", "-M", default="", help="qwen, qwen-beam, qwen-ets or llada_dist")
    parser.add_argument("--model_args", "-a", type=_pairs, default={}, help="the paper's arguments, name=value,…")
    parser.add_argument("--num_fewshot", "-f", type=int, help="worked examples in each prompt")
    parser.add_argument("--limit", "-L", type=int, help="problems of each task")
    parser.add_argument("--output_path", "-o", help="the folder in which results folders are made")
    parser.add_argument("--apply_chat_template", nargs="?", const="default", help="prompts by a chat template")
    parser.add_argument("--system_instruction", help="the system turn")
    parser.add_argument("--fewshot_as_multiturn", nargs="?", const="True", help="worked examples as turns")
    parser.add_argument("--confirm_run_unsafe_code", action="store_true", help="code runs in the sandbox anyway")
    for name in (*IDLE, *REFUSED):
        parser.add_argument(f"--{name}", nargs="?", const="True", help=argparse.SUPPRESS)
    options = parser.parse_args([word for n, word in enumerate(arguments) if (n, word) != (0, "run")])
    for name, reason in REFUSED.items():
        if getattr(options, name) is not None:
            raise InputError(f"--{name} {reason}")
    if not options.tasks:
        raise InputError(f"no task is named; add --tasks with some of {', '.join(BENCHMARKS)}")
    if unknown := [name for name in options.tasks.split(",") if name not in BENCHMARKS]:
        raise InputError(
            f"no answers are read in texts of the task {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}"
        )
    return options


def _pairs(text: str) -> dict[str, Any]:
    """The arguments `name=value,name=value`, where a value may stand in quotes."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise argparse.ArgumentTypeError(f"expected `key=value`, got {wrong[0]!r}")
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def translated(options: argparse.Namespace, engine: str | None = None) -> tuple[list[str], PaperRun]:
    """The words of the call of `ets eval`, and the run that they came from.

    Parameters
    ----------
    options : argparse.Namespace
        From `parsed`.
    engine : str, optional
        The engine where `--model_args` names none.
    """
    arguments = {**({} if engine is None else {"engine": engine}), **options.model_args}
    run = read_arguments(options.model, arguments)
    tasks = [BENCHMARKS[name] for name in options.tasks.split(",")]
    if (named := run.values["benchmark"]) is not None and named not in tasks:
        raise InputError(f"the arguments name the dataset {named}, but --tasks {options.tasks}; leave dataset out")
    words = ["eval", "--task", ",".join(tasks), "--methods", run.name]
    further = {
        "shots": options.num_fewshot,
        "count": options.limit,
        "data": os.environ.get("DATA") or None,
        "results": options.output_path or run.values["folder"],
        "system": options.system_instruction,
        "samples": run.values["samples"] if METHODS[run.method].kind == "among" else None,
    }
    left_out = ("benchmark", "folder", "thinking", "samples")
    values = {name: value for name, value in run.values.items() if name not in left_out}
    words += [word for name, value in {**values, **further}.items() if value is not None for word in _flag(name, value)]
    return [*words, *_chat(options, run)], run


def _flag(name: str, value: Any) -> tuple[str, str]:
    return flag(name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _chat(options: argparse.Namespace, run: PaperRun) -> Iterator[str]:
    if options.apply_chat_template is None:
        return
    yield from ("--chat-template", options.apply_chat_template)
    if options.fewshot_as_multiturn == "True":
        yield "--fewshot-as-multiturn"
    if run.values["thinking"] is not None:
        yield from ("--thinking", "on" if run.values["thinking"] else "off")


def notes(options: argparse.Namespace, run: PaperRun) -> list[str]:
    """A line for each option or argument that changes less than its name says."""
    given = [name for name in IDLE if getattr(options, name) is not None]
    if options.device in ("cpu", "cuda", "cuda:0"):
        given.remove("device")
    lines = [f"--{name} has no effect: {IDLE[name]}" for name in given]
    if options.apply_chat_template is None and run.values["thinking"] is not None:
        lines.append("enable_thinking has no effect without --apply_chat_template")
    return [*lines, *run.notes]


def main(arguments: Sequence[str] | None = None, engine: str | None = None) -> int:
    """Run the translated call; bad input ends in one line on standard error and exit status 2.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words of the command line; by default those of this process.
    engine : str, optional
        The engine where `--model_args` names none.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    words: list[str] = []

    def translate() -> None:
        options = parsed(sys.argv[1:] if arguments is None else arguments)
        call, run = translated(options, engine)
        if options.device == "cpu":
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if os.environ.get("RANK", "0") == "0":
            print("".join(f"note: {line}\n" for line in notes(options, run)), end="", file=sys.stderr)
            print(f"ets {shlex.join(call)}")
        words.extend(call)

    from ets.cli import main as ets

    return exit_status(translate) or ets(words)
