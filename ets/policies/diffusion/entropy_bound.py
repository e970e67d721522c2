"""The denoising law of uniform diffusion (DiffusionGemma): pure functions of logits, and the schedule of a generation.

A canvas of C positions starts as C uniform draws from the vocabulary of V tokens. A denoising step reads the logits of
the canvas, tempered by the step's temperature, and accepts positions in the order of their entropies H, as long as the
entropies of the positions before add up to the entropy bound at most (Ben-Hamu et al., arXiv 2505.24857). Accepted
positions get a draw from their tempered distribution p_j, all others a uniform draw. The accepted set S is a function
of the logits, so the step from x to x' has the log-probability

    log P(x' | x) = Σ_{j∈S} log p_j(x'_j) + Σ_{j∉S} -log V.

The step that ends a canvas draws nothing: the canvas becomes its most probable tokens, a function of the path.

Shape letters: R rows, U different canvases among them, C positions of a canvas, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from ets.policies.diffusion.remasking import row_slices
from ets.policies.settings import UniformDenoising
from ets.policies.token_draws import pick_tokens, rows_together
from ets.step import require_counts
from ets.types import InputError


@dataclass(frozen=True)
class UniformSchedule:
    """The canvases of a generation, their denoising steps, and the guide steps, which split the denoising steps evenly.

    A canvas that ends early leaves its remaining steps out, so the number of a step determines its canvas. For example,
    2 canvases of at most 48 steps with 4 guide steps have boundaries at the steps 24, 48, 72 and 96.

    Parameters
    ----------
    canvas_length, canvases : int
    denoising_steps : int
        Most denoising steps of a canvas.
    guide_steps : int
        I, the largest number of guide steps.

    Raises
    ------
    InputError
        For a number of guide steps that does not divide the denoising steps of all canvases.
    """

    canvas_length: int
    canvases: int
    denoising_steps: int
    guide_steps: int

    def __post_init__(self) -> None:
        require_counts(**vars(self))
        if self.steps % self.guide_steps:
            raise InputError(
                f"guide_steps {self.guide_steps} does not divide the {self.steps} denoising steps of "
                f"{self.canvases} canvases; choose a divisor"
            )

    @property
    def steps(self) -> int:
        """Most denoising steps of all canvases."""
        return self.canvases * self.denoising_steps

    @property
    def gen_length(self) -> int:
        """Tokens of all canvases."""
        return self.canvases * self.canvas_length

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least tokens that an open text has generated at each guide boundary, and the most of a complete text.

        A guide step may change all tokens of the canvases that it denoises. For example, a canvas of 256 tokens with
        two guide steps generates from 256 to 512 tokens.
        """
        ends = range(0, self.steps + 1, self.steps // self.guide_steps)
        finished = [end // self.denoising_steps for end in ends]
        begun = [-(-end // self.denoising_steps) for end in ends]
        canvases = sum(last - first for first, last in zip(finished, begun[1:], strict=False))
        return (*(self.canvas_length * number for number in finished[:-1]), self.canvas_length * canvases)

    def boundary(self, step: int) -> int:
        """The first boundary of guide steps after a step."""
        each = self.steps // self.guide_steps
        return (step // each + 1) * each

    def after_canvas(self, step: int) -> int:
        """The first step of the next canvas."""
        return (step // self.denoising_steps + 1) * self.denoising_steps


@dataclass(frozen=True)
class UniformLaw:
    """The settings of `UniformDenoising`, complete."""

    max_denoising_steps: int
    t_max: float
    t_min: float
    entropy_bound: float
    stability_threshold: int
    confidence_threshold: float

    @classmethod
    def of(cls, denoising: UniformDenoising, generation: Any) -> UniformLaw:
        """The law with the values of a generation configuration in the place of None, as `generate` completes it."""
        from transformers.models.diffusion_gemma.generation_diffusion_gemma import DiffusionGemmaGenerationConfig

        published = dict(DiffusionGemmaGenerationConfig._get_default_generation_params())
        published |= {name: value for name in published if (value := getattr(generation, name, None)) is not None}
        sampler = published["sampler_config"]
        published["entropy_bound"] = sampler["entropy_bound"] if isinstance(sampler, dict) else sampler.entropy_bound
        missing = {name: published[name] for name, value in vars(denoising).items() if value is None}
        return cls(**vars(replace(denoising, **missing)))

    def temperature(self, step: int) -> float:
        """The temperature of a denoising step, numbered from 0 within its canvas: it falls linearly from `t_max`."""
        left = (self.max_denoising_steps - step) / self.max_denoising_steps
        return self.t_min + (self.t_max - self.t_min) * left

    def ends(self, step: int, unchanged: int, entropy: float) -> bool:
        """Whether a canvas ends with a denoising step.

        Parameters
        ----------
        step : int
            Numbered from 0 within the canvas.
        unchanged : int
            The passes in a row, up to this one, with the same most probable tokens.
        entropy : float
            The mean of the tempered entropies.
        """
        stable = unchanged > self.stability_threshold
        return step + 1 == self.max_denoising_steps or (stable and entropy < self.confidence_threshold)


@dataclass(frozen=True)
class Denoised:
    """A denoising step of U canvases, and the draws of R rows.

    Parameters
    ----------
    best : tensor
        `[U, C]`, the most probable tokens.
    entropy : tensor
        `[U]` in float64, the mean of the tempered entropies in nats.
    tokens : tensor
        `[R, C]`, the next canvases.
    logp : tensor
        `[R]` in float64, the log-probability of the next canvases.
    """

    best: torch.Tensor
    entropy: torch.Tensor
    tokens: torch.Tensor
    logp: torch.Tensor

    @classmethod
    def joined(cls, parts: list[Denoised]) -> Denoised:
        if len(parts) == 1:
            return parts[0]
        return cls(*(torch.cat([vars(part)[name] for part in parts]) for name in cls.__dataclass_fields__))


def denoise(logits: torch.Tensor, canvas: torch.Tensor, uniforms: torch.Tensor, bound: float) -> Denoised:
    """One denoising step, some canvases at a time if the vocabulary is large.

    Parameters
    ----------
    logits : tensor
        Tempered, `[U, C, V]`.
    canvas : tensor
        `[R]`, the canvas of each row among the U, in ascending order.
    uniforms : tensor
        `[R, C]` in [0, 1), float64. A position is either accepted or renoised, so one number serves for both.
    bound : float
        The entropy bound.
    """
    size, parts = rows_together(logits), []
    for first in range(0, len(logits), size):
        rows = (canvas >= first) & (canvas < first + size)
        parts.append(_denoise(logits[first : first + size], canvas[rows] - first, uniforms[rows], bound))
    return Denoised.joined(parts)


def _denoise(logits: torch.Tensor, canvas: torch.Tensor, uniforms: torch.Tensor, bound: float) -> Denoised:
    probabilities = logits.double().softmax(-1)
    entropies = torch.special.entr(probabilities).sum(-1)
    chosen, vocabulary = accepted(entropies, bound)[canvas], logits.shape[-1]
    tokens = (uniforms * vocabulary).long()
    logp = torch.full_like(uniforms, -math.log(vocabulary))
    for rows, of in row_slices(probabilities, canvas):
        drawn = pick_tokens(probabilities[of].flatten(0, 1), uniforms[rows].flatten())
        for kept, new in zip((tokens, logp), drawn, strict=True):
            kept[rows] = torch.where(chosen[rows], new.view(chosen[rows].shape), kept[rows])
    return Denoised(logits.argmax(-1), entropies.mean(-1), tokens, logp.sum(-1))


def accepted(entropies: torch.Tensor, bound: float) -> torch.Tensor:
    """The accepted positions `[..., C]` from the entropies `[..., C]`.

    In ascending order, a position is accepted if the entropies before it add up to at most `bound`. Equal entropies are
    ordered by position. The position of the lowest entropy is always accepted.
    """
    ordered, order = entropies.sort(dim=-1, stable=True)
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, ordered.cumsum(-1) - ordered <= bound)
