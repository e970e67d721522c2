"""Summaries of the importance ratios in a trace: do the weights correct the proposal, or are they noise?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ets.types import Floats, Step
from ets.weights import effective_draws

T = TypeVar("T")
WIDE = 1.0
"""Above this standard deviation of the log-ratio, complete candidates, whose energies are exact, are favoured."""


@dataclass(frozen=True)
class RatioSummary:
    """The importance ratios of some guide steps.

    Parameters
    ----------
    rollouts : int
        Rollouts that the proposal drew.
    effective : float
        The effective sample size of a candidate's rollouts over their number, a mean over candidates: from 1/K to 1;
        NaN at K = 1.
    mean : float
        The mean ratio of rollouts. Its expectation is p_ref's probability of the texts that q can draw. A mean clearly
        below 1 shows that a q with a smaller support, such as a truncated q, omits texts of p_ref from every energy.
    spread : float
        Standard deviation of the finite log-ratios within a guide step, a root mean square over steps.
    impossible : float
        The share of rollouts that the reference policy cannot draw.
    clipped : float
        The share of the rollouts' ratios at a bound of the clip.
    candidates_effective : float
        If the sampler drew the candidates too: the effective sample size of their ratios over M, a mean over steps.
    candidates_clipped : float
        Then also: the share of the candidates' ratios at a bound of the clip.
    complete_drawn, complete_chosen : float
        The share of complete candidates among the drawn and among the chosen candidates, over the steps with complete
        and open candidates. A much larger share of the chosen means skewed energies, or a reward that favours an end.
    """

    rollouts: int
    effective: float
    mean: float
    spread: float
    impossible: float
    clipped: float
    candidates_effective: float
    candidates_clipped: float
    complete_drawn: float
    complete_chosen: float

    def __str__(self) -> str:
        """The summary as one line, with a warning where complete candidates are favoured."""
        parts = [
            f"{self.rollouts:,} rollouts of the proposal" + _part(", {:.0%} effective", self.effective),
            _part("{:.0%} of candidates effective", self.candidates_effective),
            _part("log-ratios spread by {:.2f}", self.spread)
            + " (above 1: complete candidates are favoured)" * self.wide,
            _part("complete candidates: {:.0%} of those drawn", self.complete_drawn)
            + _part(", {:.0%} of those chosen", self.complete_chosen),
            _part("mean ratio {:.2f}", self.mean),
            _part("{:.1%} impossible under the model", self.impossible or math.nan),
            _part("{:.1%} clipped", self.clipped or math.nan),
            _part("{:.1%} of candidates clipped", self.candidates_clipped or math.nan),
        ]
        return "; ".join(filter(None, parts))

    @property
    def wide(self) -> bool:
        """Whether the log-ratio spreads beyond `WIDE`, so that complete candidates are favoured."""
        return self.spread > WIDE


def ratio_summary(steps: Iterable[Step], clip: tuple[float, float] | None = None) -> RatioSummary:
    """The ratios of all open candidates of some guide steps; NaN where there is no value to average.

    Parameters
    ----------
    steps : iterable of Step
    clip : (float, float), optional
        Bounds of the ratios.
    """
    steps = list(steps)
    ratios = [row for step in steps for row in _open(step, step.log_ratios)]
    flat = np.concatenate([np.array([]), *ratios])
    candidates = [ratios for ratios in (step.candidate_log_ratios for step in steps) if np.any(ratios)]
    mixed = [step for step in steps if 0 < sum(c.done for c in step.candidates) < len(step.candidates)]
    return RatioSummary(
        rollouts=len(flat),
        effective=_mean([effective_draws(row) / len(row) for row in ratios if len(row) > 1]),
        mean=_mean(np.exp(np.minimum(flat, 600.0)).tolist()),  # finite, since JSON has no infinity
        spread=_spread([np.concatenate([np.array([]), *_open(step, step.log_ratios)]) for step in steps]),
        impossible=_mean(np.isneginf(flat).tolist()),
        clipped=_mean(_at(flat, clip)) if clip else 0.0,
        candidates_effective=_mean([effective_draws(row) / len(row) for row in candidates]),
        candidates_clipped=_mean([at for row in candidates for at in _at(row, clip)]) if clip else 0.0,
        complete_drawn=_mean([sum(c.done for c in step.candidates) / len(step.candidates) for step in mixed]),
        complete_chosen=_mean([float(step.candidates[step.choice].done) for step in mixed]),
    )


def _open(step: Step, rows: Iterable[T]) -> list[T]:
    """The rows of the open candidates."""
    return [row for row, candidate in zip(rows, step.candidates, strict=True) if not candidate.done]


def _spread(steps: Sequence[Floats]) -> float:
    finite = [step[np.isfinite(step)] for step in steps]
    total = sum(len(step) * float(np.var(step)) for step in finite if len(step))
    count = sum(map(len, finite))
    return math.sqrt(total / count) if count else math.nan


def _part(text: str, value: float) -> str:
    return "" if math.isnan(value) else text.format(value)


def _at(log_ratios: Floats, clip: tuple[float, float]) -> list[bool]:
    bounds = [math.log(bound) for bound in clip if bound]
    return [any(math.isclose(ratio, bound, abs_tol=1e-12) for bound in bounds) for ratio in log_ratios]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
