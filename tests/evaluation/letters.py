"""A tiny task, and comparisons on it over policies that can be enumerated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ets.evaluation.comparison import Comparison, Entry
from ets.evaluation.journal import Journal, Record
from ets.evaluation.methods import MethodSettings, methods_named
from ets.evaluation.run import Run
from ets.importance import ImportanceSampling
from ets.types import Certainty, Chain, Draw, Policy, Problem
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel

COUNT = 12
SETTINGS = MethodSettings(rollouts=2, lam=0.2, beams=2, iterations=2, is_candidates=2, weighing="another table")
MASKED_DIFFUSION = TabularMaskedDiffusion(vocabulary=3, gen_length=4, block_length=2, steps=4, guide_steps=2, seed=4)
Records = dict[tuple[str, str, int], Record]


class Letters:
    """The answer is a text's first letter; right is "a" for even problems, "b" for odd ones.

    Parameters
    ----------
    patience : int, optional
        How many texts are graded before the run is interrupted.
    """

    name = "letters"

    def __init__(self, patience: int | None = None) -> None:
        self.patience, self.seen = patience, 0

    def problems(self, count: int, shots: int) -> list[Problem]:
        return [Problem(f"letters-{n}", f"prompt {n}", doc={"answer": "ab"[n % 2]}) for n in range(count)]

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[:1] or None

    def grade(self, problem: Problem, text: str) -> bool:
        if self.seen == self.patience:
            raise KeyboardInterrupt
        self.seen += 1
        return self.extract(problem, text) == problem.doc["answer"]


class Endings(Letters):
    """The answer is a text's last letter, which a chain does not settle before its end."""

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[-1:] or None


class Ended:
    """Counts the chains that end, and interrupts the run at the first one after `patience` of them."""

    def __init__(self, patience: int | None = None) -> None:
        self.patience, self.chains = patience, 0

    def __call__(self, key: str, chain: Chain) -> None:
        if self.chains == self.patience:
            raise KeyboardInterrupt
        self.chains += 1


class Certain(TabularModel):
    """Records the certainty of its texts."""

    def _drawn(self, before: Any, tokens: tuple[int, ...], logp: float, kind: str) -> Draw:
        draw = super()._drawn(before, tokens, logp, kind)
        laws = [self.next_token(before.problem, tokens[:n]) for n in range(len(tokens))]
        entropy = -sum(float(law @ np.log(law)) for law in laws)
        self_certainty = -sum(float(np.mean(np.log(self.vocabulary * law))) for law in laws)
        return replace(draw, text=replace(draw.text, certainty=Certainty(len(tokens), entropy, self_certainty)))


TABLE = {"vocabulary": 4, "block_size": 1, "max_length": 4, "seed": 4}


def table(**changed: Any) -> TabularModel:
    return TabularModel(**TABLE | changed)


def certain() -> TabularModel:
    """The policy of all methods."""
    return Certain(**TABLE)


def pair(clip: tuple[float, float] | None = (0.5, 2.0)) -> ImportanceSampling:
    """The policy of ets-is: longer guide steps than those of other methods, and the rollouts of another table."""
    return ImportanceSampling(table(block_size=2), table(block_size=2, seed=5), clip)


def policies(policy: Policy | None = None) -> dict[str, Policy]:
    return {"": policy or table(), "base": table(temperature=0.5), "ets-is": pair()}


def run_of(journal: Journal, task: Letters, **changed: Any) -> Run:
    options: dict[str, Any] = {"problems": task.problems(COUNT, 0), "width": 5, "seed": 0, "progress": False}
    return Run(task=task, journal=journal, **options | changed)


def compared(
    folder: Path,
    names: Sequence[str],
    budgets: Sequence[float] = (3,),
    *,
    task: Letters | None = None,
    policy: Policy | None = None,
    settings: MethodSettings = SETTINGS,
    against: str | None = None,
    run: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[list[Entry], Records]:
    """The entries of a comparison, and the records of its journal as they can be read again."""
    with Journal(folder, {"seed": 0}) as journal:
        own = run_of(journal, task or Letters(), **run or {})
        comparison = Comparison(own, policies(policy), methods_named(names), settings, **options)
        entries = comparison.entries(budgets, against)
    with Journal(folder, {"seed": 0}) as again:
        assert again.records == journal.records
    return entries, again.records


def timeless(records: Records) -> Records:
    """Records without the parts that depend on the clock and on the neighbours in a batch."""
    result = copy.deepcopy(records)
    for record in result.values():
        for name in ("seconds", "reward_seconds", "forwards"):
            del record["cost"][name]
        record.pop("scoring", None)
    return result


def without_seconds(entries: Sequence[Entry]) -> list[Entry]:
    return [replace(entry, cost={**entry.cost, "seconds": 0.0, "reward_seconds": 0.0}) for entry in entries]


def of(records: Records, method: str) -> list[Record]:
    """The records of a method at any size and settings."""
    return [record for record in records.values() if record["method"].startswith(f"{method}-")]


def named(entries: Sequence[Entry], budget: int | None = 0) -> dict[tuple[str, str], Entry]:
    return {(entry.method, entry.readout): entry for entry in entries if entry.budget == budget}
