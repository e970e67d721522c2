"""The files of a results folder, and that its summary holds the whole comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ets.diagnostics import RatioSummary
from ets.evaluation.comparison import Entry, Rival, entry_of
from ets.evaluation.curves import CurvePoint, curve_of
from ets.evaluation.intervals import Accuracy
from ets.evaluation.journal import VERSION
from ets.evaluation.objective import Estimate
from ets.report.results import write_results
from ets.report.tables import Setting, markdown
from tests.report.test_tables import ENTRIES, SETTING

RATIOS = RatioSummary(6, math.nan, 1.0, 0.1, 0.0, 0.0, 0.5, 0.0, math.nan, math.nan)
PANELS = {"M, candidates": [(2.0, ENTRIES[1]), (4.0, ENTRIES[6])]}


POINTS = [CurvePoint(k, Accuracy(0.5, 0.25, 0.75), Accuracy(0.25, 0.125, 0.5)) for k in (1, 2)]


def written(
    folder: Path,
    entries: list[Entry],
    panels: dict[str, list[tuple[float, Entry]]],
    points: Sequence[CurvePoint] = (),
) -> set[str]:
    """The names of the files, without those of the run itself."""
    folder.mkdir(exist_ok=True)
    run = {"configuration.json": '{"prompt": "a", "prompt_kind": "text"}', "journal.jsonl": ""}
    for name, content in run.items():
        (folder / name).write_text(content)
    write_results(entries, panels, SETTING, folder, points)
    return {path.name for path in folder.iterdir()} - {*run}


def test_one_budget_has_bars_and_several_have_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"summary.json", "table.md", "report.html"}
    assert written(tmp_path / "one", ENTRIES[:5], {}) == shared | {"accuracy.png"}
    plots = {"accuracy_by_cost.png", "scaling.png", "pass_at_k.png"}
    assert written(tmp_path / "two", ENTRIES, PANELS, POINTS) == shared | plots
    text = markdown(ENTRIES, SETTING, POINTS)
    assert "pass@k" in text and "Complete samples: pass@k and maj@k" in (tmp_path / "two" / "report.html").read_text()
    assert (tmp_path / "two" / "table.md").read_text() == f"{text}\n"
    shown = capsys.readouterr().out
    assert text in shown and f"to look at: {tmp_path / 'two' / 'report.html'}\n" in shown


def test_the_summary_holds_everything_as_json(tmp_path: Path) -> None:
    forbidden = {"p0": -math.inf, "p1": 2.0}
    rival = Rival("majority of 6", 100.0, {"p0": 1.0, "p1": 0.0}, forbidden)
    entries = [ENTRIES[0], replace(ENTRIES[1], rewards=forbidden, rival=rival), replace(ENTRIES[2], ratios=RATIOS)]
    entries[1] = replace(entries[1], scores={"p0": 1.0, "p1": 0.0}, objective=Estimate(0.5, 0.25, 0.75))
    written(tmp_path, entries, PANELS, POINTS)
    content = json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)  # no NaN
    assert content.keys() == {"version", "setting", "entries", "panels", "curves", "optimum"}
    assert content["version"] == VERSION
    read = Setting(**content["setting"])
    points = [curve_of(each) for each in content["curves"]]
    assert points == POINTS
    assert markdown([entry_of(each) for each in content["entries"]], read, points) == markdown(entries, SETTING, POINTS)
    assert [entry_of(each) for each in content["entries"][:2]] == entries[:2]
    assert [(x, entry_of(each)) for x, each in content["panels"]["M, candidates"]] == PANELS["M, candidates"]
