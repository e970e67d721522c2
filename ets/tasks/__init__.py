"""Benchmarks, one small file each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from ets.own_code import named_object, running
from ets.tasks.aime24 import Aime24
from ets.tasks.aime25 import Aime25
from ets.tasks.arithmetic import Arithmetic, Sums
from ets.tasks.gpqa import Gpqa
from ets.tasks.gsm8k import Gsm8k
from ets.tasks.math500 import Math500
from ets.tasks.prompts import Prompts, ready
from ets.tasks.task import Benchmark, Task, has_answers, is_graded
from ets.types import InputError


def _later(module: str, name: str) -> Task:
    """A task of a module that is imported when the task is asked for."""
    task: Task = getattr(import_module(f"ets.tasks.{module}"), name)()
    return task


TASKS: dict[str, Callable[[], Task]] = {
    "arithmetic": Arithmetic,
    "sums": Sums,
    "math500": Math500,
    "gsm8k": Gsm8k,
    "gpqa": Gpqa,
    "humaneval": partial(_later, "humaneval", "HumanEval"),
    "humaneval-plus": partial(_later, "evalplus", "HumanEvalPlus"),
    "mbpp-plus": partial(_later, "evalplus", "MbppPlus"),
    "aime24": Aime24,
    "aime25": Aime25,
    "ifeval": partial(_later, "ifeval", "IFEval"),
    "tone": partial(ready, "tone", "vaderSentiment"),
    "tone-openings": partial(ready, "tone-openings", "vaderSentiment", reward="tone"),
    "without-letter": partial(ready, "without-letter"),
    "exact-length": partial(ready, "exact-length"),
    "must-contain": partial(ready, "must-contain"),
    "json-schema": partial(ready, "json-schema", "jsonschema"),
    "instructions": partial(ready, "instructions"),
}

__all__ = [
    "TASKS",
    "Aime24",
    "Aime25",
    "Arithmetic",
    "Benchmark",
    "Gpqa",
    "Gsm8k",
    "Math500",
    "Prompts",
    "Sums",
    "Task",
    "has_answers",
    "is_graded",
    "task_named",
]


def task_named(name: str) -> Task:
    """Return the task of a name in `TASKS`, of a file of prompts, or of `module:name` or `file.py:name`.

    A name that ends in `.jsonl` is a file of prompts, see `Prompts`; `file.py:name` names an object or a class.

    Raises
    ------
    InputError
        For an unknown name, code that cannot be imported, or an object that is no task. An error in a function of a
        user's task becomes an InputError too.
    """
    if name.endswith(".jsonl"):
        return Prompts(Path(name))
    if ":" in name:
        return _own(name)
    if name not in TASKS and Path(name).is_file():
        raise InputError(f"the task {name!r} is a file; prompts need a .jsonl file, with one JSON object on each line")
    if name not in TASKS:
        own = "a file of prompts (.jsonl), or file.py:name"
        raise InputError(f"unknown task {name!r}; choose from {', '.join(TASKS)}, {own}")
    return TASKS[name]()


def _own(name: str) -> Task:
    found = named_object(name, "task")
    with running(f"the task {name!r} (an object, or a class without arguments)"):
        task = found() if isinstance(found, type) else found
    if missing := [part for part in ("name", "problems", "extract", "grade") if not hasattr(task, part)]:
        raise InputError(f"the task {name!r} has no {missing[0]!r}; a task has name, problems, extract and grade")
    if not isinstance(task.name, str) or not task.name:
        raise InputError(f"the name of the task {name!r} is {task.name!r}; give it text")
    if isinstance(task, Benchmark):
        raise InputError(
            f"the task {name!r} takes its problems from lm-eval; choose one of ets.tasks.TASKS, or derive no Benchmark"
        )
    for part in ("problems", "extract", "grade", "extract_all", "grade_all", "scores"):
        if hasattr(task, part):
            object.__setattr__(task, part, _with_place(f"{part} of the task {name!r}", getattr(task, part)))
    return task


def _with_place(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function: an error becomes an InputError of one line, with the file and the line of the error."""

    @wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        with running(part):
            return function(*arguments, **options)

    return called
