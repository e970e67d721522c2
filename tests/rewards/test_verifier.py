"""Right or wrong answers as a reward."""

from __future__ import annotations

from ets.rewards import verifier
from ets.testing import TabularPolicy
from ets.types import Chain, Problem, Text

PROBLEM = Problem("p", "a prompt", doc={"answer": "a"})
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])


def texts(*contents: str) -> list[Text]:
    return [Text((1,), content, -1.0, True) for content in contents]


def right(problem: Problem, answer: object) -> bool:
    return answer == problem.doc["answer"]


def last_letter(text: str) -> str | None:
    return text[-1:] or None


def test_right_answers_get_one_and_wrong_or_missing_ones_zero() -> None:
    rewards = verifier(last_letter, right)(PROBLEM, texts("xa", "b", "", "a", "ab"), CHAIN)
    assert rewards == [1.0, 0.0, 0.0, 1.0, 0.0] and all(type(reward) is float for reward in rewards)


def test_a_missing_answer_is_never_checked_and_a_false_one_is() -> None:
    checked: list[object] = []

    def check(problem: Problem, answer: object) -> bool:
        checked.append(answer)
        return True

    rewards = verifier(lambda text: int(text) if text else None, check)(PROBLEM, texts("", "0"), CHAIN)
    assert rewards == [0.0, 1.0] and checked == [0]


def test_every_problem_is_checked_against_its_own_answer() -> None:
    reward = verifier(last_letter, right)
    other = Problem("q", "a prompt", doc={"answer": "b"})
    assert reward(PROBLEM, texts("a", "b"), CHAIN) == [1.0, 0.0]
    assert reward(other, texts("a", "b"), CHAIN) == [0.0, 1.0]


def test_equal_texts_are_judged_once() -> None:
    checked: list[object] = []

    def check(problem: Problem, answer: object) -> bool:
        checked.append(answer)
        return right(problem, answer)

    assert verifier(last_letter, check)(PROBLEM, texts("a", "b", "a", "a"), CHAIN) == [1.0, 0.0, 1.0, 1.0]
    assert sorted(map(str, checked)) == ["a", "b"]


def test_the_answer_may_depend_on_the_problem() -> None:
    def first_of_the_prompt(problem: Problem, text: str) -> str | None:
        return text[:1] if text.startswith(str(problem.prompt)[:1]) else None

    assert verifier(first_of_the_prompt, right)(PROBLEM, texts("ab", "ba"), CHAIN) == [1.0, 0.0]
