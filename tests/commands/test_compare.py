"""`ets compare` from the command line, on the embedded models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ets.commands.compare import METHOD_NAMES, REWARD_NAMES
from ets.evaluation.compared import METHODS, REWARDS

from ets.cli import main
from ets.evaluation.traces import read_traces

AUTOREGRESSIVE = """
compare --tasks arithmetic --model embedded --shots 0 --rollouts 2 --lam 0.1 --block-size 48 --max-length 96
--temperature 1.9 --seed 0 --width 8
"""


def run(folder: Path, *words: str) -> int:
    return main([*AUTOREGRESSIVE.split(), "--out", str(folder), *words])


def test_help_names_every_method_and_reward() -> None:
    assert sorted(METHOD_NAMES.split(", ")) == sorted(METHODS)
    assert sorted(REWARD_NAMES.split(", ")) == sorted(REWARDS)


def test_a_comparison_ends_in_tables_plots_and_journals_and_grows_by_problems(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--methods", "majority,ets,greedy", "--candidates", "1,2", "--seeds", "2", "--scan-guide-steps", "1,2")
    words = (*words, "--traces", "1")
    assert run(tmp_path, "--count", "2", *words) == 0
    assert "### Budget 2" in capsys.readouterr().out
    assert run(tmp_path, "--count", "3", *words) == 0
    shown = capsys.readouterr()
    folder = tmp_path / "arithmetic"
    content = json.loads((folder / "comparison.json").read_text())
    assert {len(entry["scores"]) for entry in content["entries"]} == {3}
    assert (folder / "comparison.md").read_text().strip() in shown.out
    for name in ("accuracy_by_cost.png", "scaling.png", "scaling.json"):
        assert (folder / name).stat().st_size > 0
    journal = folder / "ets-2-rollouts=2-lam=0.1-pool=chain-reward=majority-minimum=1" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert sorted((r["problem"], r["sample"]) for r in lines) == sorted({(r["problem"], r["sample"]) for r in lines})
    assert len(lines) == 6  # none of the first four was drawn again
    traces = read_traces(folder)
    assert len({trace["problem"] for trace in traces}) == 1
    assert {trace["method"].split("-rollouts")[0] for trace in traces} == {"ets-1", "ets-2"}
    assert {entry["key"] for entry in content["entries"] if entry["method"] == "ets"} == {t["method"] for t in traces}
    assert str(folder / "report.html") in shown.out


def test_a_comparison_that_kept_no_traces_goes_on_and_is_shown(tmp_path: Path) -> None:
    """As journals from before there were any."""
    words = ("--count", "2", "--methods", "majority,ets", "--candidates", "1", "--seeds", "1")
    assert run(tmp_path, *words, "--traces", "0") == 0
    folder = tmp_path / "arithmetic"
    before = {path: path.read_bytes() for path in folder.glob("*/journal.jsonl")}
    assert not (folder / "traces.jsonl").exists()
    assert run(tmp_path, *words) == 0
    assert before == {path: path.read_bytes() for path in folder.glob("*/journal.jsonl")}
    assert read_traces(folder) == [] and (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "majority,ets"), "give either --candidates, whose cost is matched, or --budgets, amounts"),
        (("--methods", "ets", "--candidates", "2"), "against is 'majority', which is not among the methods"),
        (("--methods", "majority,ets", "--candidates", "0"), "'0' is not above zero and finite"),
        (("--methods", "majority,ets", "--budgets", "nan"), "'nan' is not above zero and finite"),
        (("--methods", "majority,ets", "--budgets", "100,inf"), "'inf' is not above zero and finite"),
        (("--methods", "majority,magic", "--candidates", "2"), "unknown method 'magic'"),
        (("--methods", "majority,ets", "--candidates", "2", "--seeds", "0"), "seeds is 0"),
        (("--methods", "majority,ets", "--candidates", "2", "--traces", "-1"), "traces is -1"),
        (
            ("--methods", "majority,ets", "--budgets", "100", "--scan-rollouts", "1"),
            "--scan-rollouts needs --candidates",
        ),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--count", "2", *words) == 2
    shown = capsys.readouterr().err
    assert message in shown and len(shown.splitlines()) == 1
