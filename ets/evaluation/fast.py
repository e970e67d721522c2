"""What ETS-IS has of its own for masked diffusion: a fast sampler, and the level at which its paths are weighed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ets.step import require_variety
from ets.types import Policy

FAST = ("temperature", "remasking", "threshold", "factor", "cache", "refresh")
"""The settings that make a sampler fast, by the names of `ets.policies.making.fast_sampler_of`."""


@dataclass(frozen=True)
class FastSampling:
    """The settings that belong to ETS-IS alone. What is None is the policy's own; `opened_sampler` fills it in.

    Parameters
    ----------
    level : str
        "0", "1" or "1F", see `ets.policies.diffusion.levels`.
    candidates : int
        M.
    temperature, remasking, threshold, factor, cache, refresh
        Of the fast sampler.
    clip : (float, float), optional
        Bounds on the ratios.
    target : str
        The law that weighed draws follow, in words; `opened_sampler` fills it in.
    """

    level: str
    candidates: int
    temperature: float | None = None
    remasking: str | None = None
    threshold: float | None = None
    factor: float | None = None
    cache: str | None = None
    refresh: int | None = None
    clip: tuple[float, float] | None = None
    target: str = ""

    @property
    def weighed(self) -> bool:
        """Whether there are ratios: at level 0 every weight is 1."""
        return self.level != "0"

    @property
    def options(self) -> tuple[str, ...]:
        """All of it in words, by which the journal keeps records apart: `level1`, `M4`, `threshold0.9`, `dual` …"""
        values = {
            "level": self.level,
            "M": self.candidates,
            "T": self.temperature,
            "": self.remasking,
            "threshold": self.threshold,
            "factor": self.factor,
            "cache": self.cache,
            "refresh": self.refresh,
            "clip": self.clip and "{}:{}".format(*self.clip),
        }
        return tuple(f"{name}{value}" for name, value in values.items() if value is not None)

    def label(self, rollouts: int) -> str:
        """The method's name in the table."""
        return f"ETS-IS at level {self.level} (M {self.candidates}, K {rollouts})"


def opened_sampler(fast: FastSampling, exact: Policy) -> tuple[FastSampling, Policy]:
    """The settings with nothing left out, and the fast sampler, weighed at its level; no weights are loaded.

    Parameters
    ----------
    fast : FastSampling
    exact : Policy
        Made by `ets.policies.making.policy_of`.

    Raises
    ------
    InputError
        For values out of range, or a pair of samplers that has no ratio at this level.
    """
    from ets.policies.diffusion.levels import target_of
    from ets.policies.making import fast_sampler_of

    policy = fast_sampler_of(exact, fast.level, **{name: getattr(fast, name) for name in FAST}, clip=fast.clip)
    require_variety(policy, fast.candidates)
    return replace(fast, **_settings(getattr(policy, "sampler", policy)), target=target_of(fast.level)), policy


def _settings(sampler: Any) -> dict[str, Any]:
    """What a fast sampler's settings have become."""
    unmasking, caching = sampler.unmasking, sampler.caching
    found = {name: getattr(unmasking, name) for name in ("temperature", "remasking", "threshold", "factor")}
    return found | {"cache": caching and caching.kind, "refresh": caching and caching.refresh}
