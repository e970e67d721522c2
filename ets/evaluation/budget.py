"""What methods are compared at: how many samples cost what ETS cost."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from ets.evaluation.journal import Record
from ets.evaluation.sizes import size_for

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
        """By measuring: the number of samples that comes nearest to what ETS cost on the pilot's problems."""

        def share_of(number: int) -> float:
            records = pilot(number)
            known = {record["problem"] for record in records}
            spent = fmean(positions_of(record) for record in guided if record["problem"] in known)
            return fmean(map(positions_of, records)) / spent

        number, share = size_for(share_of, max(1, round(fmean(map(positions_of, guided)) / self.sample)))
        if abs(1 - share) > TOLERANCE:
            warnings.warn(
                f"{number} samples cost {share:.0%} of what ETS costs; to compare others, set samples", stacklevel=2
            )
        return number


def positions_of(record: Record) -> float:
    """Token positions that a record's chain computed in all."""
    return float(sum(record["cost"][kind] for kind in ("prompt", "candidate", "rollout", "scored")))
