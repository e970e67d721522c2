"""AIME 2024: whole numbers from 0 to 999, and the rows that repeat."""

from __future__ import annotations

from typing import Any

import pytest

from ets.tasks.aime24 import Aime24, process_results
from ets.types import InputError, Problem

TASK = Aime24()
QUESTION = Problem("aime24-0", "…")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("\\boxed{33}", 33),
        ("\\boxed{033}", 33),
        ("\\boxed{003}", 3),
        ("\\boxed{000}", 0),
        ("\\boxed{0}", 0),
        ("\\boxed{999}", 999),
        ("so $\\boxed{33}$.", 33),
        ("\\boxed{ 33 }", 33),
        ("\\boxed 33$", 33),
        ("\\fbox{33}", 33),
        ("\\boxed{33.}", 33),
        ("\\boxed{33.0}", 33),
        ("\\boxed{\\text{033}}", 33),
        ("\\boxed{\\mathbf{33}}", 33),
        ("\\boxed{m+n=33}", 33),
        ("\\boxed{$33$}", 33),
        ("\\boxed{60^\\circ}", 60),
        ("\\boxed{60^{\\circ}}", 60),
        ("\\boxed{1}, no, \\boxed{2}", 2),
        ("\\boxed{\\boxed{7}}", 7),
        ("\\boxed{12}, and \\boxed{3", 12),  # the last one was cut off
        ("\\boxed{3", None),
        ("\\boxed{1000}", None),
        ("\\boxed{0999}", 999),
        ("\\boxed{-5}", None),
        ("\\boxed{33.5}", None),
        ("\\boxed{\\frac{66}{2}}", None),
        ("\\boxed{33\\pi}", None),
        ("\\boxed{1,2}", None),
        ("\\boxed{}", None),
        ("\\boxed{x}. The answer is 5", None),  # the box decides, whatever it holds
        ("The answer is 33", 33),
        ("The answer is 033.", 33),
        ("the final answer is $33$.", 33),
        ("The answer is: 33", 33),
        ("Answer: 33", 33),
        ("**Answer:** 33", 33),
        ("**Answer: 33**", 33),
        ("Answer: $33$", 33),
        ("Answer: \\(33\\)", 33),
        ("Answer: \\text{33}", 33),
        ("Answer: 5\nAnswer: 6", 6),
        ("Answer: 1000", None),
        ("Answer: 33.5", None),
        ("Answer: 1,000", None),
        ("Answer: 33\\pi", None),
        ("Answer: 3x", None),
        ("Answer: 3 + 4", None),
        ("Answer: -5", None),
        ("Answer:", None),
        ("\\boxed{\\textbf{(033) }}", 33),
        ("\\boxed{33\\text{ ways}}", 33),
        ("\\boxed{33°}", 33),
        ("\\boxed{\\ 33\\,}", 33),
        ("\\boxed{{33},}", 33),
        ("\\boxed{\\approx 33}", 33),
        ("\\boxed{2^5 = 32}", 32),
        ("\\boxed{33 or 34}", None),
        ("The answer is $m+n = 10 + 23 = 033$.", 33),
        ("The answer is 33 (that is, 100 - 67).", 33),
        ("The answer is 33/2", None),
        ("The answer is 33 or 34", None),
        ("It is 33", None),
        ("", None),
    ],
)
def test_the_whole_number_in_a_text(text: str, answer: int | None) -> None:
    assert TASK.extract(QUESTION, text) == answer


@pytest.mark.parametrize("row", [{"answer": "033"}, {"Answer": 33, "Problem": "p"}, {"answer": " 33 "}])
def test_rows_of_both_published_forms_are_graded(row: dict[str, Any]) -> None:
    problem = Problem("p", "", doc=row)
    assert TASK.grade(problem, "\\boxed{033}") and TASK.grade(problem, "Answer: 33")
    assert not TASK.grade(problem, "\\boxed{330}") and not TASK.grade(problem, "33")


@pytest.mark.parametrize("row", [{}, {"answer": "1000"}, {"answer": "x"}, {"answer": "-1"}])
def test_a_row_without_an_answer_is_named(row: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"a row of aime24 has no answer from 0 to 999"):
        TASK.grade(Problem("p", "", doc=row), "\\boxed{33}")


@pytest.mark.parametrize(
    ("results", "share"),
    [
        ([["\\boxed{033}", "\\boxed{34}", "Answer: 33", "no"]], 0.5),
        (["\\boxed{033}"], 1.0),
        ([["\\boxed{34}", "\\boxed{033}"]], 0.5),
        ([[""]], 0.0),
    ],
)
def test_lm_eval_gets_the_share_of_all_responses_that_are_right(results: list[Any], share: float) -> None:
    assert process_results({"problem": "p", "answer": "33"}, results) == {"exact_match": share}
