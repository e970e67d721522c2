"""Agreement with the other rollouts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ets.kernel import energy_guided
from ets.rewards import agreement_share, majority, votes, winner
from ets.runner import run
from ets.testing import TabularPolicy
from ets.types import Chain, Cost, InputError, Problem, Step, Text

PROBLEM = Problem("p", "a prompt")


def extract(text: str) -> str | None:
    """The last letter; empty texts hold no answer."""
    return text[-1:] or None


def texts(*contents: str) -> list[Text]:
    return [Text((1,), content, -1.0, True) for content in contents]


def chain_after(*steps: Sequence[Sequence[Text]]) -> Chain:
    trace = tuple(
        Step(tuple(row[0] for row in rows), tuple(map(tuple, rows)), np.zeros((1, 1)), np.zeros(1), 0, Cost())
        for rows in steps
    )
    return Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0], trace)


def weighed(**log_ratios: float) -> list[Text]:
    """A text for each answer, with its log-ratio; `b_2` is a second text that answers b."""
    return [Text((1,), name[0], -1.0, True, ratio) for name, ratio in log_ratios.items()]


def test_the_majority_gets_1_and_every_other_answer_0() -> None:
    rollouts = texts("xa", "b", "ya", "", "c")
    assert majority(extract)(PROBLEM, rollouts, chain_after()) == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_texts_without_an_answer_are_never_the_majority() -> None:
    assert majority(extract)(PROBLEM, texts("", "", "", "b"), chain_after()) == [0.0, 0.0, 0.0, 1.0]
    assert majority(extract)(PROBLEM, texts("", ""), chain_after()) == [0.0, 0.0]
    assert winner(extract, texts("", "")) is None and winner(extract, []) is None


@pytest.mark.parametrize(
    ("contents", "best"), [("ab", "a"), ("abba", "b"), ("abab", "a"), ("abcbca", "b"), ("cabba", "b"), ("ba", "b")]
)
def test_of_equals_the_answer_that_reached_the_count_first_wins(contents: str, best: str) -> None:
    assert winner(extract, texts(*contents)) == best
    rewards = majority(extract)(PROBLEM, texts(*contents), chain_after())
    assert rewards == [float(letter == best) for letter in contents]


def test_ties_go_by_step_then_candidate_then_rollout() -> None:
    reward = energy_guided(recording := Recording(), candidates=2, rollouts=2, lam=1.0)
    (chain,) = run(TabularPolicy(), reward, [PROBLEM], width=1, seed=0)
    cells = [[id(text) for row in step.rollouts for text in row] for step in chain.trace]
    assert [[id(text) for text in rollouts] for rollouts in recording.seen] == cells
    earlier = chain_after([texts("a"), texts("a")])  # with b, b a tie, whose first answer is a
    assert majority(extract)(PROBLEM, texts("b", "b"), earlier) == [0.0, 0.0]
    assert majority(extract)(PROBLEM, texts("b", "b", "b"), earlier) == [1.0, 1.0, 1.0]
    assert majority(extract, pool="step")(PROBLEM, texts("b", "b"), earlier) == [1.0, 1.0]


class Recording:
    """A reward that keeps the rollouts in the order in which it is asked about them."""

    def __init__(self) -> None:
        self.seen: list[Sequence[Text]] = []

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        self.seen.append(rollouts)
        return [0.0] * len(rollouts)


def test_the_majority_counts_the_rollouts_of_all_steps_unless_its_pool_is_the_step() -> None:
    """The earlier steps hold a, b, none, b and b, c, a, a: b has reached 3 before a."""
    assert majority(extract)(PROBLEM, texts("c", "b", "a"), EARLIER) == [0.0, 1.0, 0.0]
    assert majority(extract)(PROBLEM, texts("a", "b", "c"), EARLIER) == [1.0, 0.0, 0.0]  # a has reached 4 first
    assert majority(extract, pool="step")(PROBLEM, texts("c", "b", "a"), EARLIER) == [1.0, 0.0, 0.0]


def test_texts_without_an_answer_do_not_vote() -> None:
    assert votes(extract, texts("xa", "a", "", "b", "")) == {"a": 2, "b": 1}


def test_a_text_without_an_answer_takes_no_weight_from_the_votes_however_large_its_ratio() -> None:
    heavy, light, lighter = (
        dataclasses.replace(text, log_ratio=ratio)
        for text, ratio in zip(texts("", "xa", "b"), (0.0, -1000.0, -1000.0 - np.log(2)), strict=True)
    )
    assert votes(extract, [heavy, light, lighter]) == pytest.approx({"a": 1, "b": 0.5})


def test_a_reward_is_the_share_of_the_pool_that_gives_the_same_answer() -> None:
    reward = agreement_share(extract, pool="step")
    assert reward(PROBLEM, texts("xa", "b", "ya", "za"), chain_after()) == [0.75, 0.25, 0.75, 0.75]


def test_texts_without_an_answer_get_zero_and_count_in_the_pool() -> None:
    reward = agreement_share(extract, pool="step")
    assert reward(PROBLEM, texts("a", "", "a", "", "b"), chain_after()) == [0.4, 0.0, 0.4, 0.0, 0.2]
    assert reward(PROBLEM, texts("", ""), chain_after()) == [0.0, 0.0]


def test_an_answer_that_is_false_still_votes() -> None:
    reward = agreement_share(lambda text: int(text) if text else None, pool="step")
    assert reward(PROBLEM, texts("0", "00", "1", ""), chain_after()) == [0.5, 0.5, 0.25, 0.0]


def test_a_candidate_that_has_ended_votes_once_for_each_cell_that_it_fills() -> None:
    ended, [other] = texts("a")[0], texts("b")
    assert agreement_share(extract)(PROBLEM, [ended, ended, ended, other], chain_after()) == [0.75] * 3 + [0.25]


EARLIER = chain_after([texts("a", "b"), texts("", "b")], [texts("b", "c"), texts("a", "a")])


def test_the_pool_of_a_step_forgets_the_earlier_steps() -> None:
    assert agreement_share(extract, pool="step")(PROBLEM, texts("a", "c"), EARLIER) == [0.5, 0.5]


def test_the_pool_of_the_chain_adds_every_rollout_of_its_trace() -> None:
    rewards = agreement_share(extract, pool="chain")(PROBLEM, texts("a", "c", "d", ""), EARLIER)
    assert rewards == [4 / 12, 2 / 12, 1 / 12, 0.0]


def test_the_whole_chain_votes_by_default() -> None:
    rollouts = texts("a", "c")
    assert agreement_share(extract)(PROBLEM, rollouts, EARLIER) == [0.4, 0.2]


@settings(derandomize=True, max_examples=100)
@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=12), st.booleans())
def test_rewards_summed_over_one_text_per_answer_are_the_answered_share(contents: list[str], chain: bool) -> None:
    before = chain_after([texts(*contents)]) if chain else chain_after()
    rewards = agreement_share(extract)(PROBLEM, texts(*contents), before)
    by_answer = dict(zip(contents, rewards, strict=True))
    answered = sum(content != "" for content in contents)
    assert sum(by_answer.values()) == pytest.approx(answered / len(contents))


def test_an_answer_is_extracted_once_per_distinct_text() -> None:
    asked: list[str] = []

    def counting(text: str) -> str | None:
        asked.append(text)
        return extract(text)

    reward = agreement_share(counting)
    for _ in range(3):
        reward(PROBLEM, texts("a", "xa", "a", ""), EARLIER)
    assert sorted(asked) == ["", "a", "b", "c", "xa"]


@pytest.mark.parametrize("pool", ["steps", "", None, "CHAIN"])
def test_an_unknown_pool_is_refused(pool: Any) -> None:
    with pytest.raises(InputError, match=r"choose 'step' or 'chain'") as caught:
        majority(extract, pool=pool)
    assert repr(pool) in str(caught.value)


class Rounded(float):
    """Equal to what rounds to the same."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rounded) and round(self) == round(other)

    def __hash__(self) -> int:
        return 0


def test_answers_that_are_equal_vote_together_however_they_are_written() -> None:
    reward = agreement_share(Rounded, pool="step")
    assert reward(PROBLEM, texts("1", "1.2", "2", "0.9"), chain_after()) == [0.75, 0.75, 0.25, 0.75]


def test_the_answer_may_depend_on_the_problem() -> None:
    reward = agreement_share(lambda problem, text: problem.doc["answers"].get(text), pool="step")
    for answers, rewards in (({"a": 1, "b": 1}, [1.0, 1.0]), ({"a": 1}, [0.5, 0.0])):
        asked = Problem("p", "a prompt", doc={"answers": answers})
        assert reward(asked, texts("a", "b"), chain_after()) == rewards


def test_an_ended_candidate_votes_k_times_and_a_rollout_that_is_kept_once() -> None:
    [ended, other, kept] = texts("a", "b", "b")
    assert majority(extract)(PROBLEM, [ended, ended, other, kept], chain_after()) == [1.0, 1.0, 0.0, 0.0]
    before = chain_after([[kept, *texts("c")]])
    assert majority(extract)(PROBLEM, [kept, *texts("a", "a")], before) == [0.0, 1.0, 1.0]  # b 1, c 1, a 2
    assert majority(extract)(PROBLEM, [*texts("b"), *texts("a", "a")], before) == [1.0, 0.0, 0.0]  # b 2 before a


def test_a_vote_weighs_its_ratio() -> None:
    rollouts = weighed(a=0.0, b=-0.1, b_2=-2.0, c=-math.inf, c_2=-math.inf, c_3=-math.inf)
    assert winner(extract, rollouts[:2]) == "a"
    assert winner(extract, weighed(a=0.0, b=-0.5, b_2=-0.6)) == "b"  # exp(-0.5) + exp(-0.6) > 1
    assert winner(extract, weighed(a=0.0, b=-0.8, b_2=-0.9)) == "a"
    assert majority(extract)(PROBLEM, rollouts, chain_after()) == [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("shift", [-5000.0, 0.0, 5000.0])
def test_ratios_neither_underflow_nor_overflow(shift: float) -> None:
    assert winner(extract, weighed(a=shift, b=shift - 0.5, b_2=shift - 0.6)) == "b"
    assert winner(extract, weighed(b=shift - 4000, b_2=shift - 4000, a=shift)) == "a"


def test_impossible_texts_neither_win_nor_are_counted() -> None:
    assert winner(extract, weighed(a=-math.inf, a_2=-math.inf)) is None
    assert winner(extract, weighed(a=0.0, a_2=-math.inf), minimum=2) is None


def test_minimum_2_rewards_nothing_while_no_answer_occurs_twice() -> None:
    reward = majority(extract, minimum=2)
    assert reward(PROBLEM, texts("a", "b", "", ""), chain_after()) == [0.0] * 4
    assert reward(PROBLEM, texts("a", "b", "b", ""), chain_after()) == [0.0, 1.0, 1.0, 0.0]
    assert reward(PROBLEM, texts("b", "c"), chain_after([texts("b")])) == [1.0, 0.0]


def test_the_minimum_counts_rollouts_whatever_their_ratios() -> None:
    """Two rollouts of a whose ratios differ weigh 1.9 times the larger: still the answer occurs twice."""
    rollouts = weighed(a=0.0, a_2=-0.1, b=-0.2)
    assert majority(extract, minimum=2)(PROBLEM, rollouts, chain_after()) == [1.0, 1.0, 0.0]
    shares = agreement_share(extract, minimum=2)(PROBLEM, rollouts, chain_after())
    assert shares[0] == shares[1] > 0.5 and shares[2] == 0


def test_a_value_that_is_not_equal_to_itself_is_rewarded_as_it_is_counted() -> None:
    """A dictionary finds the same object; `==` would not."""
    nan = float("nan")
    assert majority(lambda text: nan if text == "n" else text)(PROBLEM, texts("n", "b", "n"), chain_after()) == [
        1,
        0,
        1,
    ]


@pytest.mark.parametrize("make", [majority, agreement_share])
def test_answers_with_equal_values_are_one_answer(make: Any) -> None:
    reward = make(lambda text: {"1": 1, "1.0": 1.0, "one": True}.get(text, text))
    found = reward(PROBLEM, texts("2", "2", "1", "1.0", "one"), chain_after())
    assert found[2] == found[3] == found[4] > found[0] == found[1]


def test_answers_with_too_few_votes_count_as_none() -> None:
    texts = [Text((1,), answer, -1.0, True) for answer in ("a", "a", "b", "")]
    reward = agreement_share(lambda text: text or None, minimum=2)
    start = Chain(Problem("p", "?"), 0, 0, texts[0])
    assert reward(start.problem, texts, start) == [0.5, 0.5, 0.0, 0.0]
    for make in (majority, agreement_share):
        with pytest.raises(InputError, match="minimum is 0"):
            make(str, minimum=0)
