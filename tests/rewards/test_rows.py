"""Rewards of a task's row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from ets.rewards import RowReward
from ets.rewards.rows import demand
from ets.step import as_reward, of_prefixes, reads_prefixes
from ets.types import InputError, Problem, Text

PROBLEM = Problem("p", "Name a colour.", doc={"words": ["red"]})
ASKED: list[str] = []


@RowReward
def named(row: Mapping[str, Any], text: str) -> float:
    """How many of the words stand in the text."""
    ASKED.append(text)
    return sum(word in text for word in demand(row, "words", list, "a list of words"))


def scored(problem: Problem, *texts: str) -> list[float]:
    chain: Any = None
    return named(problem, [Text((), text, 0.0, True) for text in texts], chain)


def test_it_sees_the_row_and_scores_equal_texts_once() -> None:
    ASKED.clear()
    assert scored(PROBLEM, "red", "blue", "red") == [1, 0, 1] and sorted(ASKED) == ["blue", "red"]
    assert named.__doc__ == "How many of the words stand in the text."


@pytest.mark.parametrize(
    ("prompt", "text", "value"),
    [
        ("Name a colour.", "<think>red</think>blue", 0),
        ("Name a colour.", "<think>blue</think>red", 1),
        ("Name a colour.", "<think>red", 0),
        ("Name a colour.<think>\n", "red", 0),
        ("Name a colour.<think>\n", "blue</think>red", 1),
    ],
)
def test_thinking_does_not_count(prompt: str, text: str, value: float) -> None:
    assert scored(Problem("p", prompt, doc=PROBLEM.doc), text) == [value]
    assert scored(Problem("p", prompt, doc=PROBLEM.doc, thinking=None), text) == [1]


def test_it_is_a_reward_and_may_be_one_of_prefixes() -> None:
    other = of_prefixes(RowReward(lambda row, text: 1.0))
    assert as_reward(named) is named and not reads_prefixes(named) and reads_prefixes(as_reward(other))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda row, text: len(row["letters"]),
            "^line 2 of 'vowels.jsonl' has no 'letters', a KeyError of the re",
        ),
        (lambda row, text: demand(row, "letters", str, "letters"), "^line 2 of 'vowels.jsonl': no 'letters'; give le"),
        (
            lambda row, text: {}["words"],
            r"^the reward raised KeyError for problem 'q' \(line 2 of 'vowels.jsonl'\): ",
        ),
        (lambda row, text: 1 / 0, r"raised ZeroDivisionError for problem 'q' \(line 2 of 'vowels.jsonl'\): "),
    ],
)
def test_a_missing_field_is_named_with_its_file_and_line(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        RowReward(function).require([Problem("q", "", doc=PROBLEM.doc, place="line 2 of 'vowels.jsonl'")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [None, [], "red", True])
def test_a_row_that_does_not_fit_is_one_line_with_its_problem(words: Any) -> None:
    named.require([PROBLEM])
    with pytest.raises(InputError, match=r"row of problem 'q': words is .*; give a list of words"):
        named.require([PROBLEM, Problem("q", "", doc={"words": words})])


def test_a_function_that_fails_on_an_empty_text_is_one_line() -> None:
    with pytest.raises(InputError, match=r"the reward raised ZeroDivisionError for problem 'p': .*; correct it"):
        RowReward(lambda row, text: 1 / len(text)).require([PROBLEM])
    with pytest.raises(InputError, match=r"^the row of problem 'p': no 'words'; give a list of words$"):
        named.require([Problem("p", "")])
