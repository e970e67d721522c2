"""Serial depth: the tokens that a method draws one after the other, however many rows are drawn at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ets.types import Chain, Cost, Draw, Keys, Policy, Problem, State, StepFn


class Metered:
    """A policy that adds up, by problem, the tokens of the longest row of each call."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.depths = policy, defaultdict[str, int](int)

    @property
    def ledger(self) -> Cost:
        return self.policy.ledger

    @property
    def deterministic(self) -> bool:
        return self.policy.deterministic

    def __getattr__(self, name: str) -> Any:
        """Further parts of the policy: searches, and whether its draws are weighed."""
        return getattr(self.policy, name)

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return self.policy.start(problems)

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._noted(states, self.policy.extend(states, keys))

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._noted(states, self.policy.finish(states, keys))

    def _noted(self, states: Sequence[State], draws: list[Draw]) -> list[Draw]:
        longest = defaultdict[str, int](int)
        for state, draw in zip(states, draws, strict=True):
            problem = getattr(state, "problem", None)  # a user's policy may keep no problem: then all rows count alike
            name = "" if problem is None else problem.id
            longest[name] = max(longest[name], draw.cost.generated)
        for name, tokens in longest.items():
            self.depths[name] += tokens
        return draws


def metered(step: StepFn, depths: dict[int, int]) -> StepFn:
    """The step function, which adds the longest row of each call to the depth of the chain, by the chain's key.

    Chains that advance together must have different problems.
    """

    def stepped(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        meter = Metered(policy)
        advanced = step(meter, chains)
        for chain in advanced:
            depths[chain.key] = depths.get(chain.key, 0) + meter.depths[chain.problem.id] + meter.depths[""]
        return advanced

    return stepped
