"""Benchmarks, one small file each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from ets.tasks.aime24 import Aime24
from ets.tasks.arithmetic import Arithmetic, Sums
from ets.tasks.gpqa import Gpqa
from ets.tasks.gsm8k import Gsm8k
from ets.tasks.math500 import Math500
from ets.tasks.task import Benchmark, Task
from ets.types import InputError


def _humaneval() -> Task:
    task: Task = import_module("ets.tasks.humaneval").HumanEval()
    return task


TASKS: dict[str, Callable[[], Task]] = {
    "arithmetic": Arithmetic,
    "sums": Sums,
    "math500": Math500,
    "gsm8k": Gsm8k,
    "gpqa": Gpqa,
    "humaneval": _humaneval,
    "aime24": Aime24,
}

__all__ = ["TASKS", "Aime24", "Arithmetic", "Benchmark", "Gpqa", "Gsm8k", "Math500", "Sums", "Task", "task_named"]


def task_named(name: str) -> Task:
    """Raises `InputError` for a name that is not in `TASKS`."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    return TASKS[name]()
