"""The hours of docs/paper.md: recomputed from the presets, and a few amounts by hand."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hours() -> Any:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import paper_hours

        return paper_hours
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def test_the_tables_of_the_page_are_those_of_the_presets(hours: Any) -> None:
    for table in hours.tables(hours.Speeds()):
        assert table in PAGE


def test_the_page_states_the_speeds_that_were_assumed(hours: Any) -> None:
    section = PAGE.split("## Hours")[1].split("\n## ")[0]
    stated = dict(re.findall(r"\| ([\d,]+) (?:tokens|positions) \| `--(\w+)`", section))
    assert {name: float(number.replace(",", "")) for number, name in stated.items()} == vars(hours.Speeds())


def test_the_commands_of_the_page_are_those_that_were_asked(hours: Any) -> None:
    asked = [f"{command} math500" for command in (*hours.QWEN.values(), *hours.LLADA.values())]
    for command in (*asked, *hours.OF_AIME.values()):
        assert re.search(rf"^{re.escape(command)} +#", PAGE, flags=re.MULTILINE)


def test_amounts_by_hand(hours: Any) -> None:
    """MATH500 with M 15 and K 3: 8 guide steps of 64 tokens; LLaDA: 4 guide steps of 64 denoising steps."""
    ets = hours.plan_for("METHODS=ets bash qwen_vllm/eval.sh math500")
    left = sum(range(0, 512, 64))  # tokens that the rollouts of each guide step draw
    work = hours.token_work(ets, 700)
    assert work.generated == 15 * (512 + 3 * left) == 88_320 and work.prompt == 700
    canvases = hours.canvas_work(hours.plan_for("METHODS=ets bash llada/eval.sh math500"), 700)
    forwards = 1 + 4 * 15 * 63 + sum(15 + 45 * (256 - 64 * i - 1) for i in (1, 2, 3))
    assert canvases.row_forwards == forwards and canvases.positions == forwards * (700 + 256)
    speeds = hours.Speeds(vllm=1000.0, reading=700.0)
    assert hours.token_seconds(work, False, speeds) == pytest.approx(88.32 + 1)
    assert hours.row(hours.BENCHMARKS[0], hours.QWEN, speeds)[4] == f"{500 * 89.32 / 3600:.1f}"


def test_the_small_model_draws_the_rollouts_and_the_large_one_the_rest(hours: Any) -> None:
    work = hours.token_work(hours.plan_for(f"{hours.QWEN['ETS-IS']} math500"), 700)
    assert work.candidate < work.rollout and work.scored > 0
    fast = hours.Speeds(small=1e12)
    assert hours.token_seconds(work, True, fast) < hours.token_seconds(work, True, hours.Speeds())
