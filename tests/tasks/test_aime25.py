"""AIME 2025: the answers of AIME 2024, and prompts in the same words."""

from __future__ import annotations

from pathlib import Path

import pytest

from ets.evaluation.hosted import opened_task
from ets.tasks.aime25 import Aime25, process_results
from ets.types import InputError, Problem

DATA = Path(__file__).parents[1] / "data"


def test_the_prompts_are_those_of_2024() -> None:
    (old, *_), (new, *others) = (opened_task(name, DATA / name).problems() for name in ("aime24", "aime25"))
    asked = "Find the remainder when ${}^{{10}}$ is divided by $1000$."
    assert str(old.prompt).replace(asked.format(2), asked.format(3)) == new.prompt
    assert new.stop == old.stop and len(others) == 2


def test_rows_with_degrees_and_names_of_columns_in_capitals_are_graded(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"ID": 1, "Problem": "How many?", "Answer": 60}\n')
    (mine,) = opened_task("aime25", tmp_path).problems()
    degrees = opened_task("aime25", DATA / "aime25").problems()[1]
    assert Aime25().grade(mine, "\\boxed{060}") and not Aime25().grade(mine, "\\boxed{61}")
    assert Aime25().grade(degrees, "\\boxed{360}") and not Aime25().grade(degrees, "\\boxed{36}")


def test_a_row_without_a_number_is_named_with_the_task() -> None:
    with pytest.raises(InputError, match="a row of aime25 has no answer from 0 to 999"):
        Aime25().grade(Problem("p", "", doc={"answer": "1000"}), "\\boxed{5}")


def test_lm_eval_gets_the_share_of_all_responses_that_are_right() -> None:
    results = [["\\boxed{49}", "\\boxed{50}"]]
    assert process_results({"problem": "p", "answer": "49"}, results) == {"exact_match": 0.5}
