"""The returned texts of a run, as its tables count them: `problems.jsonl` and `samples.jsonl` in the results folder.

The report and the exports read both files. The journal lacks the prompts, the right answers, and the text that a method
chooses among the samples that several methods share. Each command that finishes a run writes both files anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from ets.evaluation.journal import Record, written_to
from ets.tasks.task import Task, right_answer
from ets.types import Problem

Returned: TypeAlias = dict[tuple[str, str], dict[str, list[Record]]]
"""Returned texts by (method, readout) and by problem."""
PROBLEMS, SAMPLES = "problems.jsonl", "samples.jsonl"


def write_samples(folder: Path, task: Task, problems: Sequence[Problem], samples: Iterable[Record]) -> None:
    """Write both files.

    Parameters
    ----------
    folder : Path
    task : Task
    problems : sequence of Problem
    samples : iterable of mapping
        As `ets.evaluation.comparison.Comparison.returned` yields them.
    """
    asked = [
        {
            "id": problem.id,
            "prompt": problem.prompt,
            "messages": list(map(dict, problem.messages)),
            "user_text": problem.user_text,
            "doc": dict(problem.doc),
            "target": right_answer(task, problem),
        }
        for problem in problems
    ]
    with written_to(folder):
        for name, rows in ((PROBLEMS, asked), (SAMPLES, samples)):
            with (folder / name).open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, default=str) + "\n" for row in rows)


def missing_files(folder: Path) -> list[str]:
    """The names of the files that a folder lacks: a run of an earlier ets wrote none."""
    return [name for name in (PROBLEMS, SAMPLES) if not (folder / name).exists()]


def read_samples(folder: Path) -> tuple[list[Record], Returned]:
    """The problems, and by (method, readout) and problem the samples, in the order of the run.

    Raises
    ------
    OSError, ValueError, LookupError
        For files that are missing or damaged.
    """
    problems, samples = (_lines(folder / name) for name in (PROBLEMS, SAMPLES))
    found: Returned = {}
    for sample in samples:
        of_method = found.setdefault((sample["method"], sample["readout"]), {row["id"]: [] for row in problems})
        of_method[sample["problem"]].append(sample)
    for of_method in found.values():
        for each in of_method.values():
            each.sort(key=lambda sample: sample["sample"])
    return problems, found


def _lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
