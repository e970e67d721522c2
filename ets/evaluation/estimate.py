"""What a run will take: the cost of a few problems, measured and extrapolated to all problems."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ets.evaluation.budget import Budget
from ets.evaluation.evaluate import Evaluation, Row
from ets.evaluation.journal import Journal
from ets.evaluation.methods import DETERMINISTIC
from ets.evaluation.tables import aligned
from ets.types import Problem


@dataclass(frozen=True)
class Estimate:
    """The expected cost of a method over all problems and repeats: amounts as in `ets.types.Cost`, and seconds."""

    label: str
    generated: float
    positions: float
    row_forwards: float
    seconds: float


def spread(problems: Sequence[Problem], number: int) -> list[Problem]:
    """As many problems, evenly spaced over the task; all problems if there are fewer."""
    number = min(number, len(problems))
    return [problems[index * len(problems) // number] for index in range(number)]


def estimates(
    evaluation: Callable[[Sequence[Problem], Journal], Evaluation],
    problems: Sequence[Problem],
    number: int,
    names: Sequence[str],
    budget: Budget | int,
) -> list[Estimate]:
    """Run methods on a few problems, in a temporary folder, and extrapolate their costs to all problems.

    Parameters
    ----------
    evaluation : callable
        Returns the evaluation of some problems with a journal.
    problems : sequence of Problem
        All problems of the run.
    number : int
        Problems to run.
    names, budget
        As for `Evaluation.compare`.
    """
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder), {}) as journal:
        few = evaluation(spread(problems, number), journal)
        for policy in (few.policy, *few.own.values()):  # the weights are loaded before the clock starts
            policy.extend(policy.start(problems[:1]), np.zeros(1, np.uint64))
        rows = few.compare(names, budget)
    return [_extrapolated(row, len(problems)) for row in rows if row.readout == "last"]


def _extrapolated(row: Row, problems: int) -> Estimate:
    uses = problems * (1 if row.method in DETERMINISTIC else row.repeats)
    amounts = (row.generated, row.positions, row.row_forwards, row.seconds)
    return Estimate(row.label, *(uses * amount for amount in amounts))


def table(found: Sequence[Estimate]) -> str:
    """A Markdown table of the whole run."""
    kinds = ["generated", "positions", *(["row_forwards"] if any(each.row_forwards for each in found) else [])]
    heads = {"generated": "tokens", "positions": "positions", "row_forwards": "row-forwards"}
    rows = [(e.label, *(f"{getattr(e, kind):,.0f}" for kind in kinds), duration(e.seconds)) for e in found]
    return aligned([("method", *(heads[kind] for kind in kinds), "time"), *rows])


def size(amount: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.3g} {unit}"
        amount /= 1024
    return f"{amount:,.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds in a readable unit."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else f"{minutes / 60:,.1f} h"
