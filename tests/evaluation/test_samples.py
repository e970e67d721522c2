"""The right answers and the files of returned texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ets.evaluation.samples import read_samples, write_samples
from ets.tasks import Gpqa, Gsm8k, Prompts
from ets.tasks.ifeval import IFEval
from ets.tasks.task import right_answer
from ets.types import Problem


def test_a_benchmarks_right_answer_is_the_one_that_it_grades_by() -> None:
    row = {"question": "2 + 40?", "answer": "It is <<2+40=42>>42.\n#### 42"}
    assert right_answer(Gsm8k(), Problem("a", "2 + 40?", doc=row)) == "42"
    assert right_answer(Gpqa(), Problem("a", "Which?", doc={"answer": "(C)"})) == "C"


def test_a_task_without_right_answers_has_an_empty_one(tmp_path: Path) -> None:
    task = Prompts(tmp_path / "prompts.jsonl")
    for each in (task, IFEval()):
        assert right_answer(each, Problem("a", "Describe a harbour.", doc={"prompt": "Describe a harbour."})) == ""


def test_samples_come_back_by_method_and_problem_in_their_order(tmp_path: Path) -> None:
    problems = [Problem(name, (1, 2), doc={"place": Path("x")}, user_text=f"{name}?") for name in ("b", "a")]
    places = [("a", 1), ("b", 0), ("a", 0), ("b", 1)]
    samples = [{"method": "ets", "readout": "last", "problem": p, "sample": n, "text": "\u2028"} for p, n in places]
    write_samples(tmp_path, Prompts(tmp_path / "prompts.jsonl"), problems, samples)
    asked, found = read_samples(tmp_path)
    assert asked == [
        {"id": n, "prompt": [1, 2], "messages": [], "user_text": f"{n}?", "doc": {"place": "x"}, "target": ""}
        for n in "ba"
    ]
    numbers = {problem: [row["sample"] for row in rows] for problem, rows in found["ets", "last"].items()}
    assert numbers == {"b": [0, 1], "a": [0, 1]}


def test_a_sample_of_another_problem_is_an_error(tmp_path: Path) -> None:
    task = Prompts(tmp_path / "prompts.jsonl")
    sample = {"method": "ets", "readout": "last", "problem": "b", "sample": 0}
    write_samples(tmp_path, task, [Problem("a", "text")], [sample])
    with pytest.raises(LookupError):
        read_samples(tmp_path)
    assert json.loads((tmp_path / "samples.jsonl").read_text()) == sample
