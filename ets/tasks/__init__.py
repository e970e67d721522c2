"""Benchmarks, one small file each."""

from __future__ import annotations

from ets.tasks.arithmetic import Arithmetic, Sums
from ets.tasks.task import Task
from ets.types import InputError

TASKS: dict[str, type[Task]] = {task.name: task for task in (Arithmetic, Sums)}

__all__ = ["TASKS", "Arithmetic", "Sums", "Task", "task_named"]


def task_named(name: str) -> Task:
    """Raises `InputError` for a name that is not in `TASKS`."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; choose from {', '.join(TASKS)}")
    return TASKS[name]()
