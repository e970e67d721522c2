"""Particle methods against their exact laws at a finite number of particles; each law test has level 1e-4."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pytest

from ets.baselines import log_normaliser, lookahead, particle_filter, particles
from ets.baselines.particles import Particle, Population, systematic
from ets.rewards import agreement_share
from ets.runner import run
from ets.testing import Law, TabularPolicy, check_law, optimal_law, total_variation
from ets.types import Chain, Cost, Draw, InputError, Keys, Policy, Problem, Reward, State, Step, StepFn, Text
from ets.weights import normalised
from tests.conftest import causal_oracle
from tests.enumerable import PROBLEM, Tabular, largest_error, lifted, reference, spelled
from tests.laws.kernel import kept_law, kernel_law
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.particles import ParticleLaw, particle_law

Method: TypeAlias = tuple[int, float, int | None]
"""Particles, threshold and rollouts; a particle filter has no rollouts."""

LAM, LEVEL, DRAWS = 0.5, 1e-4, 3_000
SHORT, LONG, WIDE = TabularPolicy(max_length=2), TabularPolicy(), TabularPolicy(block_size=2)
MASKED, BLOCKS = TabularMaskedDiffusion(), TabularMaskedDiffusion(2, 4, 2, 4, guide_steps=2, levels=2)

ENDING = TabularPolicy(vocabulary=2, block_size=2, seed=173)
"""After its first block a text has ended in one of two ways, or goes on: a third of the mass each."""


def liking(text: str) -> float:
    return 0.5 * text.count("a") - 0.7 * text.count("b")


def forbidding(text: str) -> float:
    """Forbids an a that follows an a, whatever comes after; all particles may die."""
    return -math.inf if "aa" in text else 0.5 * text.count("a")


def without_b_at_the_end(text: str) -> float:
    """Forbids texts that end in b, also partial texts whose continuations are allowed."""
    return -math.inf if text.endswith("b") else 0.5 * text.count("a")


def brief(text: str) -> float:
    """Rates open texts so low that resampling may leave only ended ones, of different weights."""
    return (0.0, 0.7)[len(text)] if len(text) < 2 else -3.0


def step_of(method: Method, reward: Reward, lam: float = LAM) -> StepFn:
    count, threshold, rollouts = method
    if rollouts is None:
        return particle_filter(reward, particles=count, lam=lam, threshold=threshold)
    return lookahead(reward, particles=count, rollouts=rollouts, lam=lam, threshold=threshold)


def chains_of(step: StepFn, policy: Policy, samples: int = DRAWS, width: int = 5000) -> list[Chain]:
    return list(run(policy, step, [PROBLEM], width=width, seed=0, samples=samples))


@cache
def law_of(place: int, reward: Callable[[str], float], method: Method) -> ParticleLaw:
    policy, (count, threshold, rollouts) = POLICIES[place], method
    options = {"lam": LAM, "particles": count, "threshold": threshold, "rollouts": rollouts}
    return particle_law(policy.oracle, PROBLEM, spelled(policy, reward), **options)


POLICIES = (SHORT, LONG, MASKED, BLOCKS, WIDE, ENDING)
CASES: list[tuple[int, Callable[[str], float], Method]] = [
    (0, liking, (2, 0.0, None)),
    (0, liking, (3, 0.9, 1)),
    (0, liking, (2, 1.0, 2)),
    (0, forbidding, (2, 0.5, None)),
    (0, forbidding, (2, 0.0, 2)),
    (1, liking, (3, 0.5, None)),
    (1, liking, (2, 0.5, 1)),
    (1, forbidding, (2, 1.0, None)),
    (2, liking, (2, 0.9, None)),
    (3, liking, (2, 0.9, 1)),
    (4, liking, (3, 1.0, None)),
    (5, brief, (3, 1.0, None)),
]


@pytest.mark.parametrize(("place", "reward", "method"), CASES)
def test_the_chosen_particle_follows_its_exact_law(place: int, reward: Callable[[str], float], method: Method) -> None:
    law = law_of(place, reward, method).chosen
    assert sum(law.values()) == pytest.approx(1)
    assert total_variation(law, reference(POLICIES[place])) > 0.05  # so that plain sampling would fail
    draws = 4 * DRAWS if reward is brief else DRAWS  # its faults are small
    drawn = [chain.state.tokens for chain in chains_of(step_of(method, lifted(reward)), POLICIES[place], draws)]
    check_law(drawn, law, level=LEVEL)


@pytest.mark.parametrize(("place", "reward", "method"), [c for c in CASES if c[1] is not forbidding or c[2][2] is None])
def test_the_exact_law_is_proper_at_any_number_of_particles(
    place: int, reward: Callable[[str], float], method: Method
) -> None:
    """E[Ẑ · 1{chosen = x}] = p_ref(x) · exp(r(x)/λ), for every outcome."""
    weighted, policy = law_of(place, reward, method).weighted, POLICIES[place]
    for outcome, p in reference(policy).items():
        expected = p * math.exp(spelled(policy, reward)(outcome) / LAM)
        assert weighted.get(outcome, 0.0) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", [(2, 0.0, 1), (2, 0.5, 1), (2, 0.0, 2), (2, 0.5, None)])
def test_the_normaliser_lacks_the_mass_of_the_texts_behind_forbidden_estimates(method: Method) -> None:
    """Look-ahead keeps Π_i (1 - (1 - a_i)^K) of a text's mass, the filter texts without a forbidden partial text."""
    policy, rollouts = SHORT, method[2]
    of_outcome = spelled(policy, without_b_at_the_end)
    kept = {x: p * all(of_outcome(x[:n]) > -math.inf for n in range(1, len(x))) for x, p in reference(policy).items()}
    if rollouts is not None:
        kept = dict(kept_law(policy.oracle, PROBLEM, lambda x: of_outcome(x) > -math.inf, rollouts))
    weighted = law_of(0, without_b_at_the_end, method).weighted
    tilt = {x: math.exp(of_outcome(x) / LAM) for x in kept}
    for outcome, mass in kept.items():
        assert weighted.get(outcome, 0.0) == pytest.approx(mass * tilt[outcome], abs=1e-12)
    share = sum(weighted.values()) / sum(p * tilt[x] for x, p in reference(policy).items())
    assert 0.3 < share < 0.99


@pytest.mark.parametrize(("policy", "method"), [(SHORT, (2, 0.5, None)), (LONG, (3, 0.9, 2)), (BLOCKS, (3, 1.0, 1))])
def test_the_normaliser_that_the_trace_tells_makes_the_results_proper(policy: Tabular, method: Method) -> None:
    """Mean of Ẑ · 1{chosen = x} against p_ref(x) · exp(r(x)/λ): |z| below 5.5.

    At level 1e-4 in all; of the last case, whose weights spread over twice their mean, 1e-2.
    """
    results = chains_of(step_of(method, lifted(liking)), policy)
    weights = np.array([math.exp(log_normaliser(chain.trace)) for chain in results])
    exact = {x: p * math.exp(spelled(policy, liking)(x) / LAM) for x, p in reference(policy).items()}
    assert largest_error([chain.state.tokens for chain in results], weights, exact) < 5.5


def weight_kept(population: Population, number: float, threshold: float) -> Population:
    """A fault: copies keep their parents' weights."""
    parents = systematic(population.log_weights, number)
    return Population(tuple(population.particles[parent] for parent in parents))


def potential_of_another(population: Population, number: float, threshold: float) -> Population:
    """A fault: potentials stay in their places, while the particles move."""
    copies = resampled(population, number, threshold).particles
    stayed = zip(copies, population.particles, strict=True)
    return Population(tuple(replace(copy, log_potential=other.log_potential) for copy, other in stayed))


def old_potential_left_in(self: Particle, rollouts: tuple[Text, ...], log_rewards: Any) -> Particle:
    """A fault: the new potential is not divided by the old one."""
    return judged(replace(self, log_potential=0.0), rollouts, log_rewards)


resampled, judged = particles._resampled, Particle.judged


@pytest.mark.parametrize("fault", [weight_kept, potential_of_another, old_potential_left_in])
def test_a_fault_turns_the_law_red(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault is old_potential_left_in:
        monkeypatch.setattr(Particle, "judged", fault)
    else:
        monkeypatch.setattr(particles, "_resampled", fault)
    method = (3, 1.0, None)
    drawn = [chain.state.tokens for chain in chains_of(step_of(method, lifted(liking)), WIDE)]
    with pytest.raises(AssertionError, match="exact law"):
        check_law(drawn, law_of(POLICIES.index(WIDE), liking, method).chosen, level=LEVEL)


def strongly(text: str) -> float:
    return 3 * liking(text)


@pytest.mark.parametrize("rollouts", [None, 2])
def test_one_particle_is_plain_sampling(rollouts: int | None) -> None:
    drawn = [chain.state.tokens for chain in chains_of(step_of((1, 1.0, rollouts), lifted(liking)), SHORT)]
    check_law(drawn, reference(SHORT), level=LEVEL)


def at_the_end(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    return [liking(text.text) if text.done else 0.0 for text in rollouts]


@pytest.mark.parametrize("reward", [at_the_end, lifted(liking)])
def test_a_filter_that_never_resamples_has_the_law_of_one_step(reward: Reward) -> None:
    """Whatever the partial texts are worth: their rewards cancel."""
    whole = TabularPolicy(block_size=LONG.max_length)
    law = kernel_law(whole.oracle, PROBLEM, spelled(whole, liking), lam=LAM, candidates=3, rollouts=1)
    drawn = [chain.state.tokens for chain in chains_of(step_of((3, 0.0, None), reward), LONG)]
    check_law(drawn, law, level=LEVEL)


def expected_law(chains: Sequence[Chain]) -> Law:
    """Of the chosen particle given the last weights, a mean over chains: less noise than the choices themselves."""
    law: Counter[tuple[int, ...]] = Counter()
    for chain in chains:
        last = chain.trace[-1]
        for text, share in zip(last.candidates, normalised(last.log_weights).tolist(), strict=True):
            law[text.tokens] += share / len(chains)
    return law


@pytest.mark.parametrize("rollouts", [None, 1])
def test_total_variation_to_the_optimal_law_falls_with_particles(rollouts: int | None) -> None:
    """At N = 64, 150 chains have 9,600 particles on 7 outcomes: with half of them effective, a noise floor of 0.02."""
    optimal = optimal_law(reference(SHORT), spelled(SHORT, liking), LAM)
    distances = [
        total_variation(expected_law(chains_of(step_of((n, 0.5, rollouts), lifted(liking)), SHORT, draws)), optimal)
        for n, draws in ((1, 2_000), (4, 1_000), (64, 150))
    ]
    assert distances[0] > 1.5 * distances[1] > 3 * distances[2]
    assert distances[2] < 0.05


def described(chains: Sequence[Chain]) -> list[Any]:
    chains = sorted(chains, key=lambda chain: chain.sample)
    return [(c.state.tokens, [(s.choice, s.candidates, s.log_weights.tolist()) for s in c.trace]) for c in chains]


@pytest.mark.parametrize("policy", [LONG, BLOCKS])
@pytest.mark.parametrize("rollouts", [None, 2])
def test_chains_are_the_same_at_width_1_and_64(policy: Tabular, rollouts: int | None) -> None:
    step = step_of((4, 0.9, rollouts), lifted(liking))
    alone, together = (described(chains_of(step, policy, 64, width)) for width in (1, 64))
    assert alone == together and len({tokens for tokens, _ in alone}) > 3


@pytest.mark.parametrize("method", [(4, 0.0, None), (4, 0.9, None), (4, 0.9, 2)])
def test_costs_are_those_of_the_policy_and_no_token_is_drawn_twice(method: Method) -> None:
    policy = TabularPolicy()
    chains = chains_of(step_of(method, lifted(liking)), policy, 50)
    spent = Cost.total([chain.cost for chain in chains])
    for part in ("candidate", "rollout", "generated"):
        assert getattr(spent, part) == getattr(policy.ledger, part)
    for chain in chains:
        moves = {id(text) for step in chain.trace for text in step.candidates}
        rollouts = {id(t): len(t.tokens) - len(c.tokens) for s in chain.trace for c, t in open_rollouts(s)}
        assert chain.cost.candidate == len(moves)  # blocks of one token
        assert chain.cost.rollout == sum(rollouts.values())
        if method[1] == 0:
            assert chain.cost.generated == sum(len(text.tokens) for text in chain.trace[-1].candidates)


def open_rollouts(step: Step) -> list[tuple[Text, Text]]:
    """Candidates that had not ended, with each of their rollouts."""
    return [(c, text) for c, row in zip(step.candidates, step.rollouts, strict=True) for text in row if text is not c]


def test_a_particle_that_has_ended_stays_and_lookahead_asks_for_its_reward_once() -> None:
    asked: Counter[int] = Counter()

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        asked.update({id(text) for text in rollouts})
        return [liking(text.text) for text in rollouts]

    chains = chains_of(step_of((4, 0.5, 2), reward), LONG, 50)
    ended = [text for chain in chains for step in chain.trace for text in step.candidates if text.done]
    assert len(ended) > 1.2 * len({id(text) for text in ended})
    assert {asked[id(text)] for text in ended} == {1}
    for chain in chains:
        for step in chain.trace:
            done = [n for n, text in enumerate(step.candidates) if text.done]
            assert all(step.rollouts[n] == (step.candidates[n],) * 2 for n in done)
            assert all(set(step.log_rewards[n].tolist()) == {liking(step.candidates[n].text) / LAM} for n in done)
    assert sum(asked.values()) == sum(chain.cost.rewarded for chain in chains)


class Counting(TabularPolicy):
    """Remembers how many rows each call had, and how many states."""

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        self.rows = [*getattr(self, "rows", []), (len(states), len({id(state) for state in states}))]
        return super().extend(states, keys)


def test_all_particles_of_all_chains_move_in_one_call_and_copies_share_their_state() -> None:
    policy = Counting()
    problems = [Problem(str(n), f"prompt {n}") for n in range(3)]
    step = step_of((8, 1.0, None), lifted(strongly))
    chains = list(run(policy, step, problems, width=3, seed=0))
    assert policy.rows[0] == (24, 3) and len(policy.rows) == max(len(chain.trace) for chain in chains) == 3
    assert policy.rows[1][1] < policy.rows[1][0] <= 24


@pytest.mark.parametrize("rollouts", [None, 2])
def test_the_dead_are_neither_extended_nor_chosen_and_a_chain_without_living_is_invalid(rollouts: int | None) -> None:
    chains = chains_of(step_of((2, 0.0, rollouts), lifted(forbidding)), LONG, 500)
    for chain in chains:
        lost = [np.isneginf(step.log_weights) for step in chain.trace]
        assert chain.valid == (not chain.trace[-1].uninformed) == (not lost[-1].all())
        assert (log_normaliser(chain.trace) == -math.inf) == lost[-1].all()
        assert all(not (before & ~after).any() for before, after in pairwise(lost))
        for dead, before, after in zip(lost, chain.trace, chain.trace[1:], strict=False):
            kept = [a is b for a, b in zip(before.candidates, after.candidates, strict=True)]
            assert dead.all() or all(same for same, gone in zip(kept, dead, strict=True) if gone)
        assert not chain.valid or "aa" not in chain.state.text
        assert chain.state.done
    assert {chain.valid for chain in chains} == {True, False}


def test_the_trace_follows_the_chosen_particles_forebears_and_the_chain_ends_with_its_state() -> None:
    for chain in chains_of(step_of((4, 1.0, 2), lifted(strongly)), LONG, 200):
        line = [step.candidates[step.choice].tokens for step in chain.trace]
        assert line[-1] == chain.state.tokens and not isinstance(chain.state, Population)
        assert all(after[: len(before)] == before for before, after in pairwise(line))
        for step in chain.trace:
            assert np.shape(step.log_rewards) == (4, 2) and np.shape(step.log_weights) == (4,)


@pytest.mark.parametrize("rollouts", [None, 3])
def test_a_weight_that_was_never_reset_is_the_mean_over_its_rollouts(rollouts: int | None) -> None:
    for chain in chains_of(step_of((3, 0.0, rollouts), lifted(liking)), LONG, 50):
        for step in chain.trace:
            np.testing.assert_allclose(step.log_weights, np.log(np.mean(np.exp(step.log_rewards), axis=1)), atol=1e-12)


def test_with_a_reward_that_changes_the_last_values_decide() -> None:
    """Self-consistency: the values that are divided out are those that were recorded."""
    reward = agreement_share(lambda text: text[:1] or None, pool="step")
    for chain in chains_of(particle_filter(reward, particles=5, lam=0.2, threshold=0.0), LONG, 50):
        last = chain.trace[-1]
        np.testing.assert_allclose(last.log_weights, last.log_rewards[:, 0], atol=1e-12)
        first = Counter(text.text[:1] for text in last.candidates)
        expected = [first[text.text[:1]] / 5 / 0.2 if text.text else 0.0 for text in last.candidates]
        np.testing.assert_allclose(last.log_rewards[:, 0], expected)


def test_systematic_resampling_gives_each_parent_its_share_up_to_rounding() -> None:
    shares = 4 * np.array([0.05, 0.5, 0.0, 0.45])
    with np.errstate(divide="ignore"):
        log_weights = np.log(shares)
    counts = [np.bincount(systematic(log_weights, u), minlength=4) for u in np.linspace(0, 1, 1000, endpoint=False)]
    np.testing.assert_allclose(np.mean(counts, axis=0), shares, atol=2e-3)
    assert np.max(np.abs(np.array(counts) - shares)) < 1 + 1e-12


@pytest.mark.parametrize("rollouts", [None, 2])
def test_a_real_transformer_follows_the_exact_law(make_tiny: Any, rollouts: int | None) -> None:
    policy = make_tiny(block_size=1, max_length=2)
    law = particle_law(
        causal_oracle(policy),
        PROBLEM,
        lambda x: float(x.count(1)),
        lam=LAM,
        particles=2,
        threshold=0.9,
        rollouts=rollouts,
    )
    step = step_of((2, 0.9, rollouts), lifted(lambda text: float(text.count("a"))))
    chains = chains_of(step, policy, 3_000, 1_000)
    check_law((chain.state.tokens for chain in chains), law.chosen, level=LEVEL)
    assert sum(chain.cost.positions for chain in chains) == policy.ledger.positions


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"particles": 0}, "particles is 0"),
        ({"particles": 2.5}, "particles is 2.5"),
        ({"lam": 0.0}, "lam is 0.0"),
        ({"threshold": 1.5}, "threshold is 1.5; it must be a number from 0 to 1"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"threshold": True}, "threshold is True"),
        ({"rollouts": 0}, "rollouts is 0"),
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        lookahead(lifted(liking), **({"particles": 2, "rollouts": 1, "lam": 1.0} | wrong))
    if "rollouts" not in wrong:
        with pytest.raises(InputError, match=said):
            particle_filter(lifted(liking), **({"particles": 2, "lam": 1.0} | wrong))
