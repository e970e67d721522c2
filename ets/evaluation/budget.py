"""What methods are compared at: how many samples cost what ETS cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from ets.evaluation.journal import Record

PILOTS = 4
"""At most so many measurements."""


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
        number = max(1, round(fmean(map(_positions, guided)) / self.sample))
        for _ in range(PILOTS):
            records = pilot(number)
            known = {record["problem"] for record in records}
            spent = fmean(_positions(record) for record in guided if record["problem"] in known)
            better = max(1, round(number * spent / fmean(map(_positions, records))))
            if better == number:
                break
            number = min(better, 4 * number)
        return number


def _positions(record: Record) -> float:
    return float(sum(record["cost"][kind] for kind in ("prompt", "candidate", "rollout", "scored")))
