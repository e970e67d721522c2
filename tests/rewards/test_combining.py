"""Rewards made of rewards: sums, guards and remembered scores."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import pytest

from ets.kernel import energy_guided
from ets.rewards import TextReward, agreement_share, cached, guarded, likelihood, verifier, weighted_sum
from ets.runner import run
from ets.step import RewardError, as_reward, of_prefixes, reads_prefixes
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, Text

PROBLEM = Problem("p", "a prompt")
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])


def texts(*contents: str) -> list[Text]:
    return [Text((1,), content, -1.0, True) for content in contents]


def length(prompt: str, text: str) -> float:
    return float(len(text))


def values(reward: Any, *contents: str, problem: Problem = PROBLEM) -> list[float]:
    return list(reward(problem, texts(*contents), CHAIN))


def test_a_weighted_sum_adds_rewards_of_either_kind() -> None:
    reward = weighted_sum((2, length), (-0.5, likelihood()), (10.0, agreement_share(str, pool="step")))
    assert values(reward, "a", "abc", "a") == pytest.approx([2 + 0.5 + 20 / 3, 6 + 0.5 + 10 / 3, 2 + 0.5 + 20 / 3])


@pytest.mark.parametrize("weight", [2.0, 0, -1.0])
def test_what_one_reward_forbids_stays_forbidden_at_any_weight(weight: float) -> None:
    reward = weighted_sum((weight, lambda prompt, text: -math.inf if "x" in text else 1.0), (1, length))
    assert values(reward, "ax", "a") == [-math.inf, weight + 1]


@pytest.mark.parametrize("weight", [math.inf, math.nan, "1", True, None])
def test_weights_must_be_finite_numbers(weight: Any) -> None:
    with pytest.raises(InputError, match="a weight is"):
        weighted_sum((weight, length))
    with pytest.raises(InputError, match="no rewards"):
        weighted_sum()


@pytest.mark.parametrize("term", [(1,), likelihood(), (1, length, 2), "ab"])
def test_terms_must_be_pairs(term: Any) -> None:
    with pytest.raises(InputError, match=r"^a term of the weighted sum is .*; give \(weight, reward\) pairs$"):
        weighted_sum((1, length), term)


def test_a_part_that_gives_too_few_numbers_is_an_error() -> None:
    with pytest.raises(RewardError, match="shape"):
        values(weighted_sum((1, lambda problem, rollouts, chain: [0.0])), "a", "b")


def test_a_guard_changes_nothing_of_a_reward_that_works() -> None:
    for seconds in (None, 30):
        reward = guarded(length, seconds=seconds, on_error=0.0)
        assert values(reward, "a", "abc") == [1.0, 3.0] and reward.failures == 0


@pytest.mark.parametrize("seconds", [None, 30.0])
def test_a_failing_reward_is_raised_by_default(seconds: float | None) -> None:
    reward = guarded(lambda prompt, text: 1 / 0, seconds=seconds)
    with pytest.raises(ZeroDivisionError):
        values(reward, "a")
    with pytest.raises(RewardError, match="raised ZeroDivisionError for problem 'p'"):
        list(run(TabularPolicy(), energy_guided(reward, candidates=2, rollouts=1, lam=1.0), [PROBLEM], width=1, seed=0))


def failing(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    """In four ways, by the first text."""
    return {"a": [math.nan], "b": [], "c": [math.inf], "d": [1.0]}[rollouts[0].text]


def test_failed_calls_get_their_value_are_counted_and_reported_once() -> None:
    reward = guarded(failing, on_error=-math.inf)
    with pytest.warns(UserWarning, match=r"the reward failed for problem 'p' \(RewardError.*get -inf") as told:
        found = [values(reward, *contents) for contents in ("a", "b", "c", "d", ("e", "f"))]
    assert found == [[-math.inf], [-math.inf], [-math.inf], [1.0], [-math.inf, -math.inf]]
    assert sum("the reward failed" in str(each.message) for each in told) == 1 and reward.failures == 4


def test_a_call_out_of_time_is_abandoned_and_the_next_one_does_not_wait() -> None:
    begun, release, threads = threading.Event(), threading.Event(), list[threading.Thread]()

    def scoring(prompt: str, text: str) -> float:
        threads.append(threading.current_thread())
        if text == "slow":
            begun.set()
            release.wait(120)
        return 1.0

    reward = guarded(scoring, seconds=0.2, on_error=-1.0)
    with pytest.warns(UserWarning, match=r"TimeoutError: the reward took longer than 0.2 s, and the call is abandoned"):
        assert values(reward, "slow", "quick") == [-1.0, -1.0]
    assert begun.wait(60) and threads[0].is_alive()
    assert values(guarded(scoring, seconds=60), "quick") == [1.0]
    assert threads[1] is not threads[0] and reward.failures == 1
    with pytest.raises(TimeoutError):
        values(guarded(lambda prompt, text: release.wait(120) or 1.0, seconds=0.05), "a")
    release.set()
    threads[0].join(60)


@pytest.mark.parametrize(
    "options",
    [{"seconds": 0}, {"seconds": math.inf}, {"on_error": math.nan}, {"on_error": math.inf}, {"on_error": "x"}],
)
def test_guards_out_of_range_are_refused(options: Any) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        guarded(length, **options)


class Counting:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def __call__(self, prompt: str, text: str) -> float:
        self.asked.append((prompt, text))
        return float(len(text))


def test_texts_seen_before_cost_no_call() -> None:
    scoring = Counting()
    reward = cached(scoring)
    assert values(reward, "a", "abc", "a") == [1.0, 3.0, 1.0]
    assert values(reward, "abc", "b") == [3.0, 1.0]
    other = Problem("q", "another prompt")
    assert values(reward, "a", problem=other) == [1.0]
    assert scoring.asked == [("a prompt", "a"), ("a prompt", "abc"), ("a prompt", "b"), ("another prompt", "a")]


def test_the_least_recently_used_texts_are_forgotten_first() -> None:
    scoring = Counting()
    reward = cached(scoring, size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        values(reward, text)
    assert [text for _, text in scoring.asked] == ["a", "b", "c", "b"]
    assert values(reward, "x", "y", "z") == [1.0, 1.0, 1.0]  # more at once than it remembers


def test_a_reward_of_texts_is_remembered_by_problem() -> None:
    """Two problems with one prompt may have different answers."""
    checked: list[object] = []

    def right(problem: Problem, answer: object) -> bool:
        checked.append(answer)
        return answer == problem.doc["answer"]

    reward = cached(verifier(str, right))
    one, two = (Problem("p", "same", doc={"answer": answer}) for answer in ("a", "b"))
    for _ in range(2):
        assert values(reward, "a", "b", problem=one) == [1.0, 0.0]
        assert values(reward, "a", "b", problem=two) == [0.0, 1.0]
    assert len(checked) == 4 and isinstance(reward, TextReward)


@pytest.mark.parametrize("reward", [agreement_share(str), likelihood(), weighted_sum((1, length)), guarded(length)])
def test_rewards_that_may_look_at_other_rollouts_are_refused(reward: Any) -> None:
    with pytest.raises(InputError, match="may look at other rollouts"):
        cached(reward)


def test_a_run_is_the_same_with_a_memory_and_charges_the_texts_it_asked_about() -> None:
    def chains(reward: Any) -> list[Chain]:
        step = energy_guided(reward, candidates=3, rollouts=2, lam=0.5)
        return list(run(TabularPolicy(seed=2), step, [PROBLEM], width=4, seed=0, samples=8))

    plain, scoring = Counting(), Counting()
    without, remembered = chains(TextReward(lambda p, t: [plain("", x) for x in t])), chains(cached(scoring))
    assert [chain.state.text for chain in without] == [chain.state.text for chain in remembered]
    assert [c.cost.rewarded for c in without] == [c.cost.rewarded for c in remembered]
    assert len(scoring.asked) == len(set(scoring.asked)) == len({text for _, text in plain.asked}) < len(plain.asked)


def test_a_guard_around_a_memory_does_not_remember_failures() -> None:
    down = [True]

    def flaky(prompt: str, text: str) -> float:
        if down[0]:
            raise ConnectionError("down")
        return 2.0

    reward = guarded(cached(flaky), on_error=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert values(reward, "a") == [0.0]
    down[0] = False
    assert values(reward, "a") == [2.0]


def test_cached_scores_of_conversations_are_told_apart() -> None:
    asked: list[Any] = []
    reward = cached(lambda prompt, text: asked.append(prompt) or float(len(prompt)))
    turns = tuple({"role": "user", "content": content} for content in "ab")
    for problem in (Problem("p", "x", messages=turns), Problem("q", "x", messages=turns[:1]), Problem("r", "x")):
        assert values(reward, "t", "t", problem=problem) == [float(len(problem.raw_prompt))] * 2
    assert values(reward, "t", problem=Problem("s", "other", messages=turns)) == [2.0]
    assert asked == [turns, turns[:1], "x"]


def test_a_declaration_of_prefixes_survives_combining() -> None:
    declared = of_prefixes(lambda prompt, text: 0.0)
    for reward in (
        cached(declared),
        guarded(declared),
        weighted_sum((1, declared), (2, declared)),
        as_reward(declared),
    ):
        assert reads_prefixes(reward) and reads_prefixes(guarded(reward))
    whole = TextReward(lambda problem, texts: [0.0] * len(texts))
    assert not any(
        map(reads_prefixes, (cached(length), guarded(length), weighted_sum((1, declared), (2, length)), whole))
    )
    assert reads_prefixes(cached(of_prefixes(whole)))
