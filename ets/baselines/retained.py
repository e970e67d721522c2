"""Step functions that retain the chosen text: each step after the first leaves p* invariant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np

from ets.importance import WrappedState
from ets.randomness import Purpose
from ets.step import (
    Scoring,
    as_reward,
    choice_uniforms,
    choose,
    choose_pair,
    draw_for_chains,
    require_counts,
    require_positive,
    require_unweighed,
    require_variety,
    row_keys,
    score,
)
from ets.types import Chain, Cost, Draw, Floats, Keys, Policy, Reward, State, Step, StepFn
from ets.weights import log_mean_exp, normalised

RetainedPath: TypeAlias = tuple[Draw, ...]
"""A rollout: the draws at the guide boundaries after its first state; empty if that state is complete."""


@dataclass(frozen=True, eq=False)
class RetainedState(WrappedState):
    """x_s and the rollouts from x_s for the next guide step: the retained rollout, then its siblings."""

    rollouts: tuple[RetainedPath, ...] = ()


def retained_rollouts(reward: Scoring | Reward, *, candidates: int, rollouts: int, lam: float) -> StepFn:
    """Guided sampling that retains the chosen rollout: conditional SMC towards p* ∝ p_ref · exp(r/λ).

    The first guide step draws M·K rollouts as `ets.kernel.energy_guided` does, and chooses a (candidate, rollout) pair
    in proportion to exp(r_mk / λ); a complete candidate fills K equal cells. The step retains the chosen rollout and
    its siblings, the other K - 1 rollouts of the chosen candidate. The M candidates of the next step are the next
    blocks of the retained rollout and of its siblings, then M - K fresh blocks (if K > M: of M - 1 siblings, and no
    fresh block). A retained rollout is one of its candidate's K rollouts; the others are fresh. Then the step chooses
    a pair again.

    Every step after the first leaves p* invariant, at any M and K. Proof: let x_0 ~ p*(. | x_t) be retained and its
    siblings i.i.d. p_ref(. | x_t). The step's M·K rollouts have the density of M fresh candidates with K fresh rollouts
    each, times exp(r/λ) at the retained rollout, over a constant. Candidates and rollouts are exchangeable, so any cell
    may hold the retained rollout: given all rollouts, its cell has probability proportional to exp(r_mk / λ), and the
    new choice is a Gibbs step. The new x_0 again follows p*(. | x_t). The siblings entered the choice by their weights
    alone, so they are again i.i.d. p_ref(. | x_s). (The extended target of particle Gibbs: Andrieu, Doucet and
    Holenstein, 2010; of iterated sampling-importance-resampling: Andrieu, Lee and Vihola, 2018.) An invariant step
    never increases the total variation to its target, so the error is of order 1/M, from the first step alone.

    For self-consistency there is no p*; a retained rollout votes once in the pool of a chain.

    `extend` draws the rollouts block by block, and `Cost` counts them as candidate positions. The states at all
    boundaries live until the choice, and for the retained rollouts until the next choice. The reward scores retained
    rollouts again, together with the new rollouts. `Step.rollout` is the index of the chosen rollout.
    `ets.weights.log_run_weight` does not apply.

    Parameters
    ----------
    reward : callable
        r, as in `ets.kernel.energy_guided`.
    candidates, rollouts : int
        M and K, at least 1. M = K = 1 is plain sampling.
    lam : float
        λ > 0, in units of the reward.

    Raises
    ------
    InputError
        For values out of range.
    """
    require_counts(candidates=candidates, rollouts=rollouts)
    require_positive(lam=lam)
    reward = as_reward(reward)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, max(candidates, rollouts))
        begun = [c.state if isinstance(c.state, RetainedState) else RetainedState(c.state) for c in chains]
        drawn = _candidates(policy, row_keys(chains, Purpose.CANDIDATE, candidates), begun)
        paths = _completions(policy, row_keys(chains, Purpose.ROLLOUT, candidates, rollouts), begun, drawn)
        rows = zip(chains, begun, drawn, paths, choice_uniforms(chains), strict=True)
        return [_retain(*row, reward, lam) for row in rows]

    return step


def _candidates(policy: Policy, keys: Keys, begun: Sequence[RetainedState]) -> list[list[Draw]]:
    """`[B, M]`, by keys `[B, M]`: the next blocks of the retained rollouts, then fresh blocks."""
    known = [[path[0] for path in state.rollouts] for state in begun]
    rows = [(b, m) for b, row in enumerate(known) for m in range(len(row), keys.shape[1])]
    if not rows:
        return known
    fresh = iter(policy.extend([begun[b].drawn for b, _ in rows], keys[tuple(zip(*rows, strict=True))]))
    return [[*row, *islice(fresh, keys.shape[1] - len(row))] for row in known]


def _completions(
    policy: Policy, keys: Keys, begun: Sequence[RetainedState], drawn: Sequence[Sequence[Draw]]
) -> list[list[list[RetainedPath]]]:
    """`[B, M, K]`, by keys `[B, M, K]`: the rest of a retained rollout in its candidate's row, then fresh rollouts."""
    kept = [dict(enumerate(path[1:] for path in state.rollouts)) for state in begun]
    cells = [
        (b, m, k)
        for b, row in enumerate(drawn)
        for m, draw in enumerate(row)
        for k in range(m in kept[b], keys.shape[2])
        if not draw.state.done
    ]
    states = [drawn[b][m].state for b, m, _ in cells]
    fresh = draw_paths(policy, states, np.array([keys[cell] for cell in cells], np.uint64))
    found = dict(zip(cells, fresh, strict=True))
    return [
        [[found.get((b, m, k), kept[b].get(m, ())) for k in range(keys.shape[2])] for m in range(len(row))]
        for b, row in enumerate(drawn)
    ]


def draw_paths(policy: Policy, states: Sequence[State], keys: Keys) -> list[RetainedPath]:
    """x_0 ~ p_ref(. | x_s) for each row, with the states at all guide boundaries; the law of `Policy.finish`.

    A row uses one key for all guide steps, since every random number depends on the key and the token position.
    """
    paths: list[RetainedPath] = [()] * len(states)
    rows = list(range(len(states)))
    while rows:
        draws = policy.extend([paths[n][-1].state if paths[n] else states[n] for n in rows], keys[rows])
        for n, draw in zip(rows, draws, strict=True):
            paths[n] = (*paths[n], draw)
        rows = [n for n in rows if not paths[n][-1].state.done]
    return paths


def _retain(
    chain: Chain,
    begun: RetainedState,
    drawn: Sequence[Draw],
    paths: Sequence[Sequence[RetainedPath]],
    number: float,
    reward: Reward,
    lam: float,
) -> Chain:
    """Choose a pair by a uniform number, and retain the rollouts of its candidate, the chosen rollout first."""
    texts = tuple(
        tuple((path[-1] if path else draw).text for path in row) for draw, row in zip(drawn, paths, strict=True)
    )
    log_rewards, reward_cost = score(reward, lam, chain, texts)
    m, k = choose_pair(log_rewards, number)
    state, row = drawn[m].state, paths[m]
    if not state.done:
        # Siblings in cyclic order from k on: in the order of cells the last retained rollout would always come first,
        # and for K > M the M - 1 siblings that stay would not be exchangeable.
        state = RetainedState(state, (*row[k:], *row[:k])[: len(drawn)])
    cost = Cost.total([*_fresh_costs(begun, drawn, paths), reward_cost])
    candidates, log_weights = tuple(draw.text for draw in drawn), log_mean_exp(log_rewards, axis=1)
    return chain.advance(state, Step(candidates, texts, log_rewards, log_weights, m, cost, k))


def _fresh_costs(begun: RetainedState, drawn: Sequence[Draw], paths: Sequence[Sequence[RetainedPath]]) -> list[Cost]:
    """The costs of the new draws; earlier steps have counted the retained draws."""
    paid = {id(draw) for path in begun.rollouts for draw in path}
    held = {id(draw): draw for row in ([drawn], *paths) for path in row for draw in path}
    return [draw.cost for name, draw in held.items() if name not in paid]


def iterated_sir(reward: Scoring | Reward, *, samples: int, iterations: int, lam: float) -> StepFn:
    """Iterated sampling-importance-resampling towards p* ∝ p_ref · exp(r/λ).

    The first iteration chooses a text in proportion to exp(r/λ) among N complete texts. Each further iteration chooses
    among the current text and N - 1 fresh texts. One iteration is `ets.baselines.one_step`. Each iteration leaves p*
    invariant (Andrieu, Lee and Vihola, 2018). With w̄ the largest exp(r/λ) over its mean under p_ref, a text y follows
    any current x with probability at least (N - 1) p_ref(y) w_y E[1 / (w_x + w_y + Σ_{N-2} w)] ≥ δ p*(y), with
    δ = (N - 1) / (2 w̄ + N - 2) by Jensen's inequality: the total variation to p* falls at least by the factor 1 - δ.

    No draw depends on the current text, so the step draws all N + (iterations - 1)(N - 1) texts in one batch and ends
    the chain. It computes the law of the last choice given all texts, and one uniform number chooses by this law.
    `Step.log_weights` holds the law, `Step.log_rewards` r/λ. `ets.weights.log_run_weight` does not apply.

    Parameters
    ----------
    reward : callable
        r, as in `ets.kernel.energy_guided`. One call scores the texts of all iterations.
    samples, iterations : int
        N and the number of choices, at least 1.
    lam : float
        λ > 0, in units of the reward.

    Raises
    ------
    InputError
        For values out of range.
    """
    require_counts(samples=samples, iterations=iterations)
    require_positive(lam=lam)
    reward = as_reward(reward)
    total = samples + (iterations - 1) * (samples - 1)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, total)
        drawn = draw_for_chains(policy.finish, chains, Purpose.COMPLETION, total)
        return [end(*row) for row in zip(chains, drawn, choice_uniforms(chains), strict=True)]

    def end(chain: Chain, draws: Sequence[Draw], number: float) -> Chain:
        texts = tuple(draw.text for draw in draws)
        rollouts = tuple((text,) for text in texts)
        log_rewards, reward_cost = score(reward, lam, chain, rollouts)
        log_weights = log_law_of_last(log_rewards[:, 0], samples)
        choice = choose(log_weights, number)
        cost = Cost.total([*(draw.cost for draw in draws), reward_cost])
        return chain.advance(draws[choice].state, Step(texts, rollouts, log_rewards, log_weights, choice, cost))

    return step


def log_law_of_last(log_weights: Floats, samples: int) -> Floats:
    """The log-probability of each text as the last choice, given all texts in the order of the iterations.

    Parameters
    ----------
    log_weights : array
        `[N + (iterations - 1)(N - 1)]`, r/λ.
    samples : int
        N.

    Returns
    -------
    array
        Of the same shape; all -inf if every weight is zero.
    """
    if np.all(np.isneginf(log_weights)):
        return log_weights
    law = normalised(log_weights[:samples])
    for begin in range(samples, len(log_weights), max(1, samples - 1)):
        fresh = log_weights[begin : begin + samples - 1]
        moves = np.stack([normalised(np.append(fresh, kept)) for kept in log_weights[:begin]])
        law = np.append(law * moves[:, -1], law @ moves[:, :-1])
    with np.errstate(divide="ignore"):
        return np.log(law)
