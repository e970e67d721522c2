"""What a chain knows about its distance to p*: from its independent texts, and from the moves after them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ets.refined import log_acceptance
from ets.types import Floats, Step
from ets.weights import effective_sample_size, log_mean_exp, normalised

FEW = 5.0
"""Below this effective sample size the divergence is extrapolated from the spread of r/λ."""


@dataclass(frozen=True)
class Certificate:
    """Estimates from the independent texts x^n ~ p_ref of a chain, with weights w = exp(r/λ).

    Parameters
    ----------
    exact : bool
        The text is an exact sample of p*, by rejection.
    texts : int
        N, the independent texts.
    effective : float
        The effective sample size of their weights, from 1 to N.
    log_z, log_z_error : float
        The estimate of log Z = log E_ref[exp(r/λ)], and its standard error (delta method); -inf and NaN if every weight
        is zero.
    divergence : float
        The estimate of KL(p* ‖ p_ref) in nats. With an effective sample size below 5, at least half the variance of
        r/λ, which is the divergence for a normal r.
    distance : float
        The estimate of an upper bound on the total variation between p* and the law of a choice among the N texts,
        E_p*[(v - 1)₊ / (N + v - 1)] with v = w / Z (by Jensen's inequality). Moves never increase it.
    acceptance : mapping of int to float
        The mean probability of acceptance of the moves, by guide boundary.
    """

    exact: bool
    texts: int
    effective: float
    log_z: float
    log_z_error: float
    divergence: float
    distance: float
    acceptance: Mapping[int, float]

    def __str__(self) -> str:
        """One plain sentence, and a remedy where the texts are too few."""
        if self.exact:
            return f"an exact sample of p*, accepted after {self.texts:,} texts"
        if math.isinf(self.log_z):
            return f"none of {self.texts:,} texts has a reward above -inf: raise the budget, or change the reward"
        asked = f"λ asks for a text that about 1 in {_rounded(math.exp(min(self.divergence, 40.0))):,} samples is"
        drawn = f"{self.texts:,} were drawn, {self.effective:.1f} of them effective"
        bound = f"the total variation to p* is at most about {self.distance:.2f} before the moves"
        moves = sum(self.acceptance.values()) / len(self.acceptance) if self.acceptance else 0.0
        moved = f"; {moves:.0%} of the moves were accepted" if self.acceptance else ""
        remedy = ": raise λ or the budget" if self.divergence > math.log(self.texts) else ""
        return f"{asked}; {drawn}; {bound}{moved}{remedy}"


def certificate(trace: Sequence[Step]) -> Certificate | None:
    """The certificate of a chain that began with complete texts of p_ref; None for any other chain.

    Such chains are those of `ets.refined`, `ets.exact` and the choices among complete texts in `ets.baselines`.
    """
    begun = list(takewhile(lambda step: step.cut is None, trace))
    moved = len(begun) < len(trace)
    if not all(map(_complete, begun)) or not (moved or len(begun) == 1 or (trace and trace[-1].exact)):
        return None
    values: dict[int, float] = {}
    for step in begun:
        values |= {id(text): value for text, value in zip(step.candidates, step.log_rewards[:, 0], strict=True)}
    log_weights = np.array(list(values.values()))
    moves = [step for step in trace if step.cut is not None]
    return Certificate(
        exact=trace[-1].exact,
        texts=len(log_weights),
        effective=effective_sample_size(log_weights),
        **_estimates(log_weights),
        acceptance=_acceptance(moves),
    )


def _complete(step: Step) -> bool:
    return step.log_rewards.shape[1] == 1 and all(text.done for text in step.candidates)


def _estimates(log_weights: Floats) -> dict[str, float]:
    log_z, count = float(log_mean_exp(log_weights, axis=0)), len(log_weights)
    if math.isinf(log_z):
        return {"log_z": log_z, "log_z_error": math.nan, "divergence": math.inf, "distance": 1.0}
    shares = normalised(log_weights)
    relative = shares * count  # w / Z
    error = float(np.std(relative, ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    finite = np.isfinite(log_weights)
    divergence = float(np.sum(shares[finite] * (log_weights[finite] - log_z)))
    if effective_sample_size(log_weights) < FEW:
        divergence = max(divergence, 0.5 * float(np.var(log_weights[finite])))
    excess = np.maximum(relative - 1, 0.0)
    distance = float(np.sum(shares * excess / (count + np.maximum(relative - 1, 0.0))))
    return {"log_z": log_z, "log_z_error": error, "divergence": max(0.0, divergence), "distance": distance}


def _acceptance(moves: Sequence[Step]) -> dict[int, float]:
    """The mean over the moves at a boundary of Σ_x' P(propose x') P(accept x')."""
    found: defaultdict[int, list[float]] = defaultdict(list)
    for step in moves:
        values = step.log_weights
        proposals = normalised(values[1:])
        accepted = [math.exp(log_acceptance(values, 1 + n)) for n in range(len(proposals))]
        found[step.cut or 0].append(float(np.dot(proposals, accepted)))
    return {cut: float(np.mean(rates)) for cut, rates in sorted(found.items())}


def _rounded(number: float) -> int:
    """A number with two significant digits, at least 1."""
    digits = max(0, int(math.log10(max(1.0, number))) - 1)
    return max(1, round(number / 10**digits) * 10**digits)
