"""Many complete samples of a problem, drawn once, from which several methods choose.

Methods that draw N complete texts and then choose among them differ in the choice alone, so they share the texts: each
is what it would be by itself, their differences are paired exactly, and a smaller N is the first N of a larger one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from ets.evaluation.journal import Record
from ets.randomness import Purpose, chain_key
from ets.tasks.task import Slow, Task
from ets.transition import draw_for_chains, require_counts, require_variety
from ets.types import Chain, Cost, Draw, Floats, Keys, Policy, Problem, State, Step, StepFn, Text
from ets.weights import normalised


@dataclass(frozen=True)
class Drawn:
    """All complete draws of a chain: what `pool` carries instead of one of them."""

    draws: tuple[Draw, ...]
    tokens: tuple[int, ...] = ()
    text: str = ""
    done: bool = True


def pool(samples: int) -> StepFn:
    """N complete samples, none of them chosen: the same texts as `ets.baselines` draw from the same key."""
    require_counts(samples=samples)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_variety(policy, samples)
        drawn = draw_for_chains(policy.finish, chains, Purpose.COMPLETION, samples)
        return [_kept(*row) for row in zip(chains, drawn, strict=True)]

    return step


def _kept(chain: Chain, draws: Sequence[Draw]) -> Chain:
    texts = tuple(draw.text for draw in draws)
    equal = np.zeros(len(texts))
    cost = Cost.total(draw.cost for draw in draws)
    step = Step(texts, tuple((text,) for text in texts), equal[:, None], equal, 0, cost)
    return chain.advance(Drawn(tuple(draws)), step)


def noted_texts(task: Task, chain: Chain) -> dict[str, Any]:
    """What a pool's record keeps of each text, so that any method can choose among them later."""
    assert isinstance(chain.state, Drawn)
    if isinstance(task, Slow):
        task.grade_all((chain.problem, draw.text.text) for draw in chain.state.draws)  # in parallel; it remembers them
    texts: list[dict[str, Any]] = [
        {
            "text": draw.text.text,
            "tokens": list(draw.text.tokens),
            "logp": draw.text.logp,
            "correct": float(task.grade(chain.problem, draw.text.text)),
            "cost": {name: value for name, value in asdict(draw.cost).items() if value},
        }
        for draw in chain.state.draws
    ]
    return {"texts": texts, "correct": fmean(text["correct"] for text in texts)}


@dataclass(frozen=True)
class Recorded:
    """A policy whose draws are those of a record: for the one chain that they were drawn for."""

    draws: tuple[Draw, ...]
    deterministic: bool = False

    @property
    def ledger(self) -> Cost:
        """Nothing: what the draws cost is the record's."""
        return Cost()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [Drawn((), done=False) for _ in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        raise NotImplementedError("a record holds complete samples only")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return list(self.draws[: len(states)])


def recorded(record: Record) -> Recorded:
    """The draws of a pool's record."""
    return Recorded(tuple(_draw(each) for each in record["texts"]))


def _draw(each: dict[str, Any]) -> Draw:
    text = Text(tuple(each["tokens"]), each["text"], each["logp"], True)
    return Draw(Drawn((), text.tokens, text.text), text, each["logp"], Cost(**each["cost"]))


@dataclass(frozen=True)
class Choice:
    """What a method makes of a record: the expected score of the text that it chooses, of how many, at what cost."""

    score: float
    samples: int
    cost: Cost


def chosen(step: StepFn, problem: Problem, record: Record, seed: int) -> Choice:
    """The choice of a method, which takes as many of a record's first texts as it draws.

    The expectation is over the method's own randomness: texts of equal weight count alike. Of several
    answers with equally many votes `ets.rewards.majority` takes the one that reached the count first, without chance.
    """
    start = Drawn((), done=False)
    chain = Chain(problem, record["sample"], chain_key(seed, problem.id, record["sample"]), start)
    begun = time.perf_counter()
    weights = normalised(step(recorded(record), [chain])[0].trace[-1].log_weights)
    cost = costs_by_size(record)[len(weights) - 1] + Cost(seconds=time.perf_counter() - begun)
    correct = [each["correct"] for each in record["texts"][: len(weights)]]
    return Choice(min(1.0, float(weights @ correct)), len(weights), cost)


def costs_by_size(record: Record) -> list[Cost]:
    """What the first 1, 2, … texts of a record cost; work that texts share was charged to the first of them.

    Seconds are the record's, split by token positions.
    """
    costs, total = [], Cost()
    for each in record["texts"]:
        total = total + Cost(**each["cost"])
        costs.append(total)
    seconds = record["cost"]["seconds"] / max(1, total.positions)
    return [cost + Cost(seconds=seconds * cost.positions) for cost in costs]


def mean_cost_curve(records: Sequence[Record], currency: str) -> Floats:
    """The mean over records of what the first 1, 2, … texts cost, in a currency such as `generated` or `positions`."""
    return np.mean([[getattr(cost, currency) for cost in costs_by_size(record)] for record in records], axis=0)
