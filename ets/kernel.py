"""The energy-guided transition: Algorithms 1 and 2 of Li et al., arXiv 2601.21484."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ets.randomness import Purpose
from ets.rewards import Scoring, as_reward
from ets.step import (
    choice_uniforms,
    choose,
    choose_pair,
    draw_for_chains,
    require_counts,
    require_positive,
    require_variety,
    row_keys,
    score,
)
from ets.stopping import Decided
from ets.types import Chain, Cost, Draw, Floats, Policy, Reward, Step, StepFn, rollout_log_ratios
from ets.weights import log_mean_exp


def energy_guided(
    reward: Scoring | Reward,
    *,
    candidates: int,
    rollouts: int,
    lam: float,
    decided: Decided | None = None,
) -> StepFn:
    """One guide step towards the optimal policy p* ∝ p_ref · exp(r/λ) (Algorithms 1 and 2).

    Draws M candidates x_s ~ p_ref(. | x_t) per chain, completes each K times, estimates the log-energies
    log Ê_m = logmeanexp_k r_mk / λ, and goes on from one candidate chosen in proportion to Ê_m. A candidate
    that is already complete has the exact energy exp(r/λ) and is not rolled out.

    ETS-IS (Algorithm 2) is the same step over a pair of policies, `ets.importance.ImportanceSampling`: the rollouts are
    those of its proposal q, and each counts with its importance ratio,
    log Ê_m = logmeanexp_k (r_mk / λ + log p_ref(x_0^mk | x_s^m) - log q(x_0^mk | x_s^m)).
    If q can draw whatever p_ref can and no ratio is clipped, Ê_m is unbiased at any K, and the law as M → ∞ is the same
    as without a proposal. At finite M and K the law is the exact one with z = ratio · exp(r/λ).

    Parameters
    ----------
    reward : callable
        r: `(prompt, text) -> number`, or an `ets.types.Reward` of (problem, rollouts, chain). For a fixed function of
        (prompt, text) the chain's law tends to p* as M grows; for the paper's reward see
        `ets.rewards.majority`.
    candidates : int
        M, at least 1. With M = 1 the reward has no effect: plain sampling.
    rollouts : int
        K, at least 1.
    lam : float
        λ > 0, the strength of the KL regularisation, in units of the reward. Towards 0: the best
        candidate; towards infinity: plain sampling (but for the noise of a proposal's ratios).
    decided : Decided, optional
        Asked at each step whether going on can be left out, see `ets.stopping`. Then the chain ends with one of the
        chosen candidate's rollouts, in proportion to ratio · exp(r/λ); the candidate is chosen as always.

    Returns
    -------
    StepFn
        Advances chains by one guide step, appending a `Step` with weights `[M]` to each trace.

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
        drawn = draw_for_chains(policy.extend, chains, Purpose.CANDIDATE, candidates)
        completed = complete(policy, chains, drawn, rollouts)
        rows = zip(chains, drawn, completed, choice_uniforms(chains), strict=True)
        return [transition(*row, reward, lam, decided) for row in rows]

    return step


def complete(
    policy: Policy, chains: Sequence[Chain], drawn: Sequence[Sequence[Draw]], rollouts: int
) -> list[list[list[Draw]]]:
    """Rollouts `[B, M, K]`, x_0 ~ p_ref(. | x_s); a candidate that has ended fills its K cells with itself."""
    keys = row_keys(chains, Purpose.ROLLOUT, len(drawn[0]), rollouts)
    rows = [(b, m) for b, row in enumerate(drawn) for m, draw in enumerate(row) if not draw.state.done]
    completed = [[[draw] * rollouts for draw in row] for row in drawn]
    if rows:
        states = [drawn[b][m].state for b, m in rows for _ in range(rollouts)]
        draws = policy.finish(states, keys[tuple(zip(*rows, strict=True))].ravel())
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
    """Weigh the candidates by their estimated energies, choose one by a uniform number and go on from it.

    Where it is decided, the chain ends with one of the candidate's rollouts.
    """
    texts = tuple(tuple(draw.text for draw in row) for row in completed)
    log_rewards, reward_cost = score(reward, lam, chain, texts)
    candidates = tuple(draw.text for draw in drawn)
    log_ratios = rollout_log_ratios(candidates, texts)
    # The ratio of a candidate that a proposal drew itself multiplies its energy.
    log_weights = log_mean_exp(log_rewards + log_ratios, axis=1) + [candidate.log_ratio for candidate in candidates]
    if decided is not None and decided(chain.problem, texts, log_rewards * lam, chain):
        choice, rollout = choose_pair(spread(log_weights, log_rewards + log_ratios), number)
        state = completed[choice][rollout].state
    else:
        choice, rollout = choose(log_weights, number), None
        state = drawn[choice].state
    own = {id(draw): draw.cost for row in (drawn, *completed) for draw in row}
    cost = Cost.total([*own.values(), reward_cost])
    return chain.advance(state, Step(candidates, texts, log_rewards, log_weights, choice, cost, rollout))


def spread(log_weights: Floats, log_terms: Floats) -> Floats:
    """Each candidate's weight `[M]`, spread over its rollouts `[M, K]` in proportion to exp(log_terms)."""
    means = log_mean_exp(log_terms, axis=1)
    return log_terms + (log_weights - np.where(np.isneginf(means), 0.0, means))[:, None]
