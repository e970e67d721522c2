"""benchmarks/results.py: its commands are accepted, one reward each, and the template has a place for each table."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ets.cli import parser_of
from ets.commands import evaluate
from ets.rewards import as_reward
from ets.tasks import Arithmetic
from ets.types import Chain, Text

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(ROOT)
    return import_module("results")


def test_every_table_is_a_command_of_all_methods_at_amounts(script: Any) -> None:
    for table in script.TABLES:
        options = parser_of().parse_args(table.command(2, Path("folder")))
        plan = evaluate.plan_of(options)
        evaluate._require_plan(plan)
        assert plan.settings.reward == table.reward and plan.settings.best_by is None
        left_out = {"base", "ets-is", "beam"} | ({"ets-stopped"} if plan.settings.fixed_reward else set())
        assert set(evaluate.METHODS) - set(plan.methods) == left_out
        assert all(isinstance(budget, float) for budget in plan.budgets)


def test_the_template_has_a_place_for_each_table(script: Any) -> None:
    places = re.findall(r"\{\{ (.*?) \}\}", script.TEMPLATE.read_text(encoding="utf-8"))
    assert places == [table.name for table in script.TABLES]


def test_a_section_has_the_command_the_table_and_the_plots(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "FOLDER", tmp_path / "runs")
    table = script.TABLES[0]
    folder = tmp_path / "runs" / table.name
    folder.mkdir(parents=True)
    (folder / "table.md").write_text("letters\n\n### Budget 1\n\n| a |\n")
    (folder / "pass_at_k.png").write_bytes(b"plot")
    text = script.section(table, 7, tmp_path)
    assert text.startswith("`ets compare --tasks arithmetic --count 7 --reward likelihood --lam 0.333333 ")
    assert "\n\n#### Budget 1\n\n| a |\n\n![pass@k" in text and "accuracy_by_cost" not in text
    assert (tmp_path / f"{table.name}_pass_at_k.png").read_bytes() == b"plot"


def test_the_rewards_of_the_demonstration_score_worked_answers(script: Any) -> None:
    """Five checks: one calculation, three numbers of the question, the last line."""
    rewards, task = import_module("demo_rewards"), Arithmetic()
    prompt = "Question: Tom has 5 eggs. He buys 4, then 1.\nAnswer:"
    texts = ["<<5+4=9>>9\n#### 9", "<<5+4=8>>8\n#### 8", "<<5+4=9>>9\n#### 8", "nine"]
    assert [rewards.graded(prompt, text) for text in texts] == pytest.approx([0.8, 0.6, 0.6, 0.0])
    problem = task.problems(1, 0)[0]
    drawn = [Text((), f"#### {answer}", 0.0, True) for answer in (problem.doc["answer"], -1)]
    chain = Chain(problem, 0, 0, Any, ())  # type: ignore[arg-type]
    assert list(as_reward(rewards.right_answer)(problem, drawn, chain)) == [1.0, 0.0]
