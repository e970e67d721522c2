"""The objective of reinforcement learning, E[r] - λ KL: its maximum, and a bound for every method, by samples of p_ref.

p* maximises E_q[r] - λ KL(q ‖ p_ref), and its value is λ log Z with Z = E_ref[exp(r/λ)] (paper, Equation 2). All values
are means over the problems. The divergence of another law q is not known from its samples. Its mean reward R bounds it:
among all laws with the mean reward R, a tilt p_ref · exp(θr) / Z(θ) is the nearest to p_ref (Csiszár's information
projection, with one θ for all problems), at

    KL_min(R) = max_θ (θR - log Z(θ)).

R - λ KL_min(R) is therefore the most that a law with the mean reward R can reach. It is a function of R alone: it says
how far a mean reward can be from the maximum, and cannot rank two methods. The maximum here is over θ ≤ 1/λ, so that a
mean reward above that of p* has the bound λ log Z: there the tail of a few samples of p_ref says nothing.

Few samples make the mean of exp(θr) too small on average of its logarithm. The jackknife over the samples of a problem
removes most of this bias (Quenouille, 1956). No correction knows of a kind of text that was not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ets.evaluation.bootstrap import ENDS, resampled
from ets.evaluation.pool import Sample
from ets.types import Floats
from ets.weights import normalised

TILTS = np.arange(-80, 21) / 20
"""θ in units of 1/λ, with 0 (p_ref) and 1 (p*) among them."""
EMPTY = 1e-9
"""A relative weight below this is none."""
HEAVY, OFTEN = 0.5, 0.1
"""A text with more than this share of a problem's weight, and the share of such problems that is worth a warning."""
FEWEST_TEXTS = 10
"""The fewest texts of p_ref for each problem; with fewer there is no estimate."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class Optimum:
    """p*, by estimate. Means over problems.

    Parameters
    ----------
    reward, divergence, log_z, objective : Estimate
        E_p*[r]; KL(p* ‖ p_ref) in nats; log Z; λ log Z = E_p*[r] - λ KL.
    texts : int
        Samples of p_ref for each problem.
    effective : float
        Their mean effective sample size under the weights exp(r/λ).
    heavy : float
        The share of problems in which one text has over half the weight.
    """

    reward: Estimate
    divergence: Estimate
    log_z: Estimate
    objective: Estimate
    texts: int
    effective: float
    heavy: float

    def __str__(self) -> str:
        few = (
            f" In {self.heavy:.0%} of the problems one text has over half the weight: log Z is uncertain there, and "
            "its interval too narrow; more samples of plain help (--sizes plain=N)."
        )
        return (
            f"p* by estimate from {self.texts} texts of p_ref a problem, {self.effective:.1f} of them effective: "
            f"mean reward {self.reward}, KL {self.divergence} nats, log Z {self.log_z}, and "
            f"E[r] - λ KL = λ log Z = {self.objective}. The column E[r] - λ KL, at most, bounds what a law "
            "with this mean reward reaches; it cannot rank methods. Texts of a kind that was not drawn are unknown."
            + (few if self.heavy > OFTEN else "")
        )


def optimum_of(content: Mapping[str, Any]) -> Optimum:
    """An optimum from its JSON values."""
    read: dict[str, Any] = {name: Estimate(**v) if isinstance(v, Mapping) else v for name, v in content.items()}
    return Optimum(**read)


@dataclass(frozen=True)
class Reference:
    """The rewards of samples of p_ref, by problem.

    Parameters
    ----------
    lam : float
        λ, in units of the reward.
    rewards : mapping of str to sequence of float
        At least `FEWEST_TEXTS` for each problem, equally many for all; -inf is a forbidden text.
    """

    lam: float
    rewards: Mapping[str, Sequence[float]]

    @cached_property
    def optimum(self) -> Optimum:
        values = self._scaled
        weights = np.array([normalised(row) for row in values])
        log_z, reward = _log_means(values, 1.0), _tilted_means(values, weights)
        parts = (self.lam * reward, np.maximum(0.0, reward - log_z), log_z, self.lam * log_z)
        estimates = dict(zip(("reward", "divergence", "log_z", "objective"), map(estimated, parts), strict=True))
        effective, heavy = np.mean(1 / np.sum(weights**2, axis=1)), np.mean(np.max(weights, axis=1) > HEAVY)
        return Optimum(**estimates, texts=values.shape[1], effective=float(effective), heavy=float(heavy))

    def objective(self, rewards: Mapping[str, float]) -> Estimate | None:
        """R - λ KL_min(R) of a method with these mean rewards by problem; None if one of them is -inf."""
        if any(map(math.isinf, rewards.values())):
            return None
        means, log_z = np.array([rewards[problem] for problem in sorted(self.rewards)]) / self.lam, self._log_z

        def bound(mean: Floats, log_z: Floats) -> Floats:
            """R - λ KL_min(R) `[…]` of mean rewards in units of λ `[…]` and mean log Z(θ) `[…, T]`."""
            return self.lam * (mean - np.max(mean[..., None] * TILTS - log_z, axis=-1))

        counts = resampled(len(means)) / len(means)
        low, high = np.quantile(bound(counts @ means, counts @ log_z), ENDS)
        return Estimate(float(bound(means.mean(), log_z.mean(axis=0))), float(low), float(high))

    @cached_property
    def _scaled(self) -> Floats:
        """r/λ `[problems, N]`."""
        return np.array([self.rewards[problem] for problem in sorted(self.rewards)]) / self.lam

    @cached_property
    def _log_z(self) -> Floats:
        """log Z(θ) `[problems, T]`; forbidden texts have no weight at any θ."""
        return np.stack([_log_means(self._scaled, tilt) for tilt in TILTS], axis=1)


def _log_means(values: Floats, tilt: float) -> Floats:
    """log E[exp(θ r)] `[problems]` from values r `[problems, N]`, by the jackknife; a value of -inf has no weight.

    At most θ r of one of the texts; without the correction where all weight is that of one text.
    """
    allowed, count = np.isfinite(values), values.shape[1]
    powers = np.where(allowed, tilt * np.where(allowed, values, 0.0), -math.inf)
    largest = powers.max(axis=1)
    weights = np.exp(powers - largest[:, None])
    total = weights.sum(axis=1)
    rest = np.maximum(total[:, None] - weights, EMPTY)  # [problems, N], without one text each
    means = np.log(total / count)
    corrected = count * means - (count - 1) * np.log(rest / (count - 1)).mean(axis=1)
    return largest + np.where(np.all(rest > EMPTY, axis=1), np.minimum(corrected, 0.0), means)


def _tilted_means(values: Floats, weights: Floats) -> Floats:
    """E_p*[r] `[problems]` from values r `[problems, N]` and normalised weights, by the jackknife.

    At most the largest r; without the correction where all weight is that of one text.
    """
    known, count = np.where(weights > 0, values, 0.0), values.shape[1]
    means = (weights * known).sum(axis=1)
    rest = np.maximum(1.0 - weights, EMPTY)
    without = (means[:, None] - weights * known) / rest
    corrected = count * means - (count - 1) * without.mean(axis=1)
    return np.where(np.all(rest > EMPTY, axis=1), np.minimum(corrected, values.max(axis=1)), means)


def reference_of(pooled: Sequence[Sample], lam: float) -> Reference | None:
    """The reference of complete samples of p_ref, all chains of a problem together.

    None without rewards, with fewer than `FEWEST_TEXTS` for a problem, or where a problem's texts are all forbidden.
    """
    rewards: dict[str, list[float]] = {}
    for sample in pooled:
        known = [grade["reward"] for grade in sample.grades if "reward" in grade]
        rewards.setdefault(sample.problem.id, []).extend(-math.inf if value is None else value for value in known)
    if not rewards or any(len(each) < FEWEST_TEXTS or max(each) == -math.inf for each in rewards.values()):
        return None
    return Reference(lam, rewards)


def estimated(values: Floats) -> Estimate:
    """The mean of values by problem, with a percentile bootstrap over problems."""
    low, high = np.quantile(resampled(len(values)) @ values / len(values), ENDS)
    return Estimate(float(values.mean()), float(low), float(high))
