"""ETS on a causal model: against the plain way, and with a proposal against without."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from floor import Floor, Forward, Shape, drawing, reading
from measuring import Conditions, Row, Table
from random_models import as_ets_loads, described, random_checkpoint

from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.rewards import per_text
from ets.runner import run
from ets.types import Cost, Policy, Problem

PLAIN = """\
Compared with what one writes first: at every guide step, `model.generate` on M repeated prompts for the candidates,
then `model.generate` on M·K repeated prefixes for the rollouts, no cache carried over. Both draw as many tokens from
the same random weights, and there is no end token, so the work is the same at every repeat."""
PROPOSAL = """\
ETS-IS, compared with ETS without a proposal. A smaller model draws the rollouts, and the model scores them in parallel
forwards. Each rollout's tokens go through the model all the same, so positions show no saving. `times faster` is the
median of the repeats' own ratios."""


@dataclass(frozen=True)
class Setting:
    """What is sampled: M candidates, K rollouts, guide steps of `block` tokens up to `length`.

    Parameters
    ----------
    model, proposal : PreTrainedConfig
    prompts : tuple of int
        Lengths, each a row of the table.
    problems : int
        Prompts that advance together.
    """

    model: Any
    proposal: Any
    prompts: tuple[int, ...]
    problems: int
    candidates: int
    rollouts: int
    block: int
    length: int

    def __str__(self) -> str:
        return (
            f"Prompts that advance together: {self.problems}. M {self.candidates}, K {self.rollouts}, block "
            f"{self.block}, length {self.length}."
        )

    @property
    def steps(self) -> Iterator[tuple[int, int]]:
        """Of each guide step: the tokens drawn before it, and those that are left after it."""
        for before in range(0, self.length, self.block):
            yield before, self.length - before - self.block


class Run:
    """One row's prompts, and the ways to go on from them.

    Parameters
    ----------
    setting : Setting
    prompt : int
    model, small : Checkpoint
        The model and the proposal as `ets` loads them.
    unpacked : Checkpoint, optional
        The model as transformers loads it; by default `model`.
    """

    def __init__(
        self,
        setting: Setting,
        prompt: int,
        model: Checkpoint,
        small: Checkpoint | None = None,
        unpacked: Checkpoint | None = None,
    ) -> None:
        self.setting, self.model, self.small = setting, model, small
        self.unpacked = unpacked or model
        numbers = np.random.default_rng(0)
        self.prompts = numbers.integers(0, model.config.vocab_size, (setting.problems, prompt)).tolist()

    def ets(self) -> Cost:
        """What was computed."""
        return self._sample(None).ledger

    def ets_is(self) -> tuple[Cost, Cost]:
        """What the model and the proposal computed."""
        assert self.small is not None
        proposal = self._policy(self.small)
        return self._sample(proposal).ledger, proposal.ledger

    def _policy(self, checkpoint: Checkpoint) -> TransformersPolicy:
        return TransformersPolicy(checkpoint, Sampling(), Horizon(self.setting.block, self.setting.length))

    def _sample(self, proposal: TransformersPolicy | None) -> TransformersPolicy:
        policy, reward = self._policy(self.model), per_text(lambda _, text: len(text) % 7)
        drawing: Policy = policy if proposal is None else ImportanceSampling(policy, proposal)
        numbers: dict[str, Any] = {"candidates": self.setting.candidates, "rollouts": self.setting.rollouts, "lam": 1.0}
        step = energy_guided(reward, **numbers)
        problems = [Problem(str(n), tuple(prompt)) for n, prompt in enumerate(self.prompts)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # random weights are no good proposal for each other
            list(run(drawing, step, problems, width=len(problems), seed=0))
        return policy

    def plain(self) -> None:
        rows = self.prompts
        for _, rest in self.setting.steps:
            candidates = self._generate(
                [row for row in rows for _ in range(self.setting.candidates)], self.setting.block
            )
            if rest:
                self._generate([row for row in candidates for _ in range(self.setting.rollouts)], rest)
            rows = candidates[:: self.setting.candidates]

    def _generate(self, rows: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(rows, device=self.unpacked.model.device)
        options: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
        drawn = self.unpacked.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, **options
        )
        return drawn.tolist()


def needed(setting: Setting, prompt: int) -> list[Forward]:
    """The forward passes that Algorithm 1 needs: each prompt, candidate and rollout read once, its last token never."""
    m, mk, block = setting.candidates, setting.candidates * setting.rollouts, setting.block
    passes = [reading(1, prompt, 0, 0, logits=1)]
    for before, rest in setting.steps:
        context = prompt + before
        passes += drawing(m, block if rest else block - 1, context, kept=context)
        passes += drawing(mk, rest - 1, context + block, kept=context + m * block)
    return [forward.times(setting.problems) for forward in passes]


def needed_with_a_proposal(setting: Setting, prompt: int) -> tuple[list[Forward], list[Forward]]:
    """Those of Algorithm 2: the model's, which scores rollouts in parallel, and the proposal's, which reads candidates.

    A token is scored by the logits after the one before it; those of a rollout's first token its candidate has.
    """
    m, mk, block = setting.candidates, setting.candidates * setting.rollouts, setting.block
    model, proposal = [reading(1, prompt, 0, 0, logits=1)], [reading(1, prompt, 0, 0, logits=0)]
    for before, rest in setting.steps:
        context = prompt + before
        model += drawing(m, block if rest else block - 1, context, kept=context)
        if rest:
            kept = context + m * block
            model.append(reading(mk, rest - 1, context + block, kept, logits=mk * (rest - 1)))
            proposal.append(reading(m, block, context, kept=context, logits=m))
            proposal += drawing(mk, rest - 1, context + block, kept)
    return tuple([forward.times(setting.problems) for forward in side] for side in (model, proposal))  # type: ignore[return-value]


def against_plain(setting: Setting, conditions: Conditions) -> Table:
    """ETS against `model.generate`, by prompt length."""
    model = random_checkpoint(setting.model, conditions.device, conditions.dtype)
    own, shape, rows = as_ets_loads(model), Shape.of(model.model), []
    _warm_up(setting, own, unpacked=model)
    for prompt in setting.prompts:
        way = Run(setting, prompt, own, unpacked=model)
        ours, plain = conditions.rounds((way.ets, way.plain))
        passes = needed(setting, prompt)
        counts: dict[str, int | float | str] = {"positions": sum(forward.positions for forward in passes)}
        rows.append(Row(f"prompt {prompt}", ours, plain, counts, Floor.of(conditions.peak, shape, passes)))
    return Table("autoregressive", "Autoregressive: ETS", PLAIN, f"{described(model.model)} {setting}", rows)


def with_a_proposal(setting: Setting, conditions: Conditions) -> Table:
    """ETS-IS against ETS, by prompt length."""
    model, small = (
        as_ets_loads(random_checkpoint(config, conditions.device, conditions.dtype))
        for config in (setting.model, setting.proposal)
    )
    _warm_up(setting, model, small)
    rows = []
    for prompt in setting.prompts:
        way = Run(setting, prompt, model, small)
        ours, without = conditions.rounds((way.ets_is, way.ets))
        sides = needed_with_a_proposal(setting, prompt)
        floors = [
            Floor.of(conditions.peak, Shape.of(of.model), passes)
            for of, passes in zip((model, small), sides, strict=True)
        ]
        names = ("model's positions", "proposal's positions")
        counts: dict[str, int | float | str] = {
            name: sum(forward.positions for forward in passes) for name, passes in zip(names, sides, strict=True)
        }
        rows.append(Row(f"prompt {prompt}", ours, without, counts, floors[0] + floors[1]))
    models = f"{described(model.model)} The proposal: {described(small.model)}"
    return Table("autoregressive_proposal", "Autoregressive: ETS-IS", PROPOSAL, f"{models} {setting}", rows)


def _warm_up(
    setting: Setting, model: Checkpoint, small: Checkpoint | None = None, unpacked: Checkpoint | None = None
) -> None:
    """A short run of every way, so that no repeat pays for what is made once."""
    short = replace(setting, problems=1, candidates=2, rollouts=2, block=2, length=4)
    way = Run(short, 8, model, small, unpacked)
    way.plain()
    way.ets_is() if small else way.ets()
