"""Exact laws of the rewards that count votes (`ets.rewards.majority`, `ets.rewards.agreement_share`)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, NamedTuple, TypeAlias

from ets.rewards.self_consistency import VotePool
from ets.step import require_counts, require_positive
from ets.testing import Law, Oracle
from ets.types import InputError, Problem

Answer: TypeAlias = Callable[[Any], Hashable | None]
"""From an outcome to its answer; None if it has none."""
Shares: TypeAlias = Mapping[Hashable, float]
"""The probability of each answer; they add up to less than 1 where some texts have no answer."""


class Cell(NamedTuple):
    """A rollout: its answer, and its importance ratio (without a proposal 1)."""

    answer: Hashable | None
    ratio: float


class Row(NamedTuple):
    """A candidate x_s, its K rollouts, and the probability of drawing all of them."""

    candidate: Any
    cells: tuple[Cell, ...]
    probability: float


@dataclass(frozen=True)
class Tally:
    """The votes so far, as far as a later majority depends on them: their sums, and the answer that leads.

    The leader decides ties: of the answers with the most votes it reached the count first. So the order of the earlier
    votes is not needed.
    """

    counts: frozenset[tuple[Hashable, float, int]] = frozenset()
    """By answer: the sum of the votes, and the number of rollouts."""
    leader: Hashable | None = None

    def after(self, cells: Iterable[Cell]) -> Tally:
        """The tally once these rollouts have voted, in their order."""
        sums = {answer: (votes, number) for answer, votes, number in self.counts}
        leader = self.leader
        for answer, ratio in cells:
            if answer is None or ratio == 0:
                continue
            votes, number = sums.get(answer, (0.0, 0))
            sums[answer] = (votes + ratio, number + 1)
            if leader is None or votes + ratio > sums[leader][0]:
                leader = answer
        return Tally(frozenset((answer, *found) for answer, found in sums.items()), leader)

    def majority(self, minimum: int) -> Hashable | None:
        numbers = {answer: number for answer, _, number in self.counts}
        return self.leader if numbers.get(self.leader, 0) >= minimum else None


def majority_law(
    oracle: Oracle,
    problem: Problem,
    answer: Answer,
    *,
    lam: float,
    candidates: int,
    rollouts: int,
    pool: VotePool = "chain",
    minimum: int = 1,
    proposal: Oracle | None = None,
) -> Law:
    """The exact law of ETS with `ets.rewards.majority` at finite M and K, by enumeration of all that a step can draw.

    From x_t all M candidates and their M·K rollouts are drawn, with probability Π_m p(x_m) Π_k p(x_0^mk | x_m); a
    complete candidate fills its K cells and votes K times. Their answers, after those of earlier steps if the chain is
    the pool, decide the majority answer â, and candidate m is chosen in proportion to mean_k exp(1[a_mk = â] / λ). With
    a proposal q, p(x_0 | x_m) is replaced by q(x_0 | x_m), and each rollout's vote and term carry the ratio p / q.

    A step takes (C · A^K)^M turns for each tally of earlier votes, with C different candidates and A answers: with
    M·K ≤ 4, tables of 15 outcomes and 4 answers a second or two. With a proposal A counts pairs of answer and ratio.

    Parameters
    ----------
    oracle : Oracle
        The exact laws of the policy.
    problem : Problem
    answer : callable
        From an outcome of the oracle to its answer or None, as `extract` is from a text.
    lam : float
        λ > 0.
    candidates, rollouts : int
        M and K.
    pool : {"step", "chain"}
        As for `ets.rewards.majority`.
    minimum : int
        As for `ets.rewards.majority`.
    proposal : Oracle, optional
        The exact laws of q, which draws the rollouts.

    Returns
    -------
    Law
        Over the complete outcomes.

    Raises
    ------
    InputError
        For values out of range, or another pool.
    """
    require_counts(candidates=candidates, rollouts=rollouts, minimum=minimum)
    require_positive(lam=lam)
    _require_pool(pool)

    @cache
    def rows(node: Any) -> list[Row]:
        return [
            Row(x, cells, p * q)
            for x, p in oracle.extend_law(problem, node).items()
            for cells, q in _cells_law(oracle, proposal or oracle, problem, answer, x, rollouts).items()
        ]

    @cache
    def from_node(node: Any, tally: Tally) -> Law:
        if set(oracle.extend_law(problem, node)) == {node}:
            return {node: 1.0}
        moves: defaultdict[tuple[Any, Tally], float] = defaultdict(float)
        for drawn in product(rows(node), repeat=candidates):
            pooled = tally.after(cell for row in drawn for cell in row.cells)
            p, chosen = math.prod(row.probability for row in drawn), _choice(drawn, pooled.majority(minimum), lam)
            for row, weight in zip(drawn, chosen, strict=True):
                moves[row.candidate, pooled if pool == "chain" else Tally()] += p * weight
        law: defaultdict[Any, float] = defaultdict(float)
        for move, p in moves.items():
            for outcome, q in from_node(*move).items():
                law[outcome] += p * q
        return law

    return from_node(oracle.root, Tally())


def _cells_law(
    oracle: Oracle, drawing: Oracle, problem: Problem, answer: Answer, candidate: Any, rollouts: int
) -> dict[tuple[Cell, ...], float]:
    """The law of a candidate's K rollouts."""
    wanted, drawn = oracle.finish_law(problem, candidate), drawing.finish_law(problem, candidate)
    if set(wanted) == {candidate}:
        return {(Cell(answer(candidate), 1.0),) * rollouts: 1.0}
    one: defaultdict[Cell, float] = defaultdict(float)
    for outcome, q in drawn.items():
        one[Cell(answer(outcome), wanted.get(outcome, 0.0) / q)] += q
    return {cells: math.prod(one[cell] for cell in cells) for cells in product(one, repeat=rollouts)}


def _choice(drawn: tuple[Row, ...], majority: Hashable | None, lam: float) -> list[float]:
    """The probability `[M]` that each candidate is chosen; all alike if every ratio is 0."""
    rewards = [[float(a is not None and a == majority) for a, _ in row.cells] for row in drawn]
    largest = max(max(row) for row in rewards)  # subtracted, so that no small λ overflows
    weights = [
        math.fsum(cell.ratio * math.exp((r - largest) / lam) for cell, r in zip(row.cells, values, strict=True))
        for row, values in zip(drawn, rewards, strict=True)
    ]
    total = math.fsum(weights)
    return [weight / total for weight in weights] if total else [1 / len(weights)] * len(weights)


def majority_limit_law(
    oracle: Oracle, problem: Problem, answer: Answer, *, lam: float, pool: VotePool = "chain"
) -> Law:
    """The law that ETS with `ets.rewards.majority` tends to as M → ∞, at any K.

    From x_t it goes to x_s ∝ p_ref(x_s | x_t) · E[exp(1[a = â_t] / λ) | x_s], a the answer of the rollout. With
    π_t(a) = P_ref(answer a | x_t), â_t is the mode of π_t for `pool="step"`, and the mode of the mean of π_t' over the
    steps t' so far for `pool="chain"`. In the first step â_t is the mode a* of P_ref(answer | prompt). If â_t = a* at
    every x_t, as with one guide step, the law is `optimal_law` of the fixed reward 1[a = a*].

    Parameters
    ----------
    oracle, problem, answer, lam, pool
        As for `majority_law`.

    Raises
    ------
    InputError
        If a mode is not unique: then there is no limit, for at every M chance decides between the modes. Also for
        values out of range.
    """

    def mode(shares: Shares) -> Callable[[Hashable | None], float]:
        first, second = sorted([0.0, 0.0, *shares.values()], reverse=True)[:2]
        if shares and first - second < 1e-9:
            raise InputError(f"two answers are the mode, each with probability {first:.6g}; choose another table")
        best = max(shares, key=lambda a: shares[a], default=None)
        return lambda a: float(a is not None and a == best)

    return _limit(oracle, problem, answer, lam, pool, mode)


def agreement_share_law(oracle: Oracle, problem: Problem, answer: Answer, *, lam: float, pool: VotePool) -> Law:
    """The law that ETS with `ets.rewards.agreement_share` tends to as M → ∞, at any K.

    From x_t it goes to x_s ∝ p_ref(x_s | x_t) · E[exp(π(a)/λ) | x_s], a the answer of the rollout, where π is
    π_t(a) = P_ref(answer a | x_t) for votes of this step alone, and the mean of π_t' over the steps t' so far for
    votes of the chain. A rollout without an answer has the reward 0.

    Parameters
    ----------
    oracle, problem, answer, lam, pool
        As for `majority_law`.
    """
    return _limit(oracle, problem, answer, lam, pool, lambda shares: lambda a: shares.get(a, 0.0))


def _limit(
    oracle: Oracle,
    problem: Problem,
    answer: Answer,
    lam: float,
    pool: VotePool,
    judged: Callable[[Shares], Callable[[Hashable | None], float]],
) -> Law:
    """The recursion of both limits; `judged` makes an answer's reward of the pooled shares of votes."""
    require_positive(lam=lam)
    _require_pool(pool)

    def answers_from(node: Any) -> Shares:
        shares: defaultdict[Hashable, float] = defaultdict(float)
        for outcome, p in oracle.finish_law(problem, node).items():
            if (a := answer(outcome)) is not None:
                shares[a] += p
        return shares

    def from_node(node: Any, earlier: tuple[Shares, ...]) -> Law:
        prior = oracle.extend_law(problem, node)
        if set(prior) == {node}:
            return {node: 1.0}
        voted = (*(earlier if pool == "chain" else ()), answers_from(node))
        reward = judged({a: math.fsum(s.get(a, 0.0) for s in voted) / len(voted) for s in voted for a in s})

        def tilt(outcome: Any) -> float:
            return math.exp(reward(answer(outcome)) / lam)

        tilted = {
            x: p * math.fsum(q * tilt(outcome) for outcome, q in oracle.finish_law(problem, x).items())
            for x, p in prior.items()
        }
        total, law = math.fsum(tilted.values()), defaultdict[Any, float](float)
        for x, weight in tilted.items():
            for outcome, q in from_node(x, voted).items():
                law[outcome] += q * weight / total
        return law

    return from_node(oracle.root, ())


def _require_pool(pool: str) -> None:
    if pool not in ("step", "chain"):
        raise InputError(f"pool is {pool!r}; choose 'step' or 'chain'")
