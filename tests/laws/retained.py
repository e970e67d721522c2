"""Exact laws, by enumeration, of the kernels that keep what they have chosen (`ets.baselines.retained`)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from ets.testing import Law, Oracle
from ets.types import Problem
from ets.weights import normalised

Path: TypeAlias = tuple[Any, ...]
"""A rollout: the outcomes at the guide boundaries after the one that it began from."""
Kept: TypeAlias = tuple[Path, ...]
"""The rollouts that a step begins with, the retained one first."""


def path_law(oracle: Oracle, problem: Problem, outcome: Any) -> Law:
    """The reference law of rollouts from an outcome, told apart by all guide boundaries; () from a complete one."""
    step = oracle.extend_law(problem, outcome)
    if set(step) == {outcome}:
        return {(): 1.0}
    return {(x, *rest): p * q for x, p in step.items() for rest, q in path_law(oracle, problem, x).items()}


def retained_law(
    oracle: Oracle,
    problem: Problem,
    reward: Callable[[Any], float],
    *,
    lam: float,
    candidates: int,
    rollouts: int,
    begun: Mapping[Kept, float] | None = None,
) -> Law:
    """The exact law of `retained_rollouts`' result, by enumeration of all that a step can draw: for tiny tables only.

    `reward` takes outcomes. `begun` is the law of the rollouts that the first step begins with; by default none.
    """
    one = _GuideStep(oracle, problem, lambda outcome: reward(outcome) / lam, candidates, rollouts)
    result: dict[Any, float] = defaultdict(float)
    under_way = {(oracle.root, kept): p for kept, p in (begun or {(): 1.0}).items()}
    while under_way:
        reached: dict[tuple[Any, Kept], float] = defaultdict(float)
        for place, p in under_way.items():
            for (x, kept), q in one.law(*place).items():
                if kept[0] == ():
                    result[x] += p * q
                else:
                    reached[x, kept] += p * q
        under_way = reached
    return result


@dataclass(frozen=True)
class _GuideStep:
    """One guide step of `retained_rollouts`, by enumeration."""

    oracle: Oracle
    problem: Problem
    log_reward: Callable[[Any], float]
    candidates: int
    rollouts: int

    def law(self, node: Any, kept: Kept) -> Mapping[tuple[Any, Kept], float]:
        """Of what is chosen, and of the rollouts that are kept."""
        known = [*kept, *[None] * self.candidates][: self.candidates]
        law: dict[tuple[Any, Kept], float] = defaultdict(float)
        for cells in product(*(self.row_law(node, path).items() for path in known)):
            ends = [(x, row, k) for (x, row), _ in cells for k in range(self.rollouts)]
            weights = normalised(np.array([self.log_reward((x, *row[k])[-1]) for x, row, k in ends]))
            p = math.prod(q for _, q in cells)
            for (x, row, k), weight in zip(ends, weights.tolist(), strict=True):
                law[x, (*row[k:], *row[:k])[: self.candidates]] += p * weight
        return law

    def row_law(self, node: Any, known: Path | None) -> dict[tuple[Any, Kept], float]:
        """Of a candidate and its rollouts `[K]`: a fresh one, or the one that a known rollout leads to."""
        first = self.oracle.extend_law(self.problem, node) if known is None else {known[0]: 1.0}
        given = () if known is None else (known[1:],)
        law: dict[tuple[Any, Kept], float] = {}
        for x, p in first.items():
            paths = path_law(self.oracle, self.problem, x)
            if () in paths:  # it is complete, and fills its cells with itself
                law[x, ((),) * self.rollouts] = p
                continue
            for fresh in product(paths, repeat=self.rollouts - len(given)):
                law[x, (*given, *fresh)] = p * math.prod(paths[path] for path in fresh)
        return law


def iterated_sir_law(
    reference: Law, reward: Callable[[Any], float], *, lam: float, samples: int, iterations: int
) -> Law:
    """The exact law of `iterated_sir`'s result: the first choice, then the Markov chain of the others, by enumeration.

    `reference` is the law of complete outcomes, which `reward` takes.
    """

    def chosen(kept: tuple[Any, ...]) -> Law:
        """The law of one choice among those kept and as many fresh ones as make up N."""
        law: dict[Any, float] = defaultdict(float)
        for fresh in product(reference, repeat=samples - len(kept)):
            among, p = (*kept, *fresh), math.prod(reference[x] for x in fresh)
            for x, weight in zip(among, normalised(np.array([reward(x) / lam for x in among])).tolist(), strict=True):
                law[x] += p * weight
        return law

    law, moves = chosen(()), {x: chosen((x,)) for x in reference}
    for _ in range(iterations - 1):
        following: dict[Any, float] = defaultdict(float)
        for x, p in law.items():
            for y, q in moves[x].items():
                following[y] += p * q
        law = following
    return law
