"""The exact law of the kernel at finite M and K."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ets.testing import Law, Oracle
from ets.types import Floats, Problem


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
    draws_candidates, draws_rollouts = proposal if proposal and proposed_candidates else oracle, proposal or oracle

    def tilted(x: Any, own: float) -> _Tilted:
        wanted, drawn = oracle.finish_law(problem, x), draws_rollouts.finish_law(problem, x)
        complete = set(drawn) == {x}
        if log_ratio is None or complete:
            ratios = [_log_ratio(wanted.get(end, 0.0), q) for end, q in drawn.items()]
        else:
            ratios = [log_ratio(x, end) for end in drawn]
        log_z = np.array([reward(end) / lam for end in drawn]) + ratios + own
        return _Tilted(np.array(list(drawn.values())), log_z, 1 if complete else rollouts)

    @cache  # several paths may lead to one node
    def from_node(node: Any) -> dict[Any, float]:
        wanted, drawn = oracle.extend_law(problem, node), draws_candidates.extend_law(problem, node)
        if set(drawn) == {node}:
            return {node: 1.0}
        tilts = [tilted(x, _log_ratio(wanted.get(x, 0.0), q)) for x, q in drawn.items()]
        law: dict[Any, float] = {}
        chosen = _choice_law(np.array(list(drawn.values())), tilts, candidates)
        for x, p in zip(drawn, chosen.tolist(), strict=True):
            for outcome, q in from_node(x).items():
                law[outcome] = law.get(outcome, 0.0) + p * q
        return law

    return from_node(oracle.root)


def _log_ratio(p: float, q: float) -> float:
    return float(np.log(p / q)) if p > 0 else -np.inf


class _Tilted(NamedTuple):
    """A candidate: the probabilities `[outcomes]` of its rollouts, their log z `[outcomes]`, and how many are drawn."""

    probabilities: Floats
    log_z: Floats
    copies: int

    def transforms(self, s: Floats, largest: float) -> tuple[Floats, Floats, float]:
        """ψ^K `[s]` of z / exp(largest), minus its derivative `[s]`, and the probability that all K are 0."""
        z = np.exp(self.log_z - largest) / self.copies
        decay = np.exp(-np.outer(s, z))
        one = decay @ self.probabilities
        slope = self.copies * (decay @ (self.probabilities * z)) * one ** (self.copies - 1)
        return one**self.copies, slope, float(self.probabilities[z == 0].sum()) ** self.copies


def _choice_law(drawn: Floats, tilts: Sequence[_Tilted], m: int) -> Floats:
    """The probability `[candidates]` that each is chosen, of M that are drawn with these probabilities.

    s = e^t on a grid over which the integrand falls from its plateau to nothing; the trapezoidal rule is exponentially
    accurate for such an integrand.
    """
    finite = np.concatenate([tilt.log_z[np.isfinite(tilt.log_z)] for tilt in tilts])
    if not len(finite):
        return drawn
    largest, copies = float(finite.max()), max(tilt.copies for tilt in tilts)
    t = np.arange(-35.0, np.log(60 * copies) + largest - float(finite.min()), 0.02)
    s = np.exp(t)
    psi, slope, none = map(np.array, zip(*(tilt.transforms(s, largest) for tilt in tilts), strict=True))
    rest = (drawn @ psi) ** (m - 1)
    return m * drawn * np.trapezoid(slope * rest * s, t) + drawn * none * (drawn @ none) ** (m - 1)


def kept_law(
    oracle: Oracle, problem: Problem, possible: Callable[[Any], bool], rollouts: int, proposal: Oracle | None = None
) -> Law:
    """p_ref(x) · Π_i (1 - (1 - a_i)^K) by outcome x: the mass that estimates with rollouts of weight zero keep.

    The product is over the unfinished prefixes i of x, and a_i is the probability that a rollout from i is possible.
    The law of p_ref itself where every rollout is possible.
    """
    law: dict[Any, float] = {}

    def below(node: Any, mass: float) -> None:
        for x, p in oracle.extend_law(problem, node).items():
            if x == node:
                law[x] = law.get(x, 0.0) + mass
                continue
            drawn = (proposal or oracle).finish_law(problem, x)
            lost = sum(q for end, q in drawn.items() if not possible(end)) ** rollouts if set(drawn) != {x} else 0.0
            below(x, mass * p * (1 - lost))

    below(oracle.root, 1.0)
    return law
