"""Runs: one record for each chain, the same however a run is cut, split or resumed."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ets import cli
from ets.diagnostics import ratio_summary
from ets.evaluation import run as evaluation_run
from ets.evaluation.methods import METHODS
from ets.evaluation.ratios import total_ratios
from ets.evaluation.setup import _opened
from ets.policies.checkpoint import Checkpoint
from ets.report.summary import read_summary
from ets.runner import run
from ets.testing import TabularPolicy
from ets.types import Cost, InputError, Problem
from tests.evaluation.letters import (
    COUNT,
    SETTINGS,
    Ended,
    Endings,
    Letters,
    Records,
    compared,
    of,
    pair,
    table,
    timeless,
    without_seconds,
)

NAMES = ("plain", "majority", "one-step", "ets")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Records]:
    return compared(tmp_path_factory.mktemp("undisturbed"), NAMES)


def test_every_chain_has_one_record_with_its_answer_and_its_text(undisturbed: Any) -> None:
    records = undisturbed[1]
    assert len(of(records, "ets")) == COUNT
    assert all(place == (r["method"], r["problem"], r["sample"]) for place, r in records.items())
    assert all(record["valid"] is True for record in records.values())
    assert all(record["answer"] == (record["text"][:1] or None) for record in of(records, "ets"))
    assert len({record["guide_steps"] for record in of(records, "ets")}) > 1
    assert all(len(record["effective"]) == record["guide_steps"] for record in records.values())


def test_results_do_not_depend_on_the_width(undisturbed: Any, tmp_path: Path) -> None:
    _, records = compared(tmp_path, NAMES, run={"width": 1})
    assert timeless(records) == timeless(undisturbed[1])


@pytest.mark.parametrize("ended", [0, 5, 11, 12, 13, 20, 23])
@pytest.mark.parametrize("torn", [0, 3])
def test_a_run_that_was_interrupted_ends_with_what_an_undisturbed_one_ends_with(
    undisturbed: Any, tmp_path: Path, ended: int, torn: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, NAMES, run={"kept": Ended(patience=ended)})
    path = tmp_path / "journal.jsonl"
    content = path.read_bytes()
    assert content.count(b"\n") == ended
    path.write_bytes(content[: len(content) - torn])
    again = Ended()
    entries, records = compared(tmp_path, NAMES, run={"kept": again})
    assert timeless(records) == timeless(undisturbed[1])
    assert without_seconds(entries) == without_seconds(undisturbed[0])
    kept = ended - (torn > 0 and ended > 0)
    assert again.chains == len(records) - kept  # nothing is sampled twice


@pytest.mark.parametrize("graded", [0, 5, COUNT - 1])
@pytest.mark.parametrize(("name", "budget"), [("ets-is", 3), ("refined", 30.0)])
def test_a_method_goes_on_where_it_was_interrupted(name: str, budget: float, tmp_path: Path, graded: int) -> None:
    """And at another width: chains of `refined` end after different numbers of steps."""
    whole, expected = compared(tmp_path / "whole", [name], [budget], run={"width": 1})
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "cut", [name], [budget], task=Letters(patience=graded))
    again, records = compared(tmp_path / "cut", [name], [budget])
    assert timeless(records) == timeless(expected) and without_seconds(again) == without_seconds(whole)
    assert len({record["guide_steps"] for record in records.values()}) > 1


@pytest.mark.parametrize(("name", "budget"), [("ets", 3), ("refined", 30.0), ("refined", 3)])
def test_the_records_count_the_tokens_of_the_ledger(name: str, budget: float, tmp_path: Path) -> None:
    policy = table()
    entries, records = compared(tmp_path, [name], [budget], policy=policy, repeats=2)
    for kind in ("generated", "candidate", "rollout"):
        assert sum(record["cost"][kind] for record in records.values()) == getattr(policy.ledger, kind), kind
    own = [record["cost"]["generated"] for record in of(records, name)]
    assert entries[0].cost["generated"] == pytest.approx(sum(own) / len(own)) and len(own) == 2 * COUNT


def test_a_finished_run_is_shown_again_without_sampling(undisturbed: Any, tmp_path: Path) -> None:
    entries, _ = compared(tmp_path, NAMES)
    again = Ended(patience=0)
    assert without_seconds(compared(tmp_path, NAMES, run={"kept": again})[0]) == without_seconds(entries)


def test_a_run_grows_by_problems_and_by_repeats(tmp_path: Path) -> None:
    names, problems = ["plain", "ets"], Letters().problems(5, 0)
    few, first = compared(tmp_path, names, samples=2, run={"problems": problems[:3]})
    _, whole = compared(tmp_path / "five", names, samples=2, run={"problems": problems})
    _, grown = compared(tmp_path, names, samples=2, run={"problems": problems})
    assert {key: grown[key] for key in first} == first and timeless(grown) == timeless(whole)
    _, repeated = compared(tmp_path, names, samples=2, repeats=3, run={"problems": problems})
    assert len(of(repeated, "ets")) == 5 * 3 and {key: repeated[key] for key in grown} == grown
    again, _ = compared(tmp_path, names, samples=2, run={"problems": problems[:3]})
    assert without_seconds(again) == without_seconds(few)  # a smaller run counts its problems and samples alone


@pytest.mark.parametrize(
    "changed", [{"prompt": "another"}, {"doc": {"answer": "c"}}, {"stop": ("x",)}, {"messages": ({"role": "user"},)}]
)
def test_a_problem_that_changed_under_its_id_is_refused(tmp_path: Path, changed: dict[str, Any]) -> None:
    problems = Letters().problems(3, 0)
    compared(tmp_path, ["plain"], samples=1, run={"problems": problems})
    with pytest.raises(InputError, match="holds results of another problem 'letters-1'; choose another folder"):
        compared(tmp_path, ["plain"], samples=1, run={"problems": [problems[0], replace(problems[1], **changed)]})


def test_the_vote_of_all_rollouts_is_kept_with_its_first_text(tmp_path: Path) -> None:
    _, records = compared(tmp_path, ["ets"], task=Endings(), settings=replace(SETTINGS, lam=10.0))
    answers = {problem.id: problem.doc["answer"] for problem in Letters().problems(COUNT, 0)}
    for record in records.values():
        vote = record["vote"]
        assert vote["text"][-1:] == vote["answer"]
        assert vote["correct"] == float(vote["answer"] == answers[record["problem"]])
    assert any(record["vote"]["answer"] != record["answer"] for record in records.values())


def test_records_of_a_pair_hold_the_ratios_of_their_traces(tmp_path: Path) -> None:
    """`ratio_summary` of the same chains, sampled here without an evaluation."""
    (entry, voted), records = compared(tmp_path, ["ets-is"])
    step = METHODS["ets-is"].step(Letters(), SETTINGS, 2)
    problems = Letters().problems(COUNT, 0)
    chains = {chain.problem.id: chain for chain in run(pair(), step, problems, width=3, seed=0)}
    for record in records.values():
        expected = ratio_summary(chains[record["problem"]].trace, (0.5, 2.0))
        for name, value in asdict(expected).items():
            assert record["ratios"][name] == (None if math.isnan(value) else value)
    assert {record["guide_steps"] for record in records.values()} == {1, 2}  # four tokens, two at a time
    assert entry.ratios == total_ratios([record["ratios"] for record in records.values()])
    assert entry.ratios is not None and 0 < entry.ratios.clipped < 1 and voted.ratios is None


class SlowLetters(Letters):
    """Letters that count how many texts come together."""

    def __init__(self) -> None:
        super().__init__()
        self.together: list[int] = []

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[Hashable | None]:
        return [self.extract(problem, text) for problem, text in texts]

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        found = [self.grade(problem, text) for problem, text in texts]
        self.together.append(len(found))
        return found


@pytest.mark.parametrize("best_by", ["majority", "likelihood"])
def test_a_slow_task_grades_texts_together_and_changes_nothing(tmp_path: Path, best_by: str) -> None:
    task, settings, names = SlowLetters(), replace(SETTINGS, best_by=best_by), ["majority", "best-of-n", "ets"]
    found, records = compared(tmp_path / "slow", names, samples=4, task=task, settings=settings)
    assert max(task.together) >= 4  # all texts of a part of the pool
    expected, plain = compared(tmp_path / "plain", names, samples=4, settings=settings)
    assert timeless(records) == timeless(plain) and without_seconds(found) == without_seconds(expected)


def test_the_progress_bar_counts_chains_and_shows_the_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(tmp_path, ["ets"], run={"progress": True})
    shown = capsys.readouterr().err
    assert "ETS (M 3, K 2): 100%" in shown and f"{COUNT}/{COUNT}" in shown and "accuracy " in shown


@pytest.mark.parametrize("method", ["plain", "ets", "ets-is"])
def test_the_seconds_of_the_first_row_are_without_the_loading_of_the_weights(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading here takes 30 seconds of the clock that times the steps; a finished run loads nothing."""
    passed, loads = [0.0], []
    original = Checkpoint.__dict__["model"].func

    def slow(self: Checkpoint) -> Any:
        loads.append(self.name)
        passed[0] += 30.0
        return original(self)

    late = cached_property(slow)
    late.__set_name__(Checkpoint, "model")
    monkeypatch.setattr(Checkpoint, "model", late)
    monkeypatch.setattr("ets.runner.time", SimpleNamespace(perf_counter=lambda: passed[0]))
    folder, given = tmp_path / "out", ["--block-size", "8", "--max-length", "8", "--candidates", "2", "--rollouts", "1"]
    if method == "ets-is":
        given += ["--proposal", "embedded-small", "--proposal-temperature", "0.9"]
    _opened.cache_clear()
    command = ["eval", "--task", "sums", "--model", "embedded-small", "--count", "1", "--methods", method, *given]
    for _ in range(2):
        assert cli.main([*command, "--shots", "0", "--out", str(folder)]) == 0
        (entry,) = [e for e in read_summary(folder).entries if e.method == method and e.readout == "last"]
        assert entry.cost["seconds"] < 30 and len(loads) == len(set(loads)) > 0
        _opened.cache_clear()


class Shared(TabularPolicy):
    """A policy over an engine that threads may share: remembers loads, and the threads that drew."""

    def __init__(self, threads: set[int] | None = None) -> None:
        super().__init__(vocabulary=4, block_size=1, max_length=4, seed=4)
        self.threads, self.loads = set() if threads is None else threads, 0

    def load(self) -> None:
        self.loads += 1

    def beside(self) -> Shared:
        return type(self)(self.threads)

    def finish(self, *rows: Any) -> Any:
        self.threads.add(threading.get_ident())
        return super().finish(*rows)


class Apart(Shared):
    """An engine that charges each row for its prompt."""

    def finish(self, *rows: Any) -> Any:
        return [dataclasses.replace(draw, cost=draw.cost + Cost(prompt=7)) for draw in super().finish(*rows)]


class Unhurried(Letters):
    main_thread = True


def test_two_threads_over_one_engine_give_the_results_of_one_policy(undisturbed: Any, tmp_path: Path) -> None:
    entries, records = compared(tmp_path, NAMES, policy=Shared())
    assert timeless(records) == timeless(undisturbed[1])
    for entry, other in zip(entries, undisturbed[0], strict=True):  # sums over records in another order
        assert (entry.label, entry.scores) == (other.label, other.scores)
        assert entry.cost["positions"] == pytest.approx(other.cost["positions"])


def test_every_row_of_such_an_engine_pays_for_its_prompt(tmp_path: Path) -> None:
    grown = tmp_path / "grown"
    compared(grown, ["majority"], samples=2, policy=Apart())
    for folder in (tmp_path / "at once", grown):
        (charged,), _ = compared(folder, ["majority"], samples=5, policy=Apart())
        (free,), _ = compared(tmp_path / "free", ["majority"], samples=5)
        assert charged.cost["positions"] == pytest.approx(free.cost["positions"] + 5 * 7)


def test_the_engine_is_loaded_only_for_what_is_missing(tmp_path: Path) -> None:
    engines = [Shared(), Shared(), Shared()]
    for engine, names in zip(engines, (["ets"], ["ets"], ["ets", "plain"]), strict=True):
        compared(tmp_path, names, policy=engine, samples=2)
    assert [engine.loads for engine in engines] == [1, 0, 1]


def test_a_task_that_needs_the_main_thread_has_it(tmp_path: Path) -> None:
    for task, main in ((Letters(), False), (Unhurried(), True)):
        policy = Shared()
        compared(tmp_path / str(main), ["ets"], task=task, policy=policy)
        assert (threading.get_ident() in policy.threads) == main


@pytest.mark.parametrize("ended", [0, 5, COUNT])
def test_an_interrupted_run_leaves_no_thread_and_goes_on(undisturbed: Any, tmp_path: Path, ended: int) -> None:
    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, NAMES, policy=Shared(), run={"kept": Ended(patience=ended)})
    assert set(threading.enumerate()) <= before
    again = Ended()
    _, records = compared(tmp_path, NAMES, policy=Shared(), run={"kept": again})
    assert timeless(records) == timeless(undisturbed[1]) and again.chains == len(records) - ended


def test_each_problem_under_way_has_a_policy_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    chains_of = evaluation_run._chains

    def chains(policies: Sequence[Any], *given: Any, **options: Any) -> Any:
        counts.append(len(policies))
        return chains_of(policies, *given, **options)

    monkeypatch.setattr(evaluation_run, "_chains", chains)
    for width in (1, 3, 40):
        _, records = compared(tmp_path / str(width), ["ets"], policy=Shared(), run={"width": width})
        assert sorted(record["problem"] for record in records.values()) == sorted(f"letters-{n}" for n in range(COUNT))
    assert counts == [1, 3, COUNT]


def test_a_policy_of_a_user_needs_the_three_methods_alone(undisturbed: Any, tmp_path: Path) -> None:
    class Bare:
        def __init__(self) -> None:
            self.table = table()
            self.start, self.extend, self.finish = self.table.start, self.table.extend, self.table.finish

        @property
        def ledger(self) -> Cost:
            return self.table.ledger

        deterministic = False

    _, records = compared(tmp_path, NAMES, policy=Bare())
    assert timeless(records) == timeless(undisturbed[1])
