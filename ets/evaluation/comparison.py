"""Many methods on one task and one model, each at the same budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from ets.evaluation.compared import CHOOSING, GUIDED, SEARCHES, VOTED, Guided, Hyper
from ets.evaluation.evaluate import Evaluation
from ets.evaluation.hosted import digest
from ets.evaluation.journal import Journal, Record
from ets.evaluation.methods import Method, Settings
from ets.evaluation.pooled import Drawn, chosen, mean_cost_curve, noted_texts, pool
from ets.evaluation.ranks import ALONE, Ranks
from ets.evaluation.sizes import size_for
from ets.readouts import vote
from ets.tasks.task import Task
from ets.types import Chain, InputError, Policy, Problem, Text

PILOT_PROBLEMS = 32
"""Sizes are found on so many problems; what is measured there is part of the results where a size is taken."""


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
    """

    budget: int | None
    method: str
    readout: str
    label: str
    size: int
    scores: Mapping[str, float]
    cost: Mapping[str, float]


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

    def entries(self, names: Sequence[str], budgets: Sequence[int] | Sequence[float]) -> list[Entry]:
        """Run every method at every budget: the candidates of ETS whose mean cost it is, or amounts of the currency.

        Whole numbers are candidates, floats are amounts.
        """
        found: list[Entry] = []
        targets = [self._target(budget) for budget in budgets]
        pooled = [name for name in names if name in CHOOSING]
        sizes = self._pool_sizes(targets) if pooled else []
        for index, (budget, target) in enumerate(zip(budgets, targets, strict=True)):
            for name in names:
                if name in GUIDED:
                    own = budget if name == "ets" and isinstance(budget, int) else None
                    found += self._guided(index, name, target, own)
            for name in pooled:
                found.append(self._choosing(index, name, sizes[index], max(sizes)))
        found += [self._search(name) for name in names if name in SEARCHES]
        return sorted(found, key=lambda entry: (entry.budget is None, entry.budget or 0, names.index(entry.method)))

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
        records = self._records(self._sized(name, size), self.problems, self.seeds)
        label, cost = guided.labelled(self.hyper, size), _means(records)
        entries = [Entry(index, name, "last", label, size, _scores(records, "correct"), cost)]
        if guided.votes:
            entries.append(Entry(index, name, VOTED, f"{label}, vote", size, _scores(records, VOTED), cost))
        return entries

    def _size(self, name: str, guided: Guided, target: Target) -> int:
        def share_of(size: int) -> float:
            return self._mean(self._records(self._sized(name, size), self.problems[:PILOT_PROBLEMS], 1)) / target.pilot

        first = round(target.pilot / self._single / guided.samples(self.hyper))
        return size_for(share_of, max(1, first))[0]

    @cached_property
    def _single(self) -> float:
        """What a complete sample costs, in the currency."""
        return float(mean_cost_curve(self._pilot_pool(1), self.currency)[0])

    def _pilot_pool(self, samples: int) -> list[Record]:
        return self._records(_pool_method(samples), self.problems[:PILOT_PROBLEMS], 1)

    def _pool_sizes(self, targets: Sequence[Target]) -> list[int]:
        """For each budget, how many complete samples cost as much: the nearest number by the pilot's mean costs."""
        largest = max(target.pilot for target in targets)
        samples = max(1, round(1.3 * largest / self._single))
        curve = mean_cost_curve(self._pilot_pool(samples), self.currency)
        while curve[-1] < largest and samples < 16 * largest / self._single:
            samples *= 2
            curve = mean_cost_curve(self._pilot_pool(samples), self.currency)
        return [int(abs(curve - target.pilot).argmin()) + 1 for target in targets]

    def _choosing(self, index: int, name: str, size: int, largest: int) -> Entry:
        choosing = CHOOSING[name]
        records = self._records(_pool_method(largest), self.problems, self.seeds)
        step, problems = choosing.step(self.task, self.hyper, size), {problem.id: problem for problem in self.problems}
        scored: list[Record] = []
        for record in records:
            choice = chosen(step, problems[record["problem"]], record, self.seed)
            size = choice.samples  # of iterated resampling, a little fewer
            depth = max(len(each["tokens"]) for each in record["texts"][:size]) * self.per_token
            scored.append({**record, "correct": choice.score, "cost": vars(choice.cost), "depth": depth})
        label = choosing.label.format(size=size)
        return Entry(index, name, "last", label, size, _scores(scored, "correct"), _means(scored))

    def _search(self, name: str) -> Entry:
        step, label, options = SEARCHES[name](self.hyper)
        records = self._records(Method(name, label, step, options=options), self.problems, 1)
        return Entry(None, name, "last", label, 1, _scores(records, "correct"), _means(records))

    def _sized(self, name: str, size: int) -> Method:
        guided = GUIDED[name]
        settings = [f"{option}={getattr(self.hyper, option)}" for option in guided.options]
        step = guided.step(self.task, self.hyper, size)
        return Method(name, guided.labelled(self.hyper, size), step, options=(size, *settings))

    def _records(self, method: Method, problems: Sequence[Problem], seeds: int) -> list[Record]:
        """Sampled where the method's journal lacks them, one sample of all problems after the other.

        So the samples of a problem share no work, and each is charged what it costs by itself.
        """
        settings = Settings(1, self.hyper.rollouts, self.hyper.lam, self.hyper.pool)  # type: ignore[arg-type]
        with Journal(self.folder / method.key, {**self.configuration, "method": method.key}, self.ranks) as journal:
            evaluation = Evaluation(
                self.task, self.policy, problems, settings, journal, self.width, self.seed,
                progress=self.progress, noted=self._noted,
            )  # fmt: skip
            _require_asked(journal, problems)
            wanted = {(problem.id, sample) for problem in problems for sample in range(seeds)}
            for sample in range(seeds):
                if any((method.key, problem.id, sample) not in journal.records for problem in problems):
                    evaluation.draw(method, range(sample, sample + 1))
            return [record for record in journal.of(method.key) if (record["problem"], record["sample"]) in wanted]

    def _noted(self, chain: Chain) -> dict[str, Any]:
        """What records keep beside what `Evaluation` notes."""
        asked = {"asked": digest([chain.problem])}
        if isinstance(chain.state, Drawn):
            return asked | noted_texts(self.task, chain)
        return asked | {"depth": serial_depth(chain) * self.per_token, VOTED: self._vote_score(chain)}

    def _vote_score(self, chain: Chain) -> float:
        """The share of right answers among those with the most votes."""
        found = vote(self.task.extract, chain)
        texts = [found.texts[answer].text for answer in found.winners]
        return fmean(float(self.task.grade(chain.problem, text)) for text in texts) if texts else 0.0


def _require_asked(journal: Journal, problems: Sequence[Problem]) -> None:
    """Raise `InputError` if a record answers another problem by the same name: a journal may grow by more problems."""
    asked = {problem.id: digest([problem]) for problem in problems}
    for record in journal.records.values():
        if record["asked"] != asked.get(record["problem"], record["asked"]):
            raise InputError(
                f"{str(journal.folder)!r} holds results of another problem {record['problem']!r}; choose another folder"
            )


def serial_depth(chain: Chain) -> int:
    """Tokens that have to be drawn one after the other: in each step, those of its longest rollout.

    For masked diffusion, positions that its rollouts reveal.
    """
    origins = [(), *(step.candidates[step.choice].tokens for step in chain.trace)]
    return sum(
        max(_drawn_after(origin, text) for row in step.rollouts for text in row)
        for origin, step in zip(origins, chain.trace, strict=False)
    )


def _drawn_after(origin: Sequence[int], text: Text) -> int:
    if len(text.tokens) != len(origin):
        return len(text.tokens) - len(origin)
    return sum(before != after for before, after in zip(origin, text.tokens, strict=True))


def _cost(record: Record) -> dict[str, float]:
    cost = record["cost"]
    positions = cost["prompt"] + cost["candidate"] + cost["rollout"] + cost["scored"]
    named = {name: cost[name] for name in ("generated", "row_forwards", "seconds")}
    return {**named, "positions": positions, "depth": record["depth"]}


def _means(records: Sequence[Record]) -> dict[str, float]:
    costs = [_cost(record) for record in records]
    return {name: fmean(cost[name] for cost in costs) for name in costs[0]}


def _scores(records: Sequence[Record], name: str) -> dict[str, float]:
    """By problem, the mean over its samples."""
    scores: dict[str, list[float]] = {}
    for record in records:
        scores.setdefault(record["problem"], []).append(float(record[name]))
    return {problem: fmean(values) for problem, values in scores.items()}


def _pool_method(samples: int) -> Method:
    return Method("pool", f"{samples} complete samples", pool(samples), options=(samples,))
