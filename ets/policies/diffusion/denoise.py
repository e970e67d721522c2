"""Masked diffusion's settings, and its transition, one denoising step at a time: pure functions on logits.

At a canvas x, a step draws a token for every masked position of the active block, v_j ~ p_j, ranks the draws by a
score, and reveals the best. The draws are independent, so the probability of revealing the set S with tokens v_S is

    log P(S, v_S | x) = Σ_{i∈S} log p_i(v_i) + position term,

and `denoise` returns both parts. Token probabilities alone are no transition law: they do not sum to one.

Shape letters: R rows, U different canvases among them, n masked positions of the active block, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from ets.policies.diffusion.remasking import RULES, Drawn, at_tokens, for_rows, row_slices
from ets.policies.settings import Canvas, Unmasking
from ets.policies.token_draws import pick_tokens
from ets.step import require_counts
from ets.types import InputError


@dataclass(frozen=True)
class Schedule:
    """How a canvas is filled: blocks from left to right, each in equally many denoising steps.

    Parallel decoding may fill a block before its steps are over; the rest of them is left out, so that a step's number
    still tells its block. Guide steps are therefore counted in revealed positions, not in steps: a guide step ends as
    soon as at least as many positions are revealed as the quotas of its steps reveal. Without parallel decoding that is
    after `steps / guide_steps` steps. With it, M candidates differ by what one denoising step reveals at most, and not
    at all where guide steps are whole blocks; there are `guide_steps` at most.

    Parameters
    ----------
    gen_length : int
        Tokens of the canvas (d_x).
    steps : int
        Denoising steps in all: a multiple of the number of blocks, at most `gen_length`. Where decoding is parallel,
        the largest number of steps: each reveals its quota at least.
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
    def of(cls, canvas: Canvas, family_block_length: int) -> Schedule:
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

    def block_of(self, step: int) -> tuple[int, int]:
        """The first position of the block that is active at a denoising step, and the one after its last."""
        first = step // self.steps_per_block * self.block_length
        return first, first + self.block_length

    def quota(self, step: int) -> int:
        """How many positions a denoising step reveals: an even share of its block, the remainder first."""
        share, remainder = divmod(self.block_length, self.steps_per_block)
        return share + (step % self.steps_per_block < remainder)

    def step_after(self, steps: NDArray[np.int64], full: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The numbers of rows' next denoising steps `[R]`: of the next block's first, where the block is full."""
        each = self.steps_per_block
        return np.where(full, (steps // each + 1) * each, steps + 1)

    def boundary(self, revealed: int) -> int:
        """How many positions are revealed, at least, when a guide step ends that begins with so many."""
        return next(share for share in self._boundaries if share > revealed)

    @cached_property
    def _boundaries(self) -> list[int]:
        revealed = list(accumulate(map(self.quota, range(self.steps))))
        return revealed[self.steps_per_guide_step - 1 :: self.steps_per_guide_step]


@dataclass(frozen=True)
class Turn:
    """What a denoising step of R rows starts from.

    Parameters
    ----------
    logits : tensor
        `[U, n, V]`, guided, at the masked positions of the active block from left to right.
    mask_id : int
        The mask token: never drawn.
    canvas : tensor
        `[R]`, which of the U each row has. Where R = U, it is 0, 1, 2, ….
    quota : tensor
        `[R]`, how many positions to reveal, at least where decoding is parallel: 1 to n.
    uniforms : tensor
        `[R, n]` in float64: one for each drawn token.
    orders : tensor
        `[R, n]` in float64: one for each position, used by the rule `random` only.
    """

    logits: torch.Tensor
    mask_id: int
    canvas: torch.Tensor
    quota: torch.Tensor
    uniforms: torch.Tensor
    orders: torch.Tensor

    def drawn(self, probabilities: torch.Tensor, tokens: torch.Tensor, unmasking: Unmasking) -> Drawn:
        bars = unmasking.bars(self.quota, tokens.shape[1])
        return Drawn(self.logits, self.canvas, probabilities, tokens, self.orders, bars, self.mask_id)


@dataclass(frozen=True)
class Revealed:
    """What a denoising step did to R rows of n masked positions.

    Parameters
    ----------
    tokens : tensor
        `[R, n]`, the token drawn at each position, whether it is revealed or not.
    positions : tensor
        `[R, n]`, True where the token is revealed (S).
    token_logp, position_logp : tensor
        `[R]`, the two parts of log P(S, v_S | x), float64.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    token_logp: torch.Tensor
    position_logp: torch.Tensor


def denoise(turn: Turn, unmasking: Unmasking) -> Revealed:
    """One denoising step."""
    probabilities = unmasking.probabilities(turn.logits, turn.mask_id)
    parts = [
        pick_tokens(probabilities[of].flatten(0, 1), turn.uniforms[rows].flatten())
        for rows, of in row_slices(probabilities, turn.canvas)
    ]
    tokens, logp = (torch.cat(part).view(turn.uniforms.shape) for part in zip(*parts, strict=True))
    return _reveal(turn.drawn(probabilities, tokens, unmasking), logp, unmasking)


def denoise_greedily(turn: Turn, unmasking: Unmasking) -> Revealed:
    """What `denoise` does at temperature 0, with the log-probability that temperature 1 gives to it."""
    untempered = replace(unmasking, temperature=1.0)
    best_tokens = replace(unmasking, temperature=0.0).probabilities(turn.logits, turn.mask_id).argmax(-1)
    probabilities = untempered.probabilities(turn.logits, turn.mask_id)
    tokens = for_rows(best_tokens, turn.canvas)
    logp = at_tokens(probabilities, turn.canvas, tokens).log()
    return _reveal(turn.drawn(probabilities, tokens, untempered), logp, untempered)


def _reveal(drawn: Drawn, logp: torch.Tensor, unmasking: Unmasking) -> Revealed:
    positions, position_logp = RULES[unmasking.remasking].reveal(drawn)
    return Revealed(drawn.tokens, positions, logp.masked_fill(~positions, 0.0).sum(-1), position_logp)
