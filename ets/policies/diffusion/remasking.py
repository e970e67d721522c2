"""The rules that choose the masked positions of a denoising step, and the log-probability of the chosen set: `RULES`.

A rule ranks positions by a score, ties to the lower position. Bars t_1 ≤ t_2 ≤ … decide how many are revealed: the m
best, for the largest m whose m-th best score reaches t_m. Bars up to the quota are -∞. Bars beyond the quota are +∞,
or the confidences that parallel decoding requires. For example, with quota 1 and the threshold 0.9 a step reveals the
best position, and further positions with a confidence of at least 0.9. The rule `origin` alone has no quota: its bars
are equal, so that each position is revealed independently of the others.

Shape letters: R rows, U different canvases among them, n masked positions of the active block, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import torch

from ets.policies.token_draws import rows_together

if TYPE_CHECKING:
    from ets.policies.settings import Unmasking

LEAST = -1e300
"""The log-confidence of a token whose confidence counts as 0: the lowest, and above the bar -∞."""
MOST_ORDERED = 12
"""The positions that a step with `alg_temp` may reveal, unless it reveals all: the orders of a set are summed."""


@dataclass(frozen=True)
class Turn:
    """The input of one denoising step."""

    logits: torch.Tensor  # [U, n, V], guided, in floating point
    mask_id: int  # never drawn
    canvas: torch.Tensor  # [R], the number of each row's canvas among the U: 0, 1, 2, … if R = U
    quota: torch.Tensor  # [R], the positions to reveal, 1 to n; parallel decoding may reveal more
    uniforms: torch.Tensor  # [R, n] in float64, for the drawn tokens
    orders: torch.Tensor  # [R, n] in float64, for rules that draw positions
    chance: torch.Tensor | None = None  # [R] in float64, with which the rule `origin` reveals each position
    without_confidence: tuple[int, ...] = ()  # tokens whose confidence counts as 0


@dataclass(frozen=True)
class Drawn:
    """The draws of a denoising step.

    p `[U, n, V]` in float64, the tokens `[R, n]`, the bars `[R, n]` in float64, and the temperature of p.
    """

    turn: Turn
    probabilities: torch.Tensor
    tokens: torch.Tensor
    bars: torch.Tensor
    temperature: float = 1.0

    @classmethod
    def under(cls, law: Unmasking, turn: Turn, probabilities: torch.Tensor, tokens: torch.Tensor) -> Drawn:
        """The draws of a step under a law."""
        if turn.chance is None:
            bars = law.bars(turn.quota, tokens.shape[1])
        else:
            bars = -turn.chance[:, None].expand(tokens.shape)
        return cls(turn, probabilities, tokens, bars, law.temperature)

    @cached_property
    def log_confidences(self) -> torch.Tensor:
        """log q `[U, n, V]` of the model's untempered distribution with its mask token.

        In float64, because in bfloat16 the highest confidences tie in nearly every step.
        """
        return self._log_confidences(self.turn.logits.double())

    @cached_property
    def log_tempered(self) -> torch.Tensor:
        """log q `[U, n, V]` at the temperature of the draws, with the mask token; untempered at temperature 0."""
        if self.temperature in (0, 1):
            return self.log_confidences
        return self._log_confidences(self.turn.logits.double() / self.temperature)

    def _log_confidences(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.turn.without_confidence:
            return logits.log_softmax(-1)
        ends = torch.tensor(self.turn.without_confidence, device=logits.device)
        return logits.index_fill(-1, ends, -math.inf).log_softmax(-1).index_fill_(-1, ends, LEAST)

    @cached_property
    def without_mask(self) -> torch.Tensor:
        """The untempered distribution `[U, n, V]` without the mask token, in float64."""
        logits = self.turn.logits.to(torch.float64, copy=True)
        logits[..., self.turn.mask_id] = -math.inf
        return logits.softmax(-1)


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


def _topk_margin(drawn: Drawn) -> torch.Tensor:
    """Dream's margin: the difference between the two largest probabilities of the tempered distribution."""
    first, second = drawn.log_tempered.topk(2, dim=-1).values.exp().unbind(-1)
    return for_rows(first - second, drawn.turn.canvas)


def _neg_entropy(drawn: Drawn) -> torch.Tensor:
    """Dream's entropy rule: the negative entropy of the tempered distribution."""
    return for_rows(-torch.special.entr(drawn.log_tempered.exp()).sum(-1), drawn.turn.canvas)


def _sequential(drawn: Drawn) -> torch.Tensor:
    """From left to right, as in SDAR's sampler: all scores tie."""
    return torch.zeros_like(drawn.bars)


def _of_draws(drawn: Drawn, log_q: torch.Tensor, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Σ log F_j: S is revealed if its scores reach their bars and every other draw j scores too low.

    The scores are `log_q` `[U, n, V]` at the drawn tokens.
    """
    held = _reach(scores.masked_fill(~positions, -math.inf), drawn.bars) == positions.sum(-1)
    p = drawn.probabilities
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


def _independent(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """k log p + (n - k) log(1 - p): each of n positions is revealed with the probability p."""
    k, n, p = positions.sum(-1).double(), positions.shape[1], -drawn.bars[:, 0]
    return torch.xlogy(k, p) + torch.xlogy(n - k, 1 - p)


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
    independent : bool
        Whether each position is revealed independently of the others, so that their number is random.
    """

    scores: Callable[[Drawn], torch.Tensor]
    position_logp: Callable[[Drawn, torch.Tensor, torch.Tensor], torch.Tensor]
    random: bool = False
    confident: bool = False
    by_canvas: bool = True
    independent: bool = False

    def reveal(self, drawn: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
        """S as booleans `[R, n]`, and its position term `[R]`."""
        scores = self.scores(drawn)
        positions = best(scores, _reach(scores, drawn.bars))
        return positions, self.position_logp(drawn, scores, positions)

    def term(self, drawn: Drawn, positions: torch.Tensor) -> torch.Tensor:
        """The position term `[R]` of a given S."""
        return self.position_logp(drawn, self.scores(drawn), positions)


def _by_confidence(log_q: Callable[[Drawn], torch.Tensor]) -> Rule:
    """The rule whose scores are the confidences of the drawn tokens."""

    def scores(drawn: Drawn) -> torch.Tensor:
        return at_tokens(log_q(drawn), drawn.turn.canvas, drawn.tokens)

    def position_logp(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return _of_draws(drawn, log_q(drawn), scores, positions)

    return Rule(scores, position_logp, confident=True, by_canvas=False)


RULES: dict[str, Rule] = {
    "low_confidence": _by_confidence(lambda drawn: drawn.log_confidences),
    "random": Rule(lambda drawn: drawn.turn.orders, _uniform, random=True),
    "margin": Rule(_margin, _certain),
    "entropy": Rule(_entropy, _certain),
    "largest": Rule(_largest, _certain, confident=True),
    "origin": Rule(lambda drawn: -drawn.turn.orders, _independent, random=True, independent=True),
    "maskgit_plus": _by_confidence(lambda drawn: drawn.log_tempered),
    "topk_margin": Rule(_topk_margin, _certain),
    "neg_entropy": Rule(_neg_entropy, _certain),
    "sequential": Rule(_sequential, _certain),
}
"""By name. A new rule is one entry."""


def perturbed(rule: Rule, alg_temp: float) -> Rule:
    """A rule of the canvas with noise: positions are drawn without replacement, from softmax(scores / alg_temp).

    The k highest of scores / alg_temp + Gumbel noise are such a draw of k positions (Plackett-Luce).
    """

    def log_weights(drawn: Drawn) -> torch.Tensor:
        return rule.scores(drawn) / alg_temp

    def scores(drawn: Drawn) -> torch.Tensor:
        return log_weights(drawn) - (-drawn.turn.orders.log()).log()

    def position_logp(drawn: Drawn, scores: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        held = torch.isneginf(drawn.bars).sum(-1) == positions.sum(-1)
        return torch.where(held, _without_replacement(log_weights(drawn), positions), -math.inf)

    return Rule(scores, position_logp, random=True)


def _without_replacement(log_weights: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The log-probability `[R]` that draws without replacement give the set in `positions` `[R, n]`, in any order.

    While B ⊆ S is to be drawn still, P(B) = Σ_{i∈B} w_i / (w(B) + w(outside S)) · P(B without i), and P(∅) = 1: the
    sum over the k! orders of S takes 2^k terms.
    """
    outside = log_weights.masked_fill(positions, -math.inf).logsumexp(-1)
    logp = torch.zeros_like(outside)
    counts = positions.sum(-1)
    for k in sorted(set(counts.tolist())):
        rows = (counts == k).nonzero()[:, 0]
        if 0 < k < positions.shape[1]:
            chosen = log_weights[rows][positions[rows]].view(-1, k)
            logp[rows] = _all_first(chosen, outside[rows])
    return logp


def _all_first(chosen: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """The log-probability `[R]` that all of `chosen` `[R, k]` are drawn before the rest of the weight `outside`."""
    k = chosen.shape[1]
    logp = chosen.new_zeros(len(chosen), 2**k)  # of every B, a number in binary
    for numbers, members, rest in _subsets(k):
        weights = chosen[:, members]  # [R, subsets, size]
        total = torch.logaddexp(weights.logsumexp(-1), outside[:, None])
        logp[:, numbers] = (weights + logp[:, rest]).logsumexp(-1) - total
    return logp[:, -1]


@cache
def _subsets(k: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The subsets of k elements by size: their numbers, their members, and their numbers without each member."""
    found = []
    for size in range(1, k + 1):
        members = torch.tensor(list(combinations(range(k), size)))
        numbers = (2**members).sum(-1)
        found.append((numbers, members, numbers[:, None] - 2**members))
    return found


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
