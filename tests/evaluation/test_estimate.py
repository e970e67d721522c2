"""`ets estimate` against the runs whose cost it estimates."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ets.cli import main
from ets.evaluation import estimate
from tests.test_cli import FAST, PROPOSED, command, diffusion_command


def cells(table: str) -> dict[str, list[str]]:
    """The amounts in a printed table, by the label of the row."""
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.mark.parametrize(
    "words",
    [
        {"methods": "ets,ets-is,majority,greedy", "repeats": "2", "count": "3"} | PROPOSED,
        {"engine": "masked-diffusion", "methods": "ets,plain", "width": "1"},
        {"engine": "masked-diffusion", "methods": "ets-is", "samples": "4"} | FAST | {"level": "0"},
    ],
    ids=["tokens", "canvases", "fast sampler"],
)
def test_with_all_problems_the_estimate_is_the_run(
    words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same keys draw the same texts, and the same number of samples matches the cost of ETS."""
    run = diffusion_command(tmp_path, **words) if "engine" in words else command(tmp_path, **words)
    assert main(["estimate", *run[1:], "--problems", "99"]) == 0
    found = cells(capsys.readouterr().out)
    assert not list(tmp_path.iterdir())
    assert main(run) == 0
    rows = [row for row in json.loads((tmp_path / "summary.json").read_text()) if row["readout"] == "last"]
    assert set(found) == {row["label"] for row in rows}
    problems = len({json.loads(line)["problem"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()})
    for row in rows:
        uses = problems * (1 if row["method"] == "greedy" else row["repeats"])
        kinds = ["generated", "positions", *(["row_forwards"] if row["row_forwards"] else [])]
        expected = [f"{uses * row[kind]:,.0f}" for kind in kinds]
        assert found[row["label"]][:-1] == expected and re.fullmatch(r"[\d.]+ s", found[row["label"]][-1])


def test_a_few_problems_stand_for_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The estimate is the cost of every second problem, twice."""
    words = command(tmp_path, count="4", methods="ets", width="4")
    assert main(["estimate", *words[1:], "--problems", "2"]) == 0
    shown = capsys.readouterr().out
    assert "4 problems; the whole run, extrapolated from 2:" in shown
    assert main(words) == 0
    records = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    costs = {record["problem"]: record["cost"]["generated"] for record in records}
    ((tokens, *_),) = cells(shown).values()
    assert tokens == f"{2 * (costs['arithmetic-0'] + costs['arithmetic-2']):,}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--problems", "0"], "problems is 0"),
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--width", "0"], "width is 0"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *command(tmp_path)[1:], *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_problems_are_spread_over_the_task() -> None:
    assert estimate.spread(list(range(10)), 3) == [0, 3, 6]  # type: ignore[arg-type, comparison-overlap]
    assert estimate.spread(list(range(10)), 20) == list(range(10))  # type: ignore[arg-type, comparison-overlap]


@pytest.mark.parametrize(("amount", "shown"), [(3, "3 B"), (2**21, "2 MiB"), (2**34 * 1.5, "24.0 GiB")])
def test_sizes_are_readable(amount: float, shown: str) -> None:
    assert estimate.size(amount) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(3.21, "3.2 s"), (90.0 * 60, "90.0 min"), (7200.0, "2.0 h")])
def test_times_are_readable(seconds: float, shown: str) -> None:
    assert estimate.duration(seconds) == shown
