"""The ready tasks of prompts: their rows fit their rewards, and the rewards are graded."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ets.cli import main
from ets.evaluation.methods import MethodSettings
from ets.own_code import named_object
from ets.rewards import RowReward
from ets.step import reads_prefixes
from ets.tasks import TASKS, Prompts, task_named
from ets.types import InputError, Problem
from tests.conftest import Refused

READY = ["tone", "tone-openings", "without-letter", "exact-length", "must-contain", "json-schema", "instructions"]
PREFIXES = {"tone", "tone-openings", "without-letter", "must-contain"}
PACKAGES = {"tone": "vaderSentiment", "tone-openings": "vaderSentiment", "json-schema": "jsonschema"}
FORM = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, "required": ["name"]}


def needs(name: str) -> Any:
    """The name of a task, skipped without the package of its reward."""
    package = PACKAGES.get(name)
    missing = package is not None and find_spec(package) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"no {package}: pip install '.[real]'"))


def task_of(name: str) -> Prompts:
    task = task_named(name)
    assert isinstance(task, Prompts)
    return task


def reward_of(name: str) -> RowReward:
    reward = named_object(task_of(name).reward, "reward")
    assert isinstance(reward, RowReward)
    return reward


def value(name: str, row: dict[str, Any], text: str) -> float:
    return reward_of(name)._scored(Problem("p", "", doc=row), text)


def test_they_are_tasks_by_name() -> None:
    assert [name for name, make in TASKS.items() if isinstance(make(), Prompts)] == READY


@pytest.mark.parametrize("name", [needs(name) for name in READY])
def test_the_prompts_differ_and_fit_the_reward(name: str) -> None:
    problems = task_of(name).problems()
    assert len({problem.prompt for problem in problems}) == len(problems) >= (60 if name == "instructions" else 40)
    reward_of(name).require(problems)
    values = [reward_of(name)._scored(problem, "The train is late, and I wait.") for problem in problems]
    assert all(-1 <= each <= 1 for each in values) and reads_prefixes(reward_of(name)) == (name in PREFIXES)


@pytest.mark.parametrize("name", [needs(name) for name in READY])
def test_a_command_needs_no_name_of_a_reward(name: str, tmp_path: Path) -> None:
    given = ["eval", "--task", name, "--model", "embedded-small", "--count", "2", "--methods", "plain,ets"]
    given += ["--candidates", "2", "--rollouts", "1", "--block-size", "4", "--max-length", "8", "--width", "2"]
    assert main([*given, "--out", str(tmp_path / "run")]) == 0
    setting = json.loads((tmp_path / "run" / "summary.json").read_text())["setting"]
    assert (setting["task"], setting["reward"]) == (name, task_of(name).reward)
    stored = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert stored["own_code"].keys() == {task_of(name).reward}  # its code is part of the results


def test_a_missing_package_is_one_line(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ets.tasks.prompts.find_spec", lambda name: None)
    given = ["eval", "--task", "tone", "--model", "embedded-small", "--methods", "ets", "--out", str(tmp_path / "run")]
    refused(given, "vaderSentiment is not installed; in the folder of ets, run: pip install -e '.[real]'")


@pytest.mark.skipif(find_spec("vaderSentiment") is None, reason="no vaderSentiment: pip install '.[real]'")
def test_tone_is_that_of_the_mean_sentence() -> None:
    good, bad, plain = "What a wonderful day!", "It was horrible.", "The door is brown."
    assert value("tone", {}, good) > 0.5 and value("tone", {}, bad) < -0.3 and value("tone", {}, plain) == 0
    assert value("tone", {}, f"{good} {plain}") == pytest.approx(value("tone", {}, good) / 2)
    assert value("tone", {"tone": "negative"}, bad) == -value("tone", {}, bad)
    assert value("tone", {}, "") == value("tone", {}, " ...\n!") == 0
    with pytest.raises(InputError, match="tone is 'blue'; give positive or negative"):
        value("tone", {"tone": "blue"}, good)


@pytest.mark.parametrize(
    ("text", "share"),
    [("a cat sat", 0.75), ("A cat sat down", 1.0), ("the cat sat down", 0.75), ("", 0.0), ("E e E e", 0.0)],
)
def test_without_letter_is_the_share_of_words_of_a_text_that_is_long_enough(text: str, share: float) -> None:
    assert value("without-letter", {"letter": "E", "least": 4}, text) == share


@pytest.mark.parametrize(("count", "share"), [(0, 0.0), (5, 0.5), (9, 0.9), (10, 1.0), (12, 0.8), (30, 0.0)])
def test_exact_length_falls_by_the_relative_difference(count: int, share: float) -> None:
    assert value("exact-length", {"words": 10}, " well-known," * count) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "share"),
    [("A LAMP, and a river of bread", 1.0), ("lamps and rivers", 0.0), ("lamp lamp", 1 / 3), ("", 0.0)],
)
def test_must_contain_is_the_share_of_the_words(text: str, share: float) -> None:
    assert value("must-contain", {"words": ["lamp", "river", "bread"]}, text) == pytest.approx(share)


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="no jsonschema: pip install '.[real]'")
@pytest.mark.parametrize(
    ("text", "met"),
    [
        ('{"name": "Mia", "age": 9}', 5),
        ('```json\n{"name": "Mia"}\n```', 5),
        ('{"name": "Mia", "age": "nine"}', 3),
        ('{"age": 9}', 3),
        ("[1, 2]", 1),
        ('{"name": "Mia"', 0),
        ('Here it is: {"name": "Mia"}', 0),
        ("", 0),
    ],
)
def test_json_schema_is_the_share_of_met_demands(text: str, met: int) -> None:
    assert value("json-schema", {"schema": FORM}, text) == pytest.approx(met / 5)


@pytest.mark.skipif(find_spec("jsonschema") is None, reason="no jsonschema: pip install '.[real]'")
def test_a_schema_may_refer_to_its_definitions_and_must_be_one() -> None:
    shared = {"$defs": {"n": {"type": "integer"}}, "properties": {"age": {"$ref": "#/$defs/n"}}}
    assert (
        value("json-schema", {"schema": shared}, '{"age": 3}')
        == 1
        > value("json-schema", {"schema": shared}, '{"age": ""}')
    )
    with pytest.raises(InputError, match=r"schema is no JSON schema: .*; correct it"):
        value("json-schema", {"schema": {"type": "number?"}}, "1")


def test_rows_of_a_user_fit_the_ready_rewards(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "Sing.", "words": ["la"]}\n')
    reward_of("must-contain").require(Prompts(path).problems())
    assert MethodSettings(reward=task_of("must-contain").reward).fixed_reward
