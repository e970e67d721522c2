"""What a trace tells about a proposal: whether its importance weights correct, or are noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ets.types import Floats, Step
from ets.weights import effective_sample_size

WIDE = 1.0
"""A standard deviation of the log-ratio beyond which complete candidates, whose energies are exact, are favoured."""


@dataclass(frozen=True)
class RatioSummary:
    """The importance ratios of some guide steps.

    Parameters
    ----------
    rollouts : int
        That a proposal drew.
    effective : float
        The effective sample size of a candidate's rollouts over their number, a mean over candidates: from 1/K to 1.
    spread : float
        Standard deviation of the finite log-ratios.
    impossible : float
        The share of rollouts that the reference policy cannot draw.
    clipped : float
        The share of ratios that stand at a bound of the clip.
    missed : float
        Of a truncated proposal: the reference policy's probability of what it cannot draw, per token drawn.
    complete_drawn, complete_chosen : float
        The share of complete candidates among those drawn, and among those chosen, over the steps that had complete and
        open ones. Much more often chosen than their share tells of skewed energies, or of a reward that likes an end.
    """

    rollouts: int
    effective: float
    spread: float
    impossible: float
    clipped: float
    missed: float
    complete_drawn: float
    complete_chosen: float

    def __str__(self) -> str:
        """One line, and what to make of it."""
        parts = [
            f"{self.rollouts:,} rollouts of the proposal, {self.effective:.0%} effective",
            f"log-ratios spread by {self.spread:.2f}" + (" (above 1: complete candidates are favoured)" * self.wide),
            f"complete candidates: {self.complete_drawn:.0%} of those drawn, {self.complete_chosen:.0%} of those chosen"
            if not math.isnan(self.complete_drawn)
            else "",
            f"{self.impossible:.1%} impossible under the model" if self.impossible else "",
            f"{self.clipped:.1%} clipped" if self.clipped else "",
            f"the proposal's truncation misses {self.missed:.2%} a token" if self.missed else "",
        ]
        return "; ".join(filter(None, parts))

    @property
    def wide(self) -> bool:
        """Whether the log-ratio spreads so far that complete candidates are favoured."""
        return self.spread > WIDE


def ratio_summary(steps: Iterable[Step], clip: tuple[float, float] | None = None) -> RatioSummary:
    """Of all the open candidates of some guide steps; NaN where there is nothing to average.

    Parameters
    ----------
    steps : iterable of Step
    clip : (float, float), optional
        The bounds that the ratios were clipped to.
    """
    steps = list(steps)
    ratios = [row for step in steps for row, c in zip(step.log_ratios, step.candidates, strict=True) if not c.done]
    rows = [row for step in steps for row, c in zip(step.rollouts, step.candidates, strict=True) if not c.done]
    flat = np.concatenate([np.array([]), *ratios])
    finite = flat[np.isfinite(flat)]
    mixed = [step for step in steps if 0 < sum(c.done for c in step.candidates) < len(step.candidates)]
    return RatioSummary(
        rollouts=len(flat),
        effective=_mean([0.0 if np.all(np.isneginf(row)) else effective_sample_size(row) / len(row) for row in ratios]),
        spread=float(np.std(finite)) if len(finite) else math.nan,
        impossible=_mean(np.isneginf(flat).tolist()),
        clipped=_mean(_at(finite, clip)) if clip else 0.0,
        missed=_mean([text.missed for row in rows for text in row]),
        complete_drawn=_mean([sum(c.done for c in step.candidates) / len(step.candidates) for step in mixed]),
        complete_chosen=_mean([float(step.candidates[step.choice].done) for step in mixed]),
    )


def _at(log_ratios: Floats, clip: tuple[float, float]) -> list[bool]:
    bounds = [math.log(bound) for bound in clip if bound]
    return [any(math.isclose(ratio, bound, abs_tol=1e-12) for bound in bounds) for ratio in log_ratios]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
