"""What methods are compared at: how many samples cost what ETS cost."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from ets.evaluation.journal import Record

PILOTS = 8
"""At most so many measurements."""
MOST = 16
"""At most so many times the samples that would cost as much if they shared nothing."""
TOLERANCE = 0.1
"""A larger difference in cost is told: where samples are mostly equal, no number of them may cost as much."""

Pilot = Callable[[int], Sequence[Record]]
"""Draws so many plain samples for each of a few problems, and returns those problems' records."""


class Budget(Protocol):
    """The currency of a comparison."""

    def samples(self, guided: Sequence[Record], pilot: Pilot) -> int:
        """How many plain samples of a problem cost what the records of ETS did, on average."""
        ...


class GeneratedTokens:
    """Autoregressive models: as many generated tokens. ETS's first rollouts are plain samples and tell their length."""

    def samples(self, guided: Sequence[Record], pilot: Pilot) -> int:
        spent = fmean(record["cost"]["generated"] for record in guided)
        return max(1, round(spent / fmean(record["sample_tokens"] for record in guided)))


@dataclass(frozen=True)
class ComputedPositions:
    """Masked diffusion: as many token positions that went through the model.

    Samples of a problem share the forward passes of canvases that are equal, all of them the first and some by
    chance, so their cost grows more slowly than their number, and is measured.

    Parameters
    ----------
    sample : float
        Positions of a single sample: the mean over the problems.
    """

    sample: float

    def samples(self, guided: Sequence[Record], pilot: Pilot) -> int:
        """By the secant method, until two neighbouring numbers enclose what ETS cost; of these the nearer one."""

        def cost_of(number: int) -> float:
            records = pilot(number)
            known = {record["problem"] for record in records}
            spent = fmean(_positions(record) for record in guided if record["problem"] in known)
            return fmean(map(_positions, records)) / spent

        low, high = (0, 0.0), (0, math.inf)  # numbers of samples, and what they cost in terms of ETS
        number = max(1, round(fmean(map(_positions, guided)) / self.sample))
        most = MOST * number
        for _ in range(PILOTS):
            measured = (number, cost_of(number))
            other = high if high[0] else low
            low, high = (measured, high) if measured[1] < 1 else (low, measured)
            if low[0] == most or (high[0] and high[0] - low[0] <= 1):
                break
            slope = (measured[1] - other[1]) / (measured[0] - other[0])
            reach = round(number + (1 - measured[1]) / slope) if slope > 0 else 4 * number
            number = min(max(reach, low[0] + 1), high[0] - 1 if high[0] else min(4 * number, most))
        number, cost = min((pair for pair in (low, high) if pair[0]), key=lambda pair: abs(1 - pair[1]))
        if abs(1 - cost) > TOLERANCE:
            warnings.warn(
                f"{number} samples cost {cost:.0%} of what ETS costs; to compare others, set samples", stacklevel=2
            )
        return number


def _positions(record: Record) -> float:
    return float(sum(record["cost"][kind] for kind in ("prompt", "candidate", "rollout", "scored")))
