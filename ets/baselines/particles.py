"""Sequential Monte Carlo over populations of partial generations: `particle_filter` and `lookahead`.

Each guide step multiplies a particle's weight by new potential / old potential. At a low effective sample size the
particles are resampled in proportion to their weights, and every copy gets the mean weight. Resampling keeps the
expected sum of the weights, so the final mean weight is the estimate Ẑ of the normaliser of p*.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np

from ets.randomness import Purpose, uniform
from ets.step import (
    Scoring,
    as_reward,
    choose,
    is_number,
    require_counts,
    require_positive,
    require_unweighed,
    require_variety,
    row_keys,
    score,
)
from ets.types import Chain, Cost, Draw, Floats, InputError, Keys, Policy, Reward, State, Step, StepFn, Text
from ets.weights import effective_sample_size, log_mean_exp, normalised, pick


@dataclass(frozen=True, eq=False)
class Particle:
    """One partial generation of a population.

    Parameters
    ----------
    state, text : State, Text
    rollouts, log_rewards : tuple of Text, array
        `[K]`; the potential is the mean of exp(log_rewards), with log_rewards = r/λ.
    log_potential, log_weight : float
        A particle of weight zero is dead.
    line : tuple of int
        The indices of the particle and its ancestors in the population, by guide step.
    """

    state: State
    text: Text
    rollouts: tuple[Text, ...] = ()
    log_rewards: Floats = field(default_factory=lambda: np.empty(0))
    log_potential: float = 0.0
    log_weight: float = 0.0
    line: tuple[int, ...] = ()

    def moved(self, place: int, draw: Draw | None) -> Particle:
        """The particle after its guide step, if there was a draw."""
        line = (*self.line, place)
        return replace(self, line=line, state=draw.state, text=draw.text) if draw else replace(self, line=line)

    def judged(self, rollouts: tuple[Text, ...], log_rewards: Floats) -> Particle:
        """The particle with a new potential and the weight w · new / old; dead particles remain dead."""
        potential, dead = float(log_mean_exp(log_rewards, axis=0)), math.isinf(self.log_weight)
        weight = self.log_weight if dead else self.log_weight + potential - self.log_potential
        return replace(self, rollouts=rollouts, log_rewards=log_rewards, log_potential=potential, log_weight=weight)


@dataclass(frozen=True, eq=False)
class Population:
    """The state of a chain: particles `[N]`. Its text and tokens are the heaviest particle's."""

    particles: tuple[Particle, ...]

    @property
    def log_weights(self) -> Floats:
        return np.array([particle.log_weight for particle in self.particles])

    @property
    def going(self) -> list[int]:
        """Indices of the unfinished particles; dead particles stop, unless all are dead."""
        lost = np.isneginf(self.log_weights)
        return [n for n, p in enumerate(self.particles) if not p.state.done and (not lost[n] or bool(lost.all()))]

    @property
    def heaviest(self) -> Particle:
        return self.particles[int(np.argmax(self.log_weights))]

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.heaviest.state.tokens

    @property
    def text(self) -> str:
        return self.heaviest.state.text

    @property
    def done(self) -> bool:
        return not self.going


class Judged(NamedTuple):
    """Texts and r/λ `[K]` of one chain, by particle index, and their cost."""

    rows: Mapping[int, tuple[tuple[Text, ...], Floats]]
    cost: Cost


Moves: TypeAlias = Mapping[int, Draw]
"""The draws of one chain's guide step, by particle index."""
Potential: TypeAlias = Callable[[Policy, Sequence[Chain], Sequence[Population], Sequence[Moves]], list[Judged]]
"""Scores the particles after a move; particles without a score keep their potentials."""


def particle_filter(reward: Scoring | Reward, *, particles: int, lam: float, threshold: float = 0.5) -> StepFn:
    """Sequential Monte Carlo towards p* ∝ p_ref · exp(r/λ), by the reward of the partial texts.

    A particle's potential after a guide step is exp(r(partial text)/λ), and 1 for the empty text. The increments of a
    complete text x multiply to exp(r(x)/λ). Once all particles are complete, the step chooses a particle in proportion
    to its weight.

    For a fixed finite reward the estimate is unbiased at any N: E[Ẑ f(chosen)] = E_ref[exp(r(x)/λ) f(x)], with Ẑ as in
    `log_normaliser`. The law of the chosen text tends to p* as N grows; at threshold 0 it is the law of `one_step`.
    A reward of -inf kills a particle, even where a continuation of the text would be allowed: Ẑ lacks such texts.

    Neither property holds for self-consistency (`ets.rewards.majority`, `ets.rewards.agreement_share`), which scores
    all N texts at every step, complete texts too. Early texts have no answer, so all potentials are 1 and the filter
    selects nothing. Use `pool="step"`: with `pool="chain"` the unfinished texts of earlier steps vote too.

    Parameters
    ----------
    reward : callable
        r, as in `ets.kernel.energy_guided`, of partial texts; for masked diffusion, of the revealed text.
    particles : int
        N, at least 1. N = 1 is plain sampling.
    lam : float
        λ > 0, in units of the reward.
    threshold : float
        From 0 to 1: systematic resampling when the effective sample size is below this share of N. 0 never resamples,
        1 resamples whenever weights differ.

    Returns
    -------
    StepFn
        Advances all particles by one guide step. The trace holds the particles `[N]` as candidates, their texts
        `[N, 1]` as rollouts, and `log_weights` before resampling. At the end of the chain `choice` is the index of
        the chosen particle's ancestor. If all particles die, the choice is uniform and the chain is invalid.

    Raises
    ------
    InputError
        For values out of range.
    """
    require_positive(lam=lam)
    reward = as_reward(reward)

    def potential(
        policy: Policy, chains: Sequence[Chain], populations: Sequence[Population], moves: Sequence[Moves]
    ) -> list[Judged]:
        texts = [{n: (p.text,) for n, p in enumerate(population.particles)} for population in populations]
        return [_judge(reward, lam, *row) for row in zip(chains, texts, strict=True)]

    return _sequential(potential, particles, threshold)


def lookahead(reward: Scoring | Reward, *, particles: int, rollouts: int, lam: float, threshold: float = 0.5) -> StepFn:
    """Look-ahead sequential Monte Carlo: a particle's potential is its estimated energy Ê, of K rollouts.

    A guide step multiplies the weight by Ê_new / Ê_parent, with Ê_root = 1. The energy of a complete text is exact,
    exp(r/λ), and computed once. Rewards are of complete texts.

    For a finite fixed reward it is proper at any N and K: E[Ẑ f(chosen)] = E_ref[exp(r(x)/λ) f(x)], with Ẑ as in
    `log_normaliser`. Proof: let z_i = (x_i, u_i) be a particle's text after guide step i and its K rollouts from
    p_ref(. | x_i), as auxiliary variables. Under p_ref the z_i are a Markov chain whose texts have the law p_ref,
    for any u_i. The factor Ê_i / Ê_{i-1} is a function of (z_{i-1}, z_i), so the method is plain sequential Monte Carlo
    on the extended space. The factor may be a biased estimate of E(x_i) / E(x_{i-1}): along any path the factors
    multiply to the last Ê, exp(r(x)/λ). Resampling gives a particle of weight w on average N w / Σ w copies of weight
    Σ w / N, so given the past it preserves Σ w φ(z) on average for any φ, also where the past decides when to resample.
    A choice in proportion to w, times Ẑ = Σ w / N, is Σ w f / N on average. (Del Moral, Feynman-Kac Formulae, 2004,
    chapter 7; Andrieu, Doucet and Holenstein, 2010.)

    So the law of the chosen text tends to p* as N grows, for finite rewards. A particle whose K rollouts all have the
    reward -inf dies, though another continuation might be allowed; this error falls with K, not with N. With
    self-consistency a complete particle keeps its first value, and later votes through `pool="chain"` alone.

    Parameters
    ----------
    reward, particles, lam, threshold
        As in `particle_filter`.
    rollouts : int
        K, at least 1.

    Returns
    -------
    StepFn
        As in `particle_filter`, with rollouts `[N, K]`; a complete particle's row holds K copies of its text.

    Raises
    ------
    InputError
        For values out of range.
    """
    require_counts(rollouts=rollouts)
    require_positive(lam=lam)
    reward = as_reward(reward)

    def potential(
        policy: Policy, chains: Sequence[Chain], populations: Sequence[Population], moves: Sequence[Moves]
    ) -> list[Judged]:
        unfinished = [{n: draw.state for n, draw in row.items() if not draw.state.done} for row in moves]
        drawn = _draw(policy.finish, unfinished, row_keys(chains, Purpose.ROLLOUT, particles, rollouts))
        judged = []
        for chain, row, finished in zip(chains, moves, drawn, strict=True):
            texts = {n: tuple(d.text for d in finished.get(n, [draw] * rollouts)) for n, draw in row.items()}
            rows, cost = _judge(reward, lam, chain, texts)
            judged.append(Judged(rows, Cost.total([cost, *(d.cost for draws in finished.values() for d in draws)])))
        return judged

    return _sequential(potential, particles, threshold)


def log_normaliser(trace: Sequence[Step]) -> float:
    """log Ẑ of a complete chain of `particle_filter` or `lookahead`: the log of the mean of the last weights.

    For a fixed finite reward E[Ẑ] = E_ref[exp(r/λ)], so Σ Ẑ f / Σ Ẑ over independent chains estimates E_p*[f]. Rewards
    of -inf make Ẑ too small: with `lookahead` E[Ẑ f] = E_ref[exp(r/λ) f Π_i (1 - (1 - a_i)^K)], with a_i as in
    `ets.weights.log_run_weight`, and with `particle_filter` texts with a forbidden partial text are missing.
    `ets.weights.log_run_weight` computes the same for guided sampling, whose weights are not cumulative. For a shorter
    trace the value estimates the mean of the last step's potentials. It is -inf where all particles died.
    """
    return float(log_mean_exp(trace[-1].log_weights, axis=0))


def systematic(log_weights: Floats, number: float) -> list[int]:
    """Parents `[N]` by one uniform number: a particle with the weight w gets N w / Σ w copies on average."""
    shares = normalised(log_weights)
    return [pick(shares, (number + n) / len(shares)) for n in range(len(shares))]


def _sequential(potential: Potential, particles: int, threshold: float) -> StepFn:
    """The step function that moves, weighs and resamples populations, and chooses a particle at the end."""
    require_counts(particles=particles)
    if not (is_number(threshold) and 0 <= threshold <= 1):
        raise InputError(f"threshold is {threshold!r}; it must be a number from 0 to 1")

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, particles)
        populations = [_population(chain, particles) for chain in chains]
        # move: x_i ~ p_ref(. | x_{i-1}) for every unfinished particle, [B, N]
        moves = _move(policy, chains, populations)
        populations = [
            Population(tuple(p.moved(n, row.get(n)) for n, p in enumerate(population.particles)))
            for population, row in zip(populations, moves, strict=True)
        ]
        # weigh: w_i = w_{i-1} · potential(x_i) / potential(x_{i-1})
        judged = potential(policy, chains, populations, moves)
        populations = [
            Population(tuple(p.judged(*j.rows[n]) if n in j.rows else p for n, p in enumerate(population.particles)))
            for population, j in zip(populations, judged, strict=True)
        ]
        # resample, or choose at the end
        costs = [Cost.total([*(d.cost for d in m.values()), j.cost]) for m, j in zip(moves, judged, strict=True)]
        numbers = uniform(row_keys(chains, Purpose.CHOICE, 2)).tolist()
        rows = zip(chains, populations, costs, numbers, strict=True)
        return [_advanced(*row, threshold) for row in rows]

    return step


def _population(chain: Chain, particles: int) -> Population:
    state = chain.state
    if isinstance(state, Population):
        return state
    return Population((Particle(state, Text(state.tokens, state.text, 0.0, state.done)),) * particles)


def _move(policy: Policy, chains: Sequence[Chain], populations: Sequence[Population]) -> list[Moves]:
    states = [{n: population.particles[n].state for n in population.going} for population in populations]
    keys = row_keys(chains, Purpose.CANDIDATE, len(populations[0].particles))
    return [{n: draw for n, (draw,) in row.items()} for row in _draw(policy.extend, states, keys[..., None])]


def _draw(
    method: Callable[[Sequence[State], Keys], list[Draw]], states: Sequence[Mapping[int, State]], keys: Keys
) -> list[dict[int, list[Draw]]]:
    """Draws from every chain's states in one call, by keys `[B, N, copies]`."""
    places = [(b, n) for b, row in enumerate(states) for n in row]
    if not places:
        return [{} for _ in states]
    rows = [states[b][n] for b, n in places for _ in range(keys.shape[-1])]
    draws = iter(method(rows, keys[tuple(zip(*places, strict=True))].ravel()))
    return [{n: list(islice(draws, keys.shape[-1])) for n in row} for row in states]


def _judge(reward: Reward, lam: float, chain: Chain, texts: Mapping[int, tuple[Text, ...]]) -> Judged:
    log_rewards, cost = score(reward, lam, chain, list(texts.values()))
    return Judged(dict(zip(texts, zip(texts.values(), log_rewards, strict=True), strict=True)), cost)


def _advanced(chain: Chain, population: Population, cost: Cost, numbers: Sequence[float], threshold: float) -> Chain:
    """The chain after the step: resampled by the first uniform number, at the end chosen by the second."""
    particles, log_weights = population.particles, population.log_weights
    candidates, rollouts = tuple(p.text for p in particles), tuple(p.rollouts for p in particles)
    log_rewards = np.array([p.log_rewards for p in particles])
    step = Step(candidates, rollouts, log_rewards, log_weights, int(np.argmax(log_weights)), cost)
    if not population.done:
        population = _resampled(population, numbers[0], threshold)
    if not population.done:
        return chain.advance(population, step)
    chosen = population.particles[choose(population.log_weights, numbers[1])]
    line = zip((*chain.trace, step), chosen.line, strict=True)
    return replace(chain, state=chosen.state, trace=tuple(replace(step, choice=place) for step, place in line))


def _resampled(population: Population, number: float, threshold: float) -> Population:
    """Systematic resampling below the threshold; a copy keeps its parent's state and potential."""
    log_weights = population.log_weights
    if effective_sample_size(log_weights) >= threshold * len(log_weights):
        return population
    mean = float(log_mean_exp(log_weights, axis=0))
    parents = systematic(log_weights, number)
    return Population(tuple(replace(population.particles[parent], log_weight=mean) for parent in parents))
