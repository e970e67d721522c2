"""`ets estimate`: the cost of a whole run, from its first problems."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ets.cli import main
from tests.commands.test_examples import SMALL, examples
from tests.conftest import Refused
from tests.test_cli import command


def words(*further: str, **changed: str) -> list[str]:
    """The estimate of the run of `command`, whose folder it leaves alone."""
    return ["estimate", *command(Path("unused"), **changed)[1:], *further]


def tokens(shown: str) -> dict[str, int]:
    """The generated tokens of each method in a printed table."""
    rows = [[cell.strip() for cell in line.split("|")] for line in shown.splitlines() if line.startswith("| ")]
    column = rows[0].index("tokens")
    return {row[1]: int(row[column].replace(",", "")) for row in rows[2:]}


def test_the_example_prints_a_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = examples("estimate")
    assert main([*example, "--problems", "1", *shlex.split(SMALL)]) == 0
    shown = capsys.readouterr().out
    assert "finished chains" not in shown  # nothing is kept
    assert "expected for 1 problem, 1 of each, from 1 of them on this machine:" in shown and "ETS (M 2, K 1)" in shown
    assert list(tmp_path.iterdir()) == []


def test_an_estimate_from_all_problems_is_the_cost_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("--problems", "3", repeats="2")) == 0
    expected = tokens(capsys.readouterr().out)
    assert main(command(tmp_path, repeats="2")) == 0
    entries = json.loads((tmp_path / "summary.json").read_text())["entries"]
    spent = {each["label"]: each["cost"]["generated"] * 3 * 2 for each in entries if each["readout"] == "last"}
    assert expected.keys() == spent.keys()
    assert all(abs(expected[label] - spent[label]) <= 0.5 for label in spent)


def test_fewer_problems_are_extrapolated(capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for count, problems in (("2", "2"), ("100", "2")):
        assert main(words("--problems", problems, methods="ets", count=count)) == 0
        found[count] = tokens(capsys.readouterr().out)["ETS (M 2, K 2)"]
    assert found["100"] == 50 * found["2"] > 0


@pytest.mark.parametrize(
    ("further", "changed", "message"),
    [
        (("--problems", "0"), {}, "problems is 0; give at least 1"),
        ((), {"lam": "-1"}, "lam is -1.0"),
        ((), {"task": "chess"}, "unknown task 'chess'; choose from arithmetic"),
    ],
)
def test_bad_input_is_one_line(
    further: tuple[str, ...], changed: dict[str, str], message: str, refused: Refused
) -> None:
    refused(words(*further, **changed), message)
