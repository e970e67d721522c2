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

from ets.models import Family
from ets.policies.diffusion.remasking import Drawn, Turn, at_tokens, for_rows, row_slices
from ets.policies.settings import EPS, QUOTAS, CanvasSettings, Unmasking
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

    The quotas `time` are those of Dream's sampler (Ye et al., arXiv 2508.15487): the S steps of a block stand at times
    t_0 = 1 to t_S = eps, evenly spaced. A step from t to s reveals int(n (1 - s/t)) of the n masked positions, the last
    step all. For example, 4 positions in 4 steps have the quotas 0, 1, 1, 2 at eps = 0.001. Steps with the quota 0 are
    left out. The rule `origin` has no quotas: each position is revealed with the probability 1 - s/t, and a guide step
    is `steps / guide_steps` denoising steps, whatever they reveal.

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
    quotas : str
        `even`, an even share of the block in each step with the remainder first, or `time`. With `time`, the steps may
        be more than the tokens.
    eps : float
        The last time of `time`. `even` has the times 1 to 0.

    Raises
    ------
    InputError
        For numbers that do not fit each other.
    """

    gen_length: int
    steps: int
    block_length: int
    guide_steps: int
    quotas: str = "even"
    eps: float = EPS

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
        if self.quotas not in QUOTAS:
            raise InputError(f"unknown quotas {self.quotas!r}; choose from {', '.join(QUOTAS)}")
        if steps > length and self.quotas == "even":
            raise InputError(f"steps {steps} are more than the {length} tokens of gen_length; choose {length} or less")
        if steps % guides:
            raise InputError(f"guide_steps {guides} does not divide steps {steps}; choose a divisor")

    @classmethod
    def of(cls, canvas: CanvasSettings, family: Family) -> Schedule:
        """The schedule of a canvas, for a model family: its block length and its quotas are the defaults.

        Raises
        ------
        InputError
            For `eps` with even quotas, which do not depend on it.
        """
        length, block = canvas.max_length, family.block_length or canvas.max_length
        quotas = canvas.quotas or family.quotas
        if canvas.eps is not None and quotas == "even":
            raise InputError(
                f"eps is {canvas.eps}, but even quotas have no times; leave eps out, or set quotas to time"
            )
        return cls(
            length,
            length if canvas.steps is None else canvas.steps,
            (length if length % block else block) if canvas.block_length is None else canvas.block_length,
            canvas.guide_step_count,
            quotas,
            EPS if canvas.eps is None else canvas.eps,
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
        """The positions that a denoising step reveals; 0 for a step that is left out."""
        return self._block_quotas[step % self.steps_per_block]

    def chance(self, step: int) -> float:
        """1 - s/t, with which the rule `origin` reveals each position in a denoising step."""
        return self._chances[step % self.steps_per_block]

    @cached_property
    def _chances(self) -> list[float]:
        """Of the steps of a block; of `time` in float32, as in the published sampler."""
        count = self.steps_per_block
        if self.quotas == "even":
            return [1 / (count - step) for step in range(count)]
        times = torch.linspace(1, self.eps, count + 1)
        return [*(1 - times[1:-1] / times[:-2]).tolist(), 1.0]

    @cached_property
    def _block_quotas(self) -> list[int]:
        """Of the steps of a block."""
        if self.quotas == "even":
            share, remainder = divmod(self.block_length, self.steps_per_block)
            return [share + (step < remainder) for step in range(self.steps_per_block)]
        quotas = list[int]()
        for chance in self._chances:
            left = torch.tensor(self.block_length - sum(quotas), dtype=torch.float32)
            quotas.append(int(left * chance))
        return quotas

    @cached_property
    def largest_part(self) -> int:
        """The most positions that a step reveals without revealing all masked positions of its block."""
        ends = list(accumulate(self._block_quotas))
        return max((q for q, end in zip(self._block_quotas, ends, strict=True) if end < self.block_length), default=0)

    def revealing(self, steps: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """The first denoising steps `[...]` from the given steps on that are not left out."""
        return self._revealing[steps]

    @cached_property
    def _revealing(self) -> NDArray[np.int64]:
        found = np.arange(self.most_steps + 1)
        for step in reversed(range(self.most_steps)):
            found[step] = step if self.quota(step) else found[step + 1]
        return found

    def step_after(self, steps: NDArray[np.int64], full: NDArray[np.bool_]) -> NDArray[np.int64]:
        """The numbers of the next denoising steps `[R]`: the first step of the next block if the block is full."""
        each = self.steps_per_block
        return np.where(full, (steps // each + 1) * each, steps + 1)

    def boundary(self, revealed: int) -> int:
        """The least number of revealed positions at the end of a guide step that begins with `revealed`."""
        return next(share for share in self._boundaries if share > revealed)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least revealed positions at each guide boundary, from 0 to `gen_length`."""
        return (0, *self._boundaries)

    @property
    def lengths_by_step(self) -> tuple[int, ...]:
        """As `lengths`, of a rule whose steps reveal random numbers of positions, and the last of a block all others.

        The positions of the finished blocks are revealed.
        """
        ends = range(0, self.steps + 1, self.steps_per_guide_step)
        return tuple(end // self.steps_per_block * self.block_length for end in ends)

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
    positions, position_logp = unmasking.rule.reveal(Drawn.under(unmasking, turn, p, tokens))
    return Revealed(tokens, positions, logp.masked_fill(~positions, 0.0).sum(-1), position_logp)
