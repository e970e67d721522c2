"""The paper's own command form: lm-eval's command line with our models.

    accelerate launch qwen/eval_qwen.py --tasks minerva_math500 --model qwen-ets --model_args model_path=…,block_size=64

It differs from lm-eval's own in this: the models are ours, errors are one line, and a benchmark's task is the one that
`ets eval` hosts, whose data may be local (the variable DATA) and whose code runs in the sandbox.
"""

from __future__ import annotations

import logging
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ets.evaluation.hosted import configuration_of, quiet, require_lm_eval
from ets.evaluation.paper_arguments import BENCHMARKS, read_arguments
from ets.evaluation.ranks import told_once
from ets.exits import exit_status, exiting_at_sigterm
from ets.tasks import Benchmark, task_named
from ets.tasks.data import require_hub
from ets.types import InputError, one_line

if TYPE_CHECKING:
    from lm_eval.config.evaluate_config import EvaluatorConfig


def main(arguments: Sequence[str] | None = None, engine: str | None = None) -> int:
    """Run lm-eval's command; bad input ends in one line on standard error and exit status 2.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words of the command line; by default this process's own.
    engine : str, optional
        What runs the model where `--model_args` names no engine.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return exit_status(told_once(lambda: _evaluate(list(sys.argv[1:] if arguments is None else arguments), engine)))


def _evaluate(arguments: list[str], engine: str | None) -> None:
    require_lm_eval()
    from lm_eval.utils import setup_logging

    setup_logging(logging.ERROR)
    options = parsed(arguments)
    if hasattr(options, "model_args"):
        if engine is not None:  # the last argument: lm-eval names its output by the first
            options.model_args = options.model_args or {}
            options.model_args.setdefault("engine", engine)
        configuration = _checked(options)
        if os.environ.get("RANK", "0") == "0":
            print("".join(f"note: {line}\n" for line in notes(options)), end="", file=sys.stderr)
        with hosting(configuration), exiting_at_sigterm():  # vLLM's processes would outlive this one
            options.func(options)
    else:
        options.func(options)


def parsed(arguments: Sequence[str]) -> Namespace:
    """lm-eval's own parsing, its errors in one line."""
    from lm_eval._cli import HarnessCLI

    cli = HarnessCLI()

    def refuse(message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")

    for parser in (cli._parser, *cli._subparsers.choices.values()):
        parser.error = refuse
    before = sys.argv
    try:
        sys.argv = [before[0], *arguments]  # lm-eval reads nothing else
        return cli.parse_args()
    finally:
        sys.argv = before


_IDLE = {
    "batch_size": "has no effect: width in --model_args says how many problems advance together",
    "max_batch_size": "has no effect: width in --model_args says how many problems advance together",
    "device": "has no effect: the model takes a GPU where there is one, unless this is cpu",
    "seed": "chooses the worked examples alone: the seed of sampling is seed in --model_args",
}


def notes(options: Namespace) -> list[str]:
    """A line for each of lm-eval's options that is given and changes less than it says."""
    given = {name: getattr(options, name, None) for name in _IDLE}
    if given["device"] in ("cpu", "cuda", "cuda:0"):
        del given["device"]
    return [f"--{name} {_IDLE[name]}" for name, value in given.items() if value is not None]


def _refuse_unheeded(options: Namespace) -> None:
    """Raise `InputError` for options of lm-eval's that would be ignored, or would mix up results."""
    for name, reason in (
        ("config", "is not read here; write its options on the command line"),
        ("use_cache", "ignores the model's arguments; leave it out, finished problems are kept anyway"),
        ("cache_requests", "keeps prompts whatever DATA says; leave it out"),
    ):
        if getattr(options, name, None) is not None:
            raise InputError(f"--{name} {reason}")
    if unheeded := [name for name in options.gen_kwargs or {} if name != "until"]:
        raise InputError(
            f"--gen_kwargs {unheeded[0]}=… would have no effect; say it in --model_args (here, until alone is heeded)"
        )


def _checked(options: Namespace) -> EvaluatorConfig:
    """lm-eval's configuration; what would end in a traceback after a long start is said at once."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    _refuse_unheeded(options)
    if not options.tasks:
        raise InputError(f"no task is named; add --tasks with some of {', '.join(BENCHMARKS)}")
    if unknown := [name for name in options.tasks if name not in BENCHMARKS]:
        raise InputError(
            f"no answers can be told in texts of the task {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}"
        )
    if options.include_path is not None and not Path(options.include_path).is_dir():
        raise InputError(f"--include_path is {options.include_path!r}, which is no folder; name one with task files")
    read_arguments(options.model or "", options.model_args or {})
    for task in (task_named(BENCHMARKS[name]) for name in options.tasks):
        if isinstance(task, Benchmark):
            task.require()
    try:
        return EvaluatorConfig.from_cli(deepcopy(options))
    except (ValueError, TypeError) as error:
        raise InputError(" ".join(str(error).split())) from error


@contextmanager
def hosting(options: EvaluatorConfig) -> Iterator[None]:
    """Give lm-eval's command line our models, our benchmarks' tasks, and those of its `--include_path`.

    The thousands of tasks that come with lm-eval are left out: reading them takes ten seconds.
    """
    import lm_eval.tasks
    from lm_eval.tasks.manager import TaskManager

    from ets.evaluation import lm_eval_models  # noqa: F401  registers the models

    data = Path(os.environ["DATA"]) if os.environ.get("DATA") else None
    unsafe = bool(read_arguments(options.model, options.model_args or {}).values["unsafe_code"])

    class Manager(TaskManager):
        def __init__(self, include_path: Any = None, metadata: Any = None) -> None:
            super().__init__(include_path=include_path, include_defaults=False, metadata=metadata)

        def match_tasks(self, task_list: list[str]) -> list[str]:
            return [name for name in task_list if name in BENCHMARKS]

        def _load_spec(self, spec: Any) -> Any:
            entry, found = self._entry(spec), {}
            own = None if entry is None else entry.yaml_path  # of --include_path, perhaps with local data
            if entry is None or data is not None:
                found = configuration_of(BENCHMARKS[spec], data, options.num_fewshot, unsafe=unsafe)
            else:
                require_hub(BENCHMARKS[spec])
            with quiet():
                return super()._load_spec(found) if own is None else _task_of(own, found, super()._load_spec)

    try:
        lm_eval.tasks.TaskManager = Manager
        yield
    finally:
        lm_eval.tasks.TaskManager = TaskManager


def _task_of(file: Path, hosted: dict[str, Any], load: Callable[[Any], Any]) -> Any:
    """The task of a file of `--include_path`; with local data, `hosted` says where their rows are."""
    from lm_eval.tasks._yaml_loader import load_yaml

    rows = {key: hosted[key] for key in hosted if key.startswith("dataset_") or key.endswith("_split")}
    try:
        task = load(load_yaml(file, resolve_func=True) | rows)
        task.doc_to_text(next(iter(task.eval_docs)))  # whatever a file of one's own raises is said at once
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the task file {str(file)!r} cannot be used with these data: {type(error).__name__}: {one_line(error)}; "
            "change the file, or leave --include_path out"
        ) from error
    return task
