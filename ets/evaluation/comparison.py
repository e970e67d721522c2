"""Methods on one task, each at the same budgets: `ets eval` is a comparison at one budget, `ets compare` at several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from ets.diagnostics import RatioSummary
from ets.evaluation.journal import Record, known_fields
from ets.evaluation.methods import METHODS, Method, MethodSettings, recorded_reward
from ets.evaluation.objective import Estimate
from ets.evaluation.pool import Choice, Sample, SamplePool, chosen, nearest
from ets.evaluation.ratios import total_ratios
from ets.evaluation.run import Drawing, Run
from ets.evaluation.sizes import size_for
from ets.tasks.task import has_answers
from ets.types import InputError, Policy, Problem
from ets.walk import lengths_of

PILOT_PROBLEMS = 32
"""The size of a guided method is found on so many problems; their records at that size are part of the results."""
LARGEST_RIVAL = 1.5
"""A rival costs at most so many times the largest budget."""
VOTE_TARGET = "mode of the rollouts"
"""The target of the readout `vote`."""


@dataclass(frozen=True)
class Rival:
    """The method that an entry is compared with, at the same cost or as near to it as its sizes come.

    Parameters
    ----------
    label : str
    cost : float
        In the currency of the budgets.
    scores : mapping of str to float
        By problem.
    rewards : mapping of str to float
        By problem, the mean reward; empty where the entry has none.
    """

    label: str
    cost: float
    scores: Mapping[str, float]
    rewards: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A method at a budget, with one readout: a row of the tables.

    Parameters
    ----------
    budget : int or None
        The place of the budget; None for a method that is the same at every budget.
    method, readout, label : str
        The readout is `last`, the sampled text, or `vote`, the first rollout with the majority answer.
    size : int
        Candidates, samples, particles or moves.
    scores : mapping of str to float
        By problem: the mean grade of its samples; empty for a task without right answers.
    cost : mapping of str to float
        Means per use of the method: `generated`, `positions`, `row_forwards`, `seconds`, `reward_seconds`, and `depth`,
        the tokens (for masked diffusion, the denoising steps) that are drawn one after the other.
    draws : int
        Independent samples of a problem behind its score.
    further : mapping of str to float
        Means of the task's further scores.
    ratios : RatioSummary, optional
        The importance ratios of a method that has any.
    rival : Rival, optional
    key : str
        The method and its settings in the journal.
    target : str
        The law that the method tends to as its budget grows; for the vote, the estimated mode.
    rewards : mapping of str to float
        By problem: the mean reward of its texts, if the run's reward is a fixed function of the text; otherwise empty.
    objective : Estimate, optional
        E[r] - λ KL, the most that a method with these rewards can reach (`ets.evaluation.objective`).
    """

    budget: int | None
    method: str
    readout: str
    label: str
    size: int
    scores: Mapping[str, float]
    cost: Mapping[str, float]
    draws: int
    further: Mapping[str, float] = field(default_factory=dict)
    ratios: RatioSummary | None = None
    rival: Rival | None = None
    key: str = ""
    target: str = ""
    rewards: Mapping[str, float] = field(default_factory=dict)
    objective: Estimate | None = None


def entry_of(content: Mapping[str, Any]) -> Entry:
    """An entry from its JSON values."""
    rival, ratios = content["rival"], content["ratios"]
    read: dict[str, Any] = {name: math.nan if value is None else value for name, value in (ratios or {}).items()}
    further = {
        "rival": rival and Rival(**{**rival, "rewards": finite_or_forbidden(rival["rewards"])}),
        "ratios": RatioSummary(**read) if ratios else None,
        "objective": Estimate(**content["objective"]) if content.get("objective") else None,
        "rewards": finite_or_forbidden(content["rewards"]),
    }
    return Entry(**{**known_fields(Entry, content), **further})


def finite_or_forbidden(rewards: Mapping[str, float | None]) -> dict[str, float]:
    """Rewards from JSON values, in which None stands for -inf."""
    return {problem: -math.inf if value is None else value for problem, value in rewards.items()}


def json_rewards(rewards: Mapping[str, float]) -> dict[str, float | None]:
    """Rewards as JSON values."""
    return {problem: None if math.isinf(value) else value for problem, value in rewards.items()}


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    Parameters
    ----------
    run : Run
    policies : mapping of str to Policy
        By law: "" is the policy of most methods, others are those of `Method.law`.
    methods : mapping of str to Method
        The methods to compare, in the order of the table.
    settings : MethodSettings
    currency : {"generated", "positions"}
        The unit of the budgets: generated tokens, or token positions that the model computed.
    repeats : int
        Samples of each problem, whose grades are averaged.
    sizes : mapping of str to int
        The N of single methods that choose among N samples, in place of the N that costs as much as the budget.
    samples : int, optional
        The N of all those methods that `sizes` does not name.
    """

    run: Run
    policies: Mapping[str, Policy]
    methods: Mapping[str, Method]
    settings: MethodSettings
    currency: str = "generated"
    repeats: int = 1
    sizes: Mapping[str, int] = field(default_factory=dict)
    samples: int | None = None
    _targets: dict[float, float] = field(default_factory=dict)
    _pools: dict[str, SamplePool] = field(default_factory=dict)
    _rows: dict[tuple[str, str], Sequence[Record]] = field(default_factory=dict)

    def entries(self, budgets: Sequence[float], against: str | None = None) -> list[Entry]:
        """Run every method at every budget, and set a rival against each of them.

        Parameters
        ----------
        budgets : sequence of int or float
            Whole numbers are candidates of ETS, whose mean cost is the budget; floats are amounts of the currency.
        against : str, optional
            A method that entries are compared with. A method that chooses among N samples is the rival with the N whose
            cost is nearest to the entry's cost; another method is the rival at the same budget.
        """
        found: list[Entry] = []
        for index, budget in enumerate(budgets):
            for name, method in self.methods.items():
                if method.kind == "guided":
                    found += self._guided(index, name, self._size(name, method, budget))
                elif method.kind == "among":
                    found.append(self._among(index, name, self._count(name, budget)))
        for name, method in self.methods.items():
            if method.kind == "averaged":
                found.append(self._averaged(name, max(self._count(name, budget) for budget in budgets)))
            elif method.kind == "search":
                found += self._guided(None, name, 1)
        places = list(self.methods)
        found.sort(key=lambda entry: (entry.budget is None, entry.budget or 0, places.index(entry.method)))
        if len(budgets) == 1:
            found.sort(key=lambda entry: places.index(entry.method))
        return found if against is None else self._against(found, against, budgets)

    def _target(self, budget: float) -> float:
        """A budget as an amount of the currency."""
        if not isinstance(budget, int):
            return budget
        if budget not in self._targets:
            self._targets[budget] = self._mean_cost(self._records("ets", budget, self.run.problems, self.repeats))
        return self._targets[budget]

    def _size(self, name: str, method: Method, budget: float) -> int:
        """The size of a guided method at a budget; in token positions a size in tokens is a whole number of texts."""
        if method.law == "ets-is" and self.settings.is_candidates is not None:
            return self.settings.is_candidates
        if isinstance(budget, int) and method.at_candidates:
            return int(budget)
        pilot, target = self.run.problems[:PILOT_PROBLEMS], self._target(budget)
        unit = lengths_of(self.policies[method.law]).most if method.in_tokens else 1
        if method.in_tokens and self.currency == "generated":
            return max(unit, int(target))

        def share_of(units: int) -> float:
            return self._mean_cost(self._records(name, units * unit, pilot, 1)) / self._pilot_target(budget, pilot)

        single = self._pool("").mean_costs(1, self.currency)[0] if "ets" not in self.methods else self._single(budget)
        guess = max(1, round(target / single / method.samples(self.settings)))
        return guess if method.at_most else unit * size_for(share_of, guess)[0]

    def _pilot_target(self, budget: float, pilot: Sequence[Problem]) -> float:
        """The budget's amount on the problems of the pilot."""
        if not isinstance(budget, int):
            return budget
        return self._mean_cost(self._records("ets", int(budget), pilot, self.repeats))

    def _single(self, budget: float) -> float:
        """About what one complete sample costs, from the rollouts of ETS at its first guide step."""
        if not isinstance(budget, int):
            return float(self._pool("").mean_costs(1, self.currency)[0])
        records = self._records("ets", int(budget), self.run.problems, self.repeats)
        tokens = fmean(record["sample_tokens"] for record in records)
        generated = fmean(record["cost"]["generated"] for record in records)
        return tokens * self._target(budget) / generated

    def _count(self, name: str, budget: float) -> int:
        """The N of a method that takes N complete samples."""
        fixed = self.sizes.get(name, self.samples)
        if fixed is not None:
            return fixed
        method = self.methods[name]
        if method.kind == "averaged" and (not self._has_target(budget) or self.policies[method.law].deterministic):
            return 1
        target, pool = self._target(budget), self._pool(method.law)
        single = self._single(budget) if method.law == "" else float(pool.mean_costs(1, self.currency)[0])
        guess = max(1, round(target / single))
        if self.currency == "generated" and isinstance(budget, int):
            return guess  # from the rollouts' lengths: those of the N texts themselves would bias N
        pilot = self.run.problems[:PILOT_PROBLEMS]  # equal samples share work, so that the cost is measured
        return pool.until(self._pilot_target(budget, pilot), self.currency, guess, pilot)

    def _has_target(self, budget: float) -> bool:
        return "ets" in self.methods or not isinstance(budget, int)

    def _pool(self, law: str) -> SamplePool:
        if law not in self._pools:
            base = [getattr(self.settings, f"base_{name}") for name in ("temperature", "top_k", "top_p")]
            name = "pool" if law == "" else "-".join(map(str, ("pool", law, *base)))
            reward = recorded_reward(METHODS["base" if law else "plain"], self.run.task, self.settings)
            self._pools[law] = SamplePool(self.run, self.policies[law], name, self.repeats, reward)
        return self._pools[law]

    @property
    def pooled(self) -> list[Sample]:
        """The complete samples of p_ref that the comparison has drawn, of every problem equally many."""
        pool = self._pools.get("")
        return pool.samples(pool.held) if pool and pool.held else []

    def _among(self, index: int | None, name: str, count: int) -> Entry:
        """A method that chooses among the first `count` complete samples."""
        method = METHODS[name]
        step = method.step(self.run.task, self.settings, count)
        pooled = self._pool(method.law).samples(count)
        if self.settings.needs_certainty([name]) and any(d.text.certainty is None for s in pooled for d in s.draws):
            folder = self.run.journal.folder
            raise InputError(f"the samples in {str(folder)!r} have no recorded certainty; choose another folder")
        scored = method.scored(name, self.settings)
        choices = [chosen(step, each, self.run.seed, scored) for each in pooled]
        rows = [_row(each, choice, self.run.per_token) for each, choice in zip(pooled, choices, strict=True)]
        size = choices[0].samples
        label, target = method.labelled(self.settings, size), method.targeted(self.settings)
        key = self._kept(method.key(name, self.settings, count), "last", rows)
        shared: dict[str, Any] = {"cost": _means(rows), "key": key, "target": target}
        return Entry(index, name, "last", label, size, draws=self.repeats, **_graded(rows), **shared)

    def _averaged(self, name: str, count: int) -> Entry:
        """Single samples: the score is the mean over all `count` of them, the cost that of the first."""
        method = METHODS[name]
        pool = self._pool(method.law)
        rows = [
            {"problem": each.problem.id, **grade, "sample": each.sample * count + place}
            for each in pool.samples(count)
            for place, grade in enumerate(each.grades)
        ]
        step, seed, per_token = method.step(self.run.task, self.settings, 1), self.run.seed, self.run.per_token
        firsts = [_row(each, chosen(step, each, seed), per_token) for each in pool.samples(1)]
        draws = count * self.repeats
        label, target = method.labelled(self.settings, draws), method.targeted(self.settings)
        key = self._kept(method.key(name, self.settings, count), "last", rows)
        shared: dict[str, Any] = {"cost": _means(firsts), "key": key}
        return Entry(None, name, "last", label, 1, draws=draws, target=target, **_graded(rows), **shared)

    def _guided(self, index: int | None, name: str, size: int) -> list[Entry]:
        """A method that samples by itself; where its rollouts vote, the vote is a second entry at the same cost."""
        method = self.methods[name]
        repeats = 1 if method.kind == "search" else self.repeats
        records = self._records(name, size, self.run.problems, repeats)
        ratios = total_ratios([record["ratios"] for record in records]) if "ratios" in records[0] else None
        label, key = method.labelled(self.settings, size), method.key(name, self.settings, size)
        self._kept(key, "last", records)
        rows = [{**record, **record["cost"]} for record in records]
        shared: dict[str, Any] = {"cost": _means(rows), "draws": repeats, "key": key}
        target = method.targeted(self.settings)
        last = Entry(index, name, "last", label, size, ratios=ratios, target=target, **_graded(rows), **shared)
        if not self._votes(method):
            return [last]
        votes = [{**{name: r[name] for name in ("problem", "sample", "cost")}, **r["vote"]} for r in records]
        self._kept(key, "vote", votes)
        voted = Entry(index, name, "vote", f"{label}, vote", size, target=VOTE_TARGET, **_graded(votes), **shared)
        return [last, voted]

    def _kept(self, key: str, readout: str, rows: Sequence[Record]) -> str:
        """The key, after the rows are kept for `returned`."""
        self._rows[key, readout] = rows
        return key

    def returned(self, entries: Iterable[Entry]) -> Iterator[Record]:
        """The returned texts behind some entries, with their grades and costs, each once.

        Where a method chooses among samples, the text is the sample that it has chosen, and grade and reward are
        expectations over the choice: their means are the scores of the entry. `chosen` holds the text's own grade and
        reward.
        """
        for key, readout in dict.fromkeys((entry.key, entry.readout) for entry in entries):
            for row in self._rows[key, readout]:
                yield {"method": key, "readout": readout, **{name: row[name] for name in SAMPLE if name in row}}

    def _votes(self, method: Method) -> bool:
        return method.votes and has_answers(self.run.task)

    def _records(self, name: str, size: int, problems: Sequence[Problem], repeats: int) -> list[Record]:
        method = self.methods[name] if name in self.methods else METHODS[name]
        policy = self.policies[method.law]
        weighed = bool(getattr(policy, "weighed", False))
        drawing = Drawing(
            key=method.key(name, self.settings, size),
            label=method.labelled(self.settings, size),
            step=method.step(self.run.task, self.settings, size),
            policy=policy,
            votes=self._votes(method),
            weighed=weighed,
            clip=getattr(policy, "clip", None),
            reward=recorded_reward(method, self.run.task, self.settings),
            together=method.kind == "search",
        )
        return self.run.records(drawing, problems, repeats)

    def _mean_cost(self, records: Sequence[Record]) -> float:
        return _means([{**record, **record["cost"]} for record in records])[self.currency]

    def _against(self, entries: Sequence[Entry], against: str, budgets: Sequence[float]) -> list[Entry]:
        """The entries with their rivals."""
        if self.methods[against].kind == "among":
            largest = max(entry.cost[self.currency] for entry in entries)
            targets = [self._target(budget) for budget in budgets if self._has_target(budget)]
            amount = min(largest, LARGEST_RIVAL * max(targets, default=largest))
            count = self._pool("").until(amount, self.currency, 1)
            costs = self._pool("").mean_costs(count, self.currency)
            known: dict[int, Entry] = {}

            def plain(count: int) -> Entry:
                """A choice among one sample, with the mean score of all that were drawn."""
                found = next((entry for entry in entries if entry.method == "plain"), None)
                return replace(found or self._averaged("plain", count), label="plain sampling")

            def rival_of(entry: Entry) -> Entry:
                size = nearest(costs, entry.cost[self.currency])
                if size not in known:
                    known[size] = plain(count) if size == 1 else self._among(None, against, size)
                return known[size]
        else:

            def rival_of(entry: Entry) -> Entry:
                same = [e for e in entries if (e.method, e.readout) == (against, "last")]
                return next((e for e in same if e.budget in (None, entry.budget)), same[0])

        return [self._with_rival(entry, rival_of(entry), against) for entry in entries]

    def _with_rival(self, entry: Entry, other: Entry, against: str) -> Entry:
        """The entry with its rival; without one where both are the same method, or both plain sampling."""
        kind = self.methods[entry.method].kind
        alone = entry.method == "plain" or (kind == "among" and entry.size == 1)
        if (entry.method, entry.readout) == (against, "last") or (alone and other.method == "plain"):
            return entry
        return replace(entry, rival=Rival(other.label, other.cost[self.currency], other.scores, other.rewards))


SAMPLE = ("problem", "sample", "text", "answer", "correct", "scores", "reward", "chosen", "cost")
"""The values of a returned text."""
COSTS = ("generated", "positions", "row_forwards", "seconds", "reward_seconds", "depth")


def _row(pooled: Sample, choice: Choice, per_token: float) -> Record:
    own = {"problem": pooled.problem.id, "sample": pooled.sample, **{n: choice.text[n] for n in ("text", "answer")}}
    chosen = {name: choice.text[name] for name in ("correct", "reward") if name in choice.text}
    graded = {"correct": choice.correct, "scores": choice.scores, "chosen": chosen}
    rewarded = {} if choice.reward is None else {"reward": None if math.isinf(choice.reward) else choice.reward}
    cost = asdict(choice.cost)
    positions, depth = choice.cost.positions, choice.depth * per_token
    return {**own, **graded, **rewarded, **cost, "cost": cost, "positions": positions, "depth": depth}


def _means(rows: Sequence[Record]) -> dict[str, float]:
    """The mean costs of some rows; positions are the sum of the token positions of all kinds."""
    kinds = ("prompt", "candidate", "rollout", "scored")
    full = [row if "positions" in row else {**row, "positions": sum(row[kind] for kind in kinds)} for row in rows]
    return {name: fmean(float(row[name]) for row in full) for name in COSTS}


def _graded(rows: Sequence[Record]) -> dict[str, Any]:
    """The fields of an entry that its rows' grades make."""
    return {"scores": _scores(rows), "further": _further(rows), "rewards": _rewards(rows)}


def _scores(rows: Sequence[Record]) -> dict[str, float]:
    """By problem, the mean grade of its samples; empty if a row has none."""
    if any(row["correct"] is None for row in rows):
        return {}
    return _by_problem([(row["problem"], float(row["correct"])) for row in rows])


def _rewards(rows: Sequence[Record]) -> dict[str, float]:
    """By problem, the mean reward of its samples; empty if a row has none."""
    if any("reward" not in row for row in rows):
        return {}
    return _by_problem([(row["problem"], -math.inf if row["reward"] is None else row["reward"]) for row in rows])


def _by_problem(values: Sequence[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for problem, value in values:
        found.setdefault(problem, []).append(value)
    return {problem: fmean(each) for problem, each in found.items()}


def _further(rows: Sequence[Record]) -> dict[str, float]:
    return {name: fmean(row["scores"][name] for row in rows) for name in rows[0]["scores"]}
