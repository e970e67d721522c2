"""Particle methods: sequential Monte Carlo over populations of partial generations, see `particle_filter`, `lookahead`.

A particle's weight is multiplied by new over old potential at each guide step. When the effective sample size is low,
particles are drawn again in proportion to their weights, and every copy gets the mean weight: so the sum of the
weights stays what it was on average, and the mean weight at the end is the estimate Ẑ of the normaliser of p*.
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
        Where it stands.
    rollouts, log_rewards : tuple of Text, array
        `[K]`, what its potential is the mean of, and r/λ of each.
    log_potential, log_weight : float
        A particle of weight zero is dead.
    line : tuple of int
        The places in the population that it and its forebears had, by guide step.
    """

    state: State
    text: Text
    rollouts: tuple[Text, ...] = ()
    log_rewards: Floats = field(default_factory=lambda: np.empty(0))
    log_potential: float = 0.0
    log_weight: float = 0.0
    line: tuple[int, ...] = ()

    def moved(self, place: int, draw: Draw | None) -> Particle:
        """One guide step further, if it has taken one."""
        line = (*self.line, place)
        return replace(self, line=line, state=draw.state, text=draw.text) if draw else replace(self, line=line)

    def judged(self, rollouts: tuple[Text, ...], log_rewards: Floats) -> Particle:
        """With a new potential, and its weight multiplied by new over old: the dead remain dead."""
        potential, dead = float(log_mean_exp(log_rewards, axis=0)), math.isinf(self.log_weight)
        weight = self.log_weight if dead else self.log_weight + potential - self.log_potential
        return replace(self, rollouts=rollouts, log_rewards=log_rewards, log_potential=potential, log_weight=weight)


@dataclass(frozen=True, eq=False)
class Population:
    """What a chain carries: N particles `[N]`. As a state it reads like its heaviest particle."""

    particles: tuple[Particle, ...]

    @property
    def log_weights(self) -> Floats:
        """`[N]`"""
        return np.array([particle.log_weight for particle in self.particles])

    @property
    def going(self) -> list[int]:
        """The places of the particles that go on: those that have not ended, and no dead ones, unless all are dead."""
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
    """Of one chain: texts and r/λ `[K]`, by the places of the particles they judge, and what they cost."""

    rows: Mapping[int, tuple[tuple[Text, ...], Floats]]
    cost: Cost


Moves: TypeAlias = Mapping[int, Draw]
"""The guide steps that one chain's particles have taken, by their places."""
Potential: TypeAlias = Callable[[Policy, Sequence[Chain], Sequence[Population], Sequence[Moves]], list[Judged]]
"""Judges particles that have just moved; those that it leaves out keep their potentials."""


def particle_filter(reward: Scoring | Reward, *, particles: int, lam: float, threshold: float = 0.5) -> StepFn:
    """Sequential Monte Carlo towards p* ∝ p_ref · exp(r/λ), by the reward of the partial texts.

    After each guide step a particle's potential is exp(r(text so far)/λ), 1 for the empty text, so that its increments
    multiply to exp(r(x)/λ) when it has ended. One particle is chosen in proportion to its weight once all have ended.

    For a fixed reward the estimate is unbiased at any N, E[Ẑ f(chosen)] = E_ref[exp(r(x)/λ) f(x)] with Ẑ as in
    `log_normaliser`, and the law of the chosen one tends to p* as N grows; with threshold 0 it is that of `one_step`.
    A particle dies at a reward of -inf: to forbid a text that could still become allowed loses what it could become.

    Neither holds for self-consistency (`ets.rewards.majority`, `ets.rewards.agreement_share`), which is asked at every
    step about all N texts, those that have ended included: the last values decide, as the old ones that are divided out
    are those that were recorded. Early on no text has an answer, all potentials are 1, and nothing is selected. Use
    `pool="step"`: in the pool of a chain the unfinished texts of earlier steps vote too, and count in the share.

    Parameters
    ----------
    reward : callable
        r, as in `ets.kernel.energy_guided`, of partial texts too. For masked diffusion, of what has been revealed.
    particles : int
        N, at least 1. With N = 1 the reward has no effect: plain sampling.
    lam : float
        λ > 0, in units of the reward.
    threshold : float
        From 0 to 1: particles are resampled (systematically) when their effective sample size is below this share of
        N. 0 is never, 1 whenever weights differ.

    Returns
    -------
    StepFn
        Advances all particles by one guide step. The trace's candidates are the particles `[N]`, its rollouts
        their texts `[N, 1]`, `log_weights` those before resampling; once the chain has ended, `choice` is the chosen
        particle's forebear. If all particles die, they go on, one is chosen uniformly, and the chain is invalid.

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

    Its weight is multiplied by Ê_new / Ê_parent, with Ê_root = 1; the energy of a particle that has ended is exact,
    exp(r/λ), and asked for once. Rewards are those of complete texts.

    For a finite fixed reward it is proper at any N and K: E[Ẑ f(chosen)] = E_ref[exp(r(x)/λ) f(x)], with Ẑ as in
    `log_normaliser`. Proof: let z_i = (x_i, u_i) be a particle's text after guide step i and its K rollouts, auxiliary
    variables drawn from p_ref(. | x_i). Under p_ref the z_i are a Markov chain whose texts have the law p_ref, whatever
    the u_i are. The factor Ê_i / Ê_{i-1} is a function of (z_{i-1}, z_i), so this is plain sequential Monte Carlo on
    the extended space; that it does not estimate E(x_i) / E(x_{i-1}) without bias is of no account, because along any
    path the factors multiply to the last Ê, exp(r(x)/λ). Resampling gives a particle of weight w on average
    N w / Σ w copies of weight Σ w / N, so given the past Σ w φ(z) is the same on average after it as before, for any
    φ, whether or not the past decides when to resample; and choosing in proportion to w, times Ẑ = Σ w / N, is
    Σ w f / N on average. (Del Moral, Feynman-Kac Formulae, 2004, chapter 7; Andrieu, Doucet and Holenstein, 2010.)

    So the law of the chosen one tends to p* as N grows. With rewards of -inf it does not: a particle whose K rollouts
    are all forbidden dies, though its text could have become an allowed one, and what that loses falls with K, not with
    N. With self-consistency a particle that ended keeps the value it had then, and later it votes through
    `pool="chain"` alone.

    Parameters
    ----------
    reward, particles, lam, threshold
        As in `particle_filter`.
    rollouts : int
        K, at least 1.

    Returns
    -------
    StepFn
        As in `particle_filter`, with rollouts `[N, K]`; a particle that has ended fills its row with itself.

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
    """log Ẑ of a chain of `particle_filter` or `lookahead` that has ended: of the mean of its last weights.

    For a fixed reward E[Ẑ] = E_ref[exp(r/λ)], so Σ Ẑ f / Σ Ẑ over independent chains estimates E_p*[f], as
    `ets.weights.log_run_weight` does for guided sampling (not for these, whose weights are multiplied up already). Of
    an earlier step it estimates the mean of that step's potentials. -inf where all particles died.
    """
    return float(log_mean_exp(trace[-1].log_weights, axis=0))


def systematic(log_weights: Floats, number: float) -> list[int]:
    """Parents `[N]` by one uniform number: each has N · its share of the weights copies on average, up to rounding."""
    shares = normalised(log_weights)
    return [pick(shares, (number + n) / len(shares)) for n in range(len(shares))]


def _sequential(potential: Potential, particles: int, threshold: float) -> StepFn:
    """The step that moves a population, weighs it by a potential, and resamples it or chooses one."""
    require_counts(particles=particles)
    _require_share(threshold=threshold)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, particles)
        populations = [_population(chain, particles) for chain in chains]
        moves = _move(policy, chains, populations)
        populations = [_moved(*row) for row in zip(populations, moves, strict=True)]
        judged = potential(policy, chains, populations, moves)
        costs = [Cost.total([*(d.cost for d in m.values()), j.cost]) for m, j in zip(moves, judged, strict=True)]
        populations = [_weighed(population, j.rows) for population, j in zip(populations, judged, strict=True)]
        numbers = uniform(row_keys(chains, Purpose.CHOICE, 2)).tolist()
        rows = zip(chains, populations, costs, numbers, strict=True)
        return [_advanced(*row, threshold) for row in rows]

    return step


def _require_share(**values: float) -> None:
    for name, value in values.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not (number and 0 <= value <= 1):
            raise InputError(f"{name} is {value!r}; it must be a number from 0 to 1")


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
    """Draws from each chain's states, with keys `[B, N, copies]`, all in one call."""
    places = [(b, n) for b, row in enumerate(states) for n in row]
    if not places:
        return [{} for _ in states]
    rows = [states[b][n] for b, n in places for _ in range(keys.shape[-1])]
    draws = iter(method(rows, keys[tuple(zip(*places, strict=True))].ravel()))
    return [{n: list(islice(draws, keys.shape[-1])) for n in row} for row in states]


def _moved(population: Population, moves: Moves) -> Population:
    return Population(tuple(p.moved(n, moves.get(n)) for n, p in enumerate(population.particles)))


def _judge(reward: Reward, lam: float, chain: Chain, texts: Mapping[int, tuple[Text, ...]]) -> Judged:
    log_rewards, cost = score(reward, lam, chain, list(texts.values()))
    return Judged(dict(zip(texts, zip(texts.values(), log_rewards, strict=True), strict=True)), cost)


def _weighed(population: Population, rows: Mapping[int, tuple[tuple[Text, ...], Floats]]) -> Population:
    return Population(tuple(p.judged(*rows[n]) if n in rows else p for n, p in enumerate(population.particles)))


def _advanced(chain: Chain, population: Population, cost: Cost, numbers: Sequence[float], threshold: float) -> Chain:
    """The chain one guide step further: by two uniform numbers, resampled and, once all have ended, chosen from."""
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
    """The population itself, or if few of its weights count, copies of its particles with the mean weight.

    A copy keeps its parent's state, so their work is shared, and its parent's potential, which its next one is divided
    by.
    """
    log_weights = population.log_weights
    if effective_sample_size(log_weights) >= threshold * len(log_weights):
        return population
    mean = float(log_mean_exp(log_weights, axis=0))
    parents = systematic(log_weights, number)
    return Population(tuple(replace(population.particles[parent], log_weight=mean) for parent in parents))
