"""Which masked positions a denoising step reveals, and how likely just those were: one entry of `RULES` for each rule.

Positions are ranked by a score, ties to the lower position, and bars t_1 ≤ t_2 ≤ … say how many: as many as m-th best
scores reach their t_m. Up to the quota they are -∞; beyond it they are +∞, or what parallel decoding asks for.

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
class Drawn:
    """What a rule chooses from.

    Parameters
    ----------
    logits : tensor
        `[U, n, V]`, guided.
    canvas : tensor
        `[R]`, which of the U each row has. Where R = U, it is 0, 1, 2, ….
    probabilities : tensor
        `[U, n, V]` in float64, the law of each canvas's draws.
    tokens : tensor
        `[R, n]`, what was drawn.
    orders : tensor
        `[R, n]` in float64, for a random order.
    bars : tensor
        `[R, n]` in float64, not decreasing: what the best score, the second best, … must reach.
    mask_id : int
    """

    logits: torch.Tensor
    canvas: torch.Tensor
    probabilities: torch.Tensor
    tokens: torch.Tensor
    orders: torch.Tensor
    bars: torch.Tensor
    mask_id: int

    @cached_property
    def log_confidences(self) -> torch.Tensor:
        """log q `[U, n, V]` in float64, of the model's untempered distribution with its mask token.

        In bfloat16 the highest confidences tie in nearly every step.
        """
        return self.logits.double().log_softmax(-1)

    @cached_property
    def without_mask(self) -> torch.Tensor:
        """The untempered distribution `[U, n, V]` of what can be drawn, in float64."""
        logits = self.logits.to(torch.float64, copy=True)
        logits[..., self.mask_id] = -math.inf
        return logits.softmax(-1)


def _low_confidence(drawn: Drawn) -> torch.Tensor:
    """LLaDA's rule: the confidence of the drawn token."""
    return at_tokens(drawn.log_confidences, drawn.canvas, drawn.tokens)


def _largest(drawn: Drawn) -> torch.Tensor:
    """The confidence of the most probable token, whatever was drawn."""
    allowed = torch.arange(drawn.logits.shape[-1], device=drawn.logits.device) != drawn.mask_id
    return for_rows(drawn.log_confidences.masked_fill(~allowed, -math.inf).amax(-1), drawn.canvas)


def _margin(drawn: Drawn) -> torch.Tensor:
    """The difference between the two most probable tokens."""
    first, second = drawn.without_mask.topk(2, dim=-1).values.unbind(-1)
    return for_rows(first - second, drawn.canvas)


def _entropy(drawn: Drawn) -> torch.Tensor:
    """The lowest entropy first."""
    return for_rows(-torch.special.entr(drawn.without_mask).sum(-1), drawn.canvas)


def _orders(drawn: Drawn) -> torch.Tensor:
    return drawn.orders


def _of_draws(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """S stands if its scores reach their bars and every other draw j scores too low: Σ log F_j."""
    held = _reach(scores.masked_fill(~positions, -math.inf), drawn.bars) == positions.sum(-1)
    log_q, p = drawn.log_confidences, drawn.probabilities
    lost = [
        _lost(log_q[of], p[of], scores[rows], positions[rows], drawn.bars[rows])
        for rows, of in row_slices(p, drawn.canvas)
    ]
    return torch.where(held, torch.cat(lost), -math.inf)


def _lost(
    log_q: torch.Tensor,
    probabilities: torch.Tensor,
    scores: torch.Tensor,
    positions: torch.Tensor,
    bars: torch.Tensor,
) -> torch.Tensor:
    """Σ log F_j over the positions j that were not revealed: the probability that a draw there scores too low.

    With θ the lowest score that was revealed and i* the last position that has it, a draw v at j loses if
    q_j(v) < θ, or if q_j(v) = θ and j > i*, because ties go to the lower position; and, of n revealed, if it also
    misses the next bar, q_j(v) < t_{n+1}.
    """
    if bool(positions.all()):
        return torch.zeros(len(positions), dtype=torch.float64, device=positions.device)
    places = torch.arange(positions.shape[1], device=positions.device)
    threshold = scores.masked_fill(~positions, math.inf).amin(-1, keepdim=True)
    last = torch.where(positions & (scores == threshold), places, -1).amax(-1, keepdim=True)
    highest = torch.where(places > last, threshold, _just_below(threshold))
    after = positions.sum(-1, keepdim=True).clamp(max=bars.shape[1] - 1)  # where all are revealed nothing is lost
    highest = torch.minimum(highest, _just_below(bars.gather(-1, after)))
    lost = torch.where(log_q <= highest[..., None], probabilities, 0.0).sum(-1)
    return lost.log().masked_fill(positions, 0.0).sum(-1)


def _just_below(scores: torch.Tensor) -> torch.Tensor:
    return scores.nextafter(scores.new_tensor(-math.inf))


def _certain(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """S is a function of the canvas alone: 0, or -∞ for another S."""
    same = (best(scores, _reach(scores, drawn.bars)) == positions).all(-1)
    return torch.where(same, 0.0, -math.inf).double()


def _uniform(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Every set of k of n positions is equally likely: -log C(n, k)."""
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
        From what was drawn to the scores `[R, n]` in float64, the highest of which are revealed.
    position_logp : callable
        `(drawn, scores, positions)`, with S in the booleans `[R, n]`, to the position term `[R]` of log P(S, v_S | x)
        in float64: with any other term the law is not the sampler's. It looks at the draws and scores of S alone, so
        it tells the term of any S; -∞ where the rule cannot reveal it.
    random : bool
        Whether it is random beside the tokens that it is given.
    confident : bool
        Whether scores are log-probabilities, of which parallel decoding can ask for a level.
    by_canvas : bool
        Whether scores do not depend on what was drawn.
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
    "random": Rule(_orders, _uniform, random=True),
    "margin": Rule(_margin, _certain),
    "entropy": Rule(_entropy, _certain),
    "largest": Rule(_largest, _certain, confident=True),
}
"""By name. A new rule is one entry."""


def _reach(scores: torch.Tensor, bars: torch.Tensor) -> torch.Tensor:
    """`[R]`, how many scores reach their bars: sorted scores fall and bars rise, so these are the best ones.

    Scores that are no numbers reach -∞ too: what they belong to is refused later.
    """
    return ((scores.sort(dim=-1, descending=True).values >= bars) | torch.isneginf(bars)).sum(-1)


def best(scores: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """True `[R, n]` for each row's `counts` highest scores; among equal ones, the lower position comes first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks) < counts[:, None]


def at_tokens(of_canvases: torch.Tensor, canvas: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """What `[U, n, V]` says of each row's tokens `[R, n]`."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return of_canvases[canvas[:, None], places, tokens]


def row_slices(of_canvases: torch.Tensor, canvas: torch.Tensor) -> Iterator[tuple[slice, slice | torch.Tensor]]:
    """Some rows at a time, and their canvases among `[U, n, V]`: a slice where no two rows share a canvas."""
    size = rows_together(of_canvases)
    for begin in range(0, len(canvas), size):
        rows = slice(begin, begin + size)
        yield rows, rows if len(canvas) == len(of_canvases) else canvas[rows]


def for_rows(of_canvases: torch.Tensor, canvas: torch.Tensor) -> torch.Tensor:
    """`[R, ...]` from `[U, ...]`; no copy where no two rows share a canvas, which are then in the same order."""
    return of_canvases if len(canvas) == len(of_canvases) else of_canvases[canvas]
