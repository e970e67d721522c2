"""Exact laws by enumeration: of a reference policy, of the optimal policy, and of the kernel at finite M and K."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from ets.types import Floats, Problem

Law: TypeAlias = Mapping[Any, float]
"""Probabilities by outcome: what an oracle tells states apart by, such as the tuple of all tokens drawn."""
Prefix: TypeAlias = tuple[int, ...]


class Oracle(Protocol):
    """The exact laws of a policy, computed without it."""

    @property
    def root(self) -> Any:
        """The outcome of an empty generation."""
        ...

    @property
    def by_path(self) -> Oracle:
        """The laws over all that was drawn on the way; the oracle itself, if an outcome has one path only."""
        ...

    def outcome(self, state: Any) -> Any:
        """A state's outcome."""
        ...

    def extend_law(self, problem: Problem, outcome: Any) -> Law: ...
    def finish_law(self, problem: Problem, outcome: Any) -> Law: ...


@dataclass(frozen=True)
class AutoregressiveOracle:
    """The exact laws of an autoregressive policy, by enumeration. Outcomes are tuples of all tokens drawn.

    Parameters
    ----------
    next_token : callable
        `(problem, tokens so far) -> [V]` probabilities.
    ended : callable
        `(problem, tokens) -> bool`, beside the length: an end token or a stop string.
    block_size, max_length : int
    """

    next_token: Callable[[Problem, Prefix], Floats]
    ended: Callable[[Problem, Prefix], bool]
    block_size: int
    max_length: int

    @property
    def root(self) -> Prefix:
        return ()

    @property
    def by_path(self) -> AutoregressiveOracle:
        return self

    def outcome(self, state: Any) -> Prefix:
        return state.tokens

    def extend_law(self, problem: Problem, outcome: Prefix) -> Law:
        """One guide step from a prefix."""
        return self._law(problem, outcome, min(len(outcome) + self.block_size, self.max_length))

    def finish_law(self, problem: Problem, outcome: Prefix) -> Law:
        """From a prefix to the end."""
        return self._law(problem, outcome, self.max_length)

    def _law(self, problem: Problem, tokens: Prefix, length: int) -> Law:
        if len(tokens) >= length or self.ended(problem, tokens):
            return {tokens: 1.0}
        law: dict[Prefix, float] = {}
        for token, p in enumerate(self.next_token(problem, tokens)):
            if p > 0:
                for outcome, q in self._law(problem, (*tokens, token), length).items():
                    law[outcome] = p * q
        return law


def optimal_law(reference: Law, reward: Callable[[Any], float], lam: float) -> Law:
    """p* ∝ p_ref · exp(r/λ) over the outcomes of a reference law."""
    weights = {outcome: p * np.exp(reward(outcome) / lam) for outcome, p in reference.items()}
    total = sum(weights.values())
    return {outcome: weight / total for outcome, weight in weights.items()}


def total_variation(law: Law, other: Law) -> float:
    """Half the sum of absolute differences."""
    return 0.5 * sum(abs(law.get(x, 0.0) - other.get(x, 0.0)) for x in {*law, *other})


def frequencies(outcomes: Iterable[Hashable]) -> Law:
    """The share of each outcome among those that were drawn."""
    counts = Counter(outcomes)
    return {outcome: n / counts.total() for outcome, n in counts.items()}


def kernel_law(
    oracle: Oracle,
    problem: Problem,
    reward: Callable[[Any], float],
    *,
    lam: float,
    candidates: int,
    rollouts: int,
    proposal: Oracle | None = None,
    log_ratio: Callable[[Any, Any], float] | None = None,
    proposed_candidates: bool = False,
) -> Law:
    """The exact law of `ets.kernel.energy_guided`'s result at finite M and K, for a fixed reward.

    With z = ratio · exp(r/λ) and ψ_x(s) = E[exp(-s z / K) | x], one guide step goes from x_t to x with probability

        M p(x) ∫₀^∞ E[z e^{-s z / K} | x] ψ_x(s)^{K-1} (Σ_x' p(x') ψ_x'(s)^K)^{M-1} ds,

    because w / Σ w' = w ∫ e^{-s Σ w'} ds; for a complete candidate, K = 1 and the ratio is 1. If all weights are zero,
    the choice is uniform. One integral per node of the tree; `reward` takes outcomes. With a proposal, the expectations
    over rollouts are under its law, and the ratio is that of the two laws of an outcome; or `log_ratio` of candidate
    and outcome, to see what a wrong one does. Where the proposal draws the candidates too, p(x) is its law, and a
    candidate's own ratio is a factor of its z's.
    """
    draws_candidates = proposal if proposal and proposed_candidates else oracle

    @cache  # several paths may lead to one node
    def from_node(node: Any) -> dict[Any, float]:
        oracles = (oracle, draws_candidates, proposal or oracle)
        step = _step_law(*oracles, log_ratio, problem, reward, node, lam, candidates, rollouts)
        if set(step) == {node}:
            return {node: 1.0}
        law: dict[Any, float] = {}
        for x, p in step.items():
            for outcome, q in from_node(x).items():
                law[outcome] = law.get(outcome, 0.0) + p * q
        return law

    return from_node(oracle.root)


def _log_ratio(p: float, q: float) -> float:
    return float(np.log(p / q)) if p > 0 else -np.inf


def _step_law(
    oracle: Oracle,
    draws_candidates: Oracle,
    proposal: Oracle,
    log_ratio: Callable[[Any, Any], float] | None,
    problem: Problem,
    reward: Callable[[Any], float],
    node: Any,
    lam: float,
    m: int,
    k: int,
) -> dict[Any, float]:
    wanted_candidates, prior = oracle.extend_law(problem, node), draws_candidates.extend_law(problem, node)
    tilts = []  # of each candidate: its rollouts' probabilities [outcomes], log z [outcomes], and its K
    for x in prior:
        wanted, drawn = oracle.finish_law(problem, x), proposal.finish_law(problem, x)
        probabilities = np.array(list(drawn.values()))
        if log_ratio is None or set(drawn) == {x}:
            ratios = [_log_ratio(wanted.get(end, 0.0), q) for end, q in drawn.items()]
        else:
            ratios = [log_ratio(x, end) for end in drawn]
        own = _log_ratio(wanted_candidates.get(x, 0.0), prior[x])
        log_z = np.array([reward(end) / lam for end in drawn]) + ratios + own
        tilts.append((probabilities, log_z, 1 if set(drawn) == {x} else k))
    finite = np.concatenate([log_z for _, log_z, _ in tilts])
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return dict(prior)
    # s = e^t on a grid over which the integrand falls from its plateau to nothing; the trapezoidal rule is
    # exponentially accurate for such an integrand.
    largest = float(finite.max())
    t = np.arange(-35.0, np.log(60 * k) + largest - float(finite.min()), 0.02)
    s = np.exp(t)
    psi, slope, none = [], [], []
    for probabilities, log_z, copies in tilts:
        z = np.exp(log_z - largest) / copies
        decay = np.exp(-np.outer(s, z))
        one = decay @ probabilities
        psi.append(one**copies)
        slope.append(copies * (decay @ (probabilities * z)) * one ** (copies - 1))
        none.append(float(probabilities[z == 0].sum()) ** copies)
    p = np.array(list(prior.values()))
    rest = (p @ np.array(psi)) ** (m - 1)
    integrals = np.array([np.trapezoid(g * rest * s, t) for g in slope])
    all_zero = p * np.array(none) * float(p @ np.array(none)) ** (m - 1)
    return dict(zip(prior, (m * p * integrals + all_zero).tolist(), strict=True))


def self_consistency_law(
    oracle: Oracle,
    problem: Problem,
    answer: Callable[[Any], Hashable | None],
    *,
    lam: float,
    pool: Literal["step", "chain"],
) -> Law:
    """What ETS with `ets.rewards.self_consistency` tends to as M → ∞, at any K.

    From x_t it goes to x_s ∝ p_ref(x_s | x_t) · E[exp(π(a)/λ) | x_s], a the answer of the rollout, where π is
    π_t(a) = P_ref(a | x_t) for votes of this step alone, and the mean of π_t' over the steps t' so far for
    votes of the chain. `answer` takes outcomes; a rollout without an answer has reward 0.
    """

    def answers_from(node: Any) -> dict[Hashable, float]:
        shares: dict[Hashable, float] = {}
        for outcome, p in oracle.finish_law(problem, node).items():
            if (a := answer(outcome)) is not None:
                shares[a] = shares.get(a, 0.0) + p
        return shares

    def from_node(node: Any, earlier: list[dict[Hashable, float]]) -> dict[Any, float]:
        prior = oracle.extend_law(problem, node)
        if set(prior) == {node}:
            return {node: 1.0}
        votes = [*(earlier if pool == "chain" else []), answers_from(node)]

        def tilt(outcome: Any) -> float:
            return float(np.exp(np.mean([shares.get(answer(outcome), 0.0) for shares in votes]) / lam))

        weights = {
            x: p * sum(q * tilt(outcome) for outcome, q in oracle.finish_law(problem, x).items())
            for x, p in prior.items()
        }
        law: dict[Any, float] = {}
        for x, weight in weights.items():
            for outcome, q in from_node(x, votes).items():
                law[outcome] = law.get(outcome, 0.0) + q * weight / sum(weights.values())
        return law

    return from_node(oracle.root, [])
