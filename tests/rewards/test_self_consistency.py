"""Agreement with the other rollouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ets.rewards import agreement_share, votes
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
        agreement_share(extract, pool=pool)
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


def test_answers_with_too_few_votes_count_as_none() -> None:
    texts = [Text((1,), answer, -1.0, True) for answer in ("a", "a", "b", "")]
    reward = agreement_share(lambda text: text or None, minimum=2)
    start = Chain(Problem("p", "?"), 0, 0, texts[0])
    assert reward(start.problem, texts, start) == [0.5, 0.5, 0.0, 0.0]
    with pytest.raises(InputError, match="minimum is 0"):
        agreement_share(str, minimum=0)
