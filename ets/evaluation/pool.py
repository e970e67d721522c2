"""Complete samples of a problem, drawn once, from which several methods choose.

Majority voting, best-of-N and one-step ETS draw the same N complete texts and differ in the choice alone. They share
the texts of a pool: their differences are paired exactly, and a smaller N is the first N texts of a larger one.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from ets.evaluation.journal import Record
from ets.evaluation.run import Drawing, Run, Shareable, rewards_of
from ets.randomness import Purpose, chain_key
from ets.step import require_unweighed, require_variety, row_keys
from ets.tasks.task import Slow
from ets.types import (
    Certainty,
    Chain,
    Cost,
    Draw,
    Floats,
    Keys,
    Policy,
    Problem,
    Reward,
    State,
    Step,
    StepFn,
    Text,
    counted,
)
from ets.weights import normalised

MOST = 16
"""A pool holds at most so many times the samples that a budget pays for if they share nothing."""

SHARING_REACH = 1.25
"""A pool whose samples share work grows so many times farther than in proportion: it is drawn again as a whole."""


@dataclass(frozen=True)
class Completions:
    """The state of a chain that holds complete draws: all texts of a part of a pool."""

    draws: tuple[Draw, ...]
    tokens: tuple[int, ...] = ()
    text: str = ""
    done: bool = True


def completions(first: int, end: int) -> StepFn:
    """The complete samples `first` to `end - 1` of each chain: the texts that `ets.baselines` draw from its key."""

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, end)
        keys = row_keys(chains, Purpose.COMPLETION, end)[:, first:]
        count = end - first
        draws = policy.finish([chain.state for chain in chains for _ in range(count)], keys.ravel())
        return [_kept(chain, draws[b * count : (b + 1) * count]) for b, chain in enumerate(chains)]

    return step


def _kept(chain: Chain, draws: Sequence[Draw]) -> Chain:
    texts = tuple(draw.text for draw in draws)
    equal = np.zeros(len(texts))
    cost = Cost.total(draw.cost for draw in draws)
    step = Step(texts, tuple((text,) for text in texts), equal[:, None], equal, 0, cost)
    return chain.advance(Completions(tuple(draws)), step)


@dataclass(frozen=True)
class Sample:
    """The complete samples of one chain of a problem: their draws, their grades, and the cost of the first 1, 2, …

    `scoring` holds the seconds that the pool's reward took for the first 1, 2, … samples.
    """

    problem: Problem
    sample: int
    draws: tuple[Draw, ...]
    grades: tuple[Record, ...]
    costs: tuple[Cost, ...]
    scoring: tuple[float, ...] = ()


@dataclass(frozen=True)
class SamplePool:
    """The complete samples of every problem under one policy.

    Parameters
    ----------
    run : Run
    policy : Policy
    name : str
        The pool's key in the journal: policies of other laws have other names.
    repeats : int
        Chains of each problem.
    reward : Reward, optional
        A fixed reward, whose value at each sample the records keep.
    """

    run: Run
    policy: Policy
    name: str
    repeats: int
    reward: Reward | None = None

    def samples(self, count: int, problems: Sequence[Problem] | None = None) -> list[Sample]:
        """The first `count` complete samples of every chain of some problems, drawn where the journal lacks them."""
        wanted = self.run.problems if problems is None else problems
        while missing := self._missing(count, wanted):
            for first, problems in missing.items():
                key = f"{self.name}[{first}:{count}]"
                label = f"complete samples {first + 1} to {count}" if first else counted(count, "complete sample")
                note = partial(self._note, first)
                drawing = Drawing(key, label, completions(first, count), self.policy, note=note, texts=count - first)
                self.run.records(drawing, problems, self.repeats)
        bounds = self._bounds()
        places = [(problem, n) for problem in wanted for n in range(self.repeats)]
        return [self._joined(problem, n, count, self._parts(problem, n, bounds)) for problem, n in places]

    @property
    def held(self) -> int:
        """The complete samples that the journal holds of every chain."""
        bounds = self._bounds()
        places = [(problem, n) for problem in self.run.problems for n in range(self.repeats)]
        return min(sum(len(part["texts"]) for part in self._parts(problem, n, bounds)) for problem, n in places)

    def mean_costs(self, count: int, currency: str, problems: Sequence[Problem] | None = None) -> Floats:
        """The mean costs over chains of the first 1, 2, …, `count` samples `[count]`, as tokens or positions."""
        return np.mean([[getattr(c, currency) for c in each.costs] for each in self.samples(count, problems)], axis=0)

    def until(self, amount: float, currency: str, guess: int, problems: Sequence[Problem] | None = None) -> int:
        """The number of samples whose mean cost comes nearest to an amount; the pool grows until it costs as much.

        Samples of masked diffusion share the forwards of equal canvases. Where samples are equal, further ones are
        free, so a pool grows to `MOST` times the samples that the amount pays for without sharing, with a warning.
        """
        count = max(1, guess)
        while (costs := self.mean_costs(count, currency, problems))[-1] < amount:
            most = MOST * max(1, round(amount / costs[0]))
            if count >= most:
                warnings.warn(
                    f"{counted(count, 'sample')} cost {costs[-1] / amount:.0%} of the budget; set samples", stacklevel=2
                )
                return count
            reach = SHARING_REACH if self._sharing else 1.0
            count = min(most, max(count + 1, round(reach * count * amount / costs[-1])))
        return nearest(costs, amount)

    @property
    def _sharing(self) -> bool:
        """Whether equal samples share work, so that further samples cost less than the first ones."""
        return hasattr(self.policy, "unmasking")

    def _parts(self, problem: Problem, sample: int, bounds: Sequence[tuple[int, int]]) -> list[Record]:
        """The records of a chain's parts, in the order of their texts and without gaps or overlaps."""
        parts: dict[int, Record] = {}
        for first, end in bounds:
            record = self.run.journal.records.get((f"{self.name}[{first}:{end}]", problem.id, sample))
            if record is not None:
                parts[first] = record  # of two parts with the same begin, the longer one: bounds are sorted
        found, end = [], 0
        while end in parts:
            found.append(parts[end])
            end += len(parts[end]["texts"])
        return found

    def _bounds(self) -> list[tuple[int, int]]:
        """The first and the end of all parts in the journal."""
        form = re.compile(re.escape(self.name) + r"\[(\d+):(\d+)\]")
        keys = {method for method, _, _ in self.run.journal.records}
        return sorted((int(found[1]), int(found[2])) for key in keys if (found := form.fullmatch(key)))

    def _missing(self, count: int, wanted: Sequence[Problem]) -> dict[int, list[Problem]]:
        """By the first sample to draw: the problems that have fewer than `count`.

        Samples of masked diffusion share the forwards of equal canvases only if they are drawn in the same call. A pool
        that grew by parts would cost more than its samples do, so it is drawn again from the first sample on.
        """
        missing: dict[int, list[Problem]] = {}
        bounds = self._bounds()
        for problem in wanted:
            parts = (self._parts(problem, n, bounds) for n in range(self.repeats))
            held = min(sum(len(part["texts"]) for part in each) for each in parts)
            if held < count:
                missing.setdefault(0 if self._sharing else held, []).append(problem)
        return missing

    def _note(self, first: int, chain: Chain) -> dict[str, Any]:
        """The texts of a part with their grades, so that any method can choose among them later."""
        assert isinstance(chain.state, Completions)
        draws, task = chain.state.draws, self.run.task
        if isinstance(task, Slow):
            task.grade_all((chain.problem, draw.text.text) for draw in draws)
        begun = time.perf_counter()
        rewards = rewards_of(self.reward, chain, [draw.text for draw in draws])
        scoring = time.perf_counter() - begun
        texts = [
            {**self.run.graded(chain.problem, draw.text.text), **_draw_values(draw), **rewarded}
            for draw, rewarded in zip(draws, rewards, strict=True)
        ]
        return {"texts": texts, "correct": _mean_grade([text["correct"] for text in texts]), "scoring": scoring}

    def _joined(self, problem: Problem, sample: int, count: int, parts: Sequence[Record]) -> Sample:
        draws, grades, costs, total, scoring = list[Draw](), list[Record](), list[Cost](), Cost(), list[float]()
        for number, part in enumerate(parts):
            own = [Cost(**text["cost"]) for text in part["texts"]]
            if number and not isinstance(self.policy, Shareable):
                own[0] = replace(own[0], prompt=0)  # drawn together, the samples share one reading of the prompt
            seconds = part["cost"]["seconds"] / max(1, sum(cost.positions for cost in own))
            for text, cost in zip(part["texts"], own, strict=True):
                total = total + cost + Cost(seconds=seconds * cost.positions)
                costs.append(total)
                draws.append(_draw(text))
                grades.append(text)
                scoring.append(part.get("scoring", 0.0) / len(own))
        kept = tuple(draws[:count]), tuple(grades[:count]), tuple(costs[:count])
        return Sample(problem, sample, *kept, tuple(accumulate(scoring[:count])))


def _mean_grade(grades: Sequence[bool | None]) -> float | None:
    return None if None in grades else float(np.mean([bool(grade) for grade in grades]))


def nearest(costs: Floats, amount: float) -> int:
    """The number of samples whose cost comes nearest to an amount, from what the first 1, 2, … cost.

    Of several such numbers the largest: samples that cost nothing are drawn.
    """
    return len(costs) - int(np.abs(costs - amount)[::-1].argmin())


def _draw_values(draw: Draw) -> dict[str, Any]:
    text = draw.text
    return {
        "tokens": list(text.tokens),
        "logp": text.logp,
        "certainty": None if text.certainty is None else asdict(text.certainty),
        "cost": {name: value for name, value in asdict(draw.cost).items() if value},
    }


def _draw(values: Record) -> Draw:
    certainty = values["certainty"] and Certainty(**values["certainty"])
    text = Text(tuple(values["tokens"]), values["text"], values["logp"], True, certainty=certainty)
    return Draw(Completions((), text.tokens, text.text), text, values["logp"], Cost(**values["cost"]))


@dataclass(frozen=True)
class Recorded:
    """A policy whose draws are the samples of one chain of a pool."""

    draws: tuple[Draw, ...]
    deterministic: bool = False

    @property
    def ledger(self) -> Cost:
        """No cost: the pool's records hold the cost of its samples."""
        return Cost()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [Completions((), done=False) for _ in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        raise NotImplementedError("a pool holds complete samples only")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return list(self.draws[: len(states)])


@dataclass(frozen=True)
class Choice:
    """A method's choice among a chain's samples.

    Parameters
    ----------
    correct : float, optional
        The expected grade of the chosen text, over the randomness of the choice, where there are right answers.
    scores : mapping of str to float
        The expected further scores.
    samples : int
        How many samples the method draws.
    cost : Cost
    depth : int
        Tokens drawn for the longest sample.
    text : Record
        The grade of the text that the method returns.
    reward : float, optional
        The expected reward of the chosen text, where the records have rewards.
    """

    correct: float | None
    scores: dict[str, float]
    samples: int
    cost: Cost
    depth: int
    text: Record
    reward: float | None = None


def chosen(step: StepFn, pooled: Sample, seed: int, scored: bool = False) -> Choice:
    """The choice of a method, which takes as many of the first samples as it draws.

    Its cost is a function of the records, so that a run that is shown again has equal costs: that of the samples, and
    where the method is `scored` by the pool's reward, the seconds of that reward.

    The expectation is over the method's randomness: texts of equal weight count alike. Of several answers with equally
    many votes `ets.rewards.majority` takes the one that reached the count first, without chance.
    """
    name = pooled.problem.id
    chain = Chain(pooled.problem, pooled.sample, chain_key(seed, name, pooled.sample), Completions((), done=False))
    taken = step(Recorded(pooled.draws), [chain])[0].trace[-1]
    weights = normalised(taken.log_weights)
    count = len(weights)
    seconds = pooled.scoring[count - 1] if scored else 0.0
    rewarding = Cost(rewarded=taken.cost.rewarded, reward_seconds=seconds, seconds=seconds)
    grades = pooled.grades[:count]

    def expected(values: Sequence[float]) -> float:
        return min(1.0, float(weights @ np.asarray(values, float)))

    return Choice(
        correct=None if grades[0]["correct"] is None else expected([each["correct"] for each in grades]),
        scores={name: expected([each["scores"][name] for each in grades]) for name in grades[0]["scores"]},
        samples=count,
        cost=pooled.costs[count - 1] + rewarding,
        depth=max(draw.cost.generated for draw in pooled.draws[:count]),
        text=grades[taken.choice],
        reward=_expected_reward(weights, grades),
    )


def _expected_reward(weights: Floats, grades: Sequence[Record]) -> float | None:
    if any("reward" not in grade for grade in grades):
        return None
    rewards = [-math.inf if grade["reward"] is None else grade["reward"] for grade in grades]
    return math.fsum(weight * reward for weight, reward in zip(weights, rewards, strict=True) if weight)
