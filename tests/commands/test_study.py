"""`ets study` end to end: its folder, resuming, both kinds of models, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ets import demo
from ets.cli import main
from ets.policies.checkpoint import Checkpoint
from tests.conftest import Refused
from tests.tiny_server import TinyServer

BASE = {
    "task": "arithmetic",
    "model": "embedded-small",
    "count": "4",
    "shots": "0",
    "samples": "4",
    "max-length": "64",
    "temperature": "1.5",
    "seed": "0",
    "width": "2",
}
DIFFUSION = {
    **{name: value for name, value in BASE.items() if name != "max-length"},
    "task": "sums",
    "model": "embedded",
    "engine": "masked-diffusion",
    "count": "2",
    "samples": "2",
    "gen-length": "24",
    "steps": "12",
    "block-length": "8",
    "cfg": "0",
    "remasking": "low_confidence",
}
REWARDS = ["likelihood-per-token", "negative-entropy", "self-certainty", "agreement-share"]


def command(folder: Path, base: dict[str, str] = BASE, **changed: str) -> list[str]:
    options = base | {"out": str(folder)} | {name.replace("_", "-"): value for name, value in changed.items()}
    return ["study", *(word for name, value in options.items() for word in (f"--{name}", value))]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_a_study_leaves_a_folder_and_goes_on_where_it_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert main(command(folder)) == 0
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
    journal.write_text("".join(whole[:9]) + whole[9][:30])  # as if it had been killed in the middle of a line
    assert main(command(folder, width="3", block_size="8")) == 0
    shown = capsys.readouterr()
    assert "9 answers drawn" in shown.out
    assert "note: --block-size has no effect: answers are drawn in one piece" in shown.err
    assert {(r["problem"], r["sample"], r["text"]) for r in lines_of(folder)} == {
        (r["problem"], r["sample"], r["text"]) for r in records
    }
    assert json.loads((folder / "summary.json").read_text())["rewards"].keys() == summary["rewards"].keys()

    assert main(command(folder, samples="2")) == 0  # some of what the folder holds
    assert json.loads((folder / "summary.json").read_text())["samples"] == 2 and len(lines_of(folder)) == 16


def test_a_masked_diffusion_model_is_studied_alike(tmp_path: Path) -> None:
    assert main(command(tmp_path / "run", DIFFUSION)) == 0
    for record in lines_of(tmp_path / "run"):
        assert record["guide_steps"] == 1
        likelihood, entropy, certainty = (record["rewards"][name] for name in REWARDS[:3])
        assert likelihood < 0 and entropy < 0 < certainty


def test_a_served_model_is_studied_by_what_is_known_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    with TinyServer(Checkpoint(demo.model_path("small"), device="cpu")) as server:
        words = command(folder, count="2", samples="2", engine="endpoint", endpoint=server.address)
        assert main(words) == 0
    assert "note: without negative-entropy and self-certainty: the engine endpoint does not" in capsys.readouterr().err
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
        ({"count": "0"}, "count is 0"),
        ({"model": "./nowhere"}, "no checkpoint at './nowhere'"),
        ({"engine": "masked-diffusion"}, "the engine masked-diffusion needs --gen-length"),
    ],
)
def test_bad_input_is_one_line_before_any_weights_are_loaded(
    changed: dict[str, str], message: str, tmp_path: Path, refused: Refused
) -> None:
    refused(command(tmp_path / "run", **changed), message)


def test_a_length_that_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = command(tmp_path / "run", {name: value for name, value in BASE.items() if name != "max-length"})
    assert main(words) == 2
    assert capsys.readouterr().err == "error: the engine transformers needs --max-length; see ets eval --help\n"
