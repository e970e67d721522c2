"""What a chain knows about its distance to p*: from its independent texts, and from the moves after them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ets.suffix_moves import log_acceptance
from ets.types import Floats, Step, counted
from ets.weights import effective_sample_size, log_mean_exp, normalised

FEWEST_TEXTS = 10
FEW = 5.0
"""Below this effective sample size the divergence is extrapolated from the spread of r/λ."""


@dataclass(frozen=True)
class Certificate:
    """Estimates from the texts x^n of a chain before its moves, with weights w.

    The texts are independent draws x^n ~ p_ref with w = exp(r/λ), or the particles of a filter with their weights. All
    estimates are of the texts that were drawn: a kind of text that is not among them leaves no trace. The texts of a
    rejection are a selection, so all its estimates are NaN.

    Parameters
    ----------
    kernel : str
        The kernel that drew the sample, in words, such as "one step on 23 texts, and 41 suffix moves".
    exact : bool
        The text is an exact sample of p*, by rejection.
    texts : int
        N.
    effective : float
        The effective sample size of their weights, from 1 to N.
    log_z, log_z_error : float
        The estimate of log Z = log E_ref[exp(r/λ)], and its standard error (delta method), which is too small where few
        texts carry the weights; -inf and NaN if every weight is zero. Particles have no such error: it is NaN.
    divergence : float
        The estimate of KL(p* ‖ p_ref) in nats. With an effective sample size below 5, at least half the variance of
        r/λ, which is the divergence for a normal r.
    distance : float
        The plug-in estimate of E_p*[(v - 1)₊ / (N + v - 1)] with v = w / Z, which bounds the total variation between p*
        and the law of a choice among N texts (by Jensen's inequality). Where rare texts carry p*, the estimate is too
        small, and it is always below 1/2. NaN for particles.
    equal : bool
        Whether all rewards of the texts are equal.
    acceptance : mapping of int to float
        The mean probability of acceptance of the moves that were completed, by guide boundary.
    """

    kernel: str
    exact: bool
    texts: int
    effective: float
    log_z: float
    log_z_error: float
    divergence: float
    distance: float
    equal: bool
    acceptance: Mapping[int, float]

    @property
    def estimable(self) -> bool:
        """Whether the texts are enough for an estimate of log Z and of the divergence.

        They are not if there are fewer than 10, if all rewards are equal, or if few texts carry the weights. A kind of
        text that is not among them leaves no trace in any estimate.
        """
        return self.texts >= FEWEST_TEXTS and not self.equal and self.effective >= FEW

    def __str__(self) -> str:
        """Plain sentences, with a remedy where the texts are too few."""
        if self.exact:
            return f"an exact sample of p*, accepted after {counted(self.texts, 'text')}"
        if math.isinf(self.log_z):
            return f"no text of {self.texts:,} has a reward above -inf; raise the budget, or change the reward"
        parts = [self.kernel]
        if math.isnan(self.log_z):  # rejected texts
            return f"{self.kernel}; raise the budget"
        if self.texts < FEWEST_TEXTS:
            parts.append(f"too few of them ({self.texts}) to estimate how far p* is from the model")
        elif self.equal:
            parts.append(f"the rewards of all {self.texts:,} texts are equal, so rarer texts are unknown")
        else:
            share = math.exp(min(self.divergence, 40.0))
            found = (
                f"about 1 in {_rounded(share):,} texts of the model is"
                if share > 1.5
                else "most texts of the model are"
            )
            parts.append(f"by estimate {found} as good as p* asks")
            parts.append(f"{self.effective:.1f} of the {self.texts:,} texts are effective")
        if self.acceptance:
            rate = sum(self.acceptance.values()) / len(self.acceptance)
            parts.append(f"moves are accepted with probability {rate:.2f} on average")
        return "; ".join(filter(None, [*parts, self._remedy]))

    @property
    def _remedy(self) -> str:
        """What makes the texts enough; λ changes neither their number nor the weights of equal rewards."""
        if self.estimable:
            return ""
        if self.texts < FEWEST_TEXTS:
            return "raise the budget"
        return "raise the budget, or change the reward" if self.equal else "raise λ or the budget"


def certificate(trace: Sequence[Step]) -> Certificate | None:
    """The certificate of a chain of `ets.refined`, `ets.exact` or `ets.baselines.one_step`; None for guide steps."""
    begun = list(takewhile(lambda step: step.cut is None, trace))
    moves = [step for step in trace if step.cut is not None]
    made = [step for step in moves if len(step.candidates) > 1]  # the budget ends the last move early
    complete = all(map(_complete, begun))
    if not begun or not (moves or (complete and (len(begun) == 1 or trace[-1].exact))):
        return None
    independent = complete and len(begun) == 1 and not trace[-1].exact
    log_weights, values = _texts(begun) if complete else _particles(begun[-1])
    return Certificate(
        kernel=_begin(len(begun), len(values), complete)
        + (f", and {counted(len(made), 'suffix move')}" if made else ""),
        exact=trace[-1].exact,
        texts=len(values),
        effective=effective_sample_size(log_weights),
        **(_estimates(log_weights, values) if independent or not complete else UNKNOWN),
        **(_errors(log_weights) if independent else UNKNOWN_ERRORS),
        equal=len(np.unique(values)) == 1,
        acceptance=_acceptance(made),
    )


UNKNOWN = {"log_z": math.nan, "divergence": math.nan}
UNKNOWN_ERRORS = {"log_z_error": math.nan, "distance": math.nan}


def _begin(steps: int, texts: int, complete: bool) -> str:
    """The kernel before the moves, in words."""
    if not complete:
        return f"a particle filter of {counted(texts, 'particle')}"
    if steps > 1:
        return f"not exact: {counted(texts, 'text')}, none accepted within the limit of tokens"
    return f"one step on {counted(texts, 'text')}"


def _complete(step: Step) -> bool:
    return step.log_rewards.shape[1] == 1 and all(text.done for text in step.candidates)


def _texts(steps: Sequence[Step]) -> tuple[Floats, Floats]:
    """log w and r/λ `[N]` of the complete texts of some steps; a text that several steps hold counts once."""
    values: dict[int, float] = {}
    for step in steps:
        values |= {id(text): value for text, value in zip(step.candidates, step.log_rewards[:, 0], strict=True)}
    log_weights = np.array(list(values.values()))
    return log_weights, log_weights


def _particles(step: Step) -> tuple[Floats, Floats]:
    """log w and r/λ `[N]` of the particles at their last step."""
    return step.log_weights, step.log_rewards[:, 0]


def _estimates(log_weights: Floats, values: Floats) -> dict[str, float]:
    """log Z, and KL(p* ‖ p_ref) as the mean of r/λ - log Z under p*."""
    log_z = float(log_mean_exp(log_weights, axis=0))
    if math.isinf(log_z):
        return {"log_z": log_z, "divergence": math.inf}
    finite = np.isfinite(values)
    divergence = float(np.sum(normalised(log_weights)[finite] * (values[finite] - log_z)))
    if effective_sample_size(log_weights) < FEW:
        divergence = max(divergence, 0.5 * float(np.var(values[finite])))
    return {"log_z": log_z, "divergence": max(0.0, divergence)}


def _errors(log_weights: Floats) -> dict[str, float]:
    """The standard error of log Z, and the bound on the total variation, from independent texts."""
    count = len(log_weights)
    if np.all(np.isneginf(log_weights)):
        return {"log_z_error": math.nan, "distance": 1.0}
    shares = normalised(log_weights)
    relative = shares * count  # w / Z
    error = float(np.std(relative, ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    excess = np.maximum(relative - 1, 0.0)
    return {"log_z_error": error, "distance": float(np.sum(shares * excess / (count + excess)))}


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
