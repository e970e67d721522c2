"""Exact and cached samplers of masked diffusion, and what Level 1 costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from floor import Floor, Forward, Recorder, Shape
from masked_diffusion import Setting
from measuring import Conditions, Row, Table
from random_models import as_ets_loads, described, random_checkpoint

from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.levels import weighed_sampler
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching, Unmasking
from ets.runner import run
from ets.types import Cost

ABOUT = """\
Each sampler draws one completion from the empty canvas, and one guided sample by ETS (Level 0: the sampler is p_ref,
its weight exactly 1), compared with the exact sampler's. The last row weighs a guided sample's paths at Level 1, with
as many exact forwards as it had steps on a stale cache. Caches are refreshed at each block's first step. The head is
scaled so that largest probabilities lie on both sides of 0.9, and how many steps the threshold leaves out depends on
that scale: read its row as an example. The floor is that of each row's own law, counted from its forward passes."""
SPREAD = 10.0
"""Standard deviation of the logits."""
SAMPLERS: dict[str, tuple[Unmasking, Caching | None]] = {
    "exact": (Unmasking(), None),
    "prefix cache": (Unmasking(), Caching("prefix")),
    "dual cache": (Unmasking(), Caching("dual")),
    "dual cache, threshold 0.9": (Unmasking(remasking="largest", threshold=0.9), Caching("dual")),
}
WEIGHED = "dual cache, threshold 0.9"
"""The sampler that is measured at Level 1 too."""


class Ways:
    """What each sampler does, by label."""

    def __init__(self, setting: Setting, checkpoint: Checkpoint) -> None:
        self.setting, self.checkpoint = setting, checkpoint

    def completion(self, name: str) -> Cost:
        policy = self._policy(name, guide_steps=1)
        policy.finish(policy.start([self.setting.problem]), np.zeros(1, np.uint64))
        return policy.ledger

    def guided(self, name: str) -> Cost:
        policy = self._policy(name)
        list(run(policy, self.setting.step, [self.setting.problem], width=1, seed=0))
        return policy.ledger

    def at_level_1(self, name: str) -> Cost:
        fast, exact = self._policy(name), self._policy("exact")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of random weights, a stale cache says little
            list(run(weighed_sampler(exact, fast, "1"), self.setting.step, [self.setting.problem], width=1, seed=0))
        return fast.ledger + exact.ledger

    def _policy(self, name: str, guide_steps: int | None = None) -> MaskedDiffusionPolicy:
        unmasking, caching = SAMPLERS[name]
        schedule = replace(self.setting.schedule, guide_steps=guide_steps or self.setting.schedule.guide_steps)
        return MaskedDiffusionPolicy(self.checkpoint, unmasking, schedule, caching=caching)

    def by_label(self) -> dict[str, Callable[[], Cost]]:
        """Completions, then guided samples; the exact sampler's are each kind's first."""
        kinds = {"one completion": self.completion, "guided sample": self.guided}
        ways = {f"{kind}, {name}": _bound(way, name) for kind, way in kinds.items() for name in SAMPLERS}
        return ways | {f"guided sample, {WEIGHED}, Level 1": _bound(self.at_level_1, WEIGHED)}


def _bound(way: Callable[[str], Cost], name: str) -> Callable[[], Cost]:
    return lambda: way(name)


def compare(setting: Setting, conditions: Conditions) -> Table:
    """All samplers in turn."""
    checkpoint = as_ets_loads(random_checkpoint(setting.model, conditions.device, conditions.dtype))
    checkpoint.model.get_output_embeddings().weight.data.mul_(
        SPREAD / setting.model.init_std / setting.model.d_model**0.5
    )
    ways, shape = Ways(setting, checkpoint), Shape.of(checkpoint.model)
    ways.completion(WEIGHED)  # warms up
    recorded = {label: _Recorded(way, setting.length, checkpoint) for label, way in ways.by_label().items()}
    seconds = dict(zip(recorded, conditions.rounds(list(recorded.values())), strict=True))
    rows = []
    for label, way in recorded.items():
        exact = seconds[f"{label.split(',')[0]}, exact"]
        counts: dict[str, int | float | str] = {"forwards": int(way.cost.forwards), "positions": way.cost.positions}
        rows.append(Row(label, seconds[label], exact, counts, Floor.of(conditions.peak, shape, way.forwards)))
    described_setting = f"{described(checkpoint.model)} {setting}"
    return Table("fast_diffusion", "Masked diffusion: fast samplers", ABOUT, described_setting, rows)


class _Recorded:
    """A way that notes what it cost and its forward passes whenever it runs."""

    def __init__(self, way: Callable[[], Cost], length: int, checkpoint: Checkpoint) -> None:
        self.way, self.length, self.checkpoint = way, length, checkpoint
        self.cost, self.forwards = Cost(), list[Forward]()

    def __call__(self) -> None:
        with Recorder(self.checkpoint.model, self.length) as recorder:
            self.cost = self.way()
        self.forwards = recorder.forwards
