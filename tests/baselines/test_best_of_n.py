"""Best-of-N against its exact law at a finite number of samples, and against what it must equal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest

from ets import rewards
from ets.baselines import best_of_n, majority_voting
from ets.rewards import agreement_share, likelihood
from ets.runner import run
from ets.step import RewardError
from ets.testing import Law, TabularPolicy, check_law, total_variation
from ets.types import Chain, InputError, Problem, StepFn, Text

PROBLEM = Problem("p", "a prompt")
LEVEL = 1e-4
DRAWS = 10_000


def new_policy() -> TabularPolicy:
    return TabularPolicy(vocabulary=3, block_size=1, max_length=2, concentration=0.7, seed=11)


REFERENCE = new_policy().oracle.finish_law(PROBLEM, ())
"""Seven outcomes of one or two tokens: 0 (end), 1 ("a") and 2 ("b")."""


def chains_of(step: StepFn, samples: int, policy: TabularPolicy | None = None) -> list[Chain]:
    return list(run(policy or new_policy(), step, [PROBLEM], width=5000, seed=0, samples=samples))


def worth(tokens: tuple[int, ...]) -> float:
    """Of few values, so that samples tie."""
    return float(tokens.count(1) - tokens.count(2))


def count_letters(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    return [worth(text.tokens) for text in rollouts]


def first_letter(text: str) -> str | None:
    return text[:1] or None


def exact_law(samples: int) -> Law:
    law: dict[tuple[int, ...], float] = defaultdict(float)
    for drawn in product(REFERENCE, repeat=samples):
        best = [x for x in drawn if worth(x) == max(map(worth, drawn))]
        for outcome in best:
            law[outcome] += math.prod(REFERENCE[x] for x in drawn) / len(best)
    return law


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_it_draws_from_its_exact_law_ties_included_at_level_1e_4(samples: int) -> None:
    law = exact_law(samples)
    assert samples == 1 or total_variation(law, REFERENCE) > 0.1  # so that plain sampling would fail
    chains = chains_of(best_of_n(count_letters, samples=samples), DRAWS)
    check_law((chain.state.tokens for chain in chains), law, level=LEVEL)


def test_ties_are_broken_evenly_at_level_1e_4() -> None:
    chains = chains_of(best_of_n(lambda problem, rollouts, chain: [1.0] * len(rollouts), samples=4), DRAWS)
    check_law((chain.trace[0].choice for chain in chains), dict.fromkeys(range(4), 0.25), level=LEVEL)


def test_by_the_share_it_is_majority_voting_chain_by_chain() -> None:
    reward = agreement_share(first_letter, pool="step")
    best, voted = (chains_of(s, 500) for s in (best_of_n(reward, samples=5), majority_voting(first_letter, samples=5)))
    assert [chain.state.tokens for chain in best] == [chain.state.tokens for chain in voted]
    assert len({chain.state.tokens for chain in best}) > 3


def test_by_the_majority_it_returns_a_sample_with_the_answer_that_reached_the_count_first() -> None:
    """Of two samples the first that has an answer; majority voting may return either."""
    best = best_of_n(rewards.majority(first_letter, pool="step"), samples=2)
    tied = 0
    for chain in chains_of(best, 300):
        (step,) = chain.trace
        answers = [answer for text in step.candidates if (answer := first_letter(text.text)) is not None]
        assert not answers or first_letter(step.candidates[step.choice].text) == answers[0]
        tied += len(set(answers)) == 2
    assert tied > 20


@pytest.mark.parametrize("per_token", [False, True])
def test_by_likelihood_it_returns_the_most_probable_sample(per_token: bool) -> None:
    for chain in chains_of(best_of_n(likelihood(per_token=per_token), samples=3), 200):
        (step,) = chain.trace
        worths = [np.log(REFERENCE[t.tokens]) / (len(t.tokens) if per_token else 1) for t in step.candidates]
        assert worths[step.choice] == pytest.approx(max(worths))


def test_forbidden_samples_are_not_returned_unless_all_are_and_then_the_chain_is_marked() -> None:
    def forbid_b(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [-np.inf if "b" in text.text else 0.0 for text in rollouts]

    chains = chains_of(best_of_n(forbid_b, samples=2), 500)
    allowed = [any("b" not in text.text for text in chain.trace[0].candidates) for chain in chains]
    assert [chain.valid for chain in chains] == allowed == ["b" not in chain.state.text for chain in chains]
    assert [chain.trace[0].uninformed for chain in chains] == [not a for a in allowed]
    assert set(allowed) == {True, False}


def test_the_trace_shows_all_samples_and_the_costs_add_up() -> None:
    policy = new_policy()
    chains = chains_of(best_of_n(count_letters, samples=4), 50, policy)
    for chain in chains:
        (step,) = chain.trace
        assert len(step.candidates) == 4 and step.rollouts == tuple((text,) for text in step.candidates)
        best = max(worth(text.tokens) for text in step.candidates)
        assert [w == 0.0 for w in step.log_weights] == [worth(text.tokens) == best for text in step.candidates]
        assert step.candidates[step.choice].tokens == chain.state.tokens and chain.cost.rewarded == 4
    for part in ("rollout", "generated"):
        assert sum(getattr(chain.cost, part) for chain in chains) == getattr(policy.ledger, part) > 0


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_a_bad_number_of_samples_is_refused_at_once(value: Any) -> None:
    with pytest.raises(InputError, match=r"^samples is "):
        best_of_n(count_letters, samples=value)


def test_a_reward_that_is_no_number_names_the_problem() -> None:
    with pytest.raises(RewardError, match="problem 'p'"):
        chains_of(best_of_n(lambda problem, rollouts, chain: [math.nan] * len(rollouts), samples=2), 1)
