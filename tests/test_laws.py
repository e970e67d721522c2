"""The kernel's laws: exact at finite M and K, in the limit, by weights, and for self-consistency.

Each law test has level 1e-4: a right sampler fails it once in 10,000 seeds. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest

from ets import kernel
from ets.kernel import energy_guided
from ets.readouts import rollout_weights, weighted
from ets.rewards import agreement_share
from ets.runner import run
from ets.testing import TabularPolicy, check_law, frequencies, optimal_law, total_variation
from ets.types import Chain, Floats, Step
from ets.weights import log_mean_exp, log_run_weight
from tests.enumerable import PROBLEM, Tabular, largest_error, lifted, liking, reference, spelled
from tests.laws.kernel import kept_law, kernel_law
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.voting import agreement_share_law

LAM, LEVEL, DRAWS = 0.5, 1e-4, 10_000
FEWER = DRAWS // 2
"""Draws of a faulty sampler: half of the draws show each fault with a p-value below 1e-8."""
MORE = 2 * DRAWS
"""Draws of a sampler with a small fault."""
POOLS: tuple[Literal["step", "chain"], ...] = ("step", "chain")


def strongly(text: str) -> float:
    """So strong that faults of the kernel are plain."""
    return 3 * liking(text)


def forbidding(text: str) -> float:
    """Forbids every text with an a: whole steps may have no weight at all."""
    return -math.inf if "a" in text else float(len(text))


def chains(
    policy: Tabular, reward: Callable[[str], float], candidates: int, rollouts: int, draws: int = DRAWS
) -> list[Chain]:
    step = energy_guided(lifted(reward), candidates=candidates, rollouts=rollouts, lam=LAM)
    return list(run(policy, step, [PROBLEM], width=5000, seed=0, samples=draws))


AUTOREGRESSIVE = [
    (TabularPolicy(block_size=3), 2, 1),
    (TabularPolicy(block_size=1), 2, 1),
    (TabularPolicy(block_size=1), 2, 3),
    (TabularPolicy(block_size=2), 3, 2),
    (TabularPolicy(vocabulary=4, block_size=2), 4, 1),
]
BLOCKS = TabularMaskedDiffusion(gen_length=4, block_length=2, steps=4, guide_steps=2, levels=2)


@pytest.mark.parametrize(
    ("reward", "policy", "candidates", "rollouts"),
    [
        *((reward, *case) for reward in (strongly, forbidding) for case in AUTOREGRESSIVE),
        (strongly, TabularMaskedDiffusion(guide_steps=1), 2, 1),
        (strongly, TabularMaskedDiffusion(guide_steps=3, temperature=0.7), 2, 3),
        (forbidding, BLOCKS, 3, 2),
        (strongly, TabularMaskedDiffusion(4, 2, 2, 2, guide_steps=2, remasking="random"), 4, 1),
    ],
)
def test_the_kernel_follows_its_exact_law_at_finite_m_and_k(
    reward: Callable[[str], float], policy: Tabular, candidates: int, rollouts: int
) -> None:
    tilted = spelled(policy, reward)
    law = kernel_law(policy.oracle, PROBLEM, tilted, lam=LAM, candidates=candidates, rollouts=rollouts)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    drawn = [chain.state.tokens for chain in chains(policy, reward, candidates, rollouts)]
    check_law(drawn, law, level=LEVEL)


@pytest.mark.parametrize("policy", [TabularPolicy(block_size=3), TabularMaskedDiffusion(guide_steps=1)])
def test_the_exact_law_of_two_complete_candidates_is_that_of_all_pairs(policy: Tabular) -> None:
    """The integral against plain enumeration, where that is possible: I = 1, M = 2."""
    prior = reference(policy)
    tilt = {outcome: math.exp(spelled(policy, liking)(outcome) / LAM) for outcome in prior}
    expected = dict.fromkeys(prior, 0.0)
    for one, p in prior.items():
        for other, q in prior.items():
            expected[one] += 2 * p * q * tilt[one] / (tilt[one] + tilt[other])
    law = kernel_law(policy.oracle, PROBLEM, spelled(policy, liking), lam=LAM, candidates=2, rollouts=1)
    assert total_variation(law, expected) < 1e-10


@pytest.mark.parametrize("policy", [TabularPolicy(), TabularMaskedDiffusion()])
def test_the_exact_law_is_the_reference_at_m_1_and_tends_to_the_optimal_law(policy: Tabular) -> None:
    oracle, tilted = policy.oracle, spelled(policy, liking)
    optimal = optimal_law(reference(policy), tilted, LAM)
    distances = [
        total_variation(kernel_law(oracle, PROBLEM, tilted, lam=LAM, candidates=m, rollouts=1), optimal)
        for m in (1, 64, 128, 256)
    ]
    assert distances[0] == pytest.approx(total_variation(reference(policy), optimal))
    assert distances[1] / distances[2] == pytest.approx(2, abs=0.1)  # the bias goes like 1/M
    assert distances[2] / distances[3] == pytest.approx(2, abs=0.1)


Average: TypeAlias = Callable[[Floats], Floats]
"""From r/λ `[M, K]` to the logarithms of the estimated energies `[M]`."""

AVERAGES: dict[str, Average] = {
    "1/λ dropped": lambda log_rewards: log_mean_exp(log_rewards * LAM, axis=1),
    "mean of the reward": lambda log_rewards: log_rewards.mean(axis=1),
    "the best rollout, not their mean": lambda log_rewards: log_rewards.max(axis=1),
}


@pytest.fixture
def averaging(monkeypatch: pytest.MonkeyPatch) -> Callable[[Average], None]:
    """Replaces the kernel's average over rollouts."""
    return lambda average: monkeypatch.setattr(kernel, "log_mean_exp", lambda terms, axis: average(terms))


@pytest.mark.parametrize("fault", [*AVERAGES, "best candidate"])
def test_a_fault_in_the_kernel_turns_the_law_red(
    fault: str, averaging: Callable[[Average], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = TabularPolicy(block_size=1)
    law = kernel_law(policy.oracle, PROBLEM, spelled(policy, strongly), lam=LAM, candidates=3, rollouts=2)
    if fault in AVERAGES:
        averaging(AVERAGES[fault])
    else:
        monkeypatch.setattr(kernel, "choose", lambda weights, number: int(np.argmax(weights)))
    drawn = [chain.state.tokens for chain in chains(policy, strongly, 3, 2, FEWER)]
    with pytest.raises(AssertionError, match="exact law"):
        check_law(drawn, law, level=LEVEL)


def half_forbidding(text: str) -> float:
    """Forbids texts that end in b, so that a candidate's rollouts mix forbidden and allowed ones."""
    return -math.inf if text.endswith("b") else 0.2 * len(text)


def without_forbidden(log_rewards: Floats) -> Floats:
    """A fault: the mean over the allowed rollouts alone."""
    allowed = np.isfinite(log_rewards)
    total = np.where(allowed, np.exp(log_rewards), 0.0).sum(axis=1)
    with np.errstate(divide="ignore"):
        return np.log(total / np.maximum(allowed.sum(axis=1), 1))


@pytest.mark.parametrize("faulty", [False, True])
def test_forbidden_rollouts_count_as_zeros(faulty: bool, averaging: Callable[[Average], None]) -> None:
    policy = TabularPolicy(block_size=1)
    law = kernel_law(policy.oracle, PROBLEM, spelled(policy, half_forbidding), lam=LAM, candidates=3, rollouts=3)
    if faulty:
        averaging(without_forbidden)
    drawn = [chain.state.tokens for chain in chains(policy, half_forbidding, 3, 3, FEWER if faulty else DRAWS)]
    with pytest.raises(AssertionError, match="exact law") if faulty else nullcontext():
        check_law(drawn, law, level=LEVEL)


def test_a_wrong_temperature_turns_the_kernels_law_red() -> None:
    policy = TabularPolicy()
    law = kernel_law(policy.oracle, PROBLEM, spelled(policy, liking), lam=LAM, candidates=2, rollouts=1)
    drawn = [chain.state.tokens for chain in chains(TabularPolicy(temperature=1.1), liking, 2, 1, MORE)]
    with pytest.raises(AssertionError, match="exact law"):
        check_law(drawn, law, level=LEVEL)


def error_of(policy: Tabular, weight: Callable[[Chain], float], draws: int = DRAWS) -> float:
    """The largest |z| of: mean of W·1{x} against p_ref(x)·exp(r(x)/λ)."""
    results = chains(policy, liking, 2, 2, draws)
    targets = {x: p * math.exp(spelled(policy, liking)(x) / LAM) for x, p in reference(policy).items()}
    return largest_error([chain.state.tokens for chain in results], np.array([*map(weight, results)]), targets)


@pytest.mark.parametrize("policy", [TabularPolicy(block_size=1), BLOCKS])
def test_run_weights_are_proper_at_any_m_and_k(policy: Tabular) -> None:
    """|z| below 5.5, at level 1e-4 in all."""
    assert error_of(policy, lambda chain: math.exp(log_run_weight(chain.trace))) < 5.5


@pytest.mark.parametrize("rollouts", [1, 2])
def test_run_weights_of_a_reward_that_forbids_texts_are_nan_and_lack_the_mass_of_the_closed_form(rollouts: int) -> None:
    """Mean of W·1{x} against p_ref(x)·exp(r(x)/λ)·Π_i (1 - (1 - a_i)^K); |z| below 5.5, at level 1e-4 in all."""
    policy = TabularPolicy(block_size=1)
    of_outcome = spelled(policy, half_forbidding)
    kept = kept_law(policy.oracle, PROBLEM, lambda x: of_outcome(x) > -math.inf, rollouts)
    tilt = {x: math.exp(of_outcome(x) / LAM) for x in kept}
    total, left = (sum(law[x] * tilt[x] for x in tilt) for law in (reference(policy), kept))
    assert left < 0.8 * total
    results = chains(policy, half_forbidding, 2, rollouts, draws=4_000)
    weights = np.array([math.exp(log_mean_exp(rollout_weights(chain.trace)[-1], axis=None)) for chain in results])
    targets = {x: kept[x] * tilt[x] for x in kept if tilt[x] > 0}
    assert largest_error([chain.state.tokens for chain in results], weights, targets) < 5.5
    broken = [any(forbids_open(step) for step in chain.trace) for chain in results]
    assert [math.isnan(log_run_weight(chain.trace)) for chain in results] == broken
    assert 0.1 < np.mean(broken) < 0.9


def forbids_open(step: Step) -> bool:
    """Whether a rollout of an open candidate ends in b."""
    rows = zip(step.candidates, step.rollouts, strict=True)
    return any(text.text.endswith("b") for candidate, row in rows if not candidate.done for text in row)


def test_a_forbidden_complete_candidate_leaves_the_run_weight_proper() -> None:
    """Its weight of zero is exact: with one guide step all candidates are complete."""
    results = chains(TabularPolicy(block_size=3), half_forbidding, 2, 1, draws=200)
    weights = np.array([log_run_weight(chain.trace) for chain in results])
    assert not np.isnan(weights).any() and np.isneginf(weights).any() and np.isfinite(weights).any()


def test_run_weights_without_their_denominators_turn_red() -> None:
    def faulty(chain: Chain) -> float:
        return math.exp(sum(log_mean_exp(s.log_weights, axis=0) for s in chain.trace))

    assert error_of(TabularPolicy(block_size=1), faulty, FEWER) > 5.5


CANVAS = TabularMaskedDiffusion(gen_length=3, block_length=3, steps=3, guide_steps=3, concentration=0.4)


@pytest.fixture(scope="module")
def canvas_chains() -> list[Chain]:
    return chains(CANVAS, liking, 2, 1)


def error_of_rollouts(found: Sequence[Chain], step: int, weights: Callable[[Sequence[Step]], list[Any]]) -> float:
    """The largest |z| of: mean of exp(w)·1{x} over the rollouts of a guide step against p_ref(x)·exp(r(x)/λ)."""
    targets = {x: p * math.exp(spelled(CANVAS, liking)(x) / LAM) for x, p in reference(CANVAS).items()}
    drawn, weighed = [], []
    for chain in found:  # one of the rollouts, at random among M: K = 1
        place = chain.sample % 2
        drawn.append(chain.trace[step].rollouts[place][0].tokens)
        weighed.append(math.exp(weights(chain.trace)[step][place, 0]))
    return largest_error(drawn, np.array(weighed), targets)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_rollouts_are_properly_weighted_at_every_guide_step(step: int, canvas_chains: list[Chain]) -> None:
    """|z| below 5.5, at level 1e-4 in all."""
    assert error_of_rollouts(canvas_chains, step, rollout_weights) < 5.5


def test_rollouts_without_the_weights_of_earlier_steps_turn_red(canvas_chains: list[Chain]) -> None:
    assert error_of_rollouts(canvas_chains, 2, lambda trace: [step.log_rewards for step in trace]) > 5.5


@pytest.mark.parametrize("policy", [CANVAS, TabularPolicy(block_size=1, max_length=3)])
def test_a_choice_among_all_rollouts_is_nearer_to_the_optimal_law_than_the_last_candidates(
    policy: Tabular, canvas_chains: list[Chain]
) -> None:
    """Also where texts have different numbers of guide steps."""
    target = optimal_law(reference(policy), spelled(policy, liking), LAM)
    found = canvas_chains if policy is CANVAS else chains(policy, liking, 2, 1)
    last, among = (
        total_variation(frequencies(drawn), target)
        for drawn in ([chain.state.tokens for chain in found], [weighted(chain, 3).tokens for chain in found])
    )
    assert among < 0.9 * last


def test_a_choice_among_all_rollouts_tends_to_the_optimal_law_where_numbers_of_guide_steps_differ() -> None:
    """The noise of 4,000 chains leaves about 0.02; without the missing steps of short texts the distance is larger."""
    policy = TabularPolicy(block_size=1, max_length=3)
    target = optimal_law(reference(policy), spelled(policy, liking), LAM)
    found = chains(policy, liking, 40, 1, draws=4_000)
    right, wrong = (
        total_variation(frequencies([weighted(chain, steps).tokens for chain in found]), target) for steps in (3, 0)
    )
    assert right < 0.04 < wrong


def count_of_a(text: str) -> int:
    return text.count("a")


@pytest.mark.parametrize(
    ("policy", "answer"),
    [
        (TabularPolicy(seed=17), len),
        (TabularMaskedDiffusion(remasking="random", concentration=2.0, seed=18), count_of_a),
    ],
)
@pytest.mark.parametrize("pool", ["step", "chain"])
def test_self_consistency_tends_to_its_recursion(policy: Tabular, answer: Callable[[str], Any], pool: Any) -> None:
    """M = 32: the bias of finite M and the noise of 1,500 chains leave about 0.06; the other pool is at 0.16."""
    by_outcome, lam = spelled(policy, answer), 0.1
    laws = {p: agreement_share_law(policy.oracle, PROBLEM, by_outcome, lam=lam, pool=p) for p in POOLS}
    step = energy_guided(agreement_share(answer, pool=pool), candidates=32, rollouts=1, lam=lam)
    drawn = [chain.state.tokens for chain in run(policy, step, [PROBLEM], width=500, seed=0, samples=1_500)]
    near, far = (total_variation(frequencies(drawn), laws[p]) for p in sorted(POOLS, key=lambda p: p != pool))
    assert near < 0.1
    assert far > 2 * near
