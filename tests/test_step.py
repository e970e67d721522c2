"""The pieces that step functions are built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ets.randomness import Purpose, chain_key
from ets.step import (
    RewardError,
    choice_uniforms,
    choose,
    draw_for_chains,
    require_counts,
    require_positive,
    row_keys,
    score,
)
from ets.testing import TabularPolicy, check_law
from ets.types import Chain, Cost, InputError, Problem, Step, Text

ROLLOUTS = [[Text((1,), "a", -1.0, True), Text((2,), "b", -1.0, True)], [Text((1, 1), "aa", -2.0, True)] * 2]


def new_chain(sample: int = 0, steps: int = 0) -> Chain:
    problem = Problem("task-7", "a prompt")
    state = TabularPolicy().start([problem])[0]
    step = Step((), (), np.zeros((1, 1)), np.zeros(1), 0, Cost())
    return Chain(problem, sample, chain_key(0, problem.id, sample), state, (step,) * steps)


def raising(error: Exception) -> Callable[..., Any]:
    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        raise error

    return reward


def returning(values: Any) -> Callable[..., Any]:
    return lambda problem, rollouts, chain: values


@pytest.mark.parametrize(
    ("reward", "found"),
    [
        (raising(KeyError("answer")), "KeyError"),
        (raising(InputError("no such file")), "no such file"),
        (returning([0.0, float("nan"), 0.0, 0.0]), "nan"),
        (returning([0.0, 0.0, 0.0, float("inf")]), "inf"),
        (returning([0.0, None, 0.0, 0.0]), "nan"),
        (returning([0.0, 0.0, 0.0]), "(3,)"),
        (returning([0.0] * 5), "(5,)"),
        (returning([]), "(0,)"),
        (returning(1.0), "()"),
        (returning(None), "()"),
        (returning([[0.0, 0.0], [0.0, 0.0]]), "(2, 2)"),
        (returning([[0.0], [0.0, 1.0]]), "ValueError"),
        (returning(["good", "bad", "bad", "bad"]), "a reward is text; return a number"),
        (returning(["1", "0", "0", "1"]), "a reward is text; return a number"),
    ],
)
def test_a_bad_reward_is_named_with_its_problem_in_one_line(reward: Callable[..., Any], found: str) -> None:
    with pytest.raises(RewardError) as caught:
        score(reward, 1.0, new_chain(), ROLLOUTS)
    message = str(caught.value)
    assert "'task-7'" in message and found in message and "\n" not in message


def test_a_reward_that_lam_makes_infinite_is_named() -> None:
    with pytest.raises(RewardError, match=r"a reward of 1e\+300 over lam 1e-10 is infinite, problem 'task-7'; use a"):
        score(returning([0.0, 1e300, -1e300, -np.inf]), 1e-10, new_chain(), ROLLOUTS)
    with pytest.raises(RewardError, match=r"a reward of -1e\+300 over lam 1e-10 is infinite"):
        score(returning([0.0, 1.0, -1e300, -np.inf]), 1e-10, new_chain(), ROLLOUTS)


def test_a_reward_that_raises_with_many_lines_is_named_in_one() -> None:
    with pytest.raises(RewardError) as caught:
        score(raising(RuntimeError("first line\nsecond line")), 1.0, new_chain(), ROLLOUTS)
    assert "\n" not in str(caught.value)


def test_what_the_reward_raised_stays_attached_as_the_cause() -> None:
    error = KeyError("answer")
    with pytest.raises(RewardError) as caught:
        score(raising(error), 1.0, new_chain(), ROLLOUTS)
    assert caught.value.__cause__ is error


def test_an_interrupt_inside_a_reward_is_not_taken_for_a_bad_reward() -> None:
    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(reward, 1.0, new_chain(), ROLLOUTS)


def test_rewards_arrive_by_candidate_and_rollout_with_minus_infinity_allowed() -> None:
    seen: list[Any] = []

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        seen.extend([problem, list(rollouts), chain])
        return [1, -np.inf, 3.5, True]

    chain = new_chain()
    values, _ = score(reward, 1.0, chain, ROLLOUTS)
    assert values.tolist() == [[1.0, -np.inf], [3.5, 1.0]]
    assert seen == [chain.problem, [*ROLLOUTS[0], *ROLLOUTS[1]], chain]


def test_a_text_that_fills_several_cells_is_charged_once() -> None:
    _, cost = score(returning([0.0] * 4), 1.0, new_chain(), ROLLOUTS)
    assert cost.rewarded == 3 and cost.positions == 0 and cost.generated == 0


def test_every_row_has_a_key_of_its_own_that_no_other_row_can_change() -> None:
    chains = [new_chain(sample, steps) for sample in range(3) for steps in range(3)]
    keys = {purpose: row_keys(chains, purpose, 4, 2) for purpose in Purpose}
    assert all(k.shape == (9, 4, 2) for k in keys.values())
    assert len(np.unique(np.stack(list(keys.values())))) == len(Purpose) * 9 * 4 * 2
    larger = row_keys(chains[4:5], Purpose.ROLLOUT, 6, 5)
    assert np.array_equal(larger[0, :4, :2], keys[Purpose.ROLLOUT][4])


def test_draws_are_grouped_by_the_chain_whose_state_they_began_from() -> None:
    policy, problems = TabularPolicy(), [Problem(name, name) for name in "abc"]
    starts = policy.start(problems)
    chains = [Chain(p, 0, chain_key(0, p.id, 0), s) for p, s in zip(problems, starts, strict=True)]
    drawn = draw_for_chains(policy.finish, chains, Purpose.COMPLETION, 5)
    assert [[draw.state.problem.id for draw in row] for row in drawn] == [[name] * 5 for name in "abc"]  # type: ignore[attr-defined]
    alone = draw_for_chains(policy.finish, chains[1:2], Purpose.COMPLETION, 5)
    assert [draw.text for draw in alone[0]] == [draw.text for draw in drawn[1]]


def test_choices_follow_the_weights_in_law_at_level_1e_4() -> None:
    law = {0: 0.1, 1: 0.0, 2: 0.6, 3: 0.3}
    with np.errstate(divide="ignore"):
        log_weights = np.log(list(law.values())) + 1e4
    chosen = [choose(log_weights, number) for number in choice_uniforms([new_chain(n) for n in range(10_000)])]
    check_law(chosen, {index: p for index, p in law.items() if p > 0}, level=1e-4)


@pytest.mark.parametrize("value", [True, False, 0, -1, 1.5, 2.0, "3", None, float("nan")])
def test_counts_refuse_what_is_no_whole_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(InputError, match=r"^rollouts is .*at least 1$") as caught:
        require_counts(candidates=1, rollouts=value)
    assert repr(value) in str(caught.value)


def test_counts_accept_whole_numbers_of_any_type() -> None:
    numbers: dict[str, Any] = {"one": 1, "large": 2**62, "numpy": np.int64(3)}
    require_counts(**numbers)


@pytest.mark.parametrize("value", [0, 0.0, -0.0, float("nan"), float("inf"), -float("inf"), -1])
def test_positive_numbers_refuse_zero_negative_and_infinite_values(value: float) -> None:
    with pytest.raises(InputError, match=r"^lam is .*above zero$") as caught:
        require_positive(fine=1.0, lam=value)
    assert str(value) in str(caught.value)


def test_positive_numbers_accept_the_smallest_and_the_largest() -> None:
    require_positive(whole=1, small=5e-324, large=1e308)
