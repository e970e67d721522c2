"""IFEval: lm-eval's checks of instructions as grades, as scores and as a reward, without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ets.cli import main
from ets.evaluation.hosted import Hosted, opened_task
from ets.tasks import has_answers, ifeval, is_graded, task_named
from ets.tasks.ifeval import IFEval, checks, followed
from ets.types import InputError, Problem
from tests.conftest import Refused

DATA = Path(__file__).parents[1] / "data" / "ifeval"
RAIN = "Rain falls and rain stops."


@pytest.fixture(scope="module")
def hosted() -> tuple[Hosted, list[Problem]]:
    task = opened_task("ifeval", DATA)
    assert isinstance(task, Hosted)
    return task, task.problems()


def row(name: str, **values: Any) -> dict[str, Any]:
    return {"key": 1, "prompt": "Go.", "instruction_id_list": [name], "kwargs": [values]}


def test_the_prompts_are_the_rows_and_nothing_stops_a_text(hosted: tuple[Hosted, list[Problem]]) -> None:
    rows = [json.loads(line) for line in (DATA / "input_data.jsonl").read_text().splitlines()]
    assert [problem.prompt for problem in hosted[1]] == [each["prompt"] for each in rows]
    assert {problem.stop for problem in hosted[1]} == {()}


@pytest.mark.parametrize(
    ("number", "text", "right", "share"),
    [
        (0, RAIN, True, 1.0),
        (0, "Rain, and rain, and rain.", False, 0.5),
        (0, "Rain, rain.", False, 0.0),
        (0, "", False, 0.0),
        (0, f"<think>Rain, or snow?</think>{RAIN}", True, 1.0),
        (0, "<think>Rain falls and rain stops.", False, 0.0),
        (1, '"Red"', True, 1.0),
        (1, "Red", False, 0.0),
        (2, "the yeast makes gas, and the yeast makes the bread rise in the oven.", True, 1.0),
        (2, "The yeast makes gas, and the yeast makes the bread rise in the oven.", False, 0.5),
        (2, "die hefe macht gas, und das brot geht dann im ofen sehr gut auf.", False, 0.0),
    ],
)
def test_a_text_is_right_if_it_follows_all_instructions(
    number: int, text: str, right: bool, share: float, hosted: tuple[Hosted, list[Problem]]
) -> None:
    task, problems = hosted
    assert task.grade(problems[number], text) is right
    assert ifeval.ifeval._scored(problems[number], text) == share
    assert task.extract(problems[number], text) is None


def test_lm_evals_four_scores_stand_beside_ours(hosted: tuple[Hosted, list[Problem]]) -> None:
    task, (problem, *_) = hosted
    loose = f"Sure, here it is:\n{RAIN}"
    strict = {"prompt_level_strict_acc": 0, "inst_level_strict_acc_by_text": 0.5}
    assert task.scores(problem, loose) == strict | {"prompt_level_loose_acc": 1, "inst_level_loose_acc_by_text": 1}
    assert set(task.scores(problem, "Rain, rain.").values()) == {0}


@pytest.mark.parametrize(
    ("name", "values", "good", "bad"),
    [
        ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}, "One. Two.", "One."),
        ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 2}, "A B c", "A"),
        ("language:response_language", {"language": "de"}, "Das ist ein schöner Tag für uns alle.", "A fine day."),
        ("detectable_format:json_format", {}, '{"a": 1}', "{a"),
        ("startend:end_checker", {"end_phrase": "The end."}, "So: the end.", "So."),
    ],
)
def test_single_instructions(name: str, values: dict[str, Any], good: str, bad: str) -> None:
    assert followed(row(name, **values), good) == [True] and followed(row(name, **values), bad) == [False]


def test_the_checks_are_a_fixed_function_of_the_text() -> None:
    """Languages are detected by random draws, from the same seed each time."""
    short = [followed(row("language:response_language", language="en"), "no and so on") for _ in range(20)]
    assert len({tuple(each) for each in short}) == 1


@pytest.mark.parametrize(
    ("doc", "message"),
    [
        ({"prompt": "Go."}, "no 'instruction_id_list'; give a list such as"),
        ({**row("punctuation:no_comma"), "kwargs": [{}, {}]}, "kwargs has 2 objects for 1 instructions"),
        (row("punctuation:no_dots"), "instruction_id_list has 'punctuation:no_dots'; choose from keywords:existence"),
    ],
)
def test_rows_that_cannot_be_checked_are_named_before_anything_is_drawn(doc: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ifeval.ifeval.require([Problem("p", "Go.", doc=doc)])


def test_it_is_graded_but_has_no_answers_to_vote_on() -> None:
    for task in (task_named("ifeval"), opened_task("ifeval", DATA)):
        assert not has_answers(task) and is_graded(task)


@pytest.mark.parametrize("package", ["nltk", "langdetect", "immutabledict", "lm_eval"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.cache_clear()
    monkeypatch.setattr(ifeval, "find_spec", lambda name: None if name == package else "there")
    with pytest.raises(InputError, match=rf"^{package} is not installed; .*-e '.\[benchmarks\]"):
        IFEval().require()


def test_missing_data_of_nltk_are_named_and_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    checks.cache_clear()
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(InputError, match=r"punkt_tab is not installed; run `python -m nltk.downloader punkt_tab`"):
        opened_task("ifeval", DATA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "majority"], "the method majority compares answers, and the task ifeval has none; leave it out"),
        (["--methods", "ets", "--reward", "share"], "reward is 'share', which compares answers, and the task ifeval"),
    ],
)
def test_votes_are_refused(options: list[str], message: str, refused: Refused) -> None:
    refused(["eval", "--task", "ifeval", "--data", str(DATA), "--model", "embedded-small", *options], message)


def test_a_run_reports_grades_and_mean_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"eval --task ifeval --data {DATA} --model embedded-small --count 2 --methods plain,ets --candidates 2"
    command += f" --rollouts 1 --block-size 8 --max-length 16 --out {tmp_path / 'run'}"
    main(command.split())
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    (guided, other) = [each for each in records if each["method"].startswith("ets")]
    assert all(len(each["scores"]) == 4 and each["correct"] == (each["reward"] == 1) for each in (guided, other))
    table = capsys.readouterr().out
    assert "pass@1" in table and "mean reward" in table and "lm-eval: prompt_level_loose_acc" in table
