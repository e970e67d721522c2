"""Early stopping of a chain: the rest of the chain would not change its result, or change it within a known bound.

Equal energies are no reason to stop: texts of equal reward may have different answers, and a later step may draw a
better text. A chain that stops by its rollouts has no proper weight (`ets.weights.log_run_weight`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np

from ets.rewards import Extract, remembering, voters, votes
from ets.step import Decided, is_number, require_counts
from ets.types import Chain, Floats, InputError, Problem, Text

ROUNDING = 1e-12
"""Relative: a smaller reward counts as the maximum within this tolerance."""


def all_at_maximum(maximum: float) -> Decided:
    """Stop when every rollout of a step has the maximal reward, such as a verifier's 1.

    Let the reward be a fixed function of the text, without a proposal. Let x_s be the chosen candidate, and ε(x_s) the
    mass of texts with a smaller reward under p_ref(. | x_s). The returned text follows p_ref(. | x_s) given a maximal
    reward. The exact continuation p*(. | x_s) has the same law given a maximal reward, and gives other texts at most
    ε(x_s). So the total variation between the two is at most ε(x_s). The total variation to a chain that continues for
    n guide steps at finite M and K is at most (n + 1) · ε(x_s), because a step differs from p_ref by at most the mean
    shortfall of its weights, which is ε on average.

    ε is unknown. M·K rollouts at the maximum bound its mean over the M candidates by 3 / (M·K) with 95% one-sided
    confidence: at a larger mean the step stops with a probability below (1 - ε)^(M·K) < 5%. Without a confidence level:
    a step adds at most max_ε ε (1 - ε)^(M·K) < 1 / (e·M·K) to the run's total variation to the exact continuation,
    since only a step that stops adds to it.

    With `ets.rewards.majority` over the chain's votes, the reward 1[a = â] is a fixed function while â is the majority
    answer. Let D be the lead of â over the second answer, in votes, after the last step; ε(x_s) is the mass of texts
    without the answer â. While â leads, a guide step favours candidates with more rollouts of â, so on average ε does
    not rise, and on average at most n·M·K·ε(x_s) of the n·M·K further votes are for other answers. By Markov's
    inequality, more than D of them are for other answers with a probability of at most n·M·K·ε(x_s) / (D + 1). So the
    total variation to the law of the continued chain is at most (n + 1 + n·M·K / (D + 1)) · ε(x_s): less than
    (2n + 1) · ε(x_s) after the first step, where D = M·K, and (n + 1) · ε(x_s) if `vote_decided` stops the chain too.

    Parameters
    ----------
    maximum : float
        The greatest value of the reward. A smaller reward counts as the maximum within a relative tolerance of 1e-12.

    Raises
    ------
    InputError
        For a maximum that is no finite number.
    """
    if not is_number(maximum):
        raise InputError(f"maximum is {maximum!r}; give the greatest value that the reward can take")
    least = maximum - ROUNDING * abs(maximum)

    def decided(problem: Problem, rollouts: Sequence[Sequence[Text]], rewards: Floats, chain: Chain) -> bool:
        return bool(np.all(rewards >= least))

    return decided


def vote_decided(extract: Extract, steps: int) -> Decided:
    """Stop when no further vote can change the majority answer of the chain: exact, for the readout `vote`.

    All rollouts of all guide steps vote, M·K in each step. The chain stops if the first answer leads the second by at
    least (I - steps so far) · M · K votes. Then the second answer can at most reach the present count of the first,
    and of two answers with equal counts the majority is the answer that reached the count first
    (`ets.rewards.winner`). With a lead of one vote less, the second answer could still win. The rule never stops the
    last step. With a proposal the votes are importance ratios without a bound, so the rule stops only while every
    ratio is exactly 1.

    The rule decides the votes, not the text: the returned text may have another answer. With the reward
    `ets.rewards.majority(extract)` the majority answer â is final, so the reward is the fixed function 1[a = â] from
    this step on. The chain then chooses its text among the M·K rollouts in proportion to exp(1[a = â] / λ): if h
    rollouts have the answer â, the text has it with probability h / (h + (M·K - h) · exp(-1/λ)).

    Parameters
    ----------
    extract : callable
        Extracts the answer, as for `ets.rewards.majority`. A text without an answer does not vote.
    steps : int
        I = ⌈max_length / block_size⌉, the largest number of guide steps of a chain. With a smaller number, a chain that
        takes more steps raises an error; with a larger number, chains stop late.

    Raises
    ------
    InputError
        For steps out of range; while sampling, for a chain that takes more than `steps` guide steps.
    """
    require_counts(steps=steps)
    remembered = remembering(extract)

    def decided(problem: Problem, rollouts: Sequence[Sequence[Text]], rewards: Floats, chain: Chain) -> bool:
        steps_so_far = [*(step.rollouts for step in chain.trace), rollouts]
        if len(steps_so_far) > steps:
            raise InputError(
                f"a chain takes guide step {len(steps_so_far)}, but the steps of vote_decided are {steps}; "
                "give the largest number of guide steps"
            )
        texts = voters(steps_so_far)
        if any(text.log_ratio for text in texts):
            return False
        counts: dict[Hashable, float] = votes(partial(remembered, problem), texts)
        first, second = sorted([0.0, 0.0, *counts.values()], reverse=True)[:2]
        return 0 < (steps - len(steps_so_far)) * rewards.size <= first - second

    return decided
