"""Baselines that draw complete generations at once and keep one of them.

A reward is one of `ets.rewards`, or any function of (prompt, text): `ets.rewards.as_reward`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from ets.randomness import Purpose
from ets.rewards import Extract, remembering, votes
from ets.step import (
    Scoring,
    as_reward,
    choice_uniforms,
    choose,
    draw_for_chains,
    require_counts,
    require_positive,
    require_unweighed,
    require_variety,
    score,
)
from ets.types import Chain, Cost, Draw, Floats, Policy, Reward, Step, StepFn, Text

Weigh: TypeAlias = Callable[[Chain, Sequence[Text]], tuple[Floats, Cost]]
"""Log-weights `[N]` of N complete texts, and what finding them cost."""

ROUNDING = 1e-9
"""Sums of weights that differ by less, relatively, are equal: they were added up in different orders."""


def unweighed(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
    """Equal weights."""
    return np.zeros(len(texts)), Cost()


def plain() -> StepFn:
    """One sample of the reference policy."""
    return _among_completions(1, unweighed)


def majority(extract: Extract, *, samples: int) -> StepFn:
    """Majority voting (self-consistency decoding): one of N samples that gives the most frequent answer.

    `extract` takes a text, or a problem and a text. Answers with equally many votes are equally likely to be
    returned; `best_of_n` by `ets.rewards.majority` takes the answer that reached the count first. If no sample holds an
    answer, any of them may be returned.
    """
    remembered = remembering(extract)

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        read = partial(remembered, chain.problem)
        counts = votes(read, texts)
        most = max(counts.values(), default=0.0)
        winning = [counts.get(read(text.text), 0.0) == most for text in texts]
        return np.where(winning, 0.0, -np.inf), Cost()

    return _among_completions(samples, weigh)


def weighted_majority(extract: Extract, reward: Scoring | Reward, *, samples: int, lam: float) -> StepFn:
    """Weighted majority voting: each of N samples votes for its answer with the weight exp(r/λ).

    For a fixed reward, the winner estimates the answer that is most probable under p* ∝ p_ref · exp(r/λ); with a
    constant reward this is `majority`. One of the samples that give the winning answer is returned, in proportion to
    its weight, as p* given the answer has it; so answers with equal sums are equally likely. Texts with the reward -inf
    do not vote. If no vote has an answer, any text may be returned, in proportion to exp(r/λ); if every reward is -inf,
    any at all, and the chain is marked invalid. For self-consistency, which is no fixed reward, there is no p*.
    """
    require_positive(lam=lam)
    reward, remembered = as_reward(reward), remembering(extract)

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        read = partial(remembered, chain.problem)
        log_rewards, cost = score(reward, lam, chain, [[text] for text in texts])
        log_votes = log_rewards[:, 0]
        # A weighted vote counts like that of a text with this log-ratio.
        counts = votes(read, [replace(text, log_ratio=vote) for text, vote in zip(texts, log_votes, strict=True)])
        least = max(counts.values(), default=0.0) * (1 - ROUNDING)
        winning = [counts.get(read(text.text), 0.0) >= least for text in texts]
        return np.where(winning, log_votes, -np.inf), cost

    return _among_completions(samples, weigh)


def one_step(reward: Scoring | Reward, *, samples: int, lam: float) -> StepFn:
    """ETS with one guide step (I = 1): one of N samples in proportion to exp(r/λ), a softmax best-of-N.

    For a fixed reward it has the same target p* as guided sampling, and tends to it as N grows.
    """
    require_positive(lam=lam)
    reward = as_reward(reward)

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        log_rewards, cost = score(reward, lam, chain, [[text] for text in texts])
        return log_rewards[:, 0], cost

    return _among_completions(samples, weigh)


def best_of_n(reward: Scoring | Reward, *, samples: int) -> StepFn:
    """The sample with the highest reward among N: ETS with one guide step and λ → 0.

    Samples with equal rewards are equally likely to be returned. If every reward is -inf, any of them may be, and
    the chain is marked invalid.
    """
    reward = as_reward(reward)

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        rewards, cost = score(reward, 1.0, chain, [[text] for text in texts])
        best = (rewards == rewards.max()) & (rewards > -np.inf)
        return np.where(best, 0.0, -np.inf)[:, 0], cost

    return _among_completions(samples, weigh)


def _among_completions(samples: int, weigh: Weigh) -> StepFn:
    require_counts(samples=samples)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, samples)
        drawn = draw_for_chains(policy.finish, chains, Purpose.COMPLETION, samples)
        rows = zip(chains, drawn, choice_uniforms(chains), strict=True)
        return [keep_one(*row, weigh) for row in rows]

    return step


def keep_one(chain: Chain, draws: Sequence[Draw], number: float, weigh: Weigh) -> Chain:
    """The chain ended by one of some completions, which a uniform number chooses by their weights."""
    texts = tuple(draw.text for draw in draws)
    log_weights, cost = weigh(chain, texts)
    choice = choose(log_weights, number)
    rollouts = tuple((text,) for text in texts)
    total = Cost.total([*(draw.cost for draw in draws), cost])
    return chain.advance(draws[choice].state, Step(texts, rollouts, log_weights[:, None], log_weights, choice, total))
