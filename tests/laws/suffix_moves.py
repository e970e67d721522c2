"""The exact laws of `ets.refined` and `ets.exact`, by enumeration of all draws: for tiny tables only."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeAlias

from ets.testing import Law, Oracle
from ets.types import Problem
from ets.walk import Lengths
from tests.laws.particles import particle_law

Nodes: TypeAlias = tuple[Any, ...]
"""A text as the outcomes at all its guide boundaries, the root first."""
Pool: TypeAlias = tuple[Nodes, ...]


def drawn_on(oracle: Oracle, problem: Problem, nodes: Nodes) -> Law:
    """The reference law of complete texts that go on from nodes."""
    step = oracle.extend_law(problem, nodes[-1])
    if set(step) == {nodes[-1]}:
        return {nodes: 1.0}
    return {y: p * q for node, p in step.items() for y, q in drawn_on(oracle, problem, (*nodes, node)).items()}


def merged(parts: list[tuple[float, Mapping[Any, float]]]) -> Law:
    total: dict[Any, float] = defaultdict(float)
    for share, law in parts:
        for outcome, p in law.items():
            total[outcome] += share * p
    return dict(total)


def accepted(new: float, old: float, fresh: float) -> float:
    """The probability of going from a text of weight `old` to one of weight `new` among fresh ones, which sum up."""
    rest = fresh - new + old
    return min(1.0, fresh / rest) if rest else 1.0


@dataclass(frozen=True, eq=False)
class BudgetedWalk:
    """The law of `ets.refined`, from weights w = exp(r/λ) of complete outcomes and the tokens drawn up to an outcome.

    `accept(w_new, w_old, fresh)` is the probability of accepting a text among fresh ones.
    """

    oracle: Oracle
    problem: Problem
    weight: Callable[[Any], float]
    drawn: Callable[[Any], int]
    lengths: Lengths
    budget: int
    start: float
    tries: int
    accept: Callable[[float, float, float], float] = accepted
    _suffixes: dict[Nodes, Law] = field(default_factory=dict)
    _known: dict[Any, Law] = field(default_factory=dict)

    def suffixes(self, nodes: Nodes) -> Law:
        if nodes not in self._suffixes:
            self._suffixes[nodes] = drawn_on(self.oracle, self.problem, nodes)
        return self._suffixes[nodes]

    @property
    def texts(self) -> Law:
        return self.suffixes((self.oracle.root,))

    def spent(self, pool: Pool) -> int:
        return sum(self.drawn(x[-1]) for x in pool)

    def pools(self, pool: Pool = ()) -> Law:
        """The law of the texts of the first choice, as a pool of sorted texts."""
        spent, longest = self.spent(pool), self.lengths.most
        expected = spent / len(pool) if pool else longest
        wanted = max(math.floor((self.start * self.budget - spent) / expected), 0 if pool else 1)
        count = min(wanted, (self.budget - spent) // longest)
        if not count:
            return {pool: 1.0}
        rounds: dict[Pool, float] = defaultdict(float)
        for new in product(self.texts.items(), repeat=count):
            key = tuple(sorted((*pool, *(x for x, _ in new)), key=repr))
            rounds[key] += math.prod(p for _, p in new)
        return merged([(p, self.pools(key)) for key, p in rounds.items()])

    def shares(self, pool: Pool) -> list[float]:
        """The probabilities of a choice among the texts of a pool."""
        weights = [self.weight(x[-1]) for x in pool]
        return [w / sum(weights) if sum(weights) else 1 / len(pool) for w in weights]

    def begun(self) -> Law:
        """The law of (text, tokens spent, mean tokens of a text) after the first choice."""
        law: dict[Any, float] = defaultdict(float)
        for pool, p in self.pools().items():
            weights = [self.weight(x[-1]) for x in pool]
            for x, w in zip(pool, weights, strict=True):
                law[x, self.spent(pool), self.spent(pool) / len(pool)] += p * (
                    w / sum(weights) if sum(weights) else 1 / len(pool)
                )
        return dict(law)

    def filtered(self, particles: int, threshold: float) -> Law:
        """The law of (text, tokens spent, mean tokens) after a particle filter, where all texts have one length."""
        nodes = {x[-1]: x for x in self.texts}
        law = particle_law(
            self.oracle, self.problem, lambda outcome: math.log(self.weight(outcome)), lam=1.0, particles=particles,
            threshold=threshold,
        )  # fmt: skip
        most = self.lengths.most
        return {(nodes[x], particles * most, most): p for x, p in law.chosen.items()}

    def searched(self, highest: float, limit: int, pool: Pool = ()) -> tuple[Law, Law]:
        """`ets.exact` with weights up to `highest`: the laws of accepted texts, and of walks at the limit."""
        spent = self.spent(pool)
        if limit - spent < self.lengths.most:
            weights = [self.weight(x[-1]) for x in pool]
            shares = [w / sum(weights) if sum(weights) else 1 / len(pool) for w in weights]
            return {}, merged(
                [(share, {(x, spent, spent / len(pool)): 1.0}) for x, share in zip(pool, shares, strict=True)]
            )
        accepted, rejected = [], []
        for x, p in self.texts.items():
            passed = self.weight(x[-1]) / highest
            accepted.append((p * passed, {x: 1.0}))
            if passed < 1:
                later = self.searched(highest, limit, (*pool, x))
                accepted.append((p * (1 - passed), later[0]))
                rejected.append((p * (1 - passed), later[1]))
        return merged(accepted), merged(rejected)

    def law(self, begun: Law | None = None) -> Law:
        """The law of the text that a chain returns, as nodes: x_c for c uniform over the last half of C cycles."""
        begun, parts, cycle = begun or self.begun(), [], 0
        while True:
            ends = merged([(p, self.cycles(*place, 0, cycle)) for place, p in begun.items()])
            parts += [
                (p / max(1, cycles - cycles // 2), {x: 1.0})
                for (cycles, x), p in ends.items()
                if cycles // 2 < cycle <= cycles or cycles == cycle == 0
            ]
            cycle += 1
            if all(cycles < cycle for cycles, _ in ends):
                return merged(parts)

    def first_cut(self, spent: int, typical: float) -> int | None:
        costs = [self.tries * max(0.0, typical - least) for least in self.lengths.least]
        return next((t for t in range(len(costs)) if sum(costs[t:]) <= self.budget - spent), None)

    def pays(self, x: Nodes, t: int, spent: int) -> bool:
        """Whether the budget pays for the guide step after boundary t, at any length."""
        most = min(self.lengths.step, self.lengths.most - self.drawn(x[t]))
        return most <= (self.budget - spent) // self.tries

    def cycles(self, x: Nodes, spent: int, typical: float, done: int, marked: int, kept: Nodes | None = None) -> Law:
        """The law of (C, x_c) for the cycle c = `marked`, or the text (C, first) for 0; None where C < c."""
        kept = x if done == marked else kept
        place = x, spent, typical, done, marked, kept
        if place not in self._known:
            first = self.first_cut(spent, typical)
            if first is None or first >= len(x) - 1 or not self.pays(x, first, spent):
                return {(done, kept): 1.0}
            self._known[place] = merged(
                [
                    (p, {(done, kept): 1.0} if end is None else self.cycles(*end, typical, done + 1, marked, kept))
                    for end, p in self.cycle(x, first, spent).items()
                ]
            )
        return self._known[place]

    def cycle(self, x: Nodes, t: int, spent: int) -> Law:
        """The law of (text, tokens spent) at the end of a cycle from boundary t on; None where the budget ends it."""
        if t >= len(x) - 1:
            return {(x, spent): 1.0}
        place = "cycle", x, t, spent
        if place not in self._known:
            after = self.move(x, t, spent)
            self._known[place] = merged(
                [(p, {None: 1.0} if end is None else self.cycle(end[0], t + 1, end[1])) for end, p in after.items()]
            )
        return self._known[place]

    def move(self, x: Nodes, t: int, spent: int) -> Law:
        """The law of (text, tokens spent) after a move at boundary t; None where the budget ends it."""
        after: dict[Any, float] = defaultdict(float)
        old = self.weight(x[-1])
        for fresh in product(self.suffixes(x[: t + 1]).items(), repeat=self.tries):
            p = math.prod(q for _, q in fresh)
            if not all(self.fits(y, t, spent) for y, _ in fresh):
                after[None] += p
                continue
            cost = spent + sum(self.drawn(y[-1]) - self.drawn(x[t]) for y, _ in fresh)
            weights = [self.weight(y[-1]) for y, _ in fresh]
            total = sum(weights)
            stay = 1.0
            for (y, _), w in zip(fresh, weights, strict=True):
                chosen = w / total if total else 1 / self.tries
                moved = chosen * (self.accept(w, old, total) if total else float(not old))
                after[y, cost] += p * moved
                stay -= moved
            after[x, cost] += p * stay
        return dict(after)

    def fits(self, y: Nodes, t: int, spent: int) -> bool:
        """Whether the budget pays for every guide step of a text after boundary t."""
        rest = (self.budget - spent) // self.tries + self.drawn(y[t])
        steps = [min(self.lengths.step, self.lengths.most - self.drawn(node)) for node in y[t:-1]]
        return all(self.drawn(node) + step <= rest for node, step in zip(y[t:-1], steps, strict=True))


def by_outcome(law: Law) -> Law:
    """A law over nodes as one over complete outcomes."""
    return merged([(p, {nodes[-1]: 1.0}) for nodes, p in law.items()])
