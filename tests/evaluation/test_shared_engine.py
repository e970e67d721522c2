"""A policy over an engine that threads may share: two of them at once, and the results of one."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from ets.evaluation import evaluate
from ets.testing import TabularPolicy
from ets.types import Chain, Cost
from tests.evaluation.test_evaluate import COUNT, Ended, Letters, compared, timeless


class Shared(TabularPolicy):
    """Remembers how often its engine was loaded, and which threads drew."""

    def __init__(self, threads: set[int] | None = None) -> None:
        super().__init__(vocabulary=4, block_size=1, max_length=4, seed=4)
        self.threads, self.loads = set() if threads is None else threads, 0

    def load(self) -> None:
        self.loads += 1

    def beside(self) -> Shared:
        return type(self)(self.threads)

    def finish(self, *asked: Any) -> Any:
        self.threads.add(threading.get_ident())
        return super().finish(*asked)


class Apart(Shared):
    """An engine that charges each row for its prompt."""

    def finish(self, *asked: Any) -> Any:
        return [dataclasses.replace(draw, cost=draw.cost + Cost(prompt=7)) for draw in super().finish(*asked)]


class Unhurried(Letters):
    main_thread = True


def test_results_are_those_of_one_policy(tmp_path: Path) -> None:
    rows, records = compared(tmp_path / "two", policy=Shared())
    expected_rows, expected = compared(tmp_path / "one")
    assert timeless(records) == timeless(expected)
    assert [row.label for row in rows] == [row.label for row in expected_rows]
    for row, other in zip(rows, expected_rows, strict=True):  # sums over records in another order
        assert [row.accuracy.mean, row.generated, row.positions] == pytest.approx(
            [other.accuracy.mean, other.generated, other.positions]
        )


def test_every_row_of_such_an_engine_pays_for_its_prompt(tmp_path: Path) -> None:
    rows, records = compared(tmp_path, ["plain", "majority"], budget=5, policy=Apart())
    for row in rows:
        costs = [Cost(**record["cost"]) for record in records.values() if record["method"] == row.key]
        assert row.positions == pytest.approx(sum(cost.positions for cost in costs) / COUNT)
        assert sum(cost.prompt for cost in costs) == 7 * 5 * COUNT


def test_the_engine_is_loaded_only_for_what_is_missing(tmp_path: Path) -> None:
    policies = [Shared(), Shared(), Shared()]
    compared(tmp_path, ["ets"], policy=policies[0])
    compared(tmp_path, ["ets"], policy=policies[1])
    compared(tmp_path, ["ets", "plain"], budget=2, policy=policies[2])
    assert [policy.loads for policy in policies] == [1, 0, 1]


def test_a_task_that_needs_the_main_thread_has_it(tmp_path: Path) -> None:
    for task, main in ((Letters(), False), (Unhurried(), True)):
        policy = Shared()
        compared(tmp_path / str(main), ["ets"], task=task, policy=policy)
        assert (threading.get_ident() in policy.threads) == main


@pytest.mark.parametrize("ended", [0, 5, COUNT, 20])
def test_an_interrupted_run_leaves_no_thread_and_goes_on(tmp_path: Path, ended: int) -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "cut", kept=Ended(patience=ended), policy=Shared())
    assert set(threading.enumerate()) <= before
    again = Ended()
    _, records = compared(tmp_path / "cut", kept=again, policy=Shared())
    assert timeless(records) == timeless(compared(tmp_path / "whole")[1])
    assert again.chains == len(records) - ended


def test_seconds_are_those_of_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second that two groups wait at once is one second, shared between them."""
    recorded = evaluate.Evaluation._record

    def record(self: Any, method: Any, chain: Chain, groups: int) -> Any:
        found = recorded(self, method, chain, groups)
        assert found["cost"]["seconds"] == pytest.approx(chain.cost.seconds / 2)
        return found

    monkeypatch.setattr(evaluate.Evaluation, "_record", record)
    compared(tmp_path, ["ets"], policy=Shared())


def test_problems_are_not_drawn_twice(tmp_path: Path) -> None:
    seen: list[str] = []
    compared(tmp_path, ["ets"], kept=lambda method, chain: seen.append(chain.problem.id), policy=Shared())
    assert sorted(seen) == sorted(f"letters-{n}" for n in range(COUNT))
