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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

from ets.evaluation.hosted import configuration_of, quiet, require_lm_eval
from ets.evaluation.paper_arguments import BENCHMARKS, read_arguments
from ets.exits import exit_status
from ets.tasks import Benchmark, task_named
from ets.tasks.data import require_hub
from ets.types import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run lm-eval's command; bad input ends in one line on standard error and exit status 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return exit_status(lambda: _evaluate(list(sys.argv[1:] if arguments is None else arguments)))


def _evaluate(arguments: list[str]) -> None:
    require_lm_eval()
    from lm_eval.utils import setup_logging

    setup_logging(logging.ERROR)
    options = parsed(arguments)
    if hasattr(options, "model_args") and options.config is None:
        _check(options)
        with _hosting(options):
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


def _check(options: Namespace) -> None:
    """Say at once what would end in a traceback after a long start."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    if options.use_cache is not None:
        raise InputError("--use_cache ignores the model's arguments; leave it out, finished problems are kept anyway")
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
        EvaluatorConfig.from_cli(deepcopy(options))
    except (ValueError, TypeError) as error:
        raise InputError(" ".join(str(error).split())) from error


@contextmanager
def _hosting(options: Namespace) -> Iterator[None]:
    """Give lm-eval's command line our models, our benchmarks' tasks, and those of its `--include_path`.

    The thousands of tasks that come with lm-eval are left out: reading them takes ten seconds.
    """
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml
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
            if entry is None or data is not None:
                found = configuration_of(BENCHMARKS[spec], data, options.num_fewshot, unsafe=unsafe)
            else:
                require_hub(BENCHMARKS[spec])
            if entry is not None and entry.yaml_path is not None:  # of --include_path, perhaps with local data
                rows = {key: found[key] for key in found if key.startswith("dataset_")}
                found = load_yaml(entry.yaml_path, resolve_func=True) | rows
            with quiet():
                return super()._load_spec(found)

    try:
        lm_eval.tasks.TaskManager = Manager
        yield
    finally:
        lm_eval.tasks.TaskManager = TaskManager
