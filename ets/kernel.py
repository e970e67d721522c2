"""The guide step of energy-guided test-time scaling: Algorithms 1 and 2 of Li et al., arXiv 2601.21484.

    1  start at x_t = x_T, the prompt y alone
    2  while x_t is not complete:
    3      draw M candidates          x_s^m  ~ p_ref(. | x_t)
    4      complete each K times      x_0^mk ~ p_ref(. | x_s^m)
    5      estimate the energies      log Ê_m = logmeanexp_k  r(y, x_0^mk) / λ
    6      choose m                   with probability proportional to Ê_m
    7      go on from it              x_t = x_s^m

`energy_guided` makes lines 3 to 7; `ets.runner.run` is the loop of lines 1 and 2. Algorithm 2 (ETS-IS) is the same step
over a pair of policies, `ets.importance.ImportanceSampling`: its rollouts carry log-ratios, which line 5 adds to r / λ.

Shape letters: B chains that advance together, M candidates, K rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ets.randomness import Purpose
from ets.step import (
    Decided,
    Scoring,
    as_reward,
    choice_uniforms,
    choose,
    choose_rollout,
    draw_for_chains,
    require_counts,
    require_positive,
    require_variety,
    row_keys,
    score,
)
from ets.types import Chain, Cost, Draw, Policy, Reward, Step, StepFn, rollout_log_ratios
from ets.weights import log_mean_exp


def energy_guided(
    reward: Scoring | Reward, *, candidates: int, rollouts: int, lam: float, decided: Decided | None = None
) -> StepFn:
    """One guide step towards the optimal policy p* ∝ p_ref · exp(r/λ).

    For a fixed reward of (prompt, text) the law of the chains tends to p* as M → ∞; at finite M and K it is the exact
    law in docs/correctness.md. A candidate that is complete has the energy exp(r/λ)
    exactly and needs no rollout. With a proposal q the limit is the same, if q can draw every text that p_ref can draw
    and no ratio is clipped.

    Parameters
    ----------
    reward : callable
        r: `(prompt, text) -> number`, or an `ets.types.Reward` of (problem, rollouts, chain), such as the paper's
        `ets.rewards.majority`.
    candidates : int
        M, at least 1. With M = 1 the reward has no effect: plain sampling.
    rollouts : int
        K, at least 1.
    lam : float
        λ > 0, the strength of the KL regularisation, in units of the reward. Towards 0: the best candidate. Towards
        infinity: plain sampling, except for the noise of a proposal's ratios.
    decided : Decided, optional
        A rule of `ets.stopping`. Where the rule holds, the chain ends with a rollout of the chosen candidate.

    Returns
    -------
    StepFn
        Advances chains by one guide step, and appends a `Step` with weights `[M]` to each trace.

    Raises
    ------
    InputError
        For values out of range.
    """
    require_counts(candidates=candidates, rollouts=rollouts)
    require_positive(lam=lam)
    reward = as_reward(reward)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_variety(policy, candidates)
        # line 3: x_s^m ~ p_ref(. | x_t), [B, M]
        drawn = draw_for_chains(policy.extend, chains, Purpose.CANDIDATE, candidates)
        # line 4: x_0^mk ~ p_ref(. | x_s^m), [B, M, K]
        completed = complete(policy, chains, drawn, rollouts)
        rows = zip(chains, drawn, completed, choice_uniforms(chains), strict=True)
        return [transition(chain, xs, x0, number, reward, lam, decided) for chain, xs, x0, number in rows]

    return step


def complete(
    policy: Policy, chains: Sequence[Chain], drawn: Sequence[Sequence[Draw]], rollouts: int
) -> list[list[list[Draw]]]:
    """Rollouts `[B, M, K]`, x_0 ~ p_ref(. | x_s); a complete candidate fills its K cells with itself."""
    keys = row_keys(chains, Purpose.ROLLOUT, len(drawn[0]), rollouts)
    rows = [(b, m) for b, row in enumerate(drawn) for m, draw in enumerate(row) if not draw.state.done]
    completed = [[[draw] * rollouts for draw in row] for row in drawn]
    if rows:
        states = [drawn[b][m].state for b, m in rows for _ in range(rollouts)]
        draws = policy.finish(states, np.concatenate([keys[b, m] for b, m in rows]))
        for n, (b, m) in enumerate(rows):
            completed[b][m] = draws[n * rollouts : (n + 1) * rollouts]
    return completed


def transition(
    chain: Chain,
    drawn: Sequence[Draw],
    completed: Sequence[Sequence[Draw]],
    number: float,
    reward: Reward,
    lam: float,
    decided: Decided | None = None,
) -> Chain:
    """Lines 5 to 7 for one chain: M candidates, M·K rollouts, and a uniform number that makes the choice."""
    candidates = tuple(draw.text for draw in drawn)
    rollouts = tuple(tuple(draw.text for draw in row) for row in completed)
    # line 5: log Ê_m = logmeanexp_k (r / λ + log p_ref - log q), [M]; without a proposal the log-ratios are 0
    log_rewards, reward_cost = score(reward, lam, chain, rollouts)
    log_terms = log_rewards + rollout_log_ratios(candidates, rollouts)
    log_energies = log_mean_exp(log_terms, axis=1)
    # line 6: m with probability proportional to Ê_m; where q drew the candidate too, its ratio is a factor
    log_weights = log_energies + [candidate.log_ratio for candidate in candidates]
    choice, rollout, state = choose(log_weights, number), None, None
    if decided is not None and decided(chain.problem, rollouts, log_rewards * lam, chain):
        choice, rollout = choose_rollout(log_weights, log_terms, number)
        state = completed[choice][rollout].state
    # line 7: x_t = x_s^m
    costs = {id(draw): draw.cost for row in (drawn, *completed) for draw in row}  # a complete candidate is paid once
    step = Step(
        candidates, rollouts, log_rewards, log_weights, choice, Cost.total([*costs.values(), reward_cost]), rollout
    )
    return chain.advance(drawn[choice].state if state is None else state, step)
