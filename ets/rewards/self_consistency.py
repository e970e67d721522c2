"""Self-consistency: the paper's training-free reward, agreement with the other rollouts."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import Literal

from ets.rewards.lifting import Extract, ReadText, remembering
from ets.transition import require_counts
from ets.types import Chain, InputError, Problem, Reward, Text


def votes(extract: ReadText, texts: Sequence[Text]) -> dict[Hashable, float]:
    """The votes for each answer: one a text, or the importance ratio of one that a proposal drew.

    Texts without an answer do not vote. Ratios are in terms of the largest, so that none overflows.
    """
    read = [(extract(text.text), text) for text in texts]
    return _counted([(answer, text) for answer, text in read if answer is not None])


def voters(steps: Iterable[Iterable[Sequence[Text]]]) -> list[Text]:
    """The rollouts of some steps that vote: all cells `[M, K]` of each, but for what an earlier step has drawn.

    A complete candidate fills its K cells and votes K times. What a kernel keeps from step to step votes once.
    """
    known: set[int] = set()
    voting: list[Text] = []
    for rows in steps:
        new = [text for row in rows for text in row if id(text) not in known]
        known.update(map(id, new))
        voting += new
    return voting


def _counted(answered: Sequence[tuple[Hashable, Text]]) -> dict[Hashable, float]:
    """The votes of texts for their answers, of which None is one here."""
    largest = max((text.log_ratio for _, text in answered), default=0.0)
    counts: defaultdict[Hashable, float] = defaultdict(float)
    for answer, text in answered:
        if text.log_ratio > -math.inf:
            counts[answer] += math.exp(text.log_ratio - largest)
    return dict(counts)


def self_consistency(extract: Extract, *, pool: Literal["step", "chain"] = "chain", minimum: int = 1) -> Reward:
    """The share of the pooled rollouts that agree with a rollout's answer; 0 for a rollout without one.

    This reward is not a fixed function of the text, so the law p* ∝ p_ref · exp(r/λ) does not apply to it: it
    is the paper's heuristic. What holds instead, as M → ∞: pooling over one step draws
    `x_s ∝ p_ref(x_s | x_t) · E[exp(π_t(a)/λ) | x_s]`, with a the rollout's answer and
    `π_t(a) = P_ref(a | x_t)`; pooling over the chain replaces π_t by the mean of `π_t'` over the steps t' so
    far, weighted by their votes. A candidate that has ended votes K times; a rollout that a kernel keeps for a later
    step votes in the first alone. With a proposal a rollout's vote is its importance ratio (clipped, if ratios are), so
    that shares tend to the same π_t; at finite M one heavy rollout may own the pool.

    Parameters
    ----------
    extract : callable
        `text -> answer or None` or `(problem, text) -> answer or None`: a pure function, whose results are
        remembered. Equal answers vote together, however they are written: it is `==` that counts.
    pool : {"step", "chain"}
        Whose votes count: this step's rollouts, or those of all steps of the chain so far (the default, as
        in the paper: every rollout that was paid for votes).
    minimum : int
        Votes that an answer needs; with fewer, its rollouts have the reward 0, as those without an answer. With a
        proposal, ratios are in terms of the largest.

    Returns
    -------
    Reward
        With values in [0, 1].
    """
    if pool not in ("step", "chain"):
        raise InputError(f"pool is {pool!r}; choose 'step' or 'chain'")
    require_counts(minimum=minimum)
    remembered = remembering(extract)

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        earlier = [step.rollouts for step in chain.trace] if pool == "chain" else []
        pooled = voters([*earlier, [rollouts]])
        read = partial(remembered, problem)
        counts = _counted([(read(text.text), text) for text in pooled])
        total = math.fsum(counts.values())
        shares = {a: count / total for a, count in counts.items() if a is not None and count >= minimum}
        return [shares.get(read(text.text), 0.0) for text in rollouts]

    return reward
