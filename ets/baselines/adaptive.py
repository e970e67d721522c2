"""Majority voting until the vote is decided (Aggarwal et al., adaptive consistency, arXiv 2305.11860)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ets.randomness import Purpose, derive
from ets.rewards import Extract, remembering, votes
from ets.step import choice_uniforms, choose, require_counts, require_unweighed, require_variety
from ets.types import Chain, Cost, Draw, InputError, Policy, State, Step, StepFn


@dataclass(frozen=True, eq=False)
class Voting:
    """The state of a chain whose vote is undecided: the policy's start state and the texts so far."""

    start: State
    draws: tuple[Draw, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.start.tokens

    @property
    def text(self) -> str:
        return self.start.text

    @property
    def done(self) -> bool:
        """False: a chain that has ended holds the policy's state instead."""
        return False


def adaptive_majority(extract: Extract, *, samples: int, confidence: float = 0.95, batch: int = 1) -> StepFn:
    """Majority voting with at most N samples, which stops when the leading answer is ahead with a given confidence.

    With v₁ votes for the leading answer and v₂ for the next one, the probability that the first is the more frequent of
    the two has the posterior Beta(v₁ + 1, v₂ + 1): the vote is decided where P(share > 1/2) reaches `confidence`. For
    example, 4 votes to 0 have 0.97. The result is a sample with the winning answer, as in `majority_voting`.

    Parameters
    ----------
    extract : callable
        As in `majority_voting`.
    samples : int
        N, the most samples.
    confidence : float
        Above 0.5 and below 1. Towards 1 the vote is `majority_voting` of N samples.
    batch : int
        Samples that a chain draws together between two looks at the vote.

    Raises
    ------
    InputError
        For values out of range.
    """
    require_counts(samples=samples, batch=batch)
    if not 0.5 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; it must be above 0.5 and below 1")
    remembered = remembering(extract)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, samples)
        votings = [chain.state if isinstance(chain.state, Voting) else Voting(chain.state) for chain in chains]
        rows = [(b, n) for b, each in enumerate(votings) for n in _next(each, samples, batch)]
        own = np.array([chain.key for chain in chains], np.uint64)[[b for b, _ in rows]]
        keys = derive(own, 0, int(Purpose.COMPLETION))  # text n is that of `majority_voting`
        keys = derive(keys, np.array([n for _, n in rows]))
        drawn = policy.finish([votings[b].start for b, _ in rows], keys)
        fresh: list[list[Draw]] = [[] for _ in chains]
        for (b, _), draw in zip(rows, drawn, strict=True):
            fresh[b].append(draw)
        return [_counted(*row) for row in zip(chains, votings, fresh, choice_uniforms(chains), strict=True)]

    def _counted(chain: Chain, voting: Voting, fresh: Sequence[Draw], number: float) -> Chain:
        draws = (*voting.draws, *fresh)
        texts = tuple(draw.text for draw in draws)
        read = partial(remembered, chain.problem)
        counts = votes(read, texts)
        most = max(counts.values(), default=0.0)
        winning = [counts.get(read(text.text), 0.0) == most for text in texts]
        log_weights = np.where(winning, 0.0, -np.inf)
        choice = choose(log_weights, number)
        cost = Cost.total(draw.cost for draw in fresh)
        record = Step(texts, tuple((text,) for text in texts), log_weights[:, None], log_weights, choice, cost)
        ended = len(draws) >= samples or decided(sorted(counts.values(), reverse=True), confidence)
        return chain.advance(draws[choice].state if ended else Voting(voting.start, draws), record)

    return step


def _next(voting: Voting, samples: int, batch: int) -> range:
    return range(len(voting.draws), min(samples, len(voting.draws) + batch))


def decided(counts: Sequence[float], confidence: float) -> bool:
    """Whether P(p > 1/2) ≥ confidence for p ~ Beta(v₁ + 1, v₂ + 1), from the votes in falling order.

    The probability is that of at most v₁ heads in v₁ + v₂ + 1 tosses of a fair coin.
    """
    if not counts:
        return False
    first, second = int(counts[0]), int(counts[1]) if len(counts) > 1 else 0
    tosses = first + second + 1
    return sum(math.comb(tosses, heads) for heads in range(first + 1)) >= confidence * 2**tosses
