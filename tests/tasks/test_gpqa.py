"""GPQA: letters, and a shuffle that no state of a generator decides."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from ets.tasks.gpqa import Gpqa, shuffled
from ets.types import InputError, Problem

TASK = Gpqa()
QUESTION = Problem("gpqa-0", "…")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" (B)", "B"),
        ("(B)\n", "B"),
        ("B", "B"),
        (" B.", "B"),
        ("B) the neutron", "B"),
        ("B: the neutron", "B"),
        ("**B**", "B"),
        ("The answer is (C)", "C"),
        ("The answer is (C).", "C"),
        ("The answer is C", "C"),
        ("The answer is (c)", "C"),
        ("the correct answer is **(D)**", "D"),
        ("The answer is: D", "D"),
        ("Answer: D", "D"),
        ("**Answer:** D", "D"),
        ("ANSWER: (D)", "D"),
        ("The answer is option B", "B"),
        ("The correct choice is (B)", "B"),
        ("The correct option is B.", "B"),
        ("The answer is $\\boxed{B}$", "B"),
        ("The answer is \\text{(B)}", "B"),
        ("The answer is A because it is neutral", "A"),
        ("The answer is (A). Wait. The answer is (B).", "B"),
        ("\\boxed{C}", "C"),
        ("\\boxed{(C)}", "C"),
        ("\\boxed{\\text{C}}", "C"),
        ("\\boxed{\\textbf{(C) }10^{-4}}", "C"),
        ("\\boxed{A}, no, \\boxed{C}", "C"),
        ("\\boxed{C}, though first I said the answer is (A)", "C"),
        ("\\boxed{10^{-4}} eV, so the answer is (B)", "B"),
        ("\\boxed{C", None),  # cut off
        ("(B)\nExplanation: (A) and (C) are charged", "B"),
        ("First (A) is charged, and (C) too, which leaves (D)", "D"),
        ("The answer is the neutron (B)", "B"),
        ("The answer is (A) or (B)", "B"),  # not stated: the last one in brackets
        ("The answer is A strong base", None),
        ("Both A and B are charged", None),
        ("The answer is Berlin", None),
        ("The answer is the neutron", None),
        ("Answer: \\(B\\)", "B"),
        ("Answer: **B. the neutron**", "B"),
        ("Answer: B - the neutron", "B"),
        ("Answer: 'B'", "B"),
        ("The answer is [B]!", "B"),
        ("\\boxed{\\text{Option B}}", "B"),
        ("\\boxed{\\mathrm{B}.}", "B"),
        ("Option B is correct.", "B"),
        ("So B is correct, and A is not.", "B"),
        ("Option B is correct. Option A is not correct.", "B"),
        ("Option A is not right, and neither is option C.", None),
        ("Thus, (B) is the right one while (A) is not.", "B"),
        ("I choose option C.", "C"),
        ("I would go with C", "C"),
        ("So it's C.", "C"),
        ("A) too small\nB) right\n\nHence B.", "B"),
        ("(A) is wrong. (C) is wrong. The answer must be (B).", "B"),
        ("A. I think so.", "A"),
        ("A. It is not B, as B is charged.", None),  # another option is discussed after it
        ("Answer is B? No, it is C.", "C"),
        ("The answer is C60.", None),
        ("The answer is C_6H_6.", None),
        ("It is D2O.", None),
        ("The answer is D-glucose.", None),
        ("The bond is C=O.", None),
        ("The answer is D/2.", None),
        ("The B-field vanishes.", None),
        ("\\boxed{C_6H_6}", None),
        ("\\boxed{A = 3}", None),
        ("\\boxed{A = 3}. Answer: C", "C"),
        ("The answer is a.", None),
        ("The answer is A and B.", None),
        ("The answer is A, B", None),
        ("The answer is not A.", None),
        ("(E)", None),
        ("A", "A"),
        ("A strong base", None),
        ("Because", None),
        ("", None),
    ],
)
def test_the_letter_in_a_text(text: str, answer: str | None) -> None:
    assert TASK.extract(QUESTION, text) == answer


def test_a_text_is_graded_by_the_rows_letter() -> None:
    problem = Problem("p", "", doc={"answer": "(B)"})
    assert TASK.grade(problem, "The answer is (B)") and not TASK.grade(problem, "(C)") and not TASK.grade(problem, "")


@pytest.mark.parametrize("row", [{}, {"answer": "B"}, {"answer": "(E)"}])
def test_a_row_without_an_answer_is_named(row: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"a row of gpqa has no answer \(A\) to \(D\)"):
        TASK.grade(Problem("p", "", doc=row), "(B)")


def row(question: str) -> dict[str, str]:
    wrong = {f"Incorrect Answer {n}": f"wrong {n}" for n in (1, 2, 3)}
    return {"Question": question, "Correct Answer": " right  one [title]more ", **wrong}


def test_the_shuffle_depends_on_the_row_alone() -> None:
    orders = []
    for seed in (0, 1):
        random.seed(seed)
        orders.append(shuffled(row("Which?")))
    assert orders[0] == orders[1]
    assert [orders[0][f"choice{n}"] for n in (1, 2, 3, 4)] == orders[0]["choices"]
    assert sorted(orders[0]["choices"]) == ["right one. more", "wrong 1", "wrong 2", "wrong 3"]
    assert orders[0]["choices"]["ABCD".index(orders[0]["answer"][1])] == "right one. more"


def test_the_right_choice_is_about_as_often_at_each_letter() -> None:
    counts = Counter(shuffled(row(f"Which is number {n}?"))["answer"] for n in range(2000))
    assert set(counts) == {"(A)", "(B)", "(C)", "(D)"} and min(counts.values()) > 430
