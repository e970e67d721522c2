"""ETS on a masked-diffusion model against the plain way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from floor import Floor, Recorder, Shape
from measuring import Conditions, Row, Table
from random_models import as_ets_loads, described, random_checkpoint

from ets.kernel import energy_guided
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Unmasking
from ets.rewards import per_text
from ets.runner import run
from ets.types import Problem, StepFn

ABOUT = """\
Compared with what one writes first: every row goes through the model by itself at every denoising step, with logits for
the whole sequence and float64 Gumbel noise over the whole vocabulary, from which the confident positions of the block
are kept (LLaDA's sampler). Rows are batched, which is kind to it. Both draw M candidates and M·K completions per guide
step by the same law; the weights are random, so canvases are hardly ever equal by chance, and what is saved here is
saved by construction."""


@dataclass(frozen=True)
class Setting:
    """One prompt, M candidates, K rollouts and a schedule.

    Parameters
    ----------
    model : LLaDAConfig
    prompt : int
        Its length.
    """

    model: Any
    prompt: int
    candidates: int
    rollouts: int
    schedule: Schedule

    def __str__(self) -> str:
        schedule = self.schedule
        return (
            f"Prompt {self.prompt}, gen_length {schedule.gen_length} in {schedule.steps} "
            f"denoising steps, block {schedule.block_length}. M {self.candidates}, K {self.rollouts}, "
            f"I {schedule.guide_steps}."
        )

    @property
    def length(self) -> int:
        """Of the canvas with its prompt."""
        return self.prompt + self.schedule.gen_length

    @property
    def problem(self) -> Problem:
        ids = np.random.default_rng(0).integers(0, self.model.mask_token_id, self.prompt)
        return Problem("p", tuple(ids.tolist()))

    @property
    def step(self) -> StepFn:
        reward = per_text(lambda _, text: len(text) % 7)
        return energy_guided(reward, candidates=self.candidates, rollouts=self.rollouts, lam=1.0)


class Plain:
    """The plain way; what it computed is counted as it runs."""

    def __init__(self, setting: Setting, checkpoint: Checkpoint) -> None:
        self.setting, self.model, self.mask = setting, checkpoint.model, setting.model.mask_token_id
        self.row_forwards = self.vocabulary = 0

    @torch.inference_mode()
    def __call__(self) -> None:
        self.row_forwards = self.vocabulary = 0
        schedule, rows = self.setting.schedule, self._empty()
        each = schedule.steps_per_guide_step
        for first in range(0, schedule.steps, each):
            candidates = self._denoise(rows.repeat(self.setting.candidates, 1), range(first, first + each))
            rest = range(first + each, schedule.steps)
            self._denoise(candidates.repeat_interleave(self.setting.rollouts, 0), rest)
            rows = candidates[:1]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """One denoising step of a batch, so that no repeat pays for what is made once."""
        self._denoise(self._empty().repeat(self.setting.candidates, 1), range(1))

    def _empty(self) -> torch.Tensor:
        canvas = [self.mask] * self.setting.schedule.gen_length
        return torch.tensor([[*self.setting.problem.prompt, *canvas]], device=self.model.device)

    def _denoise(self, rows: torch.Tensor, steps: range) -> torch.Tensor:
        return torch.cat([self._denoise_batch(batch, steps) for batch in torch.split(rows, self.setting.candidates)])

    def _denoise_batch(self, rows: torch.Tensor, steps: range) -> torch.Tensor:
        for step in steps:
            logits = self.model(rows).logits.double()
            confidences = logits.softmax(-1)
            logits[..., self.mask] = -torch.inf
            drawn = (logits - (-torch.rand_like(logits).log()).log()).argmax(-1)
            confidence = confidences.gather(-1, drawn[..., None])[..., 0]
            confidence[rows != self.mask] = -torch.inf
            confidence[:, self.setting.prompt + self.setting.schedule.block_of(step)[1] :] = -torch.inf
            kept = confidence.topk(self.setting.schedule.quota(step), dim=-1).indices
            rows = rows.scatter(-1, kept, drawn.gather(-1, kept))
            self.row_forwards += len(rows)
            self.vocabulary += rows.numel()
        return rows


def ets(setting: Setting, checkpoint: Checkpoint) -> MaskedDiffusionPolicy:
    """One guided sample; returns the policy, whose ledger tells what it computed."""
    policy = MaskedDiffusionPolicy(checkpoint, Unmasking(), setting.schedule)
    list(run(policy, setting.step, [setting.problem], width=1, seed=0))
    return policy


def against_plain(setting: Setting, conditions: Conditions) -> Table:
    """One guided sample of ETS against one of the plain way."""
    checkpoint = random_checkpoint(setting.model, conditions.device, conditions.dtype)
    own, plain = as_ets_loads(checkpoint), Plain(setting, checkpoint)
    plain.warm_up()
    with Recorder(own.model, setting.length) as recorder:
        cost = ets(setting, own).ledger  # warms up, too
    ours, other = conditions.rounds((lambda: ets(setting, own), plain))
    counts: dict[str, int | float | str] = {
        "row-forwards": cost.row_forwards,
        "compared: row-forwards": plain.row_forwards,
        "vocabulary positions": cost.vocabulary,
        "compared: vocabulary positions": plain.vocabulary,
    }
    floor = Floor.of(conditions.peak, Shape.of(checkpoint.model), recorder.forwards)
    row = Row("one guided sample", ours, other, counts, floor)
    shape = f"{described(checkpoint.model)} {setting}"
    return Table("masked_diffusion", "Masked diffusion: ETS", ABOUT, shape, [row])
