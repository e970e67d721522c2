"""Baselines that draw or search complete generations in one step and keep a single text.

Every reward may be a function of `ets.rewards`, or a function of (prompt, text): `ets.rewards.as_reward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from ets.randomness import Purpose
from ets.rewards import Extract, remembering, self_certainty, votes
from ets.rewards.lifting import ReadText
from ets.step import (
    Scoring,
    as_reward,
    choice_uniforms,
    choose,
    draw_for_chains,
    require_counts,
    require_positive,
    require_share,
    require_unweighed,
    require_variety,
    score,
)
from ets.types import (
    BeamSearcher,
    Chain,
    Cost,
    Draw,
    Floats,
    GreedySearcher,
    InputError,
    Policy,
    Reward,
    Step,
    StepFn,
    Text,
)

Weigh: TypeAlias = Callable[[Chain, Sequence[Text]], tuple[Floats, Cost]]
"""Log-weights `[N]` of N complete texts, and their cost."""

ROUNDING = 1e-9
"""The relative difference below which sums of weights count as equal, whatever the order of their terms."""


def unweighed(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
    return np.zeros(len(texts)), Cost()


def plain() -> StepFn:
    """One sample of the reference policy."""
    return _among_completions(1, unweighed)


def plain_by_steps() -> StepFn:
    """One sample of the reference policy, a guide step at a time: the law of `plain`, by other random numbers."""

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        drawn = draw_for_chains(policy.extend, chains, Purpose.CANDIDATE, 1)
        return [keep_one(*row, 0.0, unweighed) for row in zip(chains, drawn, strict=True)]

    return step


def majority_voting(extract: Extract, *, samples: int) -> StepFn:
    """Majority voting (self-consistency decoding): a uniform sample among the texts with the most frequent answer.

    `extract` takes a text, or a problem and a text. Samples of answers with equal counts are equally likely, whereas
    `best_of_n` by `ets.rewards.majority` takes the answer that reached the count first. If no text has an answer, the
    choice is uniform over all N.
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

    For a fixed reward the winner estimates the most probable answer under p* ∝ p_ref · exp(r/λ); a constant reward
    gives `majority`. The step returns a sample with the winning answer, in proportion to exp(r/λ), which is the law of
    p* given the answer; answers with equal sums are equally likely. Texts with the reward -inf do not vote. If no vote
    has an answer, the choice is in proportion to exp(r/λ) over all N; if every reward is -inf, the choice is uniform
    and the chain is invalid. For self-consistency, which is no fixed reward, there is no p*.
    """
    require_positive(lam=lam)
    reward, remembered = as_reward(reward), remembering(extract)

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        read = partial(remembered, chain.problem)
        log_rewards, cost = score(reward, lam, chain, [[text] for text in texts])
        log_votes = log_rewards[:, 0]
        counts = weighted_votes(read, texts, log_votes)
        least = max(counts.values(), default=0.0) * (1 - ROUNDING)
        winning = [counts.get(read(text.text), 0.0) >= least for text in texts]
        return np.where(winning, log_votes, -np.inf), cost

    return _among_completions(samples, weigh)


def confident_majority(extract: Extract, *, samples: int, share: float = 0.5) -> StepFn:
    """Majority voting of the most confident of N samples, each vote weighted by its confidence.

    This is the offline vote of DeepConf (Fu et al., arXiv 2508.15260) with the mean over all tokens as a text's
    confidence. A token's confidence is KL(uniform ‖ p) in nats (`Text.certainty`); the paper's is -1/k Σ log p over the
    k most probable tokens, which at k = V is larger by log V. The paper also has means over windows of tokens, such as
    the lowest window of a text, which the recorded sums do not give.

    Of the texts with an answer, the ⌈share · n⌉ most confident ones vote; texts as confident as the last of them vote
    too. The step returns a voting text with the winning answer; answers with equal sums, and texts of the winner, are
    equally likely. If no text has an answer, the choice is uniform over all N.

    Parameters
    ----------
    extract : callable
        As in `majority_voting`.
    samples : int
        N.
    share : float
        Above 0, at most 1. The paper takes 0.1 and 0.9.

    Raises
    ------
    InputError
        For values out of range, or in the step for texts without a recorded certainty.
    """
    require_share(share=share)
    remembered, confidence = remembering(extract), self_certainty()

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        read = partial(remembered, chain.problem)
        confidences = np.asarray(confidence(chain.problem, texts, chain), float)
        answered = np.array([read(text.text) is not None for text in texts])
        if not answered.any():
            return unweighed(chain, texts)
        sorted_down = np.sort(confidences[answered])[::-1]
        voting = answered & (confidences >= sorted_down[math.ceil(share * len(sorted_down) - ROUNDING) - 1])
        with np.errstate(divide="ignore"):
            log_votes = np.where(voting, np.log(np.maximum(confidences, 0.0)), -np.inf)
        counts = weighted_votes(read, texts, log_votes)
        least = max(counts.values(), default=0.0) * (1 - ROUNDING)
        winning = [vote and counts.get(read(text.text), 0.0) >= least for vote, text in zip(voting, texts, strict=True)]
        return np.where(winning, 0.0, -np.inf), Cost()

    return _among_completions(samples, weigh)


def weighted_votes(read: ReadText, texts: Sequence[Text], log_votes: Floats) -> dict[Hashable, float]:
    """The sum of the votes of each answer, up to a factor, from the logarithms of the texts' votes `[N]`."""
    # `votes` reads weights from log_ratio.
    return votes(read, [replace(text, log_ratio=vote) for text, vote in zip(texts, log_votes, strict=True)])


def one_step(reward: Scoring | Reward, *, samples: int, lam: float) -> StepFn:
    """ETS with one guide step (I = 1): a choice among N samples in proportion to exp(r/λ), a softmax best-of-N.

    For a fixed reward the law of the chosen text tends to p* as N grows, as in guided sampling.
    """
    require_positive(lam=lam)
    reward = as_reward(reward)

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        log_rewards, cost = score(reward, lam, chain, [[text] for text in texts])
        return log_rewards[:, 0], cost

    return _among_completions(samples, weigh)


def best_of_n(reward: Scoring | Reward, *, samples: int) -> StepFn:
    """The sample with the highest reward among N: ETS with one guide step and λ → 0.

    Samples with equal rewards are equally likely. If every reward is -inf, the choice is uniform and the chain is
    invalid.
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
    """The chain with a completion that a uniform number chooses in proportion to the weights."""
    texts = tuple(draw.text for draw in draws)
    log_weights, cost = weigh(chain, texts)
    choice = choose(log_weights, number)
    rollouts = tuple((text,) for text in texts)
    total = Cost.total([*(draw.cost for draw in draws), cost])
    return chain.advance(draws[choice].state, Step(texts, rollouts, log_weights[:, None], log_weights, choice, total))


@runtime_checkable
class Particular(Protocol):
    """A policy that supports beam search for some settings only."""

    def require_searchable(self) -> None:
        """Raise `InputError` if the settings have no beam search."""
        ...


def greedy() -> StepFn:
    """The most probable token at each turn; for masked diffusion, the denoising rule at temperature 0.

    The search takes one step, and all chains of a problem end alike. Log-probabilities in the trace are of the model's
    untempered law, as in `beam`.
    """

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        drawn = draw_for_chains(require_greedy(policy).greedy, chains, Purpose.COMPLETION, 1)
        return [keep_one(*row, 0.0, unweighed) for row in zip(chains, drawn, strict=True)]

    return step


def beam(beams: int) -> StepFn:
    """The engine's beam search: the text with the highest log-probability that the search finds.

    For masked diffusion, the denoising path with the highest log-probability.

    Parameters
    ----------
    beams : int
        Prefixes per token, or paths per denoising step, at least 1; for autoregressive models 1 is greedy decoding.
    """
    require_counts(beams=beams)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        found = require_beam(policy).beam([chain.state for chain in chains], beams)
        return [keep_one(chain, [draw], 0.0, unweighed) for chain, draw in zip(chains, found, strict=True)]

    return step


def require_greedy(policy: Policy) -> GreedySearcher:
    """Return the policy; raise `InputError` if it has no greedy decoding."""
    if isinstance(policy, GreedySearcher):
        return policy
    raise InputError(f"{type(policy).__name__} has no greedy decoding; leave the method greedy out")


def require_beam(policy: Policy) -> BeamSearcher:
    """Return the policy; raise `InputError` if it has no beam search for its settings."""
    if isinstance(policy, Particular):
        policy.require_searchable()
    if isinstance(policy, BeamSearcher):
        return policy
    raise InputError(
        f"{type(policy).__name__} has no beam search, which autoregressive models have in transformers; leave beam out"
    )
