"""Masked diffusion's settings, and its transition, one denoising step at a time: pure functions on logits.

At a canvas x, a step draws a token for every masked position of the active block, v_j ~ p_j, ranks the draws by a
score, and reveals the best. The draws are independent, so the probability of revealing the set S with tokens v_S is

    log P(S, v_S | x) = Σ_{i∈S} log p_i(v_i) + position term,

and `denoise` returns both parts. Token probabilities alone are no transition law: they do not sum to one.

Shape letters: R rows, U different canvases among them, n masked positions of the active block, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray

from ets.policies.diffusion.remasking import RULES, Drawn, at_tokens, for_rows, row_slices
from ets.policies.token_draws import pick_tokens
from ets.step import require_counts, require_positive
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
class Unmasking:
    """The law of one denoising step.

    Parameters
    ----------
    temperature : float
        Of the drawn tokens, at least 0. Scores are always of the untempered distribution.
    remasking : str
        A key of `ets.policies.diffusion.remasking.RULES`: which masked positions are revealed first. `low_confidence` is LLaDA's name
        for those whose drawn token is the most probable (the others are masked again); `largest`, those whose most
        probable token is, whatever was drawn; `random`; `margin`, between the two most probable tokens; `entropy`, the
        lowest. The mask token has its share in the confidences, as in LLaDA's own sampler, and none in margin and
        entropy.
    cfg : float
        Classifier-free guidance s: logits un + (s + 1)(cond - un), at twice the forwards; 0 is none.
    stop_at_end : bool
        Leave out the blocks after one that holds an end token. The law of the text is the same: it is cut at the
        first end token, and no block looks at a later one that has been filled.
    threshold : float, optional
        Parallel decoding (Wu et al., Fast-dLLM, arXiv 2505.22618): beyond its quota, a step reveals every position
        whose confidence reaches this, above 0 and at most 1. For `low_confidence` and `largest`.
    factor : float, optional
        Parallel decoding by Fast-dLLM's factor rule, for the same two: beyond its quota, as many of the most confident
        positions as have (n + 1)(1 - confidence of the n-th) at most this.

    Raises
    ------
    InputError
        For an unknown rule, a number out of range, or parallel decoding by a rule that has no confidences.
    """

    temperature: float = 1.0
    remasking: str = "low_confidence"
    cfg: float = 0.0
    stop_at_end: bool = False
    threshold: float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("cfg", self.cfg)):
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InputError(f"{name} is {value!r}; it must be a finite number of at least 0")
        if self.remasking not in RULES:
            raise InputError(f"unknown remasking {self.remasking!r}; choose from {', '.join(RULES)}")
        if not isinstance(self.stop_at_end, bool):
            raise InputError(f"stop_at_end is {self.stop_at_end!r}; it must be True or False")
        self._require_level()

    def _require_level(self) -> None:
        levels = {"threshold": self.threshold, "factor": self.factor}
        given = {name: value for name, value in levels.items() if value is not None}
        require_positive(**given)
        if len(given) > 1:
            raise InputError(f"threshold {self.threshold} and factor {self.factor} exclude each other; leave one out")
        if self.threshold is not None and self.threshold > 1:
            raise InputError(f"threshold is {self.threshold!r}, but a confidence is 1 at most; choose less")
        if given and not RULES[self.remasking].confident:
            confident = " or ".join(name for name, rule in RULES.items() if rule.confident)
            raise InputError(
                f"{next(iter(given))} needs confidences, which remasking {self.remasking!r} has not; choose {confident}"
            )

    @property
    def parallel(self) -> bool:
        """Whether a step may reveal more than its quota."""
        return self.threshold is not None or self.factor is not None

    @property
    def by_canvas(self) -> bool:
        """Whether the positions revealed do not depend on the tokens drawn."""
        return RULES[self.remasking].by_canvas

    @property
    def deterministic(self) -> bool:
        """Whether a step has one outcome only: greedy tokens, and positions that depend on nothing random."""
        return self.temperature == 0 and not RULES[self.remasking].random

    def probabilities(self, logits: torch.Tensor, mask_id: int) -> torch.Tensor:
        """The law p of the drawn tokens `[..., V]` in float64: tempered, without the mask token."""
        logits = logits.to(torch.float64, copy=True)
        logits[..., mask_id] = -math.inf
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        return logits.div_(self.temperature).softmax(-1)

    def bars(self, quota: torch.Tensor, positions: int) -> torch.Tensor:
        """What the best of `positions` scores, the second best, … must reach `[R, positions]`, by quotas `[R]`."""
        m = torch.arange(1, positions + 1, dtype=torch.float64, device=quota.device)
        if self.threshold is not None:
            beyond = torch.full_like(m, math.log(self.threshold))
        elif self.factor is not None:
            beyond = (1 - self.factor / (m + 1)).clamp(min=0).log()
        else:
            beyond = torch.full_like(m, math.inf)
        return torch.where(m <= quota[:, None], -math.inf, beyond)


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
