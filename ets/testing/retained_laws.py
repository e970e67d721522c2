"""Exact laws, by enumeration, of the kernels that keep what they have chosen (`ets.baselines.retained`)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from ets.testing.laws import Law, Oracle
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
    paths = cache(lambda outcome: path_law(oracle, problem, outcome))

    def rows(node: Any, known: Path | None) -> dict[tuple[Any, Kept], float]:
        """The law of a candidate and its rollouts `[K]`: of a fresh one, or of one that a known rollout leads to."""
        first = oracle.extend_law(problem, node) if known is None else {known[0]: 1.0}
        given = () if known is None else (known[1:],)
        law = {}
        for x, p in first.items():
            if paths(x) == {(): 1.0}:
                law[x, ((),) * rollouts] = p
                continue
            for fresh in product(paths(x), repeat=rollouts - len(given)):
                law[x, (*given, *fresh)] = p * math.prod(paths(x)[path] for path in fresh)
        return law

    def advance(node: Any, kept: Kept) -> dict[tuple[Any, Kept], float]:
        """One guide step: the law of what is chosen, and of the rollouts that it leaves."""
        known = [*kept, *[None] * candidates][:candidates]
        law: dict[tuple[Any, Kept], float] = defaultdict(float)
        for cells in product(*(rows(node, path).items() for path in known)):
            ends = [(x, row, k) for (x, row), _ in cells for k in range(rollouts)]
            weights = normalised(np.array([reward((x, *row[k])[-1]) / lam for x, row, k in ends]))
            p = math.prod(q for _, q in cells)
            for (x, row, k), weight in zip(ends, weights.tolist(), strict=True):
                law[x, (*row[k:], *row[:k])[:candidates]] += p * weight
        return law

    result: dict[Any, float] = defaultdict(float)
    under_way = {(oracle.root, kept): p for kept, p in (begun or {(): 1.0}).items()}
    while under_way:
        reached: dict[tuple[Any, Kept], float] = defaultdict(float)
        for place, p in under_way.items():
            for (x, kept), q in advance(*place).items():
                if kept[0] == ():
                    result[x] += p * q
                else:
                    reached[x, kept] += p * q
        under_way = reached
    return result


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
