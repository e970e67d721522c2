"""A task of one's own, named on the command line as `file.py:name`."""

from __future__ import annotations

import json
import random
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from ets.cli import main
from ets.tasks import task_named
from ets.types import InputError
from tests.conftest import Refused
from tests.test_cli import command

CODE = """
from ets.types import Problem


class Echo:
    name = "echo"

    def problems(self, count=None, shots=None):
        return [Problem(f"echo-{n}", f"Question: Tom has {n} eggs.\\nAnswer:", doc={"n": n}) for n in range(count or 9)]

    def extract(self, problem, text):
        return text.split()[-1] if text.split() else None

    def grade(self, problem, text):
        return str(problem.doc["n"]) in text


task = Echo()
number = 3


class Needy(Echo):
    def __init__(self, size): ...
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "echoing.py"
    path.write_text(CODE)
    return path


@pytest.mark.parametrize("attribute", ["Echo", "task"])
def test_a_class_or_an_object_is_evaluated_under_its_own_name(attribute: str, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(command(folder, task=f"{file}:{attribute}", count="2", methods="ets")) == 0
    assert json.loads((folder / "configuration.json").read_text())["task"] == "echo"
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    assert sorted(record["problem"] for record in records) == ["echo-0", "echo-1"]


def test_results_depend_on_its_code(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other code may read other answers out of the same texts: it does not go on in the same folder."""
    words = command(tmp_path / "run", task=f"{file}:Echo", count="1", methods="ets")
    assert main(words) == 0
    file.write_text(CODE.replace("[-1]", "[0]"))
    assert main(words) == 2
    assert f"made with other code: {file} has changed (Echo)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}:Nothing", "has no 'Nothing'; name a task that is in it"),
        ("{file}:number", "has no 'name'; a task has name, problems, extract and grade"),
        ("{file}:Needy", "an object, or a class without arguments.* raised TypeError: .*size"),
        ("{folder}/missing.py:Echo", "cannot read the task .*: there is no file .*missing.py"),
        ("ets.tasks.gsm8k:Gsm8k", "takes its problems from lm-eval"),
    ],
)
def test_what_is_no_task_is_one_line(name: str, message: str, file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        task_named(name.format(file=file, folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_task_without_problems_is_refused(file: Path, tmp_path: Path, refused: Refused) -> None:
    file.write_text(
        CODE + "\n\nclass Empty(Echo):\n    def problems(self, count=None, shots=None):\n        return []\n"
    )
    refused(command(tmp_path / "run", task=f"{file}:Empty", methods="ets"), "gave no problems")


ODD = """

from fractions import Fraction

import numpy as np


class Odd(Echo):
    def extract(self, problem, text):
        return Fraction(len(text), 3)

    def grade(self, problem, text):
        return np.isclose(len(text), 4)
"""


def test_answers_may_be_anything_hashable_and_grades_numpys(file: Path, tmp_path: Path) -> None:
    file.write_text(CODE + ODD)
    words = command(tmp_path / "run", task=f"{file}:Odd", count="2", methods="majority,ets")
    assert main(words) == main(words) == 0  # the second time from the folder
    for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        for graded in record.get("texts", [record]):
            assert graded["answer"] == str(Fraction(len(graded["text"]), 3))
            assert graded["correct"] == float(len(graded["text"]) == 4)


def test_an_id_that_is_no_text_is_one_line(file: Path, tmp_path: Path, refused: Refused) -> None:
    file.write_text(CODE.replace('f"echo-{n}"', "n"))
    refused(command(tmp_path / "run", task=f"{file}:Echo", methods="ets"), "the id of a problem is 0; it must be text")


@pytest.mark.parametrize("part", ["problems", "extract", "grade"])
def test_its_functions_fail_in_one_line(part: str, file: Path) -> None:
    file.write_text(CODE + f"\n\nclass Failing(Echo):\n    def {part}(self, *_):\n        return {{}}['forgotten']\n")
    failing, place = task_named(f"{file}:Failing"), f"echoing.py, line {len(CODE.splitlines()) + 5}"
    with pytest.raises(InputError, match=f"{part} of the task .* raised KeyError: 'forgotten' [(]{place}[)]") as caught:
        getattr(failing, part)("problem", "text")
    assert "\n" not in str(caught.value)


def test_a_file_called_as_a_module_leaves_the_module_alone(file: Path) -> None:
    assert task_named(f"{file.rename(file.with_name('random.py'))}:Echo").name == "echo"
    assert sys.modules["random"] is random
