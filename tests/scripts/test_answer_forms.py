"""Answers of GSM8K and MATH-500 are read in every form in which models write them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ets.tasks import task_named
from ets.types import Problem

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "math500").exists(), reason="no test sets in ../shared/data")


@pytest.fixture(scope="module")
def forms() -> ModuleType:
    spec = importlib.util.spec_from_file_location("answer_forms", ROOT / "scripts" / "answer_forms.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_data
@pytest.mark.parametrize(("name", "every", "written"), [("gsm8k", 20, "NUMBERS"), ("math500", 10, "MATH")])
def test_right_answers_are_read_in_every_form(name: str, every: int, written: str, forms: ModuleType) -> None:
    task = task_named(name)
    rows = forms.golds(DATA)[name][::every]

    def right(row: dict[str, Any], text: str) -> bool:
        return task.grade(Problem("p", "", doc=row), text)

    assert len(getattr(forms, written)) >= 20 and len(rows) >= 50
    assert {form: wrong for form, wrong in forms.failures(rows, getattr(forms, written), right) if wrong} == {}
    assert [answer for row, answer in rows if not right(row, row[forms.COLUMNS[name]])] == []


@needs_data
def test_every_answer_of_gsm8k_is_read_from_its_own_solution_and_no_other_one_is_right(forms: ModuleType) -> None:
    task = task_named("gsm8k")
    rows = forms.golds(DATA)["gsm8k"]
    assert len(rows) == 1319
    assert all(task.grade(Problem("p", "", doc=row), row["answer"]) for row, _ in rows)
    wrong = (f"{row['answer'].rpartition('####')[0]}#### {int(answer) + 1}" for row, answer in rows)
    assert not any(task.grade(Problem("p", "", doc=row), text) for (row, _), text in zip(rows, wrong, strict=True))


@needs_data
def test_different_answers_of_math500_are_not_equal(forms: ModuleType) -> None:
    answers = [answer for _, answer in forms.golds(DATA)["math500"]]
    count, equal = forms.equal_pairs(answers, 150)
    assert count >= 150 and equal == []


def test_an_answer_is_written_in_a_form(forms: ModuleType) -> None:
    assert forms.written("{c}**Answer:** ${a}$", "1234") == f"{forms.COT}**Answer:** $1234$"
    assert forms.written("{grouped} {blank} {narrow} {thin} {less}", "1234") == ("1,234 1 234 1\u202f234 1\\,234 1231")
