"""Majority voting of confident samples, on texts with known certainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from ets.baselines import confident_majority, majority_voting
from ets.evaluation.pool import Completions, Recorded
from ets.rewards import self_certainty
from ets.runner import run
from ets.types import Certainty, Chain, Cost, Draw, InputError, Problem, StepFn, Text

PROBLEM = Problem("p", "a prompt")
Row = tuple[str, float]
"""A text and its mean confidence."""


def first(text: str) -> str | None:
    return text[:1] or None


def law(rows: Sequence[Row], share: float) -> list[float]:
    """The probability of each text to be the result."""
    draws = []
    for text, confidence in rows:
        kept = Text((1, 2), text, -1.0, True, certainty=Certainty(2, 0.0, 2 * confidence))
        draws.append(Draw(Completions((), kept.tokens, text), kept, -1.0, Cost()))
    step = confident_majority(first, samples=len(rows), share=share)
    weights = _weights(Recorded(tuple(draws)), step)
    return [weight / sum(weights) for weight in weights]


def _weights(policy: Recorded, step: StepFn) -> list[float]:
    chain = Chain(PROBLEM, 0, 1, Completions((), done=False))
    found: list[float] = np.exp(step(policy, [chain])[0].trace[0].log_weights).tolist()
    return found


def test_only_the_most_confident_texts_vote() -> None:
    """b has most votes of all four, and a is first among the two most confident texts."""
    rows = [("b", 1.0), ("b", 1.0), ("ax", 4.0), ("c", 3.0)]
    assert law(rows, 0.5) == [0, 0, 1, 0]
    assert law(rows, 0.75) == [0, 0, 1, 0]  # 4 against 3 and 1 + 1: b's votes tie for the third place


def test_votes_are_weighted_by_confidence() -> None:
    """Two votes of 1.5 and 1.6 outweigh one of 3; two of 1.4 and 1.5 do not."""
    assert law([("a", 3.0), ("b", 1.5), ("bx", 1.6)], 1.0) == [0, 0.5, 0.5]
    assert law([("a", 3.0), ("b", 1.4), ("bx", 1.5)], 1.0) == [1, 0, 0]


def test_a_text_of_the_winner_that_does_not_vote_is_not_returned() -> None:
    assert law([("a", 3.0), ("a", 1.0), ("b", 2.0)], 0.4) == [1, 0, 0]


def test_texts_as_confident_as_the_last_voting_one_vote_too() -> None:
    """One of three would vote: the first two tie, and then no answer leads."""
    assert law([("a", 2.0), ("b", 2.0), ("b", 1.0)], 0.3) == [0.5, 0.5, 0]


def test_texts_without_an_answer_do_not_count_for_the_share() -> None:
    assert law([("", 9.0), ("a", 1.0), ("b", 2.0)], 0.5) == [0, 0, 1]
    assert law([("", 9.0), ("", 1.0)], 0.5) == [0.5, 0.5]


def test_without_any_confidence_all_voting_texts_are_alike() -> None:
    assert law([("a", 0.0), ("b", 0.0), ("b", -1e-15)], 0.6) == [0.5, 0.5, 0]


def test_a_real_model_votes_by_its_own_certainty(make_tiny: Any) -> None:
    """With all votes of one confidence it would be majority voting; the winner has the largest sum of confidences."""
    policy = make_tiny(certainty=True, max_length=4)
    chains = [next(iter(run(policy, confident_majority(first, samples=8, share=1.0), [PROBLEM], width=1, seed=0)))]
    texts = chains[0].trace[0].candidates
    values = self_certainty()(PROBLEM, texts, chains[0])
    sums: dict[str | None, float] = {}
    for text, value in zip(texts, values, strict=True):
        sums[first(text.text)] = sums.get(first(text.text), 0.0) + value
    sums.pop(None, None)
    assert len(sums) > 1 and min(values) > 0
    assert first(chains[0].state.text) == max(sums, key=lambda answer: sums[answer])
    plain = next(iter(run(policy, majority_voting(first, samples=8), [PROBLEM], width=1, seed=0)))
    assert [text.text for text in plain.trace[0].candidates] == [text.text for text in texts]


def test_texts_without_a_recorded_certainty_are_refused(make_tiny: Any) -> None:
    with pytest.raises(InputError, match="have no recorded certainty; make the policy with certainty=True"):
        list(run(make_tiny(), confident_majority(first, samples=2), [PROBLEM], width=1, seed=0))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="share is "):
        confident_majority(first, samples=2, share=share)
