"""Adaptive majority voting: its law by enumeration, and when it stops."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from ets.baselines import adaptive_majority, majority_voting
from ets.baselines.adaptive import decided
from ets.testing import Law, check_law
from ets.types import InputError
from tests.enumerable import reference
from tests.test_suffix_moves import LETTERS, chains_of

LEVEL, N, CONFIDENCE = 1e-4, 5, 0.8


def first_letter(text: str) -> str | None:
    """The answer; texts that end at once have none."""
    return text[:1] or None


def answers() -> Law:
    law: Counter[str | None] = Counter()
    for outcome, p in reference(LETTERS).items():
        law[first_letter(LETTERS.spelled(outcome))] += p  # type: ignore[assignment]
    return dict(law)


def exact_law() -> Law:
    """The law of (answer of the result, samples), one sample after the other."""
    law, single = Counter[object](), answers()

    @cache
    def draw(counts: tuple[tuple[str | None, int], ...], p: float) -> None:
        found = dict(counts)
        valid = sorted((n for answer, n in found.items() if answer is not None), reverse=True)
        total = sum(found.values())
        if total and (decided(valid, CONFIDENCE) or total == N):
            most = valid[0] if valid else 0
            winners = [a for a, n in found.items() if n == most and a is not None] or [None]
            for answer in winners:
                law[answer, total] += p / len(winners)  # type: ignore[assignment]
            return
        for answer, q in single.items():
            walk(found | {answer: found.get(answer, 0) + 1}, p * q)

    def walk(found: dict[str | None, int], p: float) -> None:
        draw.__wrapped__(tuple(sorted(found.items(), key=repr)), p)

    walk({}, 1.0)
    return dict(law)


def test_it_follows_its_exact_law() -> None:
    """At a level of 1e-4."""
    law = exact_law()
    assert sum(law.values()) == pytest.approx(1)
    chains = chains_of(LETTERS, adaptive_majority(first_letter, samples=N, confidence=CONFIDENCE))
    found = [(first_letter(chain.state.text), len(chain.trace)) for chain in chains]
    check_law(found, law, level=LEVEL)


def test_the_posterior_decides() -> None:
    assert decided([4.0], 0.95) and not decided([3.0], 0.95)  # 1 - 1/32, 1 - 1/16
    assert decided([1.0], 0.75) and not decided([1.0, 1.0], 0.75) and not decided([], 0.75)


def test_it_saves_samples_and_agrees_with_the_whole_vote() -> None:
    adaptive = chains_of(LETTERS, adaptive_majority(first_letter, samples=40, confidence=0.8), samples=100)
    whole = chains_of(LETTERS, majority_voting(first_letter, samples=40), samples=100)
    means = [sum(chain.cost.generated for chain in chains) for chains in (adaptive, whole)]
    assert means[0] < 0.7 * means[1]
    most = Counter(first_letter(chain.state.text) for chain in whole).most_common(1)[0][0]
    assert Counter(first_letter(chain.state.text) for chain in adaptive).most_common(1)[0][0] == most


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"confidence is 0.5; it must be above 0.5"):
        adaptive_majority(first_letter, samples=4, confidence=0.5)
