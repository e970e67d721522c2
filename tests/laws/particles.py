"""The exact laws of the particle methods at a finite number of particles, by enumeration of all populations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ets.testing import Law, Oracle
from ets.types import Problem
from ets.weights import normalised


class Placed(NamedTuple):
    """A particle: the outcome it has come to, its potential, and its weight."""

    node: Any
    potential: float
    weight: float


Placements: TypeAlias = tuple[Placed, ...]


@dataclass(frozen=True)
class ParticleLaw:
    """Of the particle that is chosen, and of the same times Ẑ: E[Ẑ · 1{chosen = x}] for every outcome x."""

    chosen: Law
    weighted: Law


def particle_law(
    oracle: Oracle,
    problem: Problem,
    reward: Callable[[Any], float],
    *,
    lam: float,
    particles: int,
    threshold: float,
    rollouts: int | None = None,
) -> ParticleLaw:
    """The exact laws of `ets.baselines.lookahead`, or without rollouts of `ets.baselines.particle_filter`.

    For a fixed reward, of outcomes (of partial ones too, without rollouts), and few particles: all populations are
    listed, and for each all ways in which systematic resampling can end.
    """
    one = _GuideStep(oracle, problem, lambda outcome: reward(outcome) / lam, rollouts)
    chosen: dict[Any, float] = defaultdict(float)
    weighted: dict[Any, float] = defaultdict(float)
    under_way: Mapping[Placements, float] = {(Placed(oracle.root, 1.0, 1.0),) * particles: 1.0}
    while under_way:
        reached: dict[Placements, float] = defaultdict(float)
        for before, p in under_way.items():
            for after, q in one.law(before):
                if any(one.going(after)):
                    for copies, share in _resampled(after, threshold):
                        reached[copies] += p * q * share
                    continue
                for particle, share in zip(after, _shares(after), strict=True):
                    chosen[particle.node] += p * q * share
                    weighted[particle.node] += p * q * particle.weight / particles
        under_way = reached
    return ParticleLaw(dict(chosen), dict(weighted))


class _GuideStep:
    """How a population moves and is weighed in one guide step, by enumeration; what was enumerated is remembered."""

    def __init__(
        self, oracle: Oracle, problem: Problem, log_reward: Callable[[Any], float], rollouts: int | None
    ) -> None:
        self._extend = cache(lambda node: oracle.extend_law(problem, node))
        self._finish = cache(lambda node: oracle.finish_law(problem, node))
        self._log_reward, self._rollouts = log_reward, rollouts
        self._potentials = cache(self._potential_law)

    def law(self, population: Placements) -> Iterator[tuple[Placements, float]]:
        """All that it may become, with probabilities."""
        rows = [list(self._moves(*row)) for row in zip(population, self.going(population), strict=True)]
        for moved in product(*rows):
            yield tuple(particle for particle, _ in moved), math.prod(q for _, q in moved)

    def going(self, population: Placements) -> list[bool]:
        """Who goes on: whoever has not ended, the dead only if all are."""
        lost = not any(particle.weight for particle in population)
        return [(lost or particle.weight > 0) and not self._ended(particle.node) for particle in population]

    def _ended(self, node: Any) -> bool:
        return set(self._extend(node)) == {node}

    def _potential_law(self, node: Any) -> Mapping[float, float]:
        """Probabilities of the potential of a particle that comes to a node."""
        copies = 1 if self._rollouts is None or self._ended(node) else self._rollouts
        drawn = {node: 1.0} if self._rollouts is None else self._finish(node)
        law: dict[float, float] = defaultdict(float)
        for texts in product(drawn, repeat=copies):
            mean = math.fsum(math.exp(self._log_reward(x)) for x in texts) / copies
            law[mean] += math.prod(drawn[x] for x in texts)
        return law

    def _moves(self, particle: Placed, goes: bool) -> Iterator[tuple[Placed, float]]:
        if not goes:
            yield particle, 1.0
            return
        for x, p in self._extend(particle.node).items():
            for potential, q in self._potentials(x).items():
                weight = particle.weight * potential / particle.potential if particle.weight else 0.0
                yield Placed(x, potential, weight), p * q


def _shares(population: Placements) -> list[float]:
    with np.errstate(divide="ignore"):
        return normalised(np.log([particle.weight for particle in population])).tolist()


def _resampled(population: Placements, threshold: float) -> Iterator[tuple[Placements, float]]:
    """Populations and their probabilities after adaptive systematic resampling.

    With u uniform, copy n has the first parent j whose cumulated share c_j is above (u + n) / N, so all parents are
    constant in u between the numbers N c_j - n.
    """
    shares, size = _shares(population), len(population)
    if 1 / math.fsum(share**2 for share in shares) >= threshold * size:
        yield population, 1.0
        return
    bounds = np.cumsum(shares)
    bounds /= bounds[-1]
    mean = math.fsum(particle.weight for particle in population) / size
    edges = sorted({0.0, 1.0, *((size * bounds) % 1.0).tolist()})
    for low, high in pairwise(edges):
        parents = [int(np.argmax(bounds > ((low + high) / 2 + n) / size)) for n in range(size)]
        yield tuple(population[parent]._replace(weight=mean) for parent in parents), high - low
