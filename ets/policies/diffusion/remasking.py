"""The rules that choose the masked positions of a denoising step, and the log-probability of the chosen set: `RULES`.

A rule ranks positions by a score, ties to the lower position. Bars t_1 ≤ t_2 ≤ … decide how many are revealed: the m
best, for the largest m whose m-th best score reaches t_m. Bars up to the quota are -∞. Bars beyond the quota are +∞,
or the confidences that parallel decoding requires. For example, with quota 1 and the threshold 0.9 a step reveals the
best position, and further positions with a confidence of at least 0.9.

Shape letters: R rows, U different canvases among them, n masked positions of the active block, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from ets.policies.token_draws import rows_together


@dataclass(frozen=True)
class Turn:
    """The input of one denoising step."""

    logits: torch.Tensor  # [U, n, V], guided, in floating point
    mask_id: int  # never drawn
    canvas: torch.Tensor  # [R], the number of each row's canvas among the U: 0, 1, 2, … if R = U
    quota: torch.Tensor  # [R], the positions to reveal, 1 to n; parallel decoding may reveal more
    uniforms: torch.Tensor  # [R, n] in float64, for the drawn tokens
    orders: torch.Tensor  # [R, n] in float64, for the order of the rule `random`


@dataclass(frozen=True)
class Drawn:
    """The draws of a denoising step: p `[U, n, V]` in float64, the tokens `[R, n]` and the bars `[R, n]` in float64."""

    turn: Turn
    probabilities: torch.Tensor
    tokens: torch.Tensor
    bars: torch.Tensor

    @cached_property
    def log_confidences(self) -> torch.Tensor:
        """log q `[U, n, V]` of the model's untempered distribution with its mask token.

        In float64, because in bfloat16 the highest confidences tie in nearly every step.
        """
        return self.turn.logits.double().log_softmax(-1)

    @cached_property
    def without_mask(self) -> torch.Tensor:
        """The untempered distribution `[U, n, V]` without the mask token, in float64."""
        logits = self.turn.logits.to(torch.float64, copy=True)
        logits[..., self.turn.mask_id] = -math.inf
        return logits.softmax(-1)


def _low_confidence(drawn: Drawn) -> torch.Tensor:
    """LLaDA's rule: the confidence of the drawn token."""
    return at_tokens(drawn.log_confidences, drawn.turn.canvas, drawn.tokens)


def _largest(drawn: Drawn) -> torch.Tensor:
    """The confidence of the most probable token, whatever was drawn."""
    allowed = torch.arange(drawn.turn.logits.shape[-1], device=drawn.turn.logits.device) != drawn.turn.mask_id
    return for_rows(drawn.log_confidences.masked_fill(~allowed, -math.inf).amax(-1), drawn.turn.canvas)


def _margin(drawn: Drawn) -> torch.Tensor:
    """The difference between the two largest probabilities."""
    first, second = drawn.without_mask.topk(2, dim=-1).values.unbind(-1)
    return for_rows(first - second, drawn.turn.canvas)


def _entropy(drawn: Drawn) -> torch.Tensor:
    """The negative entropy."""
    return for_rows(-torch.special.entr(drawn.without_mask).sum(-1), drawn.turn.canvas)


def _sequential(drawn: Drawn) -> torch.Tensor:
    """From left to right, as in SDAR's sampler: all scores tie."""
    return torch.zeros_like(drawn.bars)


def _of_draws(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Σ log F_j: S is revealed if its scores reach their bars and every other draw j scores too low."""
    held = _reach(scores.masked_fill(~positions, -math.inf), drawn.bars) == positions.sum(-1)
    log_q, p = drawn.log_confidences, drawn.probabilities
    lost = [
        _lost(log_q[of], p[of], scores[rows], positions[rows], drawn.bars[rows])
        for rows, of in row_slices(p, drawn.turn.canvas)
    ]
    return torch.where(held, torch.cat(lost), -math.inf)


def _lost(
    log_q: torch.Tensor,
    probabilities: torch.Tensor,
    scores: torch.Tensor,
    positions: torch.Tensor,
    bars: torch.Tensor,
) -> torch.Tensor:
    """Σ log F_j over the positions j outside S, where F_j is the probability that the draw at j scores too low.

    Let θ be the lowest score in S, and i* the last position in S with this score. A draw v at j loses if q_j(v) < θ,
    or if q_j(v) = θ and j > i*, because ties go to the lower position. For |S| = m, it must also miss the next bar:
    q_j(v) < t_{m+1}.
    """
    if bool(positions.all()):
        return torch.zeros(len(positions), dtype=torch.float64, device=positions.device)
    places = torch.arange(positions.shape[1], device=positions.device)
    threshold = scores.masked_fill(~positions, math.inf).amin(-1, keepdim=True)  # θ [R, 1]
    last = torch.where(positions & (scores == threshold), places, -1).amax(-1, keepdim=True)  # i* [R, 1]
    highest = torch.where(places > last, threshold, _just_below(threshold))  # of a losing score [R, n]
    after = positions.sum(-1, keepdim=True).clamp(max=bars.shape[1] - 1)  # rows without a next bar lose nothing
    highest = torch.minimum(highest, _just_below(bars.gather(-1, after)))
    lost = torch.where(log_q <= highest[..., None], probabilities, 0.0).sum(-1)  # F [R, n]
    return lost.log().masked_fill(positions, 0.0).sum(-1)


def _just_below(scores: torch.Tensor) -> torch.Tensor:
    return scores.nextafter(scores.new_tensor(-math.inf))


def _certain(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """0 if the canvas determines S, -∞ for another S."""
    same = (best(scores, _reach(scores, drawn.bars)) == positions).all(-1)
    return torch.where(same, 0.0, -math.inf).double()


def _uniform(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """-log C(n, k): every set of k of n positions is equally likely."""
    k = positions.sum(-1).double()
    n = torch.full_like(k, positions.shape[1])
    log_choices = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return torch.where(torch.isneginf(drawn.bars).sum(-1) == k, -log_choices, -math.inf)


@dataclass(frozen=True)
class Rule:
    """A selection rule.

    Parameters
    ----------
    scores : callable
        `drawn -> scores [R, n]` in float64. The positions with the highest scores are revealed.
    position_logp : callable
        `(drawn, scores, positions) -> [R]` in float64: the position term of log P(S, v_S | x) for the set S in the
        booleans `positions` `[R, n]`, -∞ for a set that the rule cannot reveal. The term must depend on the draws and
        scores in S alone.
    random : bool
        Whether the rule draws positions.
    confident : bool
        Whether scores are log-probabilities, as parallel decoding requires.
    by_canvas : bool
        Whether scores are independent of the drawn tokens.
    """

    scores: Callable[[Drawn], torch.Tensor]
    position_logp: Callable[[Drawn, torch.Tensor, torch.Tensor], torch.Tensor]
    random: bool = False
    confident: bool = False
    by_canvas: bool = True

    def reveal(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """S as booleans `[R, n]`, and its position term `[R]`."""
        scores = self.scores(drawn)
        positions = best(scores, _reach(scores, drawn.bars))
        return positions, self.position_logp(drawn, scores, positions)

    def term(self, drawn: Drawn, positions: torch.Tensor) -> torch.Tensor:
        """The position term `[R]` of a given S."""
        return self.position_logp(drawn, self.scores(drawn), positions)


RULES: dict[str, Rule] = {
    "low_confidence": Rule(_low_confidence, _of_draws, confident=True, by_canvas=False),
    "random": Rule(lambda drawn: drawn.turn.orders, _uniform, random=True),
    "margin": Rule(_margin, _certain),
    "entropy": Rule(_entropy, _certain),
    "largest": Rule(_largest, _certain, confident=True),
    "sequential": Rule(_sequential, _certain),
}
"""By name. A new rule is one entry."""


def _reach(scores: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
    """`[R]`, the number of scores that reach their bars: sorted scores fall and bars rise, so the best scores do.

    A NaN reaches the bar -∞ too; the policy refuses its row later.
    """
    return ((scores.sort(dim=-1, descending=True).values >= bars) | torch.isneginf(bars)).sum(-1)


def best(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """True `[R, n]` for the `counts` highest scores of each row, ties to the lower position."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks) < counts[:, None]


def at_tokens(of_canvases: torch.Tensor, canvas: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The values `[R, n]` at the tokens of each row, from `[U, n, V]`."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return of_canvases[canvas[:, None], places, tokens]


def row_slices(of_canvases: torch.Tensor, canvas: torch.Tensor) -> Iterator[tuple[slice, slice | torch.Tensor]]:
    """Slices of rows, and of their canvases among `[U, n, V]`: slices too if no two rows share a canvas."""
    size = rows_together(of_canvases)
    for begin in range(0, len(canvas), size):
        rows = slice(begin, begin + size)
        yield rows, rows if len(canvas) == len(of_canvases) else canvas[rows]


def for_rows(of_canvases: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
    """`[R, ...]` from `[U, ...]`, without a copy if no two rows share a canvas."""
    return of_canvases if len(canvas) == len(of_canvases) else of_canvases[canvas]
