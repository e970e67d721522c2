"""Baselines against exact laws at a finite number of samples."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pytest

from ets.baselines import majority_voting, one_step, plain, weighted_majority
from ets.rewards import agreement_share, likelihood, verifier
from ets.runner import run
from ets.testing import Law, TabularPolicy, check_law, optimal_law, total_variation
from ets.types import Chain, InputError, Problem, StepFn, Text

Outcome: TypeAlias = tuple[int, ...]

PROBLEM = Problem("p", "a prompt")
LEVEL = 1e-4
DRAWS = 10_000
LAM = 1.5


def new_policy() -> TabularPolicy:
    return TabularPolicy(vocabulary=3, block_size=1, max_length=2, concentration=0.7, seed=11)


REFERENCE = new_policy().oracle.finish_law(PROBLEM, ())
"""Seven outcomes: the tokens 0 (end), 1 ("a") and 2 ("b"), at most two of them; none is rarer than 8%."""


def chains_of(step: StepFn, samples: int = DRAWS, policy: TabularPolicy | None = None) -> list[Chain]:
    return list(run(policy or new_policy(), step, [PROBLEM], width=5000, seed=0, samples=samples))


def exact_law(samples: int, weigh: Callable[[tuple[Outcome, ...]], Sequence[float]]) -> Law:
    """The law of the sample that is kept, by enumeration of all tuples of samples."""
    law: dict[Outcome, float] = defaultdict(float)
    for drawn in product(REFERENCE, repeat=samples):
        weights = weigh(drawn)
        for outcome, weight in zip(drawn, weights, strict=True):
            law[outcome] += math.prod(REFERENCE[x] for x in drawn) * weight / sum(weights)
    assert math.isclose(sum(law.values()), 1.0)
    return law


def first_letter(text: str) -> str | None:
    return text[:1] or None


@cache
def majority_chains(samples: int) -> list[Chain]:
    return chains_of(majority_voting(first_letter, samples=samples))


def answer_of(outcome: Outcome) -> int | None:
    return outcome[0] or None


def votes_won(drawn: tuple[Outcome, ...]) -> list[float]:
    """1 for every sample whose answer is among the most frequent ones; for all samples if there is no answer."""
    counts: Counter[int | None] = Counter(answer for outcome in drawn if (answer := answer_of(outcome)) is not None)
    most = max(counts.values(), default=0)
    return [float(counts.get(answer_of(outcome), 0) == most) for outcome in drawn]


def worth(tokens: Outcome) -> float:
    return float(tokens.count(1) - 2 * tokens.count(2))


def count_letters(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    return [worth(text.tokens) for text in rollouts]


def test_plain_draws_from_the_reference_law_at_level_1e_4() -> None:
    check_law((chain.state.tokens for chain in chains_of(plain())), REFERENCE, level=LEVEL)


@pytest.mark.parametrize("samples", [2, 3])
def test_majority_draws_from_its_exact_law_at_level_1e_4(samples: int) -> None:
    law = exact_law(samples, votes_won)
    assert total_variation(law, REFERENCE) > 0.05  # so that the reference law would fail
    chains = majority_chains(samples)
    check_law((chain.state.tokens for chain in chains), law, level=LEVEL)


def test_majority_returns_tied_answers_equally_often_at_level_1e_4() -> None:
    chains = majority_chains(2)
    tied = [chain for chain in chains if {text.tokens[0] for text in chain.trace[0].candidates} == {1, 2}]
    assert len(tied) > 1000
    check_law((chain.state.tokens[0] for chain in tied), {1: 0.5, 2: 0.5}, level=LEVEL)


def test_majority_always_returns_one_of_the_most_frequent_answers() -> None:
    shares = set()
    for chain in majority_chains(3):
        drawn = tuple(text.tokens for text in chain.trace[0].candidates)
        assert votes_won(drawn)[chain.trace[0].choice] == 1
        shares.add(sum(votes_won(drawn)))
    assert shares == {1, 2, 3}


def test_majority_never_returns_a_text_without_an_answer_if_there_is_one() -> None:
    sets = [({text.text for text in chain.trace[0].candidates}, chain.state.text) for chain in majority_chains(3)]
    assert all(kept for drawn, kept in sets if drawn != {""})
    assert {"", "a", "b"} <= {kept[:1] for _, kept in sets}


def test_majority_without_any_answer_returns_any_sample_at_level_1e_4() -> None:
    chains = chains_of(majority_voting(lambda text: None, samples=3))
    steps = [chain.trace[0] for chain in chains]
    check_law((step.choice for step in steps), dict.fromkeys(range(3), 1 / 3), level=LEVEL)
    check_law((chain.state.tokens for chain in chains), REFERENCE, level=LEVEL)
    assert all(chain.valid for chain in chains[:100]) and not any(step.uninformed for step in steps[:100])


@pytest.mark.parametrize("samples", [2, 3])
def test_one_step_draws_from_its_exact_law_at_finite_samples_at_level_1e_4(samples: int) -> None:
    law = exact_law(samples, lambda drawn: [math.exp(worth(outcome) / LAM) for outcome in drawn])
    distance = total_variation(law, optimal_law(REFERENCE, worth, LAM))
    assert distance > 0.05  # so that the limit law would fail
    chains = chains_of(one_step(count_letters, samples=samples, lam=LAM))
    check_law((chain.state.tokens for chain in chains), law, level=LEVEL)


def test_one_step_weighs_every_sample_by_its_reward_over_lambda() -> None:
    for chain in chains_of(one_step(count_letters, samples=3, lam=LAM), samples=50):
        (only,) = chain.trace
        assert only.log_weights.tolist() == [worth(text.tokens) / LAM for text in only.candidates]
        assert only.log_rewards[:, 0].tolist() == only.log_weights.tolist()


def test_one_step_marks_a_chain_whose_samples_are_all_forbidden() -> None:
    def forbid_b(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [-np.inf if "b" in text.text else 0.0 for text in rollouts]

    chains = chains_of(one_step(forbid_b, samples=2, lam=LAM), samples=500)
    allowed = [any("b" not in text.text for text in chain.trace[0].candidates) for chain in chains]
    assert [chain.valid for chain in chains] == allowed == ["b" not in chain.state.text for chain in chains]
    assert [chain.trace[0].uninformed for chain in chains] == [not a for a in allowed]
    assert set(allowed) == {True, False}


def weighted_votes_won(drawn: tuple[Outcome, ...]) -> list[float]:
    """exp(r/λ) for every sample whose answer has the largest sum of these; for all samples if there is no answer."""
    sums: defaultdict[int | None, float] = defaultdict(float)
    for outcome in drawn:
        if answer_of(outcome) is not None:
            sums[answer_of(outcome)] += math.exp(worth(outcome) / LAM)
    most = max(sums.values(), default=0.0)
    won = [math.isclose(sums.get(answer_of(outcome), 0.0), most) for outcome in drawn]
    return [math.exp(worth(outcome) / LAM) * w for outcome, w in zip(drawn, won, strict=True)]


@pytest.mark.parametrize("samples", [2, 3])
def test_weighted_majority_draws_from_its_exact_law_at_level_1e_4(samples: int) -> None:
    law = exact_law(samples, weighted_votes_won)
    others = [votes_won, lambda drawn: [math.exp(worth(outcome) / LAM) for outcome in drawn]]
    assert min(total_variation(law, exact_law(samples, weigh)) for weigh in others) > 0.01
    chains = chains_of(weighted_majority(first_letter, count_letters, samples=samples, lam=LAM))
    check_law((chain.state.tokens for chain in chains), law, level=LEVEL)


def test_weighted_majority_finds_the_answer_that_is_most_probable_under_the_optimal_law() -> None:
    def like_b(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [float(text.tokens.count(2)) for text in rollouts]

    def most_probable(law: Law) -> int | None:
        masses: defaultdict[int | None, float] = defaultdict(float)
        for outcome, p in law.items():
            masses[answer_of(outcome)] += p
        masses.pop(None)
        return max(masses, key=lambda answer: masses[answer])

    wanted = most_probable(optimal_law(REFERENCE, lambda outcome: outcome.count(2), LAM))
    assert wanted != most_probable(REFERENCE)
    chains = chains_of(weighted_majority(first_letter, like_b, samples=300, lam=LAM), samples=50)
    assert {answer_of(chain.state.tokens) for chain in chains} == {wanted}


@pytest.mark.parametrize("samples", [3, 4])
def test_weighted_majority_by_a_constant_reward_is_majority_chain_by_chain(samples: int) -> None:
    def constant(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [-7.0] * len(rollouts)

    weighted = chains_of(weighted_majority(first_letter, constant, samples=samples, lam=LAM), samples=500)
    counted = chains_of(majority_voting(first_letter, samples=samples), samples=500)
    assert [chain.state.tokens for chain in weighted] == [chain.state.tokens for chain in counted]


def test_weighted_majority_without_any_answer_is_one_step_chain_by_chain() -> None:
    weighted = chains_of(weighted_majority(lambda text: None, count_letters, samples=3, lam=LAM), samples=500)
    one = chains_of(one_step(count_letters, samples=3, lam=LAM), samples=500)
    assert [chain.state.tokens for chain in weighted] == [chain.state.tokens for chain in one]


def test_forbidden_texts_neither_vote_nor_are_returned_unless_all_are() -> None:
    def forbid_double(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [-np.inf if text.tokens[-1] == text.tokens[0] else 0.0 for text in rollouts]

    outvoted = 0
    for chain in chains_of(weighted_majority(first_letter, forbid_double, samples=3, lam=LAM), samples=1_000):
        (step,) = chain.trace
        allowed = [text.tokens for text in step.candidates if text.tokens[-1] != text.tokens[0]]
        assert chain.valid == bool(allowed) != step.uninformed
        assert not allowed or chain.state.tokens in allowed
        votes = Counter(first_letter(text.text) for text in step.candidates)
        outvoted += bool(allowed) and votes[first_letter(chain.state.text)] < max(votes.values())
    assert outvoted > 10


def test_sums_of_weights_tie_in_whatever_order_they_are_added() -> None:
    """Three samples of each answer, with the weights 0.1, 0.2 and 0.3."""

    def by_second(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [math.log((1 + text.tokens[-1]) / 10) for text in rollouts]

    tied = 0
    for chain in chains_of(weighted_majority(first_letter, by_second, samples=6, lam=1.0), samples=4_000):
        (step,) = chain.trace
        if len({text.tokens for text in step.candidates} - {(0,)}) == 6:
            assert np.isfinite(step.log_weights).all()
            tied += 1
    assert tied > 5


@pytest.mark.parametrize(
    "reward",
    [likelihood(), verifier(first_letter, lambda problem, answer: answer == "a"), agreement_share(first_letter)],
    ids=["likelihood", "verifier", "self-consistency"],
)
def test_weighted_majority_takes_any_reward(reward: Any) -> None:
    chains = chains_of(weighted_majority(first_letter, reward, samples=5, lam=0.5), samples=200)
    for chain in chains:
        answers = {first_letter(text.text): 0.0 for text in chain.trace[0].candidates}
        for text, r in zip(chain.trace[0].candidates, reward(PROBLEM, chain.trace[0].candidates, chain), strict=True):
            answers[first_letter(text.text)] += math.exp(r / 0.5)
        answers.pop(None, None)
        if answers:
            assert answers[first_letter(chain.state.text)] == pytest.approx(max(answers.values()))
    assert len({chain.state.tokens for chain in chains}) > 3


STEPS: dict[str, tuple[StepFn, int]] = {
    "plain": (plain(), 1),
    "majority": (majority_voting(first_letter, samples=3), 3),
    "one-step": (one_step(count_letters, samples=4, lam=LAM), 4),
    "weighted majority": (weighted_majority(first_letter, count_letters, samples=3, lam=LAM), 3),
}


@pytest.mark.parametrize("name", list(STEPS))
def test_the_trace_shows_all_samples_and_the_chain_is_the_chosen_one(name: str) -> None:
    step, samples = STEPS[name]
    for chain in chains_of(step, samples=50):
        (only,) = chain.trace
        assert len(only.candidates) == samples and only.rollouts == tuple((text,) for text in only.candidates)
        assert only.log_rewards.shape == (samples, 1) and only.log_weights.shape == (samples,)
        kept = only.candidates[only.choice]
        assert chain.state.done and (kept.tokens, kept.text) == (chain.state.tokens, chain.state.text)


@pytest.mark.parametrize("name", list(STEPS))
def test_the_chains_costs_add_up_to_the_ledger(name: str) -> None:
    (step, samples), policy = STEPS[name], new_policy()
    chains = chains_of(step, samples=50, policy=policy)
    costs = [chain.cost for chain in chains]
    assert policy.ledger.generated > 50 * samples
    for part in ("prompt", "candidate", "rollout", "scored", "generated"):
        assert sum(getattr(cost, part) for cost in costs) == getattr(policy.ledger, part), part
    drawn = sum(len(text.tokens) for chain in chains for text in chain.trace[0].candidates)
    assert policy.ledger.generated == policy.ledger.rollout == drawn


def test_only_texts_that_are_judged_are_charged_as_such() -> None:
    judged = {name: chains_of(step, samples=1)[0].cost.rewarded for name, (step, _) in STEPS.items()}
    assert judged == {"plain": 0, "majority": 0, "one-step": 4, "weighted majority": 3}


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_a_bad_number_of_samples_is_refused_before_anything_is_drawn(value: Any) -> None:
    with pytest.raises(InputError, match=r"^samples is "):
        majority_voting(first_letter, samples=value)
    with pytest.raises(InputError, match=r"^samples is "):
        one_step(count_letters, samples=value, lam=1.0)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_bad_lambda_is_refused_before_anything_is_drawn(value: float) -> None:
    with pytest.raises(InputError, match=r"^lam is "):
        one_step(count_letters, samples=2, lam=value)
    with pytest.raises(InputError, match=r"^lam is "):
        weighted_majority(first_letter, count_letters, samples=2, lam=value)


def test_majority_reads_answers_that_depend_on_the_problem_as_it_reads_the_others() -> None:
    def read(problem: Problem, text: str) -> str | None:
        return first_letter(text) if problem.id == "p" else None

    one, other = (chains_of(majority_voting(extract, samples=3), samples=200) for extract in (first_letter, read))
    assert [chain.state.tokens for chain in one] == [chain.state.tokens for chain in other]
