"""The energy-guided transition on a policy that can be enumerated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ets.kernel import energy_guided
from ets.rewards import per_text
from ets.runner import run
from ets.testing import Law, TabularPolicy, check_law, frequencies, optimal_law, total_variation
from ets.types import Chain, Floats, InputError, Problem, Text
from ets.weights import log_mean_exp
from tests.enumerable import PROBLEM, Tabular, lifted, liking, reference
from tests.laws.masked_tabular import TabularMaskedDiffusion

LAM = 0.5


def sampled(policy: Tabular, candidates: int, *, rollouts: int = 1, lam: float = LAM, draws: int) -> Law:
    step = energy_guided(lifted(liking), candidates=candidates, rollouts=rollouts, lam=lam)
    chains = run(policy, step, [PROBLEM], width=5000, seed=0, samples=draws)
    return frequencies(chain.state.tokens for chain in chains)


def test_one_candidate_is_plain_sampling() -> None:
    policy = TabularPolicy()
    step = energy_guided(lifted(liking), candidates=1, rollouts=2, lam=LAM)
    chains = run(policy, step, [PROBLEM], width=5000, seed=0, samples=10_000)
    check_law((c.state.tokens for c in chains), reference(policy), level=1e-4)


@pytest.mark.parametrize(("policy", "draws"), [(TabularPolicy(), 6_000), (TabularMaskedDiffusion(seed=1), 3_000)])
def test_total_variation_to_the_optimal_law_falls_with_candidates(policy: Tabular, draws: int) -> None:
    """I = 3 guide steps; 6,000 draws on 15 outcomes, or 3,000 on 8, have a noise floor of about 0.02."""
    optimal = optimal_law(reference(policy), lambda outcome: liking(policy.spelled(outcome)), LAM)
    distances = [total_variation(sampled(policy, candidates, draws=draws), optimal) for candidates in (1, 4, 16)]
    assert distances[0] > 1.5 * distances[1] > 3 * distances[2]
    assert distances[2] < 0.05


def test_energies_are_means_of_the_tilt_not_of_the_reward() -> None:
    log_rewards: Floats = np.array([[0.0, 2.0], [1.0, 1.0], [-np.inf, 0.0]])
    expected = np.log([(1 + np.e**2) / 2, np.e, 0.5])
    np.testing.assert_allclose(log_mean_exp(log_rewards, axis=1), expected)


def test_a_complete_candidate_is_not_rolled_out_and_fills_its_cells() -> None:
    seen: list[int] = []

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        seen.append(len({id(text) for text in rollouts}))
        return [0.0] * len(rollouts)

    policy = TabularPolicy(block_size=2, max_length=3)
    step = energy_guided(reward, candidates=4, rollouts=3, lam=1.0)
    for chain in run(policy, step, [PROBLEM], width=50, seed=0, samples=50):
        for guide in chain.trace:
            ended = [m for m, candidate in enumerate(guide.candidates) if candidate.done]
            assert all(set(map(id, guide.rollouts[m])) == {id(guide.candidates[m])} for m in ended)
            assert guide.cost.rewarded == len(ended) + 3 * (4 - len(ended))
    assert min(seen) < max(seen)


def test_the_trace_explains_the_chain() -> None:
    step = energy_guided(lifted(liking), candidates=3, rollouts=2, lam=LAM)
    for chain in run(TabularPolicy(), step, [PROBLEM], width=8, seed=1, samples=8):
        assert chain.trace[-1].candidates[chain.trace[-1].choice].tokens == chain.state.tokens
        for before, after in zip(chain.trace, chain.trace[1:], strict=False):
            chosen = before.candidates[before.choice].tokens
            assert all(candidate.tokens[: len(chosen)] == chosen for candidate in after.candidates)
        for guide in chain.trace:
            assert np.shape(guide.log_rewards) == (3, 2)
            expected = [[liking(text.text) / LAM for text in row] for row in guide.rollouts]
            np.testing.assert_allclose(guide.log_rewards, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"candidates": 0},
        {"candidates": 2.0},
        {"rollouts": 0},
        {"rollouts": -1},
        {"lam": 0.0},
        {"lam": -1.0},
        {"lam": np.nan},
    ],
)
def test_values_out_of_range_are_named(wrong: dict[str, float]) -> None:
    options = {"candidates": 2, "rollouts": 1, "lam": 1.0} | wrong
    with pytest.raises(InputError, match=f"{next(iter(wrong))} is"):
        energy_guided(per_text(lambda _, text: 0.0), **options)
