"""MATH-500: answers in LaTeX, and which of them are equal."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from ets.rewards import agreement_share, votes
from ets.tasks import expressions
from ets.tasks.expressions import Expression
from ets.tasks.math500 import Math500
from ets.types import InputError, Problem, Text

TASK = Math500()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow this machine is, or was, an answer is not taken for one that takes too long."""
    monkeypatch.setattr(expressions, "SECONDS", 100)
    for known in (expressions.equal, expressions._read):
        known.cache_clear()


QUESTION = Problem("math500-0", "Problem:\n…\n\nSolution:")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so it is $\\boxed{24}.$\nFinal Answer: The final answer is $24$. I hope it is correct.", "24"),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)"),
        ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", "\\frac{1}{2}"),
        ("Final Answer: The final answer is 12. I hope it is correct.", "12"),
        ("Final Answer: The final answer is $\\text{Bea}$. I hope it is correct.", "\\text{Bea}"),
        ("Final Answer: The final answer is $1$ and $2$. I hope it is correct.", "1, 2"),
        ("Final Answer: The final answer is $\\$18$. I hope it is correct.", "\\$18"),
        ("The final answer is: $\\boxed{\\frac{3}{4}}$", "\\frac{3}{4}"),
        ("The final answer is \\(7\\).", "7"),
        ("The final answer is\n\\[\n\\boxed{5}\n\\]", "5"),
        ("**Final Answer**: The final answer is **12**.", "12"),
        ("The final answer is $3$. I hope it is correct.\n\nThe final answer is $4$. I hope it is correct.", "4"),
        ("so \\boxed{3}. The final answer is $\\frac{1", "3"),  # the statement was cut off
        ("The final answer is $\\frac{1", None),
        ("The final answer is \\(\\frac12", None),
        ("The final answer is", None),
        ("\\boxed{24}", "24"),
        ("\\boxed{1}, \\boxed{2}, so \\boxed{3}", "3"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}"),
        ("\\boxed{\\left\\{1,2\\right\\}}", "\\{1,2\\}"),
        ("\\boxed{f(x) = \\begin{cases} x & x > 0 \\\\ 0 & x \\le 0 \\end{cases}}", None),
        ("\\boxed{\\{x : x > 0}", "\\{x : x > 0"),
        ("\\fbox{7}", "7"),
        ("$\\boxed 7$", "7"),
        ("\\boxed {7}", "7"),
        ("\\boxed{3} and then \\boxed{\\frac{1", "3"),
        ("\\boxed{3", None),
        ("\\boxed{}", None),
        ("\\boxed{ }", None),
        ("\\boxedx{3}", None),
        ("the answer is 24", "24"),
        ("24", "24"),  # math-verify's own extraction
        ("", None),
    ],
)
def test_the_answer_in_a_text(text: str, answer: str | None) -> None:
    found = TASK.extract(QUESTION, text)
    if "cases" in text:
        assert found is not None and "cases" in found
    else:
        assert found == answer and (found is None) == (answer is None)


EQUAL = [
    ("\\frac12", "\\frac{1}{2}"),
    ("\\dfrac{1}{2}", "\\frac{1}{2}"),
    ("\\tfrac12", "1/2"),
    ("0.5", "\\frac{1}{2}"),
    (".5", "0.50"),
    ("-\\frac{2}{3}", "\\frac{-2}{3}"),
    ("11\\frac{1}{2}", "11.5"),
    ("0.333333", "\\frac{1}{3}"),
    ("0.\\overline{3}", "\\frac13"),
    ("1.2\\overline{7}", "\\frac{23}{18}"),
    ("1,234,567", "1234567"),
    ("10{,}236", "10236"),
    ("10,\\!236", "10236"),
    ("1\\,234", "1234"),
    ("5.", "5"),
    ("$5$", "5"),
    ("\\$18.90", "18.9"),
    ("18\\$", "\\$18"),
    ("50\\%", "50"),
    ("90^\\circ", "90"),
    ("90^{\\circ}", "90"),
    ("5\\text{ cm}", "5"),
    ("70\\,\\text{cm}^2", "70"),
    ("3 \\text{ hours}", "3"),
    ("\\text{5 apples}", "5"),
    ("13^{\\text{th}}", "13"),
    ("2\\sqrt3", "\\sqrt{12}"),
    ("\\frac{\\sqrt2}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("x^2+2x+1", "(x+1)^2"),
    ("6+9i", "9i+6"),
    ("x=5", "5"),
    ("y=x+1", "x+1"),
    ("f(x)=x+1", "x+1"),
    ("(1,2)", "(1, 2)"),
    ("\\left(3, \\frac{\\pi}{2}\\right)", "(3,\\pi/2)"),
    ("\\left[1,2\\right)", "[1,2)"),
    ("(-\\infty,2)\\cup(3,\\infty)", "(3,\\infty)\\cup(-\\infty,2)"),
    ("1<x<2", "(1,2)"),
    ("x \\ge 3", "[3,\\infty)"),
    ("x \\in [1,2]", "[1,2]"),
    ("1,2", "2,1"),
    ("\\{1,2\\}", "\\{2,1\\}"),
    ("1 \\text{ or } 2", "1,2"),
    ("3\\pm\\sqrt{2}", "3-\\sqrt2, 3+\\sqrt2"),
    ("\\emptyset", "\\emptyset"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix} 1 \\\\ 2 \\end{bmatrix}"),
    ("\\text{Bea}", "Bea"),
    ("\\text{(B)}", "B"),
    ("\\text{(3, 4)}", "(3,4)"),
    ("2516_8", "2516_{8}"),
    ("2516_8", "2516"),
    ("5\\,", "5"),
    ("\\ 5\\;", "5"),
    ("5\\text{.}", "5"),
    ("{5}", "5"),
    ("\\boldsymbol{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("\\textcolor{blue}{5}", "5"),
    ("{\\color{red} 5}", "5"),
    ("\\underline{5}", "5"),
    ("\\approx 5", "5"),
    ("= 5", "5"),
    ("**5**", "5"),
    ("1 000", "1000"),
    ("11,\\! 111,\\! 100", "11111100"),
    ("1\u202f234", "1234"),
    ("9~\\mathrm{cm}", "9"),
    ("5 square feet", "5"),
    ("60\\,\\frac{\\text{miles}}{\\text{hour}}", "60"),
    ("60 \\text{ miles}/\\text{hour}", "60"),
    ("30\\degree", "30"),
    ("30°", "30"),
    ("2√3", "\\sqrt{12}"),
    ("√(x+1)", "\\sqrt{x+1}"),
    ("2 \\frac{1}{2}", "2.5"),
    ("2 1/2", "2.5"),
    ("6.72e-5", ".0000672"),
    ("6.72\\times 10^{-5}", ".0000672"),
    ("0.166667", "\\frac16"),
    ("(0.333333, 1)", "(\\frac13, 1)"),
    ("11_{\\text{eight}}", "11_8"),
    ("\\textbf{(C)}\\ 9", "9"),
    ("P(A) = \\frac13", "\\frac13"),
    ("f(3) = 9", "9"),
    ("f(-1) = (1,2)", "(1,2)"),
    ("4+5=9", "9"),
    ("10=x", "10"),
    ("x=58,500", "58500"),
    ("x=1 \\text{ or } x=-2", "1,-2"),
    ("3+4\\cdot i", "3+4i"),
    ("\\varnothing", "\\emptyset"),
    ("x<2 \\text{ or } x>3", "(-\\infty,2)\\cup(3,\\infty)"),
    ("1+2i, 1-2i", "1-2i, 1+2i"),
    ("(0.000000002, \\infty)", "(2\\times 10^{-9}, \\infty)"),
    ("x<2 or x \\ge 3", "(-\\infty,2)\\cup[3,\\infty)"),
    ("(-\\infty,2) \\text{ or } (3,\\infty)", "(-\\infty,2)\\cup(3,\\infty)"),
    ("x \\in (-\\infty,2)\\cup(3,\\infty)", "(-\\infty,2)\\cup(3,\\infty)"),
    ("\\sqrt{1/n}", "\\frac{1}{\\sqrt{n}}"),
    ("\\sqrt{\\frac{a}{b}}", "\\frac{\\sqrt{a}}{\\sqrt{b}}"),
    ("2, 4, ..., 2n", "2,4,\\ldots,2n"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_answers_that_mean_the_same_are_equal(one: str, other: str) -> None:
    assert Expression(one) == Expression(other) and Expression(other) == Expression(one)
    assert (Expression(one) != Expression(other)) is False and hash(Expression(one)) == hash(Expression(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\\frac{1}{2}", "\\frac{1}{3}"),
        ("\\frac{1}{3}", "0.33"),
        ("5", "-5"),
        ("5", "\\frac{1}"),
        ("50\\%", "0.5"),
        ("0.75\\%", "\\frac34"),
        ("1000000000000000000", "1000000000000000001"),
        ("0", "0.0000001"),
        ("(1,2)", "(2,1)"),
        ("[1,2)", "[1,2]"),
        ("(1,2)", "\\{1,2\\}"),  # which math-verify takes for equal
        ("2516_8", "2516_9"),  # so it does these
        ("5", "2x+z=5"),  # and these, in one direction
        ("(2,1)", "1,2"),
        ("1,2", "1,2,3"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
        ("\\text{even}", "\\text{odd}"),
        ("x+1", "y+1"),
        ("x^2", "x^3"),
        ("\\pi", "3.14"),
        ("7", "7:30"),
        (".0000674", ".0000672"),
        ("6.7\\times 10^{-5}", ".0000672"),
        ("0.000000002", "0.000000001"),
        ("\\frac{1}{2^{61}}", "\\frac{1}{2^{60}}"),
        ("\\frac{1}{3^{40}}", "0"),
        ("(0.000000002, 1)", "(0.000000001, 1)"),
        ("\\{0.000000002, 1\\}", "\\{0.000000001, 1\\}"),
        ("(0.000000002, \\infty)", "(0.000000001, \\infty)"),
        ("(1, \\infty)", "(1, 10^{40})"),
        ("\\begin{pmatrix}0.000000002\\\\1\\end{pmatrix}", "\\begin{pmatrix}0.000000001\\\\1\\end{pmatrix}"),
        ("\\frac{1}{0}", "5"),
        ("2, 6, \\ldots, 2n", "2, 4, \\ldots, 2n"),
        ("2, 4, \\ldots, 2n", "2"),
        ("2+3=9", "9"),
        ("2+3=9", "5"),
        ("[2,5]", "(2,5)"),
        ("(-2,1)", "-2,1"),
        ("x<2 \\text{ or } x>3", "(2,3)"),
        ("x<2 \\text{ or } x>3", "2,3"),
        ("\\sqrt{x^2}", "x"),
        ("\\sqrt{x}", "-\\sqrt{x}"),
        ("6xy", "6"),
        ("2\\sin x", "2"),
        ("5x", "5"),
        ("x=5", "y=5"),
    ],
)
def test_answers_that_differ_are_not_equal(one: str, other: str) -> None:
    assert Expression(one) != Expression(other) and Expression(other) != Expression(one)


def test_votes_group_equal_answers_however_they_are_written() -> None:
    counts = Counter(map(Expression, ["\\frac12", "0.5", "1/2", "2", "\\dfrac{1}{2}", "2.0"]))
    assert sorted(counts.values()) == [2, 4]
    texts = [Text((1,), f"\\boxed{{{x}}}", -1.0, True) for x in ("0.5", "\\frac12", "3", "\\frac{2}{4}")]
    assert votes(lambda text: TASK.extract(QUESTION, text), texts)[Expression("1/2")] == 3
    rewards = agreement_share(TASK.extract, pool="step")(QUESTION, texts, None)  # type: ignore[arg-type]
    assert rewards == [0.75, 0.75, 0.25, 0.75]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Final Answer: The final answer is $0.75$. I hope it is correct.", True),
        ("$\\boxed{\\frac34}$", True),
        ("$\\boxed{75\\%}$", False),
        ("First \\boxed{0.75}, but no: \\boxed{0.8}", False),  # math-verify alone takes any expression of a text
        ("It is 0.75.", True),
        ("\\boxed{0.8}, or 0.75.", False),
        ("", False),
    ],
)
def test_the_right_answer_is_read_from_the_solution(text: str, right: bool) -> None:
    row = {"problem": "…", "solution": "It is $\\boxed{\\frac{3}{4}}.$", "answer": "lm-eval's own normal form"}
    assert TASK.grade(Problem("p", "", doc=row), text) is right


def test_a_row_without_a_solution_is_graded_by_its_answer_and_one_without_both_is_named() -> None:
    assert TASK.grade(Problem("p", "", doc={"answer": "\\frac{3}{4}"}), "\\boxed{0.75}")
    with pytest.raises(InputError, match=r"a row of math500 has no solution with a \\boxed answer"):
        TASK.grade(Problem("p", "", doc={"problem": "?"}), "\\boxed{0.75}")


def test_answers_can_be_journalled_and_read_again() -> None:
    answer = TASK.extract(QUESTION, "\\boxed{\\frac12}")
    assert json.loads(json.dumps(answer)) == answer == "\\frac12"
    assert answer != "0.5" and answer is not None


def test_what_takes_too_long_is_equal_to_nothing_else_and_costs_its_time_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "SECONDS", 1)
    asked: list[Any] = []
    plain = expressions._verified
    monkeypatch.setattr(expressions, "_verified", lambda *both: asked.append(both) or plain(*both))
    tower = Expression("9^{9^{9^9}}")
    assert all(tower != Expression(str(n)) for n in range(100, 120))
    assert tower == Expression("9^{9^{9^9}}.")
    assert sum("9**9" in str(both[1]) for both in asked) <= 1  # none where reading it alone took too long
    assert expressions._read(str(tower)) == ()


def test_seconds_in_which_the_processor_was_elsewhere_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    from math_verify.errors import TimeoutException

    def work(limit: int | None) -> int | None:
        if limit is not None and limit < 4:
            raise TimeoutException
        return limit

    monkeypatch.setattr(expressions, "SECONDS", 1)
    assert expressions._limited(work) == 4
    own = map(float, range(9))
    monkeypatch.setattr(expressions, "time", SimpleNamespace(thread_time=own.__next__))
    with pytest.raises(TimeoutException):
        expressions._limited(work)
    assert next(own) == 2.0  # asked once


def test_what_is_loaded_first_counts_for_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reading takes seconds; without a limit of its own, a busy machine would call the first answer wrong."""
    import math_verify

    parse, limits = math_verify.parse, list[int]()
    monkeypatch.setattr(
        math_verify,
        "parse",
        lambda text, **options: limits.append(options["parsing_timeout"]) or parse(text, **options),
    )
    expressions._math_verify.cache_clear()
    assert expressions._read("\\frac{7}{9}")
    assert limits == [expressions.LOADING_SECONDS, expressions.SECONDS]
    expressions._math_verify.cache_clear()


def test_long_answers_are_compared_as_they_are_written() -> None:
    long = "+".join(["x"] * 300)
    assert Expression(long) == Expression(long + ".") and Expression(long) != Expression("300x")


def test_answers_are_compared_outside_of_the_main_thread_too() -> None:
    found: list[bool] = []
    pairs = [("17/34", "\\frac{17}{34}"), ("18/36", "0.51")]
    thread = threading.Thread(target=lambda: found.extend(Expression(a) == Expression(b) for a, b in pairs))
    thread.start()
    thread.join()
    assert found == [True, False]


def test_a_missing_math_verify_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"math-verify is not installed; in the folder of ets, run: pip install .*\[benchmarks\]"
    ):
        _ = Expression("1234567/2") == Expression("617283.5")


def test_naming_the_task_imports_neither_math_verify_nor_sympy() -> None:
    code = (
        "import ets.tasks as t, sys; t.task_named('math500'); print({'math_verify', 'sympy', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
