"""The objective of reinforcement learning, E[r] - λ KL, of p* and of every method, from samples of p_ref.

p* maximises E_q[r] - λ KL(q ‖ p_ref), and its value is λ log Z with Z = E_ref[exp(r/λ)] (paper, Equation 2). The
divergence of another law q is not known from its samples. Its mean reward R bounds it: among all laws with the mean
reward R, a tilt p_ref · exp(θr) / Z(θ) is the nearest to p_ref (Csiszár's information projection), at

    KL_min(R) = max_θ (θR - log Z(θ)).

R - λ KL_min(R) is therefore the most that a law with the mean reward R can reach, and p* reaches it. Two methods with
equal mean rewards have equal values, however different their texts are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ets.certificate import FEW
from ets.evaluation.bootstrap import ENDS, resampled
from ets.evaluation.pool import Sample
from ets.types import Floats
from ets.weights import log_mean_exp, normalised

TILTS = np.arange(-80, 241) / 20
"""θ in units of 1/λ, with 0 (p_ref) and 1 (p*) among them; their maximum is a little below the maximum over all θ."""
FEWEST_TEXTS = 10
"""The fewest texts of p_ref for each problem; with fewer there is no estimate."""


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95% interval."""

    mean: float
    low: float
    high: float


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
    """

    reward: Estimate
    divergence: Estimate
    log_z: Estimate
    objective: Estimate
    texts: int
    effective: float

    def __str__(self) -> str:
        return (
            f"p* by estimate from {self.texts} texts of p_ref a problem, {self.effective:.1f} of them effective: "
            f"mean reward {_shown(self.reward)}, KL {_shown(self.divergence)} nats, log Z {_shown(self.log_z)}, and "
            f"E[r] - λ KL = λ log Z = {_shown(self.objective)}. The column E[r] - λ KL holds the most that a "
            "method with this mean reward can reach."
            + (" So few effective texts make log Z and KL too small; more repeats help." if self.few else "")
        )

    @property
    def few(self) -> bool:
        """Whether few texts carry the weights of p*."""
        return self.effective < FEW


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
        weights = np.array([normalised(row) for row in self._scaled])
        log_z = log_mean_exp(self._scaled, axis=1)
        reward = self.lam * np.sum(weights * np.where(weights > 0, self._scaled, 0.0), axis=1)
        parts = (reward, reward / self.lam - log_z, log_z, self.lam * log_z)
        effective = float(np.mean(1 / np.sum(weights**2, axis=1)))
        estimates = dict(zip(("reward", "divergence", "log_z", "objective"), map(_estimated, parts), strict=True))
        return Optimum(**estimates, texts=self._scaled.shape[1], effective=effective)

    def objective(self, rewards: Mapping[str, float]) -> Estimate | None:
        """R - λ KL_min(R) of a method with these mean rewards by problem; None if one of them is -inf."""
        if any(map(math.isinf, rewards.values())):
            return None
        means = np.array([rewards[problem] for problem in sorted(self.rewards)]) / self.lam
        tilts, log_z = self._tilted

        def reached(mean: Floats, log_z: Floats) -> Floats:
            """R - λ KL_min(R) `[…]` of mean rewards in units of λ `[…]` and mean log Z(θ) `[…, T]`."""
            return self.lam * (mean - np.max(mean[..., None] * tilts - log_z, axis=-1))

        counts = resampled(len(means)) / len(means)
        low, high = np.quantile(reached(counts @ means, counts @ log_z), ENDS)
        return Estimate(float(reached(means.mean(), log_z.mean(axis=0))), float(low), float(high))

    @cached_property
    def _scaled(self) -> Floats:
        """r/λ `[problems, N]`."""
        return np.array([self.rewards[problem] for problem in sorted(self.rewards)]) / self.lam

    @cached_property
    def _tilted(self) -> tuple[Floats, Floats]:
        """The tilts `[T]` and log Z(θ) `[problems, T]`; forbidden texts have no negative tilt."""
        tilts = TILTS if np.all(np.isfinite(self._scaled)) else TILTS[TILTS >= 0]
        powers = [log_mean_exp(tilt * self._scaled, axis=1) if tilt else np.zeros(len(self._scaled)) for tilt in tilts]
        return tilts, np.stack(powers, axis=1)


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


def _estimated(values: Floats) -> Estimate:
    """The mean of values by problem, with a percentile bootstrap over problems."""
    low, high = np.quantile(resampled(len(values)) @ values / len(values), ENDS)
    return Estimate(float(values.mean()), float(low), float(high))


def _shown(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"
