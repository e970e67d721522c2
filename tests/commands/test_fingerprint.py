"""A finished run is shown again without torch, and only while nothing has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ets.cli import parser_of
from ets.commands.evaluate import Plan, plan_of
from ets.commands.fingerprint import FILE, command_digest, finished_folder, write_fingerprint

WORDS = [
    "eval",
    "--task",
    "sums",
    "--engine",
    "masked-diffusion",
    "--model",
    "embedded",
    "--shots",
    "0",
    "--count",
    "1",
]
SMALL = ["--methods", "plain,ets", "--candidates", "1", "--rollouts", "1", "--gen-length", "8", "--steps", "8"]
SHOWN = "import sys, ets.cli\nets.cli.main(sys.argv[1:])\nprint('torch' in sys.modules, 'transformers' in sys.modules)"


def plan(*further: str) -> Plan:
    return plan_of(parser_of().parse_args([*WORDS, *SMALL, *further]))


def digest(*further: str) -> str:
    found = command_digest(plan(*further))
    assert found is not None
    return found


@pytest.mark.parametrize("place", ["--results", "--out"])
def test_a_finished_run_is_shown_again_without_torch(place: str, tmp_path: Path) -> None:
    def shown() -> list[str]:
        command = [sys.executable, "-c", SHOWN, *WORDS, *SMALL, place, str(tmp_path / "run")]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    first, second = shown(), shown()
    assert (first[-1], second[-1]) == ("True True", "False False")
    assert second[1:-1] == first[1:-1]  # without the number of chains that were there
    assert second[0] == first[0].replace("0 finished chains", "2 finished chains") != first[0]


def test_the_digest_is_of_all_settings_but_the_folder(tmp_path: Path) -> None:
    assert digest() == digest("--out", str(tmp_path)) == digest("--results", str(tmp_path))
    others = [["--count", "2"], ["--seed", "1"], ["--temperature", "0.5"], ["--methods", "plain"], ["--traces", "0"]]
    assert len({digest(), *(digest(*each) for each in others)}) == 1 + len(others)


@pytest.mark.parametrize("option", ["--reward", "--step", "--task", "--model"])
def test_the_digest_is_of_the_files_that_are_named(option: str, tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "def reward(prompt, text): return 0.0\n"
        "def step(reward, *, candidates): return None\n"
        "class Own:\n"
        "    name = 'own'\n"
        "    def problems(self, count, shots): return []\n"
        "    def extract(self, problem, text): return None\n"
        "    def grade(self, problem, text): return False\n"
    )
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text("{}")
    names = {"--reward": f"{own}:reward", "--step": f"{own}:step", "--task": f"{own}:Own", "--model": str(folder)}
    before = digest(option, names[option])
    for path in (own, folder / "config.json"):
        path.write_text(f"{path.read_text()} ")
    assert digest(option, names[option]) != before


@pytest.mark.parametrize(
    "further",
    [["--model", "owner/name"], ["--wandb"], ["--reward", "math:sqrt"], ["--engine", "endpoint"]],
)
def test_what_may_have_changed_elsewhere_has_no_digest(further: list[str]) -> None:
    assert command_digest(plan(*further)) is None


@pytest.mark.parametrize("place", ["--results", "--out"])
def test_a_folder_is_finished_until_one_of_its_files_changes(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, nested = tmp_path / "run", tmp_path / "run" / "guide_steps=2" / "journal.jsonl"
    nested.parent.mkdir(parents=True)
    for path in (nested, folder / "summary.json"):
        path.write_text("{}")
    ended = plan(place, str(folder if place == "--out" else tmp_path))
    assert finished_folder(ended, "command") is None
    write_fingerprint(folder, "command")
    assert finished_folder(ended, "command") == folder
    assert finished_folder(ended, "other") is None
    with monkeypatch.context() as several:
        several.setenv("WORLD_SIZE", "2")
        assert finished_folder(ended, "command") is None
    os.utime(nested, ns=(1, 1))
    assert finished_folder(ended, "command") is None
    write_fingerprint(folder, "command")
    (folder / "summary.json").unlink()
    assert finished_folder(ended, "command") is None
    (folder / FILE).write_bytes(b"\xff")
    assert finished_folder(ended, "command") is None
