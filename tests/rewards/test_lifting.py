"""Plain functions as rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ets.kernel import energy_guided
from ets.rewards import agreement_share, as_extract, as_reward, per_text, remembering
from ets.rewards.lifting import pattern_extract
from ets.runner import run
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, Text

PROBLEM = Problem("p", "a prompt")
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])


def text(content: str) -> Text:
    return Text((1,), content, -1.0, True)


class Callable2:
    def __call__(self, prompt: str, text: str) -> float:
        return float(len(prompt) + len(text))


@pytest.mark.parametrize(
    "scoring",
    [
        lambda prompt, text: float(len(prompt) + len(text)),
        lambda prompt, text, *, bonus=0.0: len(prompt) + len(text) + bonus,
        lambda *both: float(sum(map(len, both))),
        Callable2(),
        Callable2().__call__,
    ],
)
def test_callables_of_prompt_and_text_are_lifted(scoring: Callable[..., float]) -> None:
    rollouts = [text("one"), text("three"), text("")]
    assert list(as_reward(scoring)(PROBLEM, rollouts, CHAIN)) == [11, 13, 8]


def test_a_built_in_callable_without_a_signature_is_taken_for_prompt_and_text() -> None:
    values: list[Any] = list(as_reward(max)(PROBLEM, [text("b"), text("")], CHAIN))
    assert values == ["b", "a prompt"]


def test_a_prompt_of_token_ids_arrives_as_it_was_given() -> None:
    problem = Problem("p", (3, 1, 2))
    reward = per_text(lambda prompt, text: float(prompt == (3, 1, 2)))
    assert list(reward(problem, [text("x")], CHAIN)) == [1.0]


def three(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    return [0.0] * len(rollouts)


@pytest.mark.parametrize("reward", [three, agreement_share(str), lambda problem, rollouts, chain: [0.0]])
def test_rewards_of_three_arguments_are_kept_as_they_are(reward: Callable[..., Any]) -> None:
    assert as_reward(reward) is reward


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda: 0.0, "()"),
        (lambda text: 0.0, "(text)"),
        (lambda a, b, c, d: 0.0, "(a, b, c, d)"),
        (lambda prompt, text, *, needed: 0.0, "needed"),
        (0.5, "0.5"),
        (None, "None"),
        ("exact-match", "'exact-match'"),
    ],
)
def test_other_signatures_and_values_are_refused_and_shown(function: Any, found: str) -> None:
    with pytest.raises(InputError) as caught:
        as_reward(function)
    assert found in str(caught.value) and "(prompt, text)" in str(caught.value)


def test_a_text_that_fills_several_cells_is_scored_once() -> None:
    scored: list[str] = []
    ended, other = text("same"), text("same")

    def scoring(prompt: str, text: str) -> float:
        scored.append(text)
        return float(len(scored))

    values = per_text(scoring)(PROBLEM, [ended, other, ended, ended], CHAIN)
    assert list(values) == [1.0, 2.0, 1.0, 1.0]  # equal texts that were drawn apart are scored apart


def test_the_kernel_asks_once_about_every_complete_candidate() -> None:
    scored: list[str] = []

    def scoring(prompt: str, text: str) -> float:
        scored.append(text)
        return 0.0

    step = energy_guided(per_text(scoring), candidates=4, rollouts=5, lam=1.0)
    chains = list(run(TabularPolicy(seed=2), step, [PROBLEM], width=8, seed=0, samples=8))
    taken = [step for chain in chains for step in chain.trace]
    complete = sum(candidate.done for step in taken for candidate in step.candidates)
    assert 0 < complete < 4 * len(taken)
    assert len(scored) == 5 * (4 * len(taken) - complete) + complete
    assert len(scored) == sum(chain.cost.rewarded for chain in chains)


class Reader:
    def extract(self, problem: Problem, text: str) -> str:
        return f"{problem.id}:{text}"


@pytest.mark.parametrize(
    "read", [lambda text: text, lambda text, strict=True: text, lambda *any: any[0], str, str.strip]
)
def test_readers_of_a_text_are_lifted(read: Callable[..., Any]) -> None:
    assert as_extract(read)(PROBLEM, "b") == remembering(read)(PROBLEM, "b") == "b"


@pytest.mark.parametrize(
    "read",
    [
        lambda problem, text: f"{problem.id}:{text}",
        lambda asked, text: f"{asked.id}:{text}",
        lambda problem, text="": f"{problem.id}:{text}",
        Reader().extract,
    ],
)
def test_readers_of_a_problem_and_a_text_are_kept(read: Callable[..., Any]) -> None:
    assert as_extract(read) is read
    assert as_extract(read)(PROBLEM, "b") == remembering(read)(PROBLEM, "b") == "p:b"


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda: None, "()"),
        (lambda problem, text, chain: None, "(problem, text, chain)"),
        (lambda text, *, needed: None, "needed"),
        (None, "None"),
        ("####", "'####'"),
    ],
)
def test_other_readers_are_refused_and_shown(function: Any, found: str) -> None:
    for lift in (as_extract, remembering, agreement_share):
        with pytest.raises(InputError) as caught:
            lift(function)
        assert found in str(caught.value) and "\n" not in str(caught.value)


def test_an_answer_is_remembered_for_the_problem_that_was_asked_whatever_its_id() -> None:
    asked: list[str] = []

    def read(problem: Problem, text: str) -> str:
        asked.append(text)
        return str(problem.doc["answer"]) + text

    remembered = remembering(read)
    twin = replace(PROBLEM, doc={"answer": 2})
    first = replace(PROBLEM, doc={"answer": 1})
    assert [remembered(problem, "x") for problem in (first, twin, first, twin)] == ["1x", "2x", "1x", "2x"]
    assert asked == ["x", "x"]


def test_a_pattern_finds_the_last_match_and_its_first_group() -> None:
    assert pattern_extract("#### ([0-9]+)(,0)?")("#### 1\n#### 23,0") == "23"
    assert pattern_extract("[a-c]+")("abd ca x") == "ca"
    assert pattern_extract("(x)?y")("y") is None and pattern_extract("z")("y") is None
