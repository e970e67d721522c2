"""`--wandb`: what is missing is said before a run, and an offline run holds the table, the figures and the settings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from ets.cli import main
from ets.report import wandb_log
from ets.report.finished import finished_run

RUN = """
eval --task arithmetic --model embedded-small --count 2 --shots 0 --methods plain,ets --samples 2 --candidates 2
--rollouts 2 --lam 0.1 --block-size 16 --max-length 32 --temperature 1.0 --seed 0 --width 2
"""
needs_wandb = pytest.mark.skipif(find_spec("wandb") is None, reason="no wandb: pip install '.[wandb]'")


def torn_down() -> None:
    """Wait until wandb has written everything."""
    if find_spec("wandb") is not None:
        import wandb

        wandb.teardown()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """A process of wandb for each test: it reads the environment once."""
    yield
    torn_down()


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The error of a run that begins nothing."""
    assert main([*RUN.split(), "--wandb", "--out", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and not folder.exists()
    return error


def test_without_the_package_a_run_ends_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_log, "find_spec", lambda name: None)
    error = refused(tmp_path / "run", capsys)
    assert error == "error: wandb is not installed; in the folder of ets, run: pip install -e '.[wandb]'\n"


@needs_wandb
def test_without_an_account_a_run_ends_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    error = refused(tmp_path / "run", capsys)
    assert error.startswith("error: wandb has no account here: ") and "WANDB_MODE=offline" in error


@needs_wandb
def test_an_offline_run_holds_the_table_the_figures_and_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true", "_SERVICE_WAIT": "300"}  # a busy machine
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder = tmp_path / "results"
    assert main([*RUN.split(), "--wandb", "sums", "--out", str(folder)]) == 0, capsys.readouterr().err
    torn_down()
    (logged,) = (tmp_path / "wandb").glob("offline-run-*")
    (path,) = (logged / "files" / "media" / "table").iterdir()
    table = json.loads(path.read_text())
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    expected = finished_run(folder).rows
    assert [row["row"] for row in rows] == [row.name for row in expected] == ["plain", "ets-2", "ets-2-vote"]
    for row, of_run in zip(rows, expected, strict=True):
        assert (row["label"], row["acc"]) == (of_run.entry.label, of_run.scores["acc"][0])
        assert row["generated"] == of_run.entry.cost["generated"]
    images = {image.name.rpartition("_0_")[0] for image in (logged / "files" / "media" / "images").iterdir()}
    assert images == {figure.stem for figure in folder.glob("*.png")} and "accuracy" in images
    (content,) = (file.read_bytes() for file in logged.glob("*.wandb"))
    assert b"max_length" in content and b"ets-2-vote/acc" in content and b"sums" in content
