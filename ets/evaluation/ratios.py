"""The importance ratios of many chains, from the summaries in their records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ets.diagnostics import RatioSummary, ratio_summary
from ets.types import Step

_PER_ROLLOUT = ("effective", "mean", "impossible", "clipped")
_PER_STEP = ("candidates_effective", "candidates_clipped")
_PER_MIXED_STEP = ("complete_drawn", "complete_chosen")


def recorded_ratios(trace: Sequence[Step], clip: tuple[float, float] | None) -> dict[str, Any]:
    """A chain's `RatioSummary` as JSON values, and the number of its steps with complete and open candidates."""
    mixed = sum(0 < sum(c.done for c in step.candidates) < len(step.candidates) for step in trace)
    return {**without_nan(asdict(ratio_summary(trace, clip))), "mixed_steps": mixed, "steps": len(trace)}


def total_ratios(records: Sequence[Mapping[str, Any]]) -> RatioSummary:
    """The summary over chains, from the values of `recorded_ratios`.

    Every share is over all rollouts (or all mixed steps, or all steps) of all chains; the spread is a root mean square.
    """
    finite = [r["rollouts"] * (1 - (r["impossible"] or 0.0)) for r in records]
    variances = [r["spread"] and r["spread"] ** 2 for r in records]
    return RatioSummary(
        rollouts=sum(r["rollouts"] for r in records),
        spread=math.sqrt(_weighted(list(zip(variances, finite, strict=True)))),
        **{name: _weighted([(r[name], r["rollouts"]) for r in records]) for name in _PER_ROLLOUT},
        **{name: _weighted([(r.get(name), r["steps"]) for r in records]) for name in _PER_STEP},
        **{name: _weighted([(r[name], r["mixed_steps"]) for r in records]) for name in _PER_MIXED_STEP},
    )


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None for NaN, which JSON does not have."""
    return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in values.items()}


def _weighted(pairs: Sequence[tuple[float | None, float]]) -> float:
    """A weighted mean; NaN where there is nothing to average."""
    known = [(value, weight) for value, weight in pairs if value is not None and weight]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else math.nan
