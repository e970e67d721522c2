"""Bad input of every entry point: one line, no traceback, an exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ets
from ets import demo
from ets.cli import main
from ets.evaluation.journal import Journal
from ets.types import InputError
from tests.conftest import Refused

SAMPLE = ["sample", "--model", "embedded-small", "--reward", "likelihood", "--block-size", "8", "--max-length", "8"]
SMALL = ["--candidates", "2", "--rollouts", "1"]
EVAL = "eval --task arithmetic --model embedded-small --count 2 --shots 0 --rollouts 1 --block-size 8 --max-length 8"
OWN = """import sys
import ets

def leaves(*words, **settings):
    sys.exit(3)

class Task:
    name = "../../away"
    def problems(self, count, shots):
        return [ets.Problem("a", "1 + 1 =")]
    def extract(self, problem, text):
        return text[:1] or None
    def grade(self, problem, text):
        return True

class Leaves(Task):
    problems = leaves

class Unmade(Task):
    def __init__(self):
        sys.exit(4)

class Nameless(Task):
    name = 5
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SAMPLE, *SMALL, "--prompt", "a\udcff"], "the prompt of problem '0' has '\\udcff' at character 2"),
        ([*SAMPLE, *SMALL, "--prompt", "a", "--stop", "\udcff"], "a stop string of problem '0' has '\\udcff'"),
        ([*SAMPLE, "--candidates", "1000000000", "--prompt", "a"], "3,000,000,000 texts at once, which take at least"),
        ([*SAMPLE, "--rollouts", "9" * 30, "--prompt", "a"], f"--rollouts is {'9' * 30}; give at most"),
        ([*SAMPLE, *SMALL, "--prompt", "a", "--step", "own.py:leaves"], "raised SystemExit: 3 (own.py, line 5)"),
        ([*SAMPLE, *SMALL, "--prompt", "a", "--engine", "own.py:leaves"], "raised SystemExit: 3 (own.py, line 5)"),
        ([*SAMPLE, *SMALL, "--prompt", "a", "--rollouts", "0"], "--rollouts is 0"),
        ([*SAMPLE, *SMALL, "--prompt", "a", "--block-size=64"], "--block-size 64 is longer than --max-length 8"),
        ([*SAMPLE[:1], "--model", "no/where", "--reward", "likelihood", "--prompt", "a"], "checkpoint 'no/where' is"),
        ([*EVAL.split(), "--methods", "ets", "--candidates", "1000000000"], "1,000,000,000 texts at once"),
        ([*EVAL.split(), "--methods", "majority", "--samples", "1000000000"], "1,000,000,000 texts at once"),
        ([*EVAL.split(), "--methods", "beam", "--beams", "1000000000"], "1,000,000,000 texts at once"),
        ([*EVAL.split(), "--methods", "plain", "--task", "own.py:Leaves"], "raised SystemExit: 3 (own.py, line 5)"),
        ([*EVAL.split(), "--methods", "plain", "--task", "own.py:Unmade"], "raised SystemExit: 4"),
        ([*EVAL.split(), "--methods", "plain", "--task", "own.py:Nameless"], "the name of the task 'own.py:Nameless'"),
        ([*EVAL.split(), "--methods", "plain", "--tasks", "arithmetic,own.py:Leaves"], "raised SystemExit: 3"),
        ([*EVAL.split(), "--methods", "plain", "--model", "no/where"], "the checkpoint 'no/where' is neither"),
    ],
)
def test_it_is_one_line_before_any_weights_are_loaded(
    words: list[str], message: str, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("own.py").write_text(OWN)
    refused(words, message)
    assert {path.name for path in tmp_path.iterdir()} <= {"own.py", "__pycache__"}


def test_bytes_that_are_no_text_on_standard_input(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the C locale Python reads them as surrogates."""
    for errors, message in (("strict", "cannot read the prompt: "), ("surrogateescape", "which is no text")):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8", errors=errors))
        refused([*SAMPLE, *SMALL], message)


def test_a_reward_that_leaves_the_program_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert main([*SAMPLE, *SMALL, "--prompt", "a", "--reward", f"{tmp_path}/own.py:leaves"]) == 2
    assert "error: the reward raised SystemExit for problem '0': 3 (own.py, line 5)" in capsys.readouterr().err


def test_the_results_of_a_task_stay_in_the_folder_of_results(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    words = [*EVAL.split(), "--task", f"{tmp_path}/own.py:Task", "--methods", "plain", "--samples", "1"]
    assert main([*words, "--results", str(tmp_path / "in" / "results")]) == 0
    (folder,) = (tmp_path / "in" / "results").iterdir()
    assert folder.name.startswith("_.._away-") and (folder / "journal.jsonl").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize(("place", "status", "line"), [("/dev/full", 2, "No space left on device"), (None, 141, "")])
def test_standard_output_that_cannot_be_written(place: str | None, status: int, line: str) -> None:
    """A full disk is one line; a reader that has ended, such as `head`, is none."""
    code = "from ets import cli; cli._execute = lambda words: print('x' * 10); raise SystemExit(cli.main([]))"
    if place is None:
        reading, writing = os.pipe()
        os.close(reading)
    else:
        writing = os.open(place, os.O_WRONLY)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == status and done.stderr.count("\n") == (1 if line else 0)
    assert line in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_loses_no_finished_chain(tmp_path: Path) -> None:
    record = {"method": "ets", "problem": "a", "sample": 0}
    journal = Journal(tmp_path, {"seed": 0})
    journal.append(record)
    file, journal._file = journal._file, open("/dev/full", "ab")  # noqa: SIM115
    with pytest.raises(InputError, match="No space left on device; make room, or choose another folder"):
        journal.append({**record, "sample": 1})
    with pytest.raises(InputError, match="No space left on device"):
        journal.close()
    file.close()
    with Journal(tmp_path, {"seed": 0}) as again:
        assert list(again.records.values()) == [record]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": "maybe"}, "has correct 'maybe'"),
        ({"cost": {"generated": "many"}}, "has cost.generated 'many'"),
        ({"scores": None}, "has scores None"),
        ({"vote": {"text": 5}}, "has vote.text 5"),
        ({"text": None}, "has text None"),
    ],
)
def test_a_record_with_another_type_is_named(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*EVAL.split(), "--methods", "ets", *SMALL, "--count", "1", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    journal = tmp_path / "run" / "journal.jsonl"
    journal.write_text(
        "".join(json.dumps(json.loads(line) | change) + "\n" for line in journal.read_text().splitlines())
    )
    capsys.readouterr()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and "remove its line" in error and error.count("\n") == 1 and "Traceback" not in error


def test_a_damaged_folder_has_one_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`ets view` and `ets eval` say the same of a file that both read."""
    words = [*EVAL.split(), "--methods", "ets", *SMALL, "--count", "1", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    for name in ("journal.jsonl", "configuration.json"):
        path = tmp_path / "run" / name
        kept = path.read_bytes()
        path.write_bytes(b"{\n")
        said = []
        for command in (words, ["view", str(tmp_path / "run")]):
            capsys.readouterr()
            assert main(command) == 2
            said.append(capsys.readouterr().err)
        assert said[0] == said[1] and "is damaged, it holds no JSON; correct or remove it" in said[0]
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidate": 3}, r"candidate is no setting here; did you mean candidates\?"),
        ({"candidate": None}, r"candidate is no setting here; did you mean candidates\?"),
        ({"model": (object(),)}, r"^model is a tuple of 1; pass a checkpoint's folder"),
        ({"lam": 1e-320}, "a reward of -1.0 over lam 1e-320 is infinite"),
        ({"candidates": 10**9}, "texts at once, which take at least"),
    ],
)
def test_arguments_of_the_library(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": demo.model_path("small"), "candidates": 2, "rollouts": 1, "max_length": 8}
    with pytest.raises(InputError, match=message) as error:
        ets.sample("a", reward=lambda prompt, text: -1.0, **given | options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(("name", "value"), [("lam", 1e16), ("temperature", 1e9)])
def test_a_setting_that_leaves_rounding_alone_warns(name: str, value: float) -> None:
    given: dict[str, Any] = {"model": demo.model_path("small"), "candidates": 2, "rollouts": 1, "max_length": 8}
    with pytest.warns(UserWarning, match=rf"{name} is 1e\+\d+, and .* differ by rounding alone; lower it"):
        ets.sample("a", reward=lambda prompt, text: 1.0, **given | {name: value})
