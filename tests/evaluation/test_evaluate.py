"""Methods compared on a tiny task, over a policy that can be enumerated."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from ets.evaluation.base import Base
from ets.evaluation.budget import Budget, GeneratedTokens, Pilot
from ets.evaluation.evaluate import Evaluation, Row
from ets.evaluation.proposing import Proposing
from ets.evaluation.tables import ratio_lines, table

from ets.diagnostics import ratio_summary
from ets.evaluation.intervals import accuracy
from ets.evaluation.journal import Journal, Record
from ets.evaluation.methods import METHODS, REWARDS, Method, Settings, require_able, require_methods
from ets.evaluation.ratios import total_ratios
from ets.importance import ImportanceSampling
from ets.runner import run
from ets.types import Chain, InputError, Problem
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel

COUNT = 12
PROPOSING = Proposing("another table", candidates=2, block_size=2, temperature=1.0, clip=(0.5, 2.0), revision="r1")
SETTINGS = Settings(candidates=3, rollouts=2, lam=0.2, pool="chain", beams=2, proposing=PROPOSING)
NAMES = ("plain", "majority", "one-step", "ets")


class Letters:
    """The answer is a text's first letter; right is "a" for even problems, "b" for odd ones.

    Parameters
    ----------
    patience : int, optional
        How many texts are graded before the run is interrupted.
    """

    name = "letters"

    def __init__(self, patience: int | None = None) -> None:
        self.patience, self.graded = patience, 0

    def problems(self, count: int, shots: int) -> list[Problem]:
        return [Problem(f"letters-{n}", f"prompt {n}", doc={"answer": "ab"[n % 2]}) for n in range(count)]

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[:1] or None

    def grade(self, problem: Problem, text: str) -> bool:
        if self.graded == self.patience:
            raise KeyboardInterrupt
        self.graded += 1
        return self.extract(problem, text) == problem.doc["answer"]


def compared(
    folder: Path,
    names: Sequence[str] = NAMES,
    *,
    budget: Budget | int | None = None,
    task: Letters | None = None,
    **options: Any,
) -> tuple[list[Row], dict[tuple[str, str, int], Record]]:
    """The rows of a run, and the records of its journal as they can be read again."""
    task = task or Letters()
    policy = TabularModel(vocabulary=4, block_size=1, max_length=4, seed=4)
    journal = Journal(folder, {"seed": 0})
    try:
        evaluation = Evaluation(
            task, policy, task.problems(COUNT, 0), journal, 5, 0, SETTINGS, progress=False,
            own={"ets-is": pair(), "base": replace(policy, temperature=0.5)},
        )  # fmt: skip
        rows = replace(evaluation, **options).compare(names, budget or GeneratedTokens())
    finally:
        journal.close()
    reopened = Journal(folder, {"seed": 0})
    reopened.close()
    assert reopened.records == journal.records
    return rows, reopened.records


def pair() -> ImportanceSampling:
    """What ets-is samples from: longer guide steps than those of the other methods, and another table's rollouts."""
    reference, proposal = (TabularModel(vocabulary=4, block_size=2, max_length=4, seed=seed) for seed in (4, 5))
    return ImportanceSampling(reference, proposal, PROPOSING.clip)


def timeless(records: dict[tuple[str, str, int], Record]) -> dict[tuple[str, str, int], Record]:
    """Records without what depends on the clock and on the neighbours in a batch."""
    result = copy.deepcopy(records)
    for record in result.values():
        for name in ("seconds", "reward_seconds", "forwards"):
            del record["cost"][name]
    return result


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], dict[tuple[str, str, int], Record]]:
    return compared(tmp_path_factory.mktemp("undisturbed"))


Run = tuple[list[Row], dict[tuple[str, str, int], Record]]


def of(records: dict[tuple[str, str, int], Record], method: str) -> list[Record]:
    """A method's, whatever its options."""
    named = re.compile(rf"{method}(-(\w|-)+)?")
    return [record for record in records.values() if named.fullmatch(record["method"])]


def test_there_is_one_row_for_each_method_in_the_order_of_the_names(undisturbed: Run, tmp_path: Path) -> None:
    assert [(row.method, row.readout) for row in undisturbed[0]] == [
        *((name, "last") for name in NAMES),
        ("ets", "vote"),
    ]
    rows, _ = compared(tmp_path, ["ets", "majority"], budget=2)
    assert [row.method for row in rows] == ["ets", "ets", "majority"] and rows[0].label == "ETS (M 3, K 2)"


class LastLetter(Letters):
    """The answer is a text's last letter, which a chain does not settle before its end."""

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[-1:] or None


def test_the_vote_of_all_rollouts_is_a_row_of_its_own_at_the_same_cost(tmp_path: Path) -> None:
    (last, voted), records = compared(tmp_path, ["ets"], task=LastLetter(), settings=replace(SETTINGS, lam=10.0))
    assert (last.readout, voted.readout, voted.label) == ("last", "vote", "ETS (M 3, K 2), vote")
    assert (voted.generated, voted.positions, voted.key) == (last.generated, last.positions, last.key)
    answers = {problem.id: problem.doc["answer"] for problem in Letters().problems(COUNT, 0)}
    right = [record["vote"]["answer"] == answers[record["problem"]] for record in records.values()]
    assert voted.accuracy == accuracy(list(map(float, right)), 1)
    assert all(record["vote"]["correct"] == own for record, own in zip(records.values(), right, strict=True))
    assert all(record["vote"]["text"][-1:] == record["vote"]["answer"] for record in records.values())
    assert any(record["vote"]["answer"] != record["answer"] for record in records.values())


def test_the_base_row_is_sampled_at_its_own_law_and_beside_plain(tmp_path: Path) -> None:
    (base, plain), records = compared(tmp_path, ["base", "plain"], budget=4)
    assert base.label == "base model (temperature 0.7, top-k 20, top-p 0.8; mean of 4)"
    assert base.key == "base-T0.7-k20-p0.8"
    alone, _ = compared(tmp_path / "alone", ["plain"], budget=4)
    assert replace(plain, seconds=0.0) == replace(alone[0], seconds=0.0)
    texts = [[record["text"] for record in of(records, name)] for name in ("base", "plain")]
    assert texts[0] != texts[1]


def test_a_method_with_a_size_draws_so_many_samples_and_needs_no_budget(tmp_path: Path) -> None:
    settings = replace(SETTINGS, sizes={"best-of-n": 3, "one-step": 5}, best_by="majority")
    names = ["best-of-n", "one-step"]
    require_methods(names, None, settings)
    rows, _ = compared(tmp_path, names, budget=Untouchable(), settings=settings)
    assert [row.label for row in rows] == ["best of 3 samples, by majority", "one-step ETS (5 samples)"]


def test_best_of_n_by_a_vote_takes_the_majority_whatever_minimum_the_steering_reward_has(tmp_path: Path) -> None:
    """No answer has 4 of 3 votes: with that minimum every sample would be as good as any other."""
    found = []
    for minimum in (1, 4):
        settings = replace(SETTINGS, best_by="majority", minimum=minimum)
        found.append(timeless(compared(tmp_path / str(minimum), ["best-of-n"], budget=3, settings=settings)[1]))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("reward", "weights"), [("majority", {0.0, 1 / 0.2}), ("share", {k / 6 / 0.2 for k in range(7)})]
)
def test_ets_is_steered_by_the_reward_that_is_named(reward: str, weights: set[float], tmp_path: Path) -> None:
    """The scaled rewards r/λ of the first guide step: an indicator, or shares of the M·K = 6 votes."""
    seen: list[float] = []
    settings = replace(SETTINGS, reward=reward)
    compared(
        tmp_path, ["ets"], settings=settings, kept=lambda method, chain: seen.extend(chain.trace[0].log_rewards.ravel())
    )
    assert {round(value, 9) for value in seen} <= {round(value, 9) for value in weights}
    assert len(set(seen)) > 1


def test_with_a_minimum_no_rollout_is_rewarded_while_no_answer_occurs_so_often(tmp_path: Path) -> None:
    seen: list[float] = []
    settings = replace(SETTINGS, minimum=100)
    compared(
        tmp_path, ["ets"], settings=settings, kept=lambda method, chain: seen.extend(chain.trace[0].log_rewards.ravel())
    )
    assert set(seen) == {0.0}


def test_a_row_sums_up_its_records_per_problem(undisturbed: Run) -> None:
    rows, records = undisturbed
    problems = Letters().problems(COUNT, 0)
    for row in rows:
        own = of(records, row.method)
        right = [
            fmean(r["text"][:1] == problem.doc["answer"] for r in own if r["problem"] == problem.id)
            for problem in problems
        ]
        assert row.accuracy == accuracy(right, len(own) // COUNT)
        for name in ("generated", "seconds"):
            assert getattr(row, name) == pytest.approx(sum(r["cost"][name] for r in own) / COUNT)
        parts = ("prompt", "candidate", "rollout", "scored")
        assert row.positions == pytest.approx(sum(r["cost"][part] for r in own for part in parts) / COUNT)


def test_every_chain_has_one_record_with_its_answer_and_its_text(undisturbed: Run) -> None:
    rows, records = undisturbed
    chains = {row.method: len(of(records, row.method)) / COUNT for row in rows}
    assert chains == {"plain": chains["plain"], "majority": 1, "one-step": 1, "ets": 1} and chains["plain"] > 2
    for place, record in records.items():
        assert place == (record["method"], record["problem"], record["sample"])
        assert record["answer"] == (record["text"][:1] or None) and record["valid"] is True
        assert record["guide_steps"] == 1 or record["method"] == "ets"
    assert len({r["guide_steps"] for r in of(records, "ets")}) > 1


def test_the_other_methods_get_the_samples_that_generate_as_many_tokens_as_ets(undisturbed: Run) -> None:
    rows, records = undisturbed
    by_name = {row.method: row for row in rows}
    first = fmean(r["cost"]["generated"] for r in of(records, "plain") if r["sample"] == 0)
    samples = len(of(records, "plain")) // COUNT
    assert abs(samples * first - by_name["ets"].generated) <= first / 2
    assert by_name["majority"].label == f"majority voting ({samples} samples)"
    for name in ("plain", "majority", "one-step"):
        assert by_name[name].generated == pytest.approx(by_name["ets"].generated, rel=0.2)


def test_the_budget_does_not_depend_on_which_other_methods_are_compared(undisturbed: Run, tmp_path: Path) -> None:
    rows, records = compared(tmp_path, ["majority", "ets"])
    assert [(row.label, row.accuracy) for row in rows] == [
        (row.label, row.accuracy) for row in undisturbed[0] if row.method in ("majority", "ets")
    ]
    known = timeless(undisturbed[1])
    assert all(known[place] == record for place, record in timeless(records).items())


def test_given_samples_are_taken_instead_and_need_no_ets(tmp_path: Path) -> None:
    rows, records = compared(tmp_path, ["plain", "majority"], budget=3)
    assert [row.label for row in rows] == ["plain sampling (mean of 3)", "majority voting (3 samples)"]
    assert sorted(r["sample"] for r in of(records, "plain")) == sorted([0, 1, 2] * COUNT)


def test_plain_sampling_with_repeats_needs_neither_ets_nor_samples(tmp_path: Path) -> None:
    require_methods(["plain", "greedy"], None, SETTINGS, repeats=4)
    with pytest.raises(InputError, match="add it, or set samples"):
        require_methods(["plain", "majority"], None, SETTINGS, repeats=4)
    sized = replace(SETTINGS, sizes={"plain": 8})
    require_methods(["plain"], None, sized)
    with pytest.raises(InputError, match=r"^sizes names plain, whose samples are the repeats \(4\) here; leave one"):
        require_methods(["plain"], None, sized, repeats=4)
    rows, records = compared(tmp_path, ["plain", "ets"], budget=Untouchable(), repeats=4)
    labels = [row.label for row in rows]
    assert labels == ["plain sampling (mean of 4)", "ETS (M 3, K 2), mean of 4", "ETS (M 3, K 2), vote, mean of 4"]
    assert len(of(records, "plain")) == len(of(records, "ets")) == 4 * COUNT


class Untouchable:
    """A budget that nobody may ask."""

    def samples(self, guided: Sequence[Record], pilot: Pilot) -> int:
        pytest.fail("no method needs samples")


def test_costs_are_those_of_one_sample_whatever_the_repeats(tmp_path: Path) -> None:
    names = ["plain", "majority", "greedy", "ets"]
    once, _ = compared(tmp_path / "once", names, budget=3)
    often, records = compared(tmp_path / "often", names, budget=3, repeats=5)
    for row in often:
        own = [r["cost"] for r in of(records, row.method)]
        assert row.generated == pytest.approx(fmean(cost["generated"] for cost in own))
        parts = ("candidate", "rollout", "scored")
        prompts = {r["problem"]: r["cost"]["prompt"] for r in of(records, row.method) if r["cost"]["prompt"]}
        rest = fmean(sum(cost[part] for part in parts) for cost in own)
        assert row.positions == pytest.approx(sum(prompts.values()) / COUNT + rest)
    assert once[2] == replace(often[2], repeats=1, seconds=once[2].seconds)  # greedy decoding
    headings = [table(rows).splitlines()[0].replace(" ", "").split("|")[2:5:2] for rows in (once, often)]
    assert headings == [["pass@1", "tokens/problem"], ["avg@5", "tokens/sample"]]


def test_a_journal_with_more_samples_or_others_does_not_change_a_row(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"names": ["plain", "majority", "best-of-n"], "budget": 3}
    rows, _ = compared(tmp_path / "alone", **asked)
    compared(tmp_path / "both", **{**asked, "budget": 5})
    compared(tmp_path / "both", **asked, settings=replace(SETTINGS, best_by="likelihood"))
    again, records = compared(tmp_path / "both", **asked)
    assert [replace(row, seconds=0.0) for row in again] == [replace(row, seconds=0.0) for row in rows]
    assert len(of(records, "plain")) == 5 * COUNT  # the three samples are the first of the five


def test_a_run_grows_by_problems_and_by_repeats(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"names": ["plain", "ets"], "budget": 2}
    problems = Letters().problems(5, 0)
    _, whole = compared(tmp_path / "five", problems=problems, **asked)
    few, first = compared(tmp_path / "grown", problems=problems[:3], **asked)
    _, grown = compared(tmp_path / "grown", problems=problems, **asked)
    assert len(first) == 3 * 3 and {key: grown[key] for key in first} == first  # these were not drawn again
    assert timeless(grown) == timeless(whole)
    _, repeated = compared(tmp_path / "grown", problems=problems, repeats=3, **asked)
    assert len(of(repeated, "ets")) == 5 * 3 and {key: repeated[key] for key in grown} == grown
    again, _ = compared(tmp_path / "grown", problems=problems[:3], **asked)
    assert again == few  # a smaller run of the folder counts its own problems and samples alone


def test_a_problem_that_changed_under_its_id_is_refused(tmp_path: Path) -> None:
    problems = Letters().problems(3, 0)
    compared(tmp_path, ["plain"], budget=1, problems=problems)
    for changed in (
        {"prompt": "another"},
        {"doc": {"answer": "c"}},
        {"stop": ("x",)},
        {"messages": ({"role": "user"},)},
    ):
        with pytest.raises(InputError, match="holds results of another problem 'letters-1'; choose another folder"):
            compared(tmp_path, ["plain"], budget=1, problems=[problems[0], replace(problems[1], **changed)])


def test_a_grown_run_says_which_methods_it_draws_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for samples, told in ((2, ""), (2, ""), (3, "note: majority voting (3 samples) is drawn anew")):
        compared(tmp_path, ["majority"], budget=samples)
        found = capsys.readouterr().out
        assert told in found and bool(told) == ("majority-2" in found)


def test_the_base_row_at_another_law_is_no_other_number_of_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for top_p in (0.8, 0.9):
        compared(tmp_path, ["base"], budget=2, settings=replace(SETTINGS, base=Base(top_p=top_p)))
    assert "note" not in capsys.readouterr().out


class SlowLetters(Letters):
    """Letters that are told how many texts are looked at together."""

    def __init__(self) -> None:
        super().__init__()
        self.extracted: list[int] = []
        self.together: list[int] = []

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[Hashable | None]:
        found: list[Hashable | None] = [self.extract(problem, text) for problem, text in texts]
        self.extracted.append(len(found))
        return found

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        found = [self.grade(problem, text) for problem, text in texts]
        self.together.append(len(found))
        return found


@pytest.mark.parametrize("best_by", ["majority", "likelihood"])
def test_a_slow_task_finds_and_grades_answers_together(tmp_path: Path, best_by: str) -> None:
    """All texts that a step ended with, and all samples that vote; and nothing is different but the time."""
    task, settings = SlowLetters(), replace(SETTINGS, best_by=best_by)
    names = ["majority", "best-of-n"]
    _, records = compared(tmp_path / "slow", names, budget=4, task=task, settings=settings)
    assert max(task.together) == 5  # the width: complete samples end together
    assert sum(task.together) == 2 * COUNT
    assert task.extracted.count(4) == COUNT * (2 if best_by == "majority" else 1)
    _, expected = compared(tmp_path / "plain", names, budget=4, settings=settings)
    assert timeless(records) == timeless(expected)


def test_ets_is_samples_from_its_own_pair_and_needs_no_budget(undisturbed: Run, tmp_path: Path) -> None:
    (row, _), records = compared(tmp_path, ["ets-is"], budget=Untouchable())
    assert row.label == "ETS-IS (M 2, K 2, block 2)"
    assert {record["guide_steps"] for record in records.values()} == {1, 2}  # four tokens, two at a time
    assert {method for method, _, _ in records} == {"ets-is-another table@r1-M2-block2-T1.0-clip0.5:2.0"}
    assert row.positions == pytest.approx(fmean(sum(parts(r)) for r in records.values()))
    scored = fmean(record["cost"]["scored"] for record in records.values())
    assert scored > 0 and row.positions > scored and row.generated > 0
    assert all(record.get("ratios") is None for record in undisturbed[1].values())


def parts(record: Record) -> list[float]:
    return [record["cost"][name] for name in ("prompt", "candidate", "rollout", "scored")]


def test_the_row_of_ets_is_sums_up_what_the_ratios_of_its_traces_were(tmp_path: Path) -> None:
    """The records hold what `ratio_summary` says of the same chains, sampled here without an evaluation."""
    (row, voted), records = compared(tmp_path, ["ets-is"], budget=1)
    assert voted.ratios is None  # they stand in the row above
    letters = Letters()
    step = METHODS["ets-is"](letters, SETTINGS, 1).step
    chains = {chain.problem.id: chain for chain in run(pair(), step, letters.problems(COUNT, 0), width=3, seed=0)}
    for record in records.values():
        expected = ratio_summary(chains[record["problem"]].trace, PROPOSING.clip)
        for name, value in asdict(expected).items():
            assert record["ratios"][name] == (None if math.isnan(value) else value)
    assert row.ratios == total_ratios([record["ratios"] for record in records.values()])
    assert row.ratios.rollouts > 0 and 0 < row.ratios.clipped < 1
    assert ratio_lines([row]).startswith(f"{row.label}: {row.ratios.rollouts} rollouts of the proposal, ")


@pytest.mark.parametrize("graded", [0, 5, COUNT - 1])
def test_ets_is_goes_on_where_it_was_interrupted(tmp_path: Path, graded: int) -> None:
    rows, expected = compared(tmp_path / "whole", ["ets-is"], budget=1, width=1)
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path / "cut", ["ets-is"], budget=1, task=Letters(patience=graded))
    again, records = compared(tmp_path / "cut", ["ets-is"], budget=1)
    assert timeless(records) == timeless(expected)
    assert [replace(row, seconds=0.0) for row in again] == [replace(row, seconds=0.0) for row in rows]


def test_ets_is_with_other_options_is_sampled_again(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"candidates": 4}, {"revision": "r2"}, {"clip": None}]
    for change in changes:
        settings = replace(SETTINGS, proposing=replace(PROPOSING, **change))
        _, records = compared(tmp_path, ["ets-is"], budget=1, settings=settings)
    assert len(records) == len(changes) * COUNT
    names = ("@r1-M2-block2-T1.0-clip0.5:2.0", "@r1-M4-block2-T1.0-clip0.5:2.0")
    texts = [{r["problem"]: r["text"] for r in records.values() if r["method"].endswith(name)} for name in names]
    assert len(texts[0]) == len(texts[1]) == COUNT and texts[0] != texts[1]


@pytest.mark.parametrize("name", ["majority", "best-of-n", "one-step", "ets", "ets-is"])
def test_several_draws_from_a_deterministic_policy_are_refused_before_anything_runs(name: str) -> None:
    class Deterministic(TabularModel):
        deterministic = True

    policy = Deterministic()
    require_able(policy, ["plain", "greedy", "beam"], 3, SETTINGS)
    with pytest.raises(InputError, match=r"so all [23] draws from a state would be equal"):
        require_able(policy, [name], 3, SETTINGS)


def test_results_do_not_depend_on_the_width(undisturbed: Run, tmp_path: Path) -> None:
    _, records = compared(tmp_path, width=1)
    assert timeless(records) == timeless(undisturbed[1])


class Ended:
    """Counts the chains that end, and interrupts the run at the first one after `patience` of them."""

    def __init__(self, patience: int | None = None) -> None:
        self.patience, self.chains = patience, 0

    def __call__(self, method: Method, chain: Chain) -> None:
        if self.chains == self.patience:
            raise KeyboardInterrupt
        self.chains += 1


@pytest.mark.parametrize("ended", [0, 5, 11, 12, 20, 40, 70])
@pytest.mark.parametrize("torn", [0, 3])
def test_a_run_that_was_interrupted_ends_with_what_an_undisturbed_one_ends_with(
    undisturbed: Run, tmp_path: Path, ended: int, torn: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        compared(tmp_path, kept=Ended(patience=ended))
    path = tmp_path / "journal.jsonl"
    content = path.read_bytes()
    assert content.count(b"\n") == ended
    path.write_bytes(content[: len(content) - torn])
    again = Ended()
    rows, records = compared(tmp_path, kept=again)
    assert timeless(records) == timeless(undisturbed[1])
    assert [replace(row, seconds=0.0) for row in rows] == [replace(row, seconds=0.0) for row in undisturbed[0]]
    kept = ended - (torn > 0 and ended > 0)
    assert again.chains == len(records) - kept  # nothing is sampled twice


def test_a_finished_run_is_shown_again_without_sampling(undisturbed: Run, tmp_path: Path) -> None:
    rows, _ = compared(tmp_path)
    again = Letters(patience=0)
    assert compared(tmp_path, task=again)[0] == rows and again.graded == 0


def test_the_progress_bar_counts_chains_and_shows_the_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = compared(tmp_path, ["majority"], budget=2, progress=True)
    shown = capsys.readouterr().err
    assert "majority voting (2 samples): 100%" in shown and f"{COUNT}/{COUNT}" in shown
    assert f"accuracy {rows[0].accuracy.mean:.1%}" in shown


@pytest.mark.parametrize(
    ("names", "samples", "changes", "found"),
    [
        (["ets", "best"], None, {}, "unknown method 'best'; choose from base, plain, majority, one-step, ets"),
        (["plain", "majority"], None, {}, "add it, or set samples"),
        (["plain"], 0, {}, "samples is 0"),
        (["ets"], None, {"candidates": 0}, "candidates is 0"),
        (["ets"], None, {"rollouts": 1.5}, "rollouts is 1.5"),
        (["ets"], None, {"lam": -0.1}, "lam is -0.1"),
        (["ets"], None, {"pool": "all"}, "pool is 'all'"),
        (["ets", "beam"], None, {"beams": None}, "beams is not set, which the method beam needs; set it, or leave"),
        (["beam"], None, {"beams": 0}, "beams is 0"),
        (["best-of-n"], None, {}, "add it, or set samples"),
        (["ets-is", "plain"], None, {}, "add it, or set samples"),  # its rollouts are no plain samples
        (["ets-is"], None, {"proposing": None}, "proposal is not set, which the method ets-is needs; name a small"),
        (["ets-is"], None, {"proposing": replace(PROPOSING, candidates=0)}, "candidates is 0"),
        (["ets-is"], None, {"proposing": replace(PROPOSING, clip=(2.0, 3.0))}, "clip is (2.0, 3.0); its bounds must"),
        (
            ["best-of-n", "ets"],
            None,
            {"best_by": "taste"},
            "best_by is 'taste'; choose from majority, share, likelihood, likelihood-per",
        ),
        (["ets"], None, {"reward": "taste"}, "reward is 'taste'; choose from majority, share, likelihood"),
        (["ets"], None, {"minimum": 0}, "minimum is 0"),
        (["ets"], None, {"sizes": {"ets": 3}}, "sizes names the method 'ets', which draws no N samples; choose from"),
        (["ets"], None, {"sizes": {"best": 3}}, "sizes names the method 'best', which does not exist; choose from"),
        (["ets"], None, {"sizes": {"plain": 0}}, "the size of plain is 0"),
    ],
)
def test_bad_methods_and_settings_are_named_before_anything_runs(
    names: list[str], samples: int | None, changes: dict[str, Any], found: str
) -> None:
    with pytest.raises(InputError) as caught:
        require_methods(names, samples, replace(SETTINGS, **changes))
    assert found in str(caught.value)


def test_good_methods_and_settings_pass() -> None:
    require_methods(list(METHODS), None, SETTINGS)
    require_methods(["plain"], 1, SETTINGS)
    require_methods(["greedy", "beam"], None, SETTINGS)
    require_methods(["ets"], None, replace(SETTINGS, beams=None, proposing=None))


def test_searches_that_a_policy_does_not_have_are_named_before_anything_runs() -> None:
    require_able(TabularModel(), ["greedy", "beam"], None, SETTINGS)
    require_able(TabularMaskedDiffusion(), ["ets", "best-of-n"], None, SETTINGS)
    for name in ("greedy", "beam"):
        with pytest.raises(InputError, match=r"^TabularMaskedDiffusion has no "):
            require_able(TabularMaskedDiffusion(), ["ets", name], None, SETTINGS)


def test_searches_take_one_chain_for_each_problem_and_need_no_budget(tmp_path: Path) -> None:
    rows, records = compared(tmp_path, ["greedy", "beam"], repeats=3)
    assert [row.label for row in rows] == ["greedy decoding", "beam search (2 beams)"]
    assert len(of(records, "greedy")) == len(of(records, "beam")) == COUNT
    assert all(record["valid"] for record in records.values())


def test_best_of_n_takes_as_many_samples_as_the_others_and_says_by_what(undisturbed: Run, tmp_path: Path) -> None:
    samples = undisturbed[0][1].label.removeprefix("majority voting (").removesuffix(" samples)")
    found = {}
    for reward in REWARDS:
        settings = replace(SETTINGS, best_by=reward)
        (*_, row), records = compared(tmp_path / reward, ["ets", "best-of-n"], settings=settings)
        assert row.label == f"best of {samples} samples, by {reward}"
        found[reward] = {r["problem"]: r["text"] for r in of(records, "best-of-n")}
    assert found["majority"] == {r["problem"]: r["text"] for r in of(undisturbed[1], "majority")}
    assert len({str(texts) for texts in found.values()}) >= 3
