"""The reward study: areas against all pairs, its records, and what it says where an area does not exist."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ets import demo
from ets.evaluation.intervals import accuracy
from ets.evaluation.journal import Record
from ets.policies.checkpoint import Checkpoint
from ets.rewards import agreement_share
from ets.types import Chain, Problem, Text
from tests.tiny_server import TinyServer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
script = importlib.import_module("reward_study")
sys.path.pop(0)
agreement, reward_study, study_summary, study_table = (
    script.agreement, script.reward_study, script.study_summary, script.study_table
)  # fmt: skip
BASE = {
    "task": "arithmetic",
    "model": "embedded-small",
    "count": "4",
    "shots": "0",
    "samples": "4",
    "max-length": "64",
    "temperature": "1.5",
    "width": "2",
}
DIFFUSION = BASE | {
    "task": "sums",
    "model": "embedded-diffusion",
    "count": "2",
    "samples": "2",
    "max-length": "24",
    "steps": "12",
    "block-length": "8",
}
REWARDS = ["likelihood-per-token", "negative-entropy", "self-certainty", "agreement-share"]


class Letters:
    """The answer is a text's first letter; "a" is right."""

    name = "letters"

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[:1] or None

    def grade(self, problem: Problem, text: str) -> bool:
        return text[:1] == "a"


class SlowLetters(Letters):
    """The same, all texts at once alone."""

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[str | None]:
        return [Letters.extract(self, *pair) for pair in texts]

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        return [self.grade(*pair) for pair in texts]

    def extract(self, problem: Problem, text: str) -> str | None:
        raise AssertionError("asked for one text")


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{n}", "abc") for n in range(count)]


def records_of(
    values: Sequence[Sequence[tuple[float, bool, str]]], names: Iterable[str] = tuple(script.OF_A_TEXT)
) -> list[Record]:
    """Of each problem's (reward, right, text): that reward under all names."""
    return [
        {"problem": f"p{p}", "correct": right, "text": text, "rewards": dict.fromkeys(names, value)}
        for p, group in enumerate(values)
        for value, right, text in group
    ]


def auc_of_pairs(group: Iterable[tuple[float, bool, str]]) -> float:
    """By its definition: over all pairs of a right and a wrong answer."""
    answers = list(group)
    right, wrong = ([value for value, known, _ in answers if known is kind] for kind in (True, False))
    found = [(good > bad) + (good == bad) / 2 for good, bad in itertools.product(right, wrong)]
    return float(np.mean(found)) if found else math.nan


@pytest.fixture
def with_ties() -> list[list[tuple[float, bool, str]]]:
    """Five problems of eight answers; one has none that is right, one none that is wrong, and a reward may be -inf."""
    rng = np.random.default_rng(0)
    chances = (0.5, 0.3, 0.7, 0.0, 1.0)
    groups = [
        [(float(rng.integers(4) + p), bool(rng.random() < chance), "") for _ in range(8)]
        for p, chance in enumerate(chances)
    ]
    groups[0][0] = (-math.inf, *groups[0][0][1:])
    return groups


def test_areas_are_those_of_all_pairs_with_ties_a_half(with_ties: list[list[tuple[float, bool, str]]]) -> None:
    study = reward_study(Letters(), problems(5), records_of(with_ties))
    for each in study.separations[:-1]:
        assert each.pooled.auc == pytest.approx(auc_of_pairs(itertools.chain(*with_ties)))
        assert each.within.auc == pytest.approx(np.nanmean([auc_of_pairs(group) for group in with_ties[:3]]))
        assert each.pooled.low < each.pooled.auc < each.pooled.high
    assert study.mixed == 3 and study.problems == 5 and study.samples == 8


def test_wins_are_counted_for_every_pair_of_problems(with_ties: list[list[tuple[float, bool, str]]]) -> None:
    scores = [np.array([value for value, _, _ in group]) for group in with_ties]
    right = [np.array([known for _, known, _ in group]) for group in with_ties]
    found = script.wins(scores, right)
    for p, q in itertools.product(range(5), repeat=2):
        pairs = itertools.product(scores[p][right[p]], scores[q][~right[q]])
        assert found[p, q] == sum((good > bad) + (good == bad) / 2 for good, bad in pairs)


def test_a_constant_reward_is_chance_and_a_perfect_one_certain() -> None:
    known = [[True, False, True], [False, False, True]]
    for value_of, expected in ((lambda right: 3.0, 0.5), (float, 1.0), (lambda right: -float(right), 0.0)):
        values = [[(value_of(right), right, "") for right in group] for group in known]
        for each in reward_study(Letters(), problems(2), records_of(values)).separations[:-1]:
            for area in (each.pooled, each.within):
                assert (area.auc, area.low, area.high) == (expected, expected, expected)


def test_telling_easy_problems_from_hard_ones_is_no_merit_within_a_problem() -> None:
    """Rewards that are the problem's share of right answers."""
    known = [[True, True, False], [True, False, False]]
    values = [[(float(np.mean(group)), right, "") for right in group] for group in known]
    each = reward_study(Letters(), problems(2), records_of(values)).separations[0]
    assert each.pooled.auc == pytest.approx(6 / 9) and each.within.auc == 0.5  # 4 wins, 1 loss, 4 ties


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normal scores, shifted by 1 for right answers: the AUC is Φ(1/√2).

    95% less what a percentile interval of 40 problems lacks, 1.7 points by 2,500 repetitions: from 360 to 385 of 400,
    but for a chance of 1%. An interval of 90% covers it 355 times here.
    """
    monkeypatch.setattr(script, "RESAMPLES", 200)
    truth, rng, covered = 0.5 * (1 + math.erf(0.5)), np.random.default_rng(1), 0
    for repetition in range(400):
        right = rng.random((40, 6)) < 0.5
        scores = rng.normal(size=(40, 6)) + right
        values = [list(zip(s.tolist(), r.tolist(), [""] * 6, strict=True)) for s, r in zip(scores, right, strict=True)]
        study = reward_study(Letters(), problems(40), records_of(values, ["any"]), seed=repetition)
        covered += study.separations[0].pooled.low <= truth <= study.separations[0].pooled.high
    assert 360 <= covered <= 385


def test_the_ends_of_the_interval_are_those_of_resampled_problems() -> None:
    """Twenty problems where the right answer has the higher reward and twenty where it has the lower one: both AUCs of
    a resample are its share of the former, a binomial number of 40 over 40, whose quantiles at 2.5% and 97.5% are 14
    and 26. (At 1% and 5% the lower ones are 13 and 15; ten thousand resamples miss by chance 1 time in 15,000.)"""
    values = [[(float(n % 2), True, ""), (float(1 - n % 2), False, "")] for n in range(40)]
    each = reward_study(Letters(), problems(40), records_of(values)).separations[0]
    for area in (each.pooled, each.within):
        assert (area.auc, area.low, area.high) == pytest.approx((0.5, 14 / 40, 26 / 40))


@pytest.mark.parametrize("right", [True, False])
def test_without_a_pair_there_is_no_area(right: bool) -> None:
    study = reward_study(Letters(), problems(2), records_of([[(1.0, right, "a")] * 3] * 2))
    assert study.mixed == 0 and "| none |" in " ".join(study_table(study).split())
    summary = json.loads(json.dumps(study_summary(study), allow_nan=False))
    assert summary["rewards"]["agreement-share"]["pooled"] == {"auc": None, "low": None, "high": None}


@pytest.mark.parametrize("task", [Letters(), SlowLetters()])
def test_agreement_is_the_share_of_votes(task: Any) -> None:
    problem, texts = Problem("p", "abc"), ["a1", "b1", "a2", "", "a3", "c", "b2"]
    chain = Chain(problem, 0, 1, None)  # type: ignore[arg-type]
    reward = agreement_share(Letters().extract, pool="step")
    expected = reward(problem, [Text((), text, 0.0, True) for text in texts], chain)
    assert agreement(task, problem, texts).tolist() == pytest.approx(list(expected))


def command(folder: Path, base: dict[str, str] = BASE, **changed: str) -> list[str]:
    options = base | {"out": str(folder)} | {name.replace("_", "-"): value for name, value in changed.items()}
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_a_study_leaves_a_folder_and_continues_after_an_interruption(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert script.main(command(folder)) == 0
    assert (folder / "table.md").read_text() in capsys.readouterr().out + "\n"
    assert {path.name for path in folder.iterdir()} == {
        "configuration.json", "journal.jsonl", "summary.json", "table.md", "rewards.png",
    }  # fmt: skip
    summary, records = json.loads((folder / "summary.json").read_text()), lines_of(folder)
    assert list(summary["rewards"]) == REWARDS and (summary["problems"], summary["samples"]) == (4, 4)
    assert {(r["method"], r["problem"], r["sample"]) for r in records} == {
        ("draw", f"arithmetic-{problem}", sample) for problem in range(4) for sample in range(4)
    }
    assert summary["accuracy"]["mean"] == sum(r["correct"] for r in records) / 16
    assert all(list(record["rewards"]) == REWARDS[:3] for record in records)

    journal = folder / "journal.jsonl"
    whole = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(whole[:9]) + whole[9][:30])  # as after a kill in the middle of a line
    assert script.main(command(folder, width="3")) == 0
    assert {(r["problem"], r["sample"], r["text"]) for r in lines_of(folder)} == {
        (r["problem"], r["sample"], r["text"]) for r in records
    }
    assert json.loads((folder / "summary.json").read_text()) == summary

    assert script.main(command(folder, samples="2")) == 0  # a part of the folder's answers
    assert json.loads((folder / "summary.json").read_text())["samples"] == 2 and len(lines_of(folder)) == 16


def test_a_masked_diffusion_model_has_the_same_rewards(tmp_path: Path) -> None:
    assert script.main([*command(tmp_path / "run", DIFFUSION), "--stop-at-end"]) == 0
    for record in lines_of(tmp_path / "run"):
        likelihood, entropy, certainty = (record["rewards"][name] for name in REWARDS[:3])
        assert likelihood < 0 and entropy < 0 < certainty


def test_a_served_model_has_the_rewards_without_certainty(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with TinyServer(Checkpoint(demo.model_path("small"), device="cpu")) as server:
        words = command(folder, count="2", samples="2", engine="endpoint", endpoint=server.address)
        assert script.main(words) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert list(summary["rewards"]) == ["likelihood-per-token", "agreement-share"]
    for record in lines_of(folder):
        assert list(record["rewards"]) == ["likelihood-per-token"] and record["rewards"]["likelihood-per-token"] < 0
    assert (folder / "rewards.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"samples": "1"}, "samples is 1, and one answer to a problem agrees with itself alone"),
        ({"samples": "0"}, "samples is 0"),
        ({"temperature": "0"}, "so all 4 draws from a state would be equal"),
        ({"task": "chess"}, "unknown task 'chess'"),
        ({"width": "0"}, "width is 0"),
        ({"model": "./nowhere"}, "no checkpoint at './nowhere'"),
    ],
)
def test_bad_input_is_one_line_before_any_weights_are_loaded(
    changed: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(command(tmp_path / "run", **changed)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("right", "wrong"), [(25, 15), (40, 0), (0, 40)])
def test_each_reward_has_a_panel(right: int, wrong: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, area, drawn = np.random.default_rng(0), script.Area(0.75, 0.5, 1.0), list[Any]()
    each = [script.Separation(name, area, area, rng.normal(1, 1, right), rng.normal(0, 1, wrong)) for name in REWARDS]
    study, panel = script.RewardStudy(10, 4, 8, accuracy([0.5] * 10, 4), tuple(each)), script._panel
    monkeypatch.setattr(script, "_panel", lambda axes, one: (panel(axes, one), drawn.append(axes)))
    table = script.write_study(study, "a $ title", tmp_path)
    assert (tmp_path / "table.md").read_text() == f"{table}\n"
    assert (tmp_path / "rewards.png").stat().st_size > 10_000
    for axes, name in zip(drawn, REWARDS, strict=True):
        assert axes.get_xlabel() == script.LABELS[name] and name in axes.get_title()
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert legend == [f"{kind} ({count})" for kind, count in (("right", right), ("wrong", wrong)) if count]
