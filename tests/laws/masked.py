"""Scores and bars of a denoising step, and the law of the step in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, combinations, pairwise, product

import numpy as np

from ets.testing.masked_laws import Bar, CanvasPath, CanvasSchedule, StepLaw, TokenCanvas
from ets.types import Floats, InputError


@dataclass(frozen=True)
class TimedSchedule(CanvasSchedule):
    """Dream's quotas int(n (1 - s/t)) at times from 1 to `eps`; steps with the quota 0 are left out."""

    eps: float = 1e-3

    def __post_init__(self) -> None:
        """The numbers need not divide each other: the steps may be more than the tokens."""

    @property
    def quotas(self) -> list[int]:
        times = np.linspace(1, self.eps, self.steps_per_block + 1)
        left, found = self.block_length, list[int]()
        for t, s in pairwise(times):
            found.append(left if s == times[-1] else int(left * (1 - s / t)))
            left -= found[-1]
        return found * (self.gen_length // self.block_length)

    def step(self, revealed: int) -> int:
        return [*accumulate(self.quotas)].index(revealed + self._next_quota(revealed))

    def _next_quota(self, revealed: int) -> int:
        return next(q for q, end in zip(self.quotas, accumulate(self.quotas), strict=True) if end > revealed)

    def step_at(self, path: CanvasPath) -> int:
        return self.step(sum(step >= 0 for step in path))


def scores_of(logits: Floats, remasking: str) -> Floats | None:
    """The score of a draw v at each position, `[L, V]`, from the untempered softmax q; None for a random order.

    `low_confidence` is log q(v), `largest` the largest log q, `margin` the difference of the two largest q,
    `entropy` Σ q log q, and `sequential` 0. Rounding to 12 digits makes equal scores tie whatever the order of
    summation.
    """
    log_q = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    match remasking:
        case "low_confidence":
            scores = log_q
        case "largest":
            scores = log_q.max(axis=-1, keepdims=True)
        case "margin":
            ranked = np.sort(np.exp(log_q), axis=-1)
            scores = ranked[:, -1:] - ranked[:, -2:-1]
        case "entropy":
            scores = (np.exp(log_q) * log_q).sum(axis=-1, keepdims=True)
        case "sequential":
            scores = np.zeros((len(log_q), 1))
        case "random":
            return None
        case _:
            rules = "low_confidence, largest, random, margin, entropy or sequential"
            raise InputError(f"unknown remasking {remasking!r}; choose {rules}")
    return np.broadcast_to(np.round(scores, 12), logits.shape)


def parallel_bar(threshold: float | None = None, factor: float | None = None) -> Bar | None:
    """The bars of a threshold, log τ, or of the factor rule, log(1 - f / (m + 1)), for scores log q; else None."""
    if threshold is not None:
        return lambda m: round(math.log(threshold), 12)
    if factor is not None:
        return lambda m: round(math.log(1 - factor / (m + 1)), 12) if factor < m + 1 else -math.inf
    return None


def position_term(
    p: Floats,
    scores: Floats | None,
    masked: Sequence[int],
    revealed: Mapping[int, int],
    quota: int | None = None,
    bar: Bar | None = None,
) -> float:
    """The log-probability that just the positions S of `revealed` win, given their tokens.

    Σ over the other masked positions j of log F_j, the probability that the draw at j loses: it scores below the
    lowest of S, or as high as it, after the last of S that does; and below the bar that it would have to reach. It is
    0 or -inf where scores do not depend on the draw, and -log C(n, k) for a random order.

    Parameters
    ----------
    p, scores : array
        `[L, V]`, the sampled law at each position and the scores of its draws.
    masked : sequence of int
        The masked positions of the active block.
    revealed : mapping
        Tokens by position.
    quota, bar : int, callable, optional
        Where decoding is parallel.
    """
    if scores is None:
        return -math.log(math.comb(len(masked), len(revealed)))
    ranked = sorted((scores[i, v] for i, v in revealed.items()), reverse=True)
    if bar and any(score < bar(m) for m, score in enumerate(ranked, start=1) if m > (quota or 1)):
        return -math.inf
    lowest = ranked[-1]
    last = max(i for i, v in revealed.items() if scores[i, v] == lowest)
    missed = bar(len(revealed) + 1) if bar else math.inf
    total = 0.0
    for j in masked:
        if j not in revealed:
            loses = [score < missed and (score < lowest or (score == lowest and j > last)) for score in scores[j]]
            lost = float(p[j][loses].sum())
            total += math.log(lost) if lost > 0 else -math.inf
    return total


def closed_form_step(
    p: Floats, scores: Floats | None, masked: Sequence[int], quota: int, bar: Bar | None = None
) -> StepLaw:
    """The law of one step: Π p_i(v_i) over what is revealed, times the position term (arguments: there)."""
    law, quota = {}, min(quota, len(masked))
    for size in range(quota, (len(masked) if bar else quota) + 1):
        for positions, tokens in product(combinations(masked, size), product(range(p.shape[1]), repeat=size)):
            if drawn := math.prod(p[positions, tokens].tolist()):
                revealed = dict(zip(positions, tokens, strict=True))
                if (term := position_term(p, scores, masked, revealed, quota, bar)) > -math.inf:
                    law[positions, tokens] = drawn * math.exp(term)
    return law


def canvas_before(canvas: TokenCanvas, path: CanvasPath, step: int, mask: int) -> TokenCanvas:
    """A canvas as it was before a step of its path."""
    return tuple(token if 0 <= at < step else mask for token, at in zip(canvas, path, strict=True))
