"""Many methods on one task and one model, each at the same budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from ets.evaluation.budget import positions_of
from ets.evaluation.compared import CHOOSING, GUIDED, SEARCHES, VOTED, Guided, Hyper
from ets.evaluation.depth import metered
from ets.evaluation.evaluate import Evaluation
from ets.evaluation.journal import Journal, Record
from ets.evaluation.methods import Method
from ets.evaluation.pooled import Drawn, chosen, mean_cost_curve, noted_texts, pool
from ets.evaluation.ranks import ALONE, Ranks
from ets.evaluation.sizes import size_for
from ets.tasks.task import Task
from ets.types import Chain, Floats, Policy, Problem

PILOT_PROBLEMS = 32
"""Sizes are found on so many problems; what is measured there is part of the results where a size is taken."""

POOLED = 1.5
"""The largest number of complete samples costs so many times the largest budget, for rows that cost more than it."""


@dataclass(frozen=True)
class Rival:
    """What an entry is compared with: another method at the same cost, or as near to it as its sizes come.

    Parameters
    ----------
    label : str
    cost : float
        In the currency of the budgets.
    scores : mapping of str to float
        By problem.
    """

    label: str
    cost: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """A method at a budget, read out in one way.

    Parameters
    ----------
    budget : int or None
        Which budget; None for a method that is the same at every one.
    method, readout, label : str
    size : int
        Candidates, samples, particles or moves.
    scores : mapping of str to float
        By problem: the mean over its samples.
    cost : mapping of str to float
        Means per sample: `generated`, `positions`, `row_forwards`, `seconds`, and `depth`, the tokens (for masked
        diffusion, the denoising steps) that have to be drawn one after the other however many run side by side.
    draws : int
        Independent samples of a problem behind its score.
    rival : Rival, optional
    key : str
        The method and its settings among records, which is its journal's name too.
    """

    budget: int | None
    method: str
    readout: str
    label: str
    size: int
    scores: Mapping[str, float]
    cost: Mapping[str, float]
    draws: int
    rival: Rival | None = None
    key: str = ""


def entry_of(content: Mapping[str, Any]) -> Entry:
    """An entry from its JSON values."""
    rival = content["rival"]
    return Entry(**{**content, "rival": None if rival is None else Rival(**rival)})


@dataclass(frozen=True)
class Target:
    """A budget: its cost per sample over all problems, and over the pilot's."""

    mean: float
    pilot: float


@dataclass(frozen=True)
class Comparison:
    """One comparison: what is asked, of whom, and where the journals go, one for each method and size.

    Parameters
    ----------
    task, policy, problems, hyper
        What is compared on, and the settings that methods share.
    currency : str
        What the budgets are counted in: `generated` tokens, or the `positions` that the model computed.
    folder : Path
    configuration : mapping
        All that results depend on, beside the problems, the method and its own settings.
    seeds : int
        Samples of each problem, whose scores are averaged.
    width, seed : int
        As for `ets.runner.run`.
    per_token : float
        Model calls in a row that a token takes: 1, or denoising steps over tokens.
    ranks : Ranks
        The processes that share the problems.
    kept : callable
        Is told each chain that has ended, before its record is written.
    """

    task: Task
    policy: Policy
    problems: Sequence[Problem]
    hyper: Hyper
    currency: str
    folder: Path
    configuration: Mapping[str, Any]
    seeds: int
    width: int
    seed: int
    per_token: float = 1.0
    progress: bool = True
    ranks: Ranks = ALONE
    kept: Callable[[Method, Chain], None] = lambda method, chain: None
    _depths: dict[int, int] = field(default_factory=dict)

    def entries(self, names: Sequence[str], budgets: Sequence[float], against: str = "majority") -> list[Entry]:
        """Run every method at every budget, and set against each of them another one at equal cost.

        Parameters
        ----------
        names : sequence of str
            Keys of `GUIDED`, `CHOOSING` and `SEARCHES`.
        budgets : sequence of int or float
            Whole numbers are candidates of ETS, whose mean cost is the budget; floats are amounts of the currency.
        against : str
            One of the names. A method that chooses among N samples is set against each entry with the N whose cost is
            nearest to the entry's own; any other one at the same budget.
        """
        found: list[Entry] = []
        targets = [self._target(budget) for budget in budgets]
        pooled = self._pool(targets) if any(name in CHOOSING for name in names) else []
        for index, (budget, target) in enumerate(zip(budgets, targets, strict=True)):
            for name in (name for name in names if name in GUIDED):
                same = isinstance(budget, int) and GUIDED[name].at_candidates
                found += self._guided(index, name, target, int(budget) if same else None)
            for name in (name for name in names if name in CHOOSING and name != "plain"):
                found.append(self._choosing(index, name, nearest(self._curve(pooled), target.mean), pooled))
        if "plain" in names:
            found.append(self._plain(pooled))
        found += [self._search(name) for name in names if name in SEARCHES]
        ordered = sorted(found, key=lambda entry: (entry.budget is None, entry.budget or 0, names.index(entry.method)))
        return self._against(ordered, against, pooled)

    def _target(self, budget: float) -> Target:
        if not isinstance(budget, int):
            return Target(budget, budget)
        records = self._records(self._sized("ets", budget), self.problems, self.seeds)
        first = {problem.id for problem in self.problems[:PILOT_PROBLEMS]}
        pilot = [record for record in records if record["problem"] in first]
        return Target(self._mean(records), self._mean(pilot))

    def _mean(self, records: Sequence[Record]) -> float:
        return fmean(_cost(record)[self.currency] for record in records)

    def _guided(self, index: int, name: str, target: Target, size: int | None) -> list[Entry]:
        guided = GUIDED[name]
        if size is None:
            size = self._size(name, guided, target)
        method = self._sized(name, size)
        records = self._records(method, self.problems, self.seeds)
        label, cost, own = method.label, _means(records), (self.seeds, None, method.key)
        entries = [Entry(index, name, "last", label, size, _scores(records, "correct"), cost, *own)]
        if guided.votes:
            voted = _scores([record["vote"] | {"problem": record["problem"]} for record in records], "correct")
            entries.append(Entry(index, name, VOTED, f"{label}, vote", size, voted, cost, *own))
        return entries

    def _size(self, name: str, guided: Guided, target: Target) -> int:
        def share_of(size: int) -> float:
            return self._mean(self._records(self._sized(name, size), self.problems[:PILOT_PROBLEMS], 1)) / target.pilot

        first = round(target.pilot / self._single / guided.samples(self.hyper))
        return size_for(share_of, max(1, first))[0]

    @cached_property
    def _single(self) -> float:
        """What a complete sample costs, in the currency."""
        return float(self._curve(self._pilot_pool(1))[0])

    def _pilot_pool(self, samples: int) -> list[Record]:
        return self._records(_pool_method(samples), self.problems[:PILOT_PROBLEMS], 1)

    def _curve(self, records: Sequence[Record]) -> Floats:
        return mean_cost_curve(records, self.currency)

    def _pool(self, targets: Sequence[Target]) -> list[Record]:
        """Complete samples of every problem, more of them than the largest budget buys: costs differ by problem."""
        largest = POOLED * max(target.pilot for target in targets)
        samples = max(1, round(largest / self._single))
        while (spent := self._curve(self._pilot_pool(samples))[-1]) < largest and samples < 16 * largest / self._single:
            samples = max(samples + 1, round(samples * largest / spent))
        return self._records(_pool_method(samples), self.problems, self.seeds)

    def _choosing(self, index: int | None, name: str, size: int, pooled: Sequence[Record]) -> Entry:
        choosing, problems = CHOOSING[name], {problem.id: problem for problem in self.problems}
        step, scored = choosing.step(self.task, self.hyper, size), list[Record]()
        for record in pooled:
            choice = chosen(step, problems[record["problem"]], record, self.seed)
            size = choice.samples  # of iterated resampling, sometimes one fewer
            depth = max(len(each["tokens"]) for each in record["texts"][:size]) * self.per_token
            scored.append({**record, "correct": choice.score, "cost": vars(choice.cost), "depth": depth})
        label = choosing.labelled(self.hyper, size)
        return Entry(index, name, "last", label, size, _scores(scored, "correct"), _means(scored), self.seeds)

    def _plain(self, pooled: Sequence[Record]) -> Entry:
        """Single samples: the score is the mean over all of them, the cost that of the first."""
        samples = len(pooled[0]["texts"])
        one, all_of_them = (self._choosing(None, "plain", size, pooled) for size in (1, samples))
        draws = samples * self.seeds
        label = f"plain sampling (mean of {draws})"
        return replace(one, label=label, scores=all_of_them.scores, draws=draws)

    def _against(self, entries: Sequence[Entry], against: str, pooled: Sequence[Record]) -> list[Entry]:
        """The entries, each with its rival."""
        if against in CHOOSING:
            curve, known = self._curve(pooled), dict[int, Entry]()

            def rival_of(entry: Entry) -> Entry:
                size = nearest(curve, entry.cost[self.currency])
                if size not in known:
                    known[size] = self._choosing(None, against, size, pooled)
                return known[size]
        else:

            def rival_of(entry: Entry) -> Entry:
                same = [e for e in entries if (e.method, e.readout) == (against, "last")]
                return next((e for e in same if e.budget in (None, entry.budget)), same[0])

        return [self._with_rival(entry, rival_of(entry), against) for entry in entries]

    def _with_rival(self, entry: Entry, other: Entry, against: str) -> Entry:
        if (entry.method, entry.readout) == (against, "last"):
            return entry
        return replace(entry, rival=Rival(other.label, other.cost[self.currency], other.scores))

    def _search(self, name: str) -> Entry:
        step, label, options = SEARCHES[name](self.hyper)
        records = self._records(Method(name, label, step, options=options), self.problems, 1)
        return Entry(None, name, "last", label, 1, _scores(records, "correct"), _means(records), 1)

    def _sized(self, name: str, size: int) -> Method:
        guided = GUIDED[name]
        settings = [f"{option}={getattr(self.hyper, option)}" for option in guided.options]
        step = metered(guided.step(self.task, self.hyper, size), self._depths)
        return Method(name, guided.labelled(self.hyper, size), step, options=(size, *settings), votes=guided.votes)

    def _records(self, method: Method, problems: Sequence[Problem], seeds: int) -> list[Record]:
        """Sampled where the method's journal lacks them, one sample of all problems after the other.

        So the samples of a problem share no work, and each is charged what it costs by itself.
        """
        with Journal(self.folder / method.key, {**self.configuration, "method": method.key}, self.ranks) as journal:
            evaluation = Evaluation(
                self.task, self.policy, problems, journal, self.width, self.seed,
                progress=self.progress, noted=self._noted, kept=self.kept,
            )  # fmt: skip
            wanted = {(problem.id, sample) for problem in problems for sample in range(seeds)}
            for sample in range(seeds):
                if any((method.key, problem.id, sample) not in journal.records for problem in problems):
                    evaluation.draw(method, range(sample, sample + 1))
            return [record for record in journal.of(method.key) if (record["problem"], record["sample"]) in wanted]

    def _noted(self, chain: Chain) -> dict[str, Any]:
        """What records keep beside what `Evaluation` notes."""
        if isinstance(chain.state, Drawn):
            return noted_texts(self.task, chain)
        depth = self._depths.pop(chain.key, len(chain.state.tokens))  # that of a search: its text's length
        return {"depth": depth * self.per_token}


def _cost(record: Record) -> dict[str, float]:
    named = {name: record["cost"][name] for name in ("generated", "row_forwards", "seconds")}
    return {**named, "positions": positions_of(record), "depth": record["depth"]}


def _means(records: Sequence[Record]) -> dict[str, float]:
    costs = [_cost(record) for record in records]
    return {name: fmean(cost[name] for cost in costs) for name in costs[0]}


def _scores(records: Sequence[Record], name: str) -> dict[str, float]:
    """By problem, the mean over its samples."""
    scores: dict[str, list[float]] = {}
    for record in records:
        scores.setdefault(record["problem"], []).append(float(record[name]))
    return {problem: fmean(values) for problem, values in scores.items()}


def nearest(curve: Floats, cost: float) -> int:
    """The number of samples whose cost comes nearest, from what the first 1, 2, … of them cost."""
    return int(np.abs(curve - cost).argmin()) + 1


def _pool_method(samples: int) -> Method:
    return Method("pool", f"{samples} complete samples", pool(samples), options=(samples,))
