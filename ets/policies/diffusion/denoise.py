"""The schedule of masked diffusion, and its transition: one denoising step, a pure function of logits.

At a canvas x, a step draws a token for every masked position of the active block, v_j ~ p_j, ranks the draws by a
score, and reveals the best draws. The draws are independent, so revealing the set S with tokens v_S has the probability

    log P(S, v_S | x) = Σ_{i∈S} log p_i(v_i) + position term,

and `denoise` returns both parts. The token probabilities alone do not sum to one over the events (S, v_S).

Shape letters: R rows, U different canvases among them, n masked positions of the active block, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from ets.policies.diffusion.remasking import RULES, Drawn, Turn, at_tokens, for_rows, row_slices
from ets.policies.settings import CanvasSettings, Unmasking
from ets.policies.token_draws import pick_tokens
from ets.step import require_counts
from ets.types import InputError


@dataclass(frozen=True)
class Schedule:
    """The order in which a canvas is filled: blocks from left to right, each in equally many denoising steps.

    Parallel decoding may fill a block early; the remaining steps of the block are left out, so a step's number still
    determines its block. A guide step ends when at least as many positions are revealed as its steps' quotas add up
    to: without parallel decoding after `steps / guide_steps` steps. With parallel decoding, the M candidates of a guide
    step of one whole block may not differ, and `guide_steps` is the largest number of guide steps.

    Parameters
    ----------
    gen_length : int
        Tokens of the canvas (d_x).
    steps : int
        Denoising steps in all: a multiple of the number of blocks, at most `gen_length`. Parallel decoding may take
        fewer, since each step reveals at least its quota.
    block_length : int
        Tokens of a block; divides `gen_length`.
    guide_steps : int
        I. They split the denoising steps evenly, inside a block or across blocks.

    Raises
    ------
    InputError
        For numbers that do not fit each other.
    """

    gen_length: int
    steps: int
    block_length: int
    guide_steps: int

    def __post_init__(self) -> None:
        length, steps, block, guides = self.gen_length, self.steps, self.block_length, self.guide_steps
        require_counts(gen_length=length, steps=steps, block_length=block, guide_steps=guides)
        if length % block:
            raise InputError(f"gen_length {length} is no multiple of block_length {block}; change one of them")
        if steps % self.blocks:
            raise InputError(
                f"steps {steps} is no multiple of the {self.blocks} blocks that gen_length {length} and "
                f"block_length {block} make; choose {self.blocks} times the steps of a block"
            )
        if steps > length:
            raise InputError(f"steps {steps} are more than the {length} tokens of gen_length; choose {length} or less")
        if steps % guides:
            raise InputError(f"guide_steps {guides} does not divide steps {steps}; choose a divisor")

    @classmethod
    def of(cls, canvas: CanvasSettings, family_block_length: int) -> Schedule:
        """The schedule of a canvas, for a model family whose blocks have `family_block_length` tokens by default."""
        length, block = canvas.max_length, family_block_length
        return cls(
            length,
            length if canvas.steps is None else canvas.steps,
            (length if length % block else block) if canvas.block_length is None else canvas.block_length,
            canvas.guide_step_count,
        )

    @property
    def blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def steps_per_block(self) -> int:
        return self.steps // self.blocks

    @property
    def steps_per_guide_step(self) -> int:
        return self.steps // self.guide_steps

    @property
    def most_steps(self) -> int:
        """The largest number of denoising steps, whatever the prompt."""
        return self.steps

    def block_of(self, step: int, prompt_length: int = 0) -> tuple[int, int]:
        """The first position of the block that a denoising step fills, and the position after the block."""
        first = step // self.steps_per_block * self.block_length
        return first, first + self.block_length

    def masked_at(
        self, step: int, tokens: NDArray[np.int64], mask_id: int, prompt_length: int = 0
    ) -> NDArray[np.int64]:
        """The masked positions `[n]` of the block that a denoising step fills, of a canvas `[gen_length]`."""
        first, last = self.block_of(step, prompt_length)
        return first + np.flatnonzero(tokens[first:last] == mask_id)

    def quota(self, step: int) -> int:
        """The positions that a denoising step reveals: an even share of its block, the remainder first."""
        share, remainder = divmod(self.block_length, self.steps_per_block)
        return share + (step % self.steps_per_block < remainder)

    def step_after(self, steps: NDArray[np.int64], full: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The numbers of the next denoising steps `[R]`: the first step of the next block if the block is full."""
        each = self.steps_per_block
        return np.where(full, (steps // each + 1) * each, steps + 1)

    def boundary(self, revealed: int) -> int:
        """The least number of revealed positions at the end of a guide step that begins with `revealed`."""
        return next(share for share in self._boundaries if share > revealed)

    @cached_property
    def _boundaries(self) -> list[int]:
        revealed = list(accumulate(map(self.quota, range(self.steps))))
        return revealed[self.steps_per_guide_step - 1 :: self.steps_per_guide_step]


@dataclass(frozen=True)
class Revealed:
    """The result of one denoising step for R rows of n masked positions."""

    tokens: torch.Tensor  # [R, n], the token drawn at each position
    positions: torch.Tensor  # [R, n], True where the token is revealed (S)
    token_logp: torch.Tensor  # [R] in float64, the first part of log P(S, v_S | x)
    position_logp: torch.Tensor  # [R] in float64, the position term


def denoise(turn: Turn, unmasking: Unmasking) -> Revealed:
    """One denoising step: draw a token at every masked position, and reveal the best draws."""
    probabilities = unmasking.probabilities(turn.logits, turn.mask_id)
    parts = [
        pick_tokens(probabilities[of].flatten(0, 1), turn.uniforms[rows].flatten())
        for rows, of in row_slices(probabilities, turn.canvas)
    ]
    tokens, logp = (torch.cat(part).view(turn.uniforms.shape) for part in zip(*parts, strict=True))
    return _reveal(turn, probabilities, tokens, logp, unmasking)


def denoise_greedily(turn: Turn, unmasking: Unmasking) -> Revealed:
    """The step of `denoise` at temperature 0, with its log-probability at temperature 1."""
    untempered = replace(unmasking, temperature=1.0)
    best_tokens = replace(unmasking, temperature=0.0).probabilities(turn.logits, turn.mask_id).argmax(-1)
    probabilities = untempered.probabilities(turn.logits, turn.mask_id)
    tokens = for_rows(best_tokens, turn.canvas)
    logp = at_tokens(probabilities, turn.canvas, tokens).log()
    return _reveal(turn, probabilities, tokens, logp, untempered)


def _reveal(turn: Turn, p: torch.Tensor, tokens: torch.Tensor, logp: torch.Tensor, unmasking: Unmasking) -> Revealed:
    drawn = Drawn(turn, p, tokens, unmasking.bars(turn.quota, tokens.shape[1]))
    positions, position_logp = RULES[unmasking.remasking].reveal(drawn)
    return Revealed(tokens, positions, logp.masked_fill(~positions, 0.0).sum(-1), position_logp)
