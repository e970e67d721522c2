"""The kernel's laws: exact at finite M and K, in the limit, by weights, and for self-consistency.

Each law test has level 1e-4: a right sampler fails it once in 10,000 seeds. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import pytest

from ets import kernel
from ets.kernel import energy_guided
from ets.rewards import per_text, self_consistency
from ets.runner import run
from ets.testing import (
    TabularPolicy,
    check_law,
    frequencies,
    kernel_law,
    optimal_law,
    self_consistency_law,
    total_variation,
)
from ets.types import Chain, Floats, Problem
from ets.weights import log_mean_exp, log_run_weight

PROBLEM = Problem("p", (1,))
LAM, LEVEL, DRAWS = 0.5, 1e-4, 20_000
POOLS: tuple[Literal["step", "chain"], ...] = ("step", "chain")


def liking(text: str) -> float:
    return 0.3 * text.count("a") - 0.5 * text.count("b")


def forbidding(text: str) -> float:
    """Forbids every text with an a: whole steps may have no weight at all."""
    return -math.inf if "a" in text else float(len(text))


def spelled(function: Callable[[str], Any]) -> Callable[[tuple[int, ...]], Any]:
    return lambda tokens: function(TabularPolicy.spelled(tokens))


def chains(
    policy: TabularPolicy, reward: Callable[[str], float], candidates: int, rollouts: int, draws: int = DRAWS
) -> list[Chain]:
    step = energy_guided(per_text(lambda _, text: reward(text)), candidates=candidates, rollouts=rollouts, lam=LAM)
    return list(run(policy, step, [PROBLEM], width=5000, seed=0, samples=draws))


@pytest.mark.parametrize("reward", [liking, forbidding])
@pytest.mark.parametrize(
    ("shape", "candidates", "rollouts"),
    [
        ({"block_size": 3}, 2, 1),
        ({"block_size": 1}, 2, 1),
        ({"block_size": 1}, 2, 3),
        ({"block_size": 2}, 3, 2),
        ({"block_size": 2, "vocabulary": 4}, 4, 1),
    ],
)
def test_the_kernel_follows_its_exact_law_at_finite_m_and_k(
    shape: dict[str, int], candidates: int, rollouts: int, reward: Callable[[str], float]
) -> None:
    policy = TabularPolicy(**shape)  # type: ignore[arg-type]
    law = kernel_law(policy.oracle, PROBLEM, spelled(reward), lam=LAM, candidates=candidates, rollouts=rollouts)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    drawn = [chain.state.tokens for chain in chains(policy, reward, candidates, rollouts)]
    check_law(drawn, law, level=LEVEL)


def test_the_exact_law_of_two_complete_candidates_is_that_of_all_pairs() -> None:
    """The integral against plain enumeration, where that is possible: I = 1, M = 2."""
    policy = TabularPolicy(block_size=3)
    reference = policy.oracle.finish_law(PROBLEM, ())
    tilt = {outcome: math.exp(spelled(liking)(outcome) / LAM) for outcome in reference}
    expected = dict.fromkeys(reference, 0.0)
    for one, p in reference.items():
        for other, q in reference.items():
            expected[one] += 2 * p * q * tilt[one] / (tilt[one] + tilt[other])
    law = kernel_law(policy.oracle, PROBLEM, spelled(liking), lam=LAM, candidates=2, rollouts=1)
    assert total_variation(law, expected) < 1e-10


def test_the_exact_law_is_the_reference_at_m_1_and_tends_to_the_optimal_law() -> None:
    oracle = TabularPolicy().oracle
    reference = oracle.finish_law(PROBLEM, ())
    optimal = optimal_law(reference, spelled(liking), LAM)
    distances = [
        total_variation(kernel_law(oracle, PROBLEM, spelled(liking), lam=LAM, candidates=m, rollouts=1), optimal)
        for m in (1, 64, 128, 256)
    ]
    assert distances[0] == pytest.approx(total_variation(reference, optimal))
    assert distances[1] / distances[2] == pytest.approx(2, abs=0.1)  # the bias goes like 1/M
    assert distances[2] / distances[3] == pytest.approx(2, abs=0.1)


MUTATIONS: dict[str, tuple[str, Any]] = {
    "1/λ dropped": ("log_energies", lambda log_rewards: log_mean_exp(log_rewards * LAM, axis=1)),
    "mean of the reward": ("log_energies", lambda log_rewards: log_rewards.mean(axis=1)),
    "the best rollout, not their mean": ("log_energies", lambda log_rewards: log_rewards.max(axis=1)),
    "best candidate": ("choose", lambda weights, number: int(np.argmax(weights))),
}


@pytest.mark.parametrize("fault", MUTATIONS)
def test_a_fault_in_the_kernel_turns_the_law_red(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TabularPolicy(block_size=1)
    law = kernel_law(policy.oracle, PROBLEM, spelled(liking), lam=LAM, candidates=3, rollouts=2)
    monkeypatch.setattr(kernel, *MUTATIONS[fault])
    drawn = [chain.state.tokens for chain in chains(policy, liking, 3, 2)]
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
def test_forbidden_rollouts_count_as_zeros(faulty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = TabularPolicy(block_size=1)
    law = kernel_law(policy.oracle, PROBLEM, spelled(half_forbidding), lam=LAM, candidates=3, rollouts=3)
    if faulty:
        monkeypatch.setattr(kernel, "log_energies", without_forbidden)
    drawn = [chain.state.tokens for chain in chains(policy, half_forbidding, 3, 3)]
    with pytest.raises(AssertionError, match="exact law") if faulty else nullcontext():
        check_law(drawn, law, level=LEVEL)


def test_a_wrong_temperature_turns_the_kernels_law_red() -> None:
    law = kernel_law(TabularPolicy().oracle, PROBLEM, spelled(liking), lam=LAM, candidates=2, rollouts=1)
    drawn = [chain.state.tokens for chain in chains(TabularPolicy(temperature=1.1), liking, 2, 1)]
    with pytest.raises(AssertionError, match="exact law"):
        check_law(drawn, law, level=LEVEL)


def largest_error(weight: Callable[[Chain], float]) -> float:
    """The largest |z| over outcomes x of: mean of W·1{x} against p_ref(x)·exp(r(x)/λ)."""
    policy = TabularPolicy(block_size=1)
    results = chains(policy, liking, 2, 2)
    weights = np.array([weight(chain) for chain in results])
    errors = []
    for outcome, p in policy.oracle.finish_law(PROBLEM, ()).items():
        terms = weights * [chain.state.tokens == outcome for chain in results]
        target = p * math.exp(spelled(liking)(outcome) / LAM)
        errors.append(abs(terms.mean() - target) / (terms.std() / math.sqrt(len(results))))
    return max(errors)


def test_run_weights_are_proper_at_any_m_and_k() -> None:
    """15 outcomes at level 1e-4 in all: |z| below 4.5."""
    assert largest_error(lambda chain: math.exp(log_run_weight(chain.trace))) < 4.5


def test_run_weights_without_their_denominators_turn_red() -> None:
    assert largest_error(lambda chain: math.exp(sum(log_mean_exp(s.log_weights, axis=0) for s in chain.trace))) > 4.5


@pytest.mark.parametrize("pool", ["step", "chain"])
def test_self_consistency_tends_to_its_recursion(pool: Any) -> None:
    """M = 32: the bias of finite M and the noise of 1,500 chains leave about 0.06; the other pool is at 0.16."""
    policy, lam = TabularPolicy(seed=17), 0.1
    laws = {p: self_consistency_law(policy.oracle, PROBLEM, spelled(len), lam=lam, pool=p) for p in POOLS}
    step = energy_guided(self_consistency(len, pool=pool), candidates=32, rollouts=1, lam=lam)
    drawn = [chain.state.tokens for chain in run(policy, step, [PROBLEM], width=500, seed=0, samples=1_500)]
    near, far = (total_variation(frequencies(drawn), laws[p]) for p in sorted(POOLS, key=lambda p: p != pool))
    assert near < 0.1
    assert far > 2 * near
