"""What is read off a finished chain."""

from __future__ import annotations

import numpy as np

from ets.readouts import vote
from ets.types import Chain, Cost, Problem, Step, Text


def text(answer: str, log_ratio: float = 0.0) -> Text:
    return Text((1,), answer, -1.0, True, log_ratio)


def chain(*steps: tuple[tuple[Text, ...], ...]) -> Chain:
    made = tuple(
        Step(tuple(row[0] for row in rows), rows, np.zeros((len(rows), len(rows[0]))), np.zeros(len(rows)), 0, Cost())
        for rows in steps
    )
    return Chain(Problem("p", "?"), 0, 0, text(""), made)


def read(text: str) -> str | None:
    return text or None


def test_every_rollout_of_every_step_votes() -> None:
    found = vote(read, chain(((text("a"), text("b")),), ((text("b"), text("c")),)))
    assert found.winner == "b" and found.text is found.texts["b"] and found.texts["b"].text == "b"
    assert found.shares == {"b": 0.5, "a": 0.25, "c": 0.25}


def test_of_equals_the_answer_that_reached_the_count_first_wins() -> None:
    assert vote(read, chain(((text("a"), text("b")),))).winner == "a"
    assert vote(read, chain(((text("a"), text("b")),), ((text("b"), text("a")),))).winner == "b"


def test_texts_without_an_answer_do_not_vote() -> None:
    assert vote(read, chain(((text(""), text("a")),))).shares == {"a": 1.0}
    none = vote(read, chain(((text(""), text("")),)))
    assert none.winner is None and none.text is None


def test_votes_carry_the_ratios_of_a_proposal() -> None:
    found = vote(read, chain(((text("a", -2.0), text("a", -2.0), text("b", 0.0)),)))
    assert found.winner == "b"


def test_the_text_of_an_answer_is_one_that_the_reference_policy_can_draw() -> None:
    impossible, possible = text("a", -np.inf), text("a", 0.0)
    found = vote(read, chain(((impossible, possible),)))
    assert found.text is possible


def test_the_text_of_an_answer_is_its_first_rollout() -> None:
    rows = [((text("a"), text("a")),), ((text("b"), text("a")), (text("b"), text("b")))]
    found = vote(read, chain(*rows))
    assert found.texts["a"] is rows[0][0][0] and found.texts["b"] is rows[1][0][0]


def test_a_rollout_that_is_kept_votes_once_and_a_complete_candidate_in_all_its_cells() -> None:
    kept, complete = text("a"), text("b")
    found = vote(read, chain(((kept, text("c")),), ((kept, text("c")), (complete, complete))))
    assert found.shares == {"c": 0.4, "b": 0.4, "a": 0.2}
