"""GSM8K: numbers however they are written."""

from __future__ import annotations

import json

import pytest

from ets.tasks.gsm8k import Gsm8k, value_of
from ets.types import InputError, Problem

TASK = Gsm8k()
QUESTION = Problem("gsm8k-0", "Question: …\nAnswer:")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He has 5*9=<<5*9=45>>45 tulips.\n#### 45", 45),
        ("#### 45 tulips", 45),
        ("#### 45.", 45),
        ("####45", 45),
        ("#### 1,500", 1500),
        ("#### 1{,}500", 1500),
        ("#### 1\\,500", 1500),
        ("#### 12,345,678", 12345678),
        ("#### 1500.00", 1500),
        ("#### $1,500.50", 1500.5),
        ("#### \\$18", 18),
        ("#### **18**", 18),
        ("#### $18$", 18),
        ("#### \\(18\\)", 18),
        ("#### -5", -5),
        ("#### −5", -5),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("#### +5", 5),
        ("#### 25%", 25),
        ("#### 0.5", 0.5),
        ("#### .5", 0.5),
        ("#### 1/2", 0.5),
        ("#### 3 1/2", 3.5),
        ("#### \\frac{1}{2}", 0.5),
        ("#### \\dfrac{6}{3}", 2),
        ("#### 5-7", 5),
        ("#### 0", 0),
        ("#### 007", 7),
        ("#### 5\n#### 6", 6),  # the last one: stop strings have cut what runs on
        ("#### none, no: #### 8", 8),
        ("so \\boxed{18} it is, in 3 steps", 18),
        ("first \\boxed{3}, then \\boxed{18}", 18),
        ("\\boxed{18\\text{ dollars}}", 18),
        ("\\boxed{x = 18}, so the answer is 18 of 20", 18),
        ("\\boxed{3x+2}: the answer is 7", 7),  # two numbers in a box are none
        ("\\boxed{18", 18),  # cut off: its last number
        ("The answer is 18.", 18),
        ("The answer is: $18 for 3 days.", 18),
        ("the final answer is **$1,200**.", 1200),
        ("Answer: 18 apples in 3 bags", 18),
        ("The answer is 5. No, the answer is 6. Done in 2 steps.", 6),
        ("The answer is unknown, but 7 came out", 7),
        ("5 + 7 = 12", 12),
        ("from 12-5 stay 7", 7),
        ("It fell to -7", -7),
        ("She has 12 eggs.", 12),
        ("#### 1 000", 1000),
        ("#### 1. Costs\n3 * 4 = 12\n#### 2. Rest\nThe answer is 42.", 42),  # headings
        ("they wrote #### 29. But #### 9", 9),
        ("#### The answer is 18.", 18),
        ("\\boxed{70\\ 000}", 70000),
        ("\\boxed{1\\,234.5}", 1234.5),
        ("\\boxed{3\\frac{1}{2}}", 3.5),
        ("\\boxed{-\\frac{7}{2}}", -3.5),
        ("\\boxed{3\\tfrac12}", 3.5),
        ("\\boxed{\\$70{,}000}", 70000),
        ("\\boxed{75\\%} of 20", 75),
        ("The answer is 70 000, in 3 years", 70000),
        ("The answer is 70\u202f000.", 70000),
        ("The answer is 3\\frac{1}{4} cups.", 3.25),
        ("The answer is 5 * 2 + 1 = 11", 11),
        ("The answer is $20 - $2 = $18.", 18),
        ("The answer is 18, as 20 - 2 = 18 and 1 = 1.", 18),
        ("The answer in dollars is 18. Is 2 too low?", 18),
        ("The answer is 18 of 20.", 18),
        ("Final Answer: Tom has 12 apples", 12),
        ("**18** dollars. (16 - 3 - 4 = 9, then twice.)", 18),
        ("Twice 9.\nShe has **18** dollars (see step 2).", 18),
        ("**5** + **4** = 9", 9),
        ("**1.** She has 5", 5),
        ("in 2020 300 people came", 300),
        ("#### 3:2", None),
        ("#### 1,50", None),
        ("#### 1/0", None),
        ("#### ", None),
        ("####", None),
        ("no number at all", None),
        ("", None),
        ("9" * 41, None),
    ],
)
def test_the_number_in_a_text(text: str, answer: float | None) -> None:
    found = TASK.extract(QUESTION, text)
    assert found == answer and type(found) is type(answer)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 5, the answer is 6 of 7, \\boxed{8}, 9", 5),
        ("the answer is 6 of 7, \\boxed{8}, 9", 8),
        ("the answer is 6 of 7, 9", 6),
        ("6 of 7, 9", 9),
    ],
)
def test_the_mark_comes_before_the_box_the_box_before_a_statement_and_any_number_is_last(
    text: str, answer: int
) -> None:
    assert TASK.extract(QUESTION, text) == answer


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("#### 1500", True),
        ("#### $1,500.00", True),
        ("The answer is 1,500 dollars.", True),
        ("#### 1500.01", False),
        ("#### -1500", False),
        ("#### 1,50", False),
        ("#### 15", False),
        ("1500 is not it. #### 3", False),
        ("", False),
    ],
)
def test_a_text_is_graded_by_the_value_of_its_number(text: str, right: bool) -> None:
    problem = Problem(
        "gsm8k-1", "", doc={"question": "…", "answer": "It gets 125*12=$<<125*12=1500>>1,500.\n#### 1,500"}
    )
    assert TASK.grade(problem, text) is right


def test_answers_can_be_journalled() -> None:
    assert [json.loads(json.dumps(TASK.extract(QUESTION, f"#### {n}"))) for n in ("1,500", "2.5")] == [1500, 2.5]


@pytest.mark.parametrize("row", [{"question": "q", "answer": "18"}, {"answer": "#### none"}, {}])
def test_a_row_without_an_answer_is_named(row: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"a row of gsm8k has no answer that ends in '#### n'"):
        TASK.grade(Problem("p", "", doc=row), "#### 18")


@pytest.mark.parametrize("number", ["", "-", "1,2", "1,2,3", "1.2.3", "1//2", "1e5", "12,34"])
def test_what_is_no_number_has_no_value(number: str) -> None:
    assert value_of(number) is None
