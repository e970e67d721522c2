"""When a chain need not go on: what the rest of it would give is known, or known but for an error with a bound.

Equal energies decide nothing: texts of equal reward may have different answers, and what has not been drawn yet may be
better. What stops by its own rollouts has no proper weight (`ets.weights.log_run_weight`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import partial

import numpy as np

from ets.rewards import Extract, remembering, voters, votes
from ets.step import Decided, require_counts
from ets.types import Chain, Floats, InputError, Problem, Text

ROUNDING = 1e-12
"""Relative: a reward that is below the maximum by no more than this has it."""


def all_at_maximum(maximum: float) -> Decided:
    """Stop when every rollout of a step has the greatest reward that there is, as with a verifier's 1.

    Let the reward be a fixed function of the text, without a proposal. Let x_s be the candidate that is chosen and
    ε(x_s) the mass under p_ref(. | x_s) of texts with a smaller reward. The text returned follows p_ref(. | x_s) given
    that its reward is the maximum; so does p*(. | x_s) on these texts, and it gives the others no more than ε(x_s). So
    the total variation between the law returned and the exact continuation p*(. | x_s) is at most ε(x_s); to that of a
    chain that goes on for n guide steps at finite M and K it is at most (n + 1) · ε(x_s), because one step differs from
    p_ref by the mean shortfall of its weights at most, which is ε on average.

    ε is not known. All M·K rollouts at the maximum bound its mean over the M candidates at 3 / (M·K), with
    95% one-sided confidence: at a larger mean the step would have stopped with a probability below (1 - ε)^(M·K) < 5%.
    Without any confidence, since stopping must happen to do harm: what a step adds to the run's total variation to the
    exact continuation is at most max_ε ε (1 - ε)^(M·K) < 1 / (e·M·K).

    With `ets.rewards.majority` over the chain's votes, the reward 1[a = â] is a fixed function as long as â remains the
    majority answer. Let D be the lead of â over the second answer, in votes, after the step at which the chain stops;
    ε(x_s) is the mass of texts with another answer than â, or none. While â leads, a guide step favours candidates
    with more rollouts of â, so on average it does not raise ε, and at most n·M·K·ε(x_s) of the n·M·K votes to come are
    for other answers. More than D are needed, which has probability n·M·K·ε(x_s) / (D + 1) at most (Markov's
    inequality). So the total variation to the law of the chain that goes on is at most
    (n + 1 + n·M·K / (D + 1)) · ε(x_s): less than (2n + 1) · ε(x_s) after the first step, where D = M·K, and
    (n + 1) · ε(x_s) where `vote_decided` holds as well, as in the first of two steps.

    Parameters
    ----------
    maximum : float
        The greatest reward that there is. A reward that is less by a share of at most 1e-12 counts as the greatest.

    Raises
    ------
    InputError
        For a maximum that is no finite number.
    """
    if isinstance(maximum, bool) or not isinstance(maximum, int | float | np.number) or not math.isfinite(maximum):
        raise InputError(f"maximum is {maximum!r}; give the greatest value that the reward can take")
    least = maximum - ROUNDING * abs(maximum)

    def decided(problem: Problem, rollouts: Sequence[Sequence[Text]], rewards: Floats, chain: Chain) -> bool:
        return bool(np.all(rewards >= least))

    return decided


def vote_decided(extract: Extract, steps: int) -> Decided:
    """Stop when no vote to come can change the majority answer of the chain: exact, for the readout `vote`.

    All rollouts of a chain vote, in every guide step; a step to come has M·K votes. The chain stops if the first answer
    leads the second by at least (I - steps so far) · M · K. With all votes to come the second then reaches the present
    count of the first at most, and of equals the answer that reached the count first wins (`ets.rewards.winner`). With
    a lead that is smaller by one vote, the second answer wins if all votes to come are for it. In the last step nothing
    is left to draw, and the rule stops nothing. With a proposal votes are importance ratios, without a bound: nothing
    is decided once a ratio is not 1. While all are exactly 1, as where q and p_ref agree so far, the rule takes them
    for votes without a proposal.

    The text returned need not have that answer: the rule decides the votes, not the text. With the reward
    `ets.rewards.majority(extract)` the majority answer â is final, too, so the reward is the fixed function 1[a = â]
    from here on. The text is then one of the step's M·K rollouts in proportion to exp(1[a = â] / λ): if h of them have
    the answer â, the text has it with probability h / (h + (M·K - h) · exp(-1/λ)).

    Parameters
    ----------
    extract : callable
        What reads answers, as for `ets.rewards.majority`. A text without an answer does not vote.
    steps : int
        It must be I = ⌈max_length / block_size⌉, the guide steps that a chain takes at most. With fewer, a chain that
        is not decided early goes on beyond them and is refused; with more, chains stop late.

    Raises
    ------
    InputError
        For steps out of range; while sampling, at a chain that takes more steps than these.
    """
    require_counts(steps=steps)
    remembered = remembering(extract)

    def decided(problem: Problem, rollouts: Sequence[Sequence[Text]], rewards: Floats, chain: Chain) -> bool:
        steps_so_far = [*(step.rollouts for step in chain.trace), rollouts]
        if len(steps_so_far) > steps:
            raise InputError(
                f"a chain takes guide step {len(steps_so_far)}, but vote_decided was told of {steps} in all; "
                "give the guide steps that a chain takes at most"
            )
        texts = voters(steps_so_far)
        if any(text.log_ratio for text in texts):
            return False
        counts: dict[Hashable, float] = votes(partial(remembered, problem), texts)
        first, second = sorted([0.0, 0.0, *counts.values()], reverse=True)[:2]
        return 0 < (steps - len(steps_so_far)) * rewards.size <= first - second

    return decided
