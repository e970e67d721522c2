"""Masked diffusion's transition, one denoising step at a time: pure functions on logits.

At a canvas x, a step draws a token for every masked position of the active block, v_j ~ p_j, ranks the draws by a
score, and reveals the best. The draws are independent, so the probability of revealing the set S with tokens v_S is

    log P(S, v_S | x) = Σ_{i∈S} log p_i(v_i) + position term,

and `denoise` returns both parts. Token probabilities alone are no transition law: they do not sum to one.

Shape letters: R rows, U different canvases among them, n masked positions of the active block, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ets.policies.drawing import pick_tokens
from ets.transition import require_counts
from ets.types import InputError


@dataclass(frozen=True)
class Schedule:
    """How a canvas is filled: blocks from left to right, each in equally many denoising steps.

    Parameters
    ----------
    gen_length : int
        Tokens of the canvas (d_x).
    steps : int
        Denoising steps in all: a multiple of the number of blocks, at most `gen_length`.
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


@dataclass(frozen=True)
class Unmasking:
    """The law of one denoising step.

    Parameters
    ----------
    temperature : float
        Of the drawn tokens, at least 0. Scores are always of the untempered distribution.
    remasking : str
        A key of `RULES`: which masked positions are revealed first. `low_confidence` is LLaDA's name for those whose
        drawn token is the most probable (the others are masked again); `random`; `margin`, between the two most
        probable tokens; `entropy`, the lowest. The mask token has its share in the confidences, as in LLaDA's own
        sampler, and none in margin and entropy.
    cfg : float
        Classifier-free guidance s: logits un + (s + 1)(cond - un), at twice the forwards; 0 is none.
    stop_at_end : bool
        Leave out the blocks after one that holds an end token. The law of the text is the same: it is cut at the
        first end token, and no block looks at a later one that has been filled.

    Raises
    ------
    InputError
        For an unknown rule, or a number out of range.
    """

    temperature: float = 1.0
    remasking: str = "low_confidence"
    cfg: float = 0.0
    stop_at_end: bool = False

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("cfg", self.cfg)):
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InputError(f"{name} is {value!r}; it must be a finite number of at least 0")
        if self.remasking not in RULES:
            raise InputError(f"unknown remasking {self.remasking!r}; choose from {', '.join(RULES)}")
        if not isinstance(self.stop_at_end, bool):
            raise InputError(f"stop_at_end is {self.stop_at_end!r}; it must be True or False")

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


def denoise(
    logits: torch.Tensor,
    canvas: torch.Tensor,
    quota: torch.Tensor,
    uniforms: torch.Tensor,
    orders: torch.Tensor,
    *,
    unmasking: Unmasking,
    mask_id: int,
) -> Revealed:
    """One denoising step of R rows.

    Parameters
    ----------
    logits : tensor
        `[U, n, V]`, guided, at the masked positions of the active block from left to right.
    canvas : tensor
        `[R]`, which of the U each row has. Where R = U, it is 0, 1, 2, ….
    quota : tensor
        `[R]`, how many positions to reveal, 1 to n.
    uniforms : tensor
        `[R, n]` in float64: one for each drawn token.
    orders : tensor
        `[R, n]` in float64: one for each position, used by the rule `random` only.
    unmasking : Unmasking
    mask_id : int
        The mask token: never drawn.

    Returns
    -------
    Revealed
    """
    probabilities = _for_rows(unmasking.probabilities(logits, mask_id), canvas)
    tokens, logp = pick_tokens(probabilities.flatten(0, 1), uniforms.flatten())
    tokens, logp = tokens.view(uniforms.shape), logp.view(uniforms.shape)
    return _reveal(Drawn(logits, canvas, probabilities, tokens, orders, quota, mask_id), logp, unmasking)


def denoise_greedily(
    logits: torch.Tensor,
    canvas: torch.Tensor,
    quota: torch.Tensor,
    uniforms: torch.Tensor,
    orders: torch.Tensor,
    *,
    unmasking: Unmasking,
    mask_id: int,
) -> Revealed:
    """What `denoise` does at temperature 0, with the log-probability that temperature 1 gives to it."""
    untempered = replace(unmasking, temperature=1.0)
    best_tokens = replace(unmasking, temperature=0.0).probabilities(logits, mask_id).argmax(-1)
    probabilities = _for_rows(untempered.probabilities(logits, mask_id), canvas)
    tokens = _for_rows(best_tokens, canvas)
    logp = probabilities.gather(-1, tokens[..., None])[..., 0].log()
    return _reveal(Drawn(logits, canvas, probabilities, tokens, orders, quota, mask_id), logp, untempered)


def _reveal(drawn: Drawn, logp: torch.Tensor, unmasking: Unmasking) -> Revealed:
    positions, position_logp = RULES[unmasking.remasking].reveal(drawn)
    return Revealed(drawn.tokens, positions, logp.masked_fill(~positions, 0.0).sum(-1), position_logp)


@dataclass(frozen=True)
class Drawn:
    """What a rule chooses from: the arguments of `denoise`, the law of each row's draws `[R, n, V]`, and the tokens."""

    logits: torch.Tensor
    canvas: torch.Tensor
    probabilities: torch.Tensor
    tokens: torch.Tensor
    orders: torch.Tensor
    quota: torch.Tensor
    mask_id: int

    @property
    def log_confidences(self) -> torch.Tensor:
        """log q `[U, n, V]` in float64, of the model's untempered distribution with its mask token.

        In bfloat16 the highest confidences tie in nearly every step.
        """
        return self.logits.double().log_softmax(-1)


def _low_confidence(drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """LLaDA's rule: by the confidence of the drawn token, so the position term is of the draws that lost."""
    log_q = _for_rows(drawn.log_confidences, drawn.canvas)
    scores = log_q.gather(-1, drawn.tokens[..., None])[..., 0]
    positions = best(scores, drawn.quota)
    return positions, _lost(log_q, drawn.probabilities, scores, positions)


def _lost(
    log_q: torch.Tensor, probabilities: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Σ log F_j over the positions j that were not revealed: the probability that a draw there scores too low.

    With θ the lowest score that was revealed and i* the last position that has it, a draw v at j loses if
    q_j(v) < θ, or if q_j(v) = θ and j > i*, because ties go to the lower position.
    """
    if bool(positions.all()):
        return torch.zeros(len(positions), dtype=torch.float64, device=positions.device)
    places = torch.arange(positions.shape[1], device=positions.device)
    threshold = scores.masked_fill(~positions, math.inf).amin(-1, keepdim=True)
    last = torch.where(positions & (scores == threshold), places, -1).amax(-1, keepdim=True)
    highest = torch.where(places > last, threshold, threshold.nextafter(threshold.new_tensor(-math.inf)))
    lost = torch.where(log_q <= highest[..., None], probabilities, 0.0).sum(-1)
    return lost.log().masked_fill(positions, 0.0).sum(-1)


def _random(drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Every set of k of n positions is equally likely."""
    n, k = torch.full_like(drawn.quota, drawn.tokens.shape[1]).double(), drawn.quota.double()
    log_choices = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return best(drawn.orders, drawn.quota), -log_choices


def _margin(drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """By the difference between the two most probable tokens: S is a function of the canvas alone."""
    first, second = _without_mask(drawn).topk(2, dim=-1).values.unbind(-1)
    return _by_canvas(first - second, drawn)


def _entropy(drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """By the lowest entropy: S is a function of the canvas alone."""
    return _by_canvas(-torch.special.entr(_without_mask(drawn)).sum(-1), drawn)


def _without_mask(drawn: Drawn) -> torch.Tensor:
    """The untempered distribution `[U, n, V]` of what can be drawn, in float64."""
    logits = drawn.logits.to(torch.float64, copy=True)
    logits[..., drawn.mask_id] = -math.inf
    return logits.softmax(-1)


def _by_canvas(scores: torch.Tensor, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions by scores `[U, n]` that no draw changes: revealed with certainty."""
    positions = best(_for_rows(scores, drawn.canvas), drawn.quota)
    return positions, torch.zeros(len(positions), dtype=torch.float64, device=positions.device)


@dataclass(frozen=True)
class Rule:
    """A selection rule.

    Parameters
    ----------
    reveal : callable
        From what was drawn to the positions revealed `[R, n]`, `quota` of each row, and the position term `[R]` of
        log P(S, v_S | x) in float64: with any other term the law is not the sampler's.
    random : bool
        Whether it is random beside the tokens that it is given.
    """

    reveal: Callable[[Drawn], tuple[torch.Tensor, torch.Tensor]]
    random: bool = False


RULES: dict[str, Rule] = {
    "low_confidence": Rule(_low_confidence),
    "random": Rule(_random, random=True),
    "margin": Rule(_margin),
    "entropy": Rule(_entropy),
}
"""By name. A new rule is one entry."""


def best(scores: torch.Tensor, quota: torch.Tensor) -> torch.Tensor:
    """True `[R, n]` for each row's `quota` highest scores; among equal ones, the lower position comes first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks) < quota[:, None]


def _for_rows(of_canvases: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
    """`[R, ...]` from `[U, ...]`; no copy where no two rows share a canvas, which are then in the same order."""
    return of_canvases if len(canvas) == len(of_canvases) else of_canvases[canvas]
