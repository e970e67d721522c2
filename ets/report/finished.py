"""A finished run, read from its results folder: the rows of its table with their samples, for the exports."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ets.evaluation.comparison import Entry
from ets.evaluation.journal import Record
from ets.evaluation.samples import missing_files, read_samples
from ets.report.summary import SUMMARY, finished, read_summary
from ets.report.tables import Setting
from ets.types import InputError

LAW = ("temperature", "top_k", "top_p", "max_length")
"""Settings of the policy that other tools have too."""


@dataclass(frozen=True)
class Sample:
    """A returned text.

    Parameters
    ----------
    text : str
    answer : JSON value
    values : mapping of str to float
        The grade `acc`, the `reward` and the task's further scores, as far as there are any. Where a method chooses
        among samples, they are expectations over the choice.
    prompt, generated : int
        Token positions that the method computed for prompts, and the tokens that it drew.
    seconds : float
    """

    text: str
    answer: Any
    values: Mapping[str, float]
    prompt: int
    generated: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Parameters
    ----------
    name : str
        Short and distinct: `ets-8`, `ets-8-vote`, `plain`.
    entry : Entry
    samples : mapping of str to sequence of Sample
        By problem.
    """

    name: str
    entry: Entry
    samples: Mapping[str, Sequence[Sample]]

    @cached_property
    def means(self) -> dict[str, dict[str, float]]:
        """By metric and problem, the mean over the problem's samples; of the metrics that every sample has."""
        every = [sample.values for samples in self.samples.values() for sample in samples]
        metrics = [name for name in every[0] if all(name in values for values in every)]
        return {
            name: {problem: fmean(each.values[name] for each in samples) for problem, samples in self.samples.items()}
            for name in metrics
        }

    @cached_property
    def scores(self) -> dict[str, tuple[float, float | None]]:
        """By metric, the mean over problems and its standard error, None for one problem or a reward of -inf."""
        return {name: _mean_and_error(list(values.values())) for name, values in self.means.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """The method, its size and its costs; `key` holds every setting that its samples depend on."""
        names = ("method", "readout", "size", "label", "key", "target", "budget")
        objective = None if self.entry.objective is None else self.entry.objective.mean
        own = {name: getattr(self.entry, name) for name in names}
        return {**own, "objective": objective, "cost": dict(self.entry.cost)}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Parameters
    ----------
    folder : Path
    setting : Setting
    configuration : mapping
        The JSON values of `configuration.json`.
    problems : sequence of mapping
        The JSON values of `problems.jsonl`: id, prompt, messages, user_text, doc and target.
    rows : sequence of Row
    ended : datetime
        When the summary was written, in UTC.
    """

    folder: Path
    setting: Setting
    configuration: Mapping[str, Any]
    problems: Sequence[Record]
    rows: Sequence[Row]
    ended: datetime

    def law(self, max_length: str) -> dict[str, Any]:
        """The settings of the policy in `LAW` that the run has; `max_length` is another tool's name of that setting."""
        known = {name: self.configuration[name] for name in LAW if self.configuration.get(name) is not None}
        return {max_length if name == "max_length" else name: value for name, value in known.items()}

    @cached_property
    def answered(self) -> bool:
        """Whether any text has an answer; without one, the task has none to find."""
        every = (each for row in self.rows for samples in row.samples.values() for each in samples)
        return any(each.answer is not None for each in every)


def finished_run(folder: Path) -> FinishedRun:
    """Read a finished run.

    Raises
    ------
    InputError
        For a folder that holds no finished run, a damaged one, or one of another version.
    """
    with finished(folder):
        if missing := missing_files(folder):
            raise InputError(f"{str(folder)!r} has no {missing[0]}; run its command again, which draws no chain anew")
        return _read(folder)


def _read(folder: Path) -> FinishedRun:
    summary, (problems, samples) = read_summary(folder), read_samples(folder)
    rows: dict[str, Row] = {}
    for entry in summary.entries:
        name = _name(entry)
        if name in rows and rows[name].entry.key != entry.key:
            name = f"{name}-budget-{(entry.budget or 0) + 1}"
        found = samples[entry.key, entry.readout]
        rows[name] = Row(name, entry, {problem: list(map(_sample, each)) for problem, each in found.items()})
    return FinishedRun(
        folder,
        summary.setting,
        json.loads((folder / "configuration.json").read_bytes()),
        problems,
        list(rows.values()),
        datetime.fromtimestamp((folder / SUMMARY).stat().st_mtime, UTC),
    )


def _name(entry: Entry) -> str:
    size = "" if entry.budget is None else f"-{entry.size}"
    return f"{entry.method}{size}" + ("" if entry.readout == "last" else f"-{entry.readout}")


def _sample(record: Record) -> Sample:
    values = {name.replace(",", "_"): float(value) for name, value in record["scores"].items()}
    if record["correct"] is not None:
        values["acc"] = float(record["correct"])
    if "reward" in record:
        values["reward"] = -math.inf if record["reward"] is None else record["reward"]
    cost = record["cost"]
    spent = cost.get("prompt", 0), cost.get("generated", 0), cost.get("seconds", 0.0)
    return Sample(record["text"], record["answer"], values, *spent)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    mean = fmean(values)
    known = len(values) > 1 and math.isfinite(mean)
    return mean, stdev(values) / math.sqrt(len(values)) if known else None
