"""The progress bar: what it shows and when."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ets.evaluation import progress
from ets.evaluation.intervals import accuracy
from ets.evaluation.progress import Progress
from ets.testing import TabularPolicy
from ets.types import Chain, Cost, Policy


def record(problem: int, correct: bool, sample: int = 0) -> dict[str, Any]:
    return {"method": "ets", "problem": f"p{problem}", "sample": sample, "correct": correct}


@pytest.fixture(autouse=True)
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return re.split(r"[\r\n]+", capsys.readouterr().err.strip())


def test_it_shows_problems_accuracy_with_its_interval_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("ETS", 4, 1, [record(0, True)], [TabularPolicy()], True) as bar:
        for n in range(1, 4):
            bar.ended(record(n, n > 1))
    last, found = shown(capsys)[-1], accuracy([1.0, 0.0, 1.0, 1.0])
    assert last.startswith("ETS: 100%") and "| 4/4 [" in last and "<00:00" in last
    assert f"4/4 problems, accuracy 75.0% ({found.low:.1%} to {found.high:.1%})" in last


def test_a_problem_is_done_when_all_its_samples_are_and_scores_are_means_over_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = [True, True, False, True, False]
    with Progress("plain", 3, 2, [], [TabularPolicy()], True) as bar:
        for n, correct in enumerate(scores):
            bar.ended(record(n // 2, correct, n % 2))
    last, found = shown(capsys)[-1], accuracy([1.0, 0.5, 0.0], 2)
    assert "5/6" in last and "2/3 problems" in last
    assert f"accuracy 50.0% ({found.low:.1%} to {found.high:.1%})" in last


def test_tokens_count_from_the_start_of_the_bar_and_show_before_a_chain_has_ended(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = TabularPolicy()
    policy.ledger = Cost(generated=10**6)
    clock = SimpleNamespace(monotonic=map(float, range(0, 1000, 10)).__next__)
    monkeypatch.setattr(progress, "time", clock)

    def step(policy: Any, chains: Sequence[Chain]) -> list[Chain]:
        policy.ledger += Cost(generated=5000)
        return list(chains)

    with Progress("ETS", 4, 1, [], [policy], True) as bar:
        shown_at_each = bar.shown_at_each(step)
        assert shown_at_each(policy, []) == []
        before = shown(capsys)[-1]
    assert "0/4 problems, 250 tokens/s" in before and "accuracy" not in before  # 5,000 in 20 s


def test_chains_that_end_together_are_all_shown_before_the_next_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = []

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        before.append(shown(capsys)[-1])
        return list(chains)

    with Progress("ETS", 8, 1, [], [TabularPolicy()], True) as bar:
        shown_at_each = bar.shown_at_each(step)
        shown_at_each(TabularPolicy(), [])
        monkeypatch.setattr(progress, "INTERVAL", 1e9)
        for n in range(5):
            bar.ended(record(n, True))
        shown_at_each(TabularPolicy(), [])
    assert "| 5/8 [" in before[1] and "5/8 problems, accuracy 100.0%" in before[1]


def test_nothing_is_shown_or_counted_up_when_it_is_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        return list(chains)

    with Progress("ETS", 2, 1, [], [TabularPolicy()], False) as bar:
        bar.shown_at_each(step)(TabularPolicy(), [])
        bar.ended(record(0, True))
    assert capsys.readouterr().err == ""


def test_the_bar_moves_with_guide_steps_and_the_time_left_waits_for_a_tenth_of_the_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=map(float, range(0, 1000, 10)).__next__)
    monkeypatch.setattr(progress, "time", clock)
    chains = [SimpleNamespace(problem=SimpleNamespace(id=f"p{n}"), sample=0, trace=()) for n in range(4)]

    def step(policy: Any, chains: Any) -> Any:
        return [SimpleNamespace(**{**vars(chain), "trace": (*chain.trace, None)}) for chain in chains]

    policy: Any = SimpleNamespace(ledger=Cost(), lengths=(0, 16, 32, 48))
    with Progress("ETS", 40, 1, [], [policy], True) as bar:
        for _ in range(2):
            chains = bar.shown_at_each(step)(policy, chains)  # type: ignore[assignment, arg-type]
        moving = shown(capsys)
        bar.ended({**record(0, True), "guide_steps": 3})
        first = shown(capsys)[-1]
        for n in range(1, 5):
            bar.ended({**record(n, True), "guide_steps": 3})
        fifth = shown(capsys)[-1]
    assert "   2%|" in moving[-2] and "   5%|" in moving[-1] and "| 0/40 [" in moving[-1]
    assert "| 1/40 [" in first and "<" not in first
    assert "| 5/40 [" in fifth and "<" in fifth
