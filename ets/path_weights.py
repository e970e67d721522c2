"""A sampler whose draws carry importance weights towards another law, such as a fast masked-diffusion sampler.

With an autoregressive proposal the reference policy draws the candidates (`ets.importance`). Here the sampler draws
candidates and rollouts: the path ratio of a candidate multiplies its energy, and the ratio of a rollout covers the path
after the candidate. Exact candidates with weighted rollouts would follow neither law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ets.importance import Clip, NoiseWarning, WrappedState, states_of
from ets.types import Cost, Draw, Keys, Policy, Problem, State


@dataclass(frozen=True)
class PathRatio:
    """log target - log sampler of one path, and the cost of computing it."""

    log_ratio: float
    cost: Cost


class Weigher(Protocol):
    """Computes the importance ratios of a sampler's paths."""

    @property
    def target(self) -> str:
        """The law that weighted draws follow, in words."""

    @property
    def ledger(self) -> Cost: ...

    def ratios(self, starts: Sequence[State], ends: Sequence[State]) -> list[PathRatio]:
        """The ratio of each path from a state of the sampler to a later state."""


@dataclass(frozen=True, eq=False)
class WeighedState(WrappedState):
    """A state of the sampler, the target's log-probability of its path, and the log-ratio within this guide step."""

    logp: float = 0.0
    log_ratio: float = 0.0


class PathWeights:
    """A sampler q as a policy whose draws carry log target - log q, where the weigher names the target.

    Parameters
    ----------
    sampler : Policy
    weigher : Weigher
    clip : (float, float), optional
        Bounds on the ratio of a candidate, and on the ratio of a rollout after it; a ratio of zero stays zero.

    Raises
    ------
    InputError
        For bounds out of order.
    """

    def __init__(self, sampler: Policy, weigher: Weigher, clip: tuple[float, float] | None = None) -> None:
        self.sampler, self.weigher, self.clip, self._clip = sampler, weigher, clip, Clip(clip)
        self._warn_of_noise = NoiseWarning()

    weighed = True  # `ets.step.require_unweighed`

    @property
    def target(self) -> str:
        """The law that weighted draws follow, in words."""
        return self.weigher.target

    @property
    def ledger(self) -> Cost:
        return self.sampler.ledger + self.weigher.ledger

    @property
    def deterministic(self) -> bool:
        return self.sampler.deterministic

    def load(self) -> None:
        """Load the weights of the sampler, as far as it has any."""
        getattr(self.sampler, "load", lambda: None)()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [WeighedState(state) for state in self.sampler.start(problems)]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """Candidates; their texts carry the ratio of this guide step."""
        befores = states_of(WeighedState, states)
        drawn = self.sampler.extend([state.drawn for state in befores], keys)
        return self._draws([replace(state, log_ratio=0.0) for state in befores], drawn)

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """Rollouts; their texts carry the ratio since the guide step began, with the ratio of the candidate."""
        befores = states_of(WeighedState, states)
        drawn = self._draws(befores, self.sampler.finish([state.drawn for state in befores], keys))
        before = [0.0 if state.log_ratio == -math.inf else state.log_ratio for state in befores]
        self._warn_of_noise([d.text.log_ratio - ratio for d, ratio in zip(drawn, before, strict=True)])
        return drawn

    def _draws(self, befores: Sequence[WeighedState], drawn: Sequence[Draw]) -> list[Draw]:
        found = self.weigher.ratios([before.drawn for before in befores], [draw.state for draw in drawn])
        weighed = []
        for before, draw, ratio in zip(befores, drawn, found, strict=True):
            log_ratio, logp = before.log_ratio + self._clip(ratio.log_ratio), before.logp + draw.logp + ratio.log_ratio
            text = replace(draw.text, logp=logp, log_ratio=log_ratio)
            state = WeighedState(draw.state, logp, log_ratio)
            weighed.append(Draw(state, text, draw.logp, draw.cost + ratio.cost))
        return weighed
