"""The laws of the majority reward: exact at finite M and K, with a proposal, and in the limit of many candidates.

Each law test has level 1e-4: a right sampler fails it once in 10,000 seeds. Seeds are fixed.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.rewards import agreement_share, majority, self_consistency
from ets.rewards.self_consistency import VotePool
from ets.runner import run
from ets.testing import Law, check_law, frequencies, optimal_law, total_variation
from ets.types import Chain, InputError, Policy, Problem, Reward, Text
from tests.enumerable import PROBLEM, reference, spelled
from tests.laws.tabular import TabularModel
from tests.laws.voting import agreement_share_law, majority_law, majority_limit_law

LAM, LEVEL, DRAWS = 0.2, 1e-4, 1_500
POOLS: tuple[VotePool, ...] = ("step", "chain")
ReadAnswer = Callable[[str], Hashable | None]


def length(text: str) -> int | None:
    return len(text) or None


def last_letter(text: str) -> str | None:
    return text[-1:] or None


def count_of_a(text: str) -> int | None:
    return text.count("a") or None


def whole(text: str) -> str | None:
    """The text, if it has two letters: votes are spread over many answers, so that ties are frequent."""
    return text if len(text) > 1 else None


TIED = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=3)
SPLIT = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=1)
SHORT = TabularModel(vocabulary=3, block_size=1, max_length=2, seed=1)


def drawn(policy: Policy, reward: Reward, candidates: int, rollouts: int, draws: int = DRAWS) -> list[Any]:
    step = energy_guided(reward, candidates=candidates, rollouts=rollouts, lam=LAM)
    return [chain.state.tokens for chain in run(policy, step, [PROBLEM], width=5000, seed=0, samples=draws)]


def finite(policy: TabularModel, answer: ReadAnswer, candidates: int, rollouts: int, **options: Any) -> Law:
    sizes = {"candidates": candidates, "rollouts": rollouts}
    return majority_law(policy.oracle, PROBLEM, spelled(policy, answer), lam=LAM, **sizes, **options)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("policy", "answer", "candidates", "rollouts"),
    [(TIED, whole, 2, 1), (SPLIT, length, 2, 2), (SPLIT, length, 3, 1), (SHORT, length, 4, 1)],
    ids=["M2-K1", "M2-K2", "M3-K1", "M4-K1"],
)
def test_the_kernel_follows_the_majoritys_exact_law(
    policy: TabularModel, answer: ReadAnswer, candidates: int, rollouts: int, pool: VotePool
) -> None:
    """1,500 chains; the laws of the two pools differ by at least 0.06."""
    laws = {p: finite(policy, answer, candidates, rollouts, pool=p) for p in POOLS}
    assert total_variation(laws["step"], laws["chain"]) > 0.06
    assert len(laws[pool]) <= 20 and sum(laws[pool].values()) == pytest.approx(1, abs=1e-12)
    check_law(drawn(policy, majority(answer, pool=pool), candidates, rollouts), laws[pool], level=LEVEL)


def test_the_exact_law_of_two_complete_candidates_is_that_of_all_pairs() -> None:
    """One guide step, M = 2: only pairs with a winner and a loser are uneven, and the first answer wins a tie."""
    policy = TabularModel(vocabulary=3, block_size=3, max_length=3, seed=3)
    prior, answer, tilt = reference(policy), spelled(policy, whole), math.exp(1 / LAM)
    expected: defaultdict[Any, float] = defaultdict(float)
    for pair in product(prior, repeat=2):
        winner = answer(pair[0]) if answer(pair[0]) is not None else answer(pair[1])
        weights = [tilt if winner is not None and answer(x) == winner else 1.0 for x in pair]
        for x, weight in zip(pair, weights, strict=True):
            expected[x] += prior[pair[0]] * prior[pair[1]] * weight / sum(weights)
    assert total_variation(finite(policy, whole, 2, 1), expected) < 1e-12


def test_an_answer_of_too_few_rollouts_is_not_rewarded() -> None:
    """Against minimum = 1, whose law is 0.1 off."""
    laws = [finite(TIED, whole, 2, 1, minimum=minimum) for minimum in (1, 3)]
    assert total_variation(*laws) > 0.09
    check_law(drawn(TIED, majority(whole, minimum=3), 2, 1), laws[1], level=LEVEL)


def reached_last(answered: self_consistency.Answered, minimum: int) -> Hashable | None:
    """A fault: of equals the answer that reached the count last."""
    counts: defaultdict[Hashable, int] = defaultdict(int)
    best: Hashable | None = None
    for answer, _ in answered:
        if answer is not None:
            counts[answer] += 1
            best = answer if best is None or counts[answer] >= counts[best] else best
    return best


def rewarding_none(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    """A fault: texts without an answer are rewarded, too."""
    values = majority(whole)(problem, rollouts, chain)
    return [1.0 if whole(text.text) is None else value for text, value in zip(rollouts, values, strict=True)]


MUTATIONS: dict[str, Reward] = {
    "the share in its place": agreement_share(whole),
    "the majority of the step, not of the chain": majority(whole, pool="step"),
    "ties to the answer that reached the count last": majority(whole),
    "texts without an answer rewarded": rewarding_none,
    "texts without an answer vote": majority(lambda text: (whole(text),)),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_of_the_majority_turns_its_law_red(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """M = 2, K = 1, three guide steps and 1,500 chains, as in the test that the kernel follows this law."""
    if name.startswith("ties"):
        monkeypatch.setattr(self_consistency, "_winner", reached_last)
    law = finite(TIED, whole, 2, 1)
    with pytest.raises(AssertionError, match="exact law"):
        check_law(drawn(TIED, MUTATIONS[name], 2, 1), law, level=LEVEL)


PROPOSAL = TabularModel(vocabulary=3, block_size=1, max_length=2, seed=8)


def unweighed(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
    """A fault: votes of 1, whatever their ratios."""
    steps = [replace(s, rollouts=tuple(tuple(map(plain, row)) for row in s.rollouts)) for s in chain.trace]
    return majority(last_letter)(problem, list(map(plain, rollouts)), replace(chain, trace=tuple(steps)))


def plain(text: Text) -> Text:
    return replace(text, log_ratio=0.0)


@pytest.mark.parametrize("reward", [majority(last_letter), unweighed], ids=["weighed", "unweighed"])
def test_with_a_proposal_votes_carry_the_ratio(reward: Reward) -> None:
    """M = 2, K = 2, two guide steps, 2,000 chains."""
    law = finite(SHORT, last_letter, 2, 2, proposal=PROPOSAL.oracle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chains = drawn(ImportanceSampling(SHORT, PROPOSAL), reward, 2, 2, 2_000)
    if reward is not unweighed:
        check_law(chains, law, level=LEVEL)
    else:
        with pytest.raises(AssertionError, match="exact law"):
            check_law(chains, law, level=LEVEL)


STEADY = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=18)


def optimum(policy: TabularModel, answer: ReadAnswer) -> Law:
    """p* of the fixed reward 1[a = a*], a* the mode of the reference's answers."""
    by_answer: defaultdict[Hashable, float] = defaultdict(float)
    for outcome, p in reference(policy).items():
        by_answer[spelled(policy, answer)(outcome)] += p
    by_answer.pop(None, None)
    best = max(by_answer, key=lambda a: by_answer[a])
    return optimal_law(reference(policy), lambda x: float(spelled(policy, answer)(x) == best), LAM)


@pytest.mark.parametrize("pool", POOLS)
def test_with_more_candidates_the_law_tends_to_that_of_the_fixed_reward_of_the_mode(pool: VotePool) -> None:
    """The mode has 33% of the answers, the next 1%, and it leads in every pool: M = 2, 8, 64; 400 chains.

    The noise of 400 chains is about 0.05; the share's limit is 0.28 off.
    """
    target, by_outcome = optimum(STEADY, count_of_a), spelled(STEADY, count_of_a)
    limit = majority_limit_law(STEADY.oracle, PROBLEM, by_outcome, lam=LAM, pool=pool)
    share = agreement_share_law(STEADY.oracle, PROBLEM, by_outcome, lam=LAM, pool=pool)
    assert total_variation(limit, target) < 0.001 < 0.25 < total_variation(share, target)
    reward = majority(count_of_a, pool=pool)
    far, nearer, near = (total_variation(frequencies(drawn(STEADY, reward, m, 1, 400)), target) for m in (2, 8, 64))
    assert near < 0.06 and near + 0.03 < nearer and nearer + 0.1 < far


def test_where_another_answer_can_take_the_lead_the_limit_is_no_optimal_law() -> None:
    """However many candidates: 400 chains at M = 64 are near the recursion, whose law is 0.27 from p* of the mode."""
    target = optimum(SPLIT, last_letter)
    limit = majority_limit_law(SPLIT.oracle, PROBLEM, spelled(SPLIT, last_letter), lam=LAM)
    assert total_variation(limit, target) > 0.25
    seen = frequencies(drawn(SPLIT, majority(last_letter), 64, 1, 400))
    assert total_variation(seen, limit) < 0.1 and total_variation(seen, target) > 0.2


def test_the_limit_with_one_guide_step_is_the_optimal_law() -> None:
    policy = replace(SPLIT, block_size=3)
    limit = majority_limit_law(policy.oracle, PROBLEM, spelled(policy, last_letter), lam=LAM)
    assert total_variation(limit, optimum(policy, last_letter)) < 1e-12


def test_no_limit_is_computed_where_two_answers_are_the_mode() -> None:
    policy = TabularModel(vocabulary=3, concentration=1e-12)
    with pytest.raises(InputError, match=r"^two answers are the mode, each with probability 0\.333333;"):
        majority_limit_law(policy.oracle, PROBLEM, spelled(policy, last_letter), lam=LAM)


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match=r"^minimum is 0"):
        finite(SHORT, length, 2, 1, minimum=0)
    with pytest.raises(InputError, match=r"^pool is 'steps'; choose"):
        finite(SHORT, length, 2, 1, pool="steps")
