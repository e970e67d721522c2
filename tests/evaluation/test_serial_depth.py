"""The tokens that a method draws one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ets.evaluation.methods import METHODS
from ets.evaluation.serial_depth import Metered, metered
from ets.runner import run
from ets.types import Draw, Policy, State
from tests.evaluation.letters import MASKED_DIFFUSION, SETTINGS, Letters, table

HYPER = replace(SETTINGS, lam=0.3)


@pytest.mark.parametrize("policy", [table(), MASKED_DIFFUSION], ids=["autoregressive", "masked diffusion"])
def test_depth_adds_up_the_longest_row_of_every_call(policy: Policy) -> None:
    """At width 1, where a call is one chain's; power sampling's moves follow each other, rollouts do not."""
    problems = Letters().problems(4, 0)
    for name, guided in METHODS.items():
        if guided.kind != "guided" or guided.law:
            continue
        depths: dict[int, int] = {}
        counted = Counted(policy)
        step = metered(guided.step(Letters(), HYPER, 20 if guided.in_tokens else 2), depths)
        chains = list(run(counted, step, problems, width=1, seed=0))
        assert sum(depths.values()) == counted.longest, name
        if name == "power":
            assert sum(depths.values()) == sum(chain.cost.generated for chain in chains)
    assert power_depths(policy, width=4) == power_depths(policy, width=1)


def power_depths(policy: Policy, width: int) -> dict[int, int]:
    depths: dict[int, int] = {}
    step = metered(METHODS["power"].step(Letters(), HYPER, 2), depths)
    list(run(policy, step, Letters().problems(4, 0), width=width, seed=0))
    return depths


class Counted(Metered):
    """Another count, of whole calls."""

    longest = 0

    def _noted(self, states: Sequence[State], draws: list[Draw]) -> list[Draw]:
        self.longest += max(draw.cost.generated for draw in draws)
        return draws
