"""The answer in a text, by the one ladder that all benchmarks share."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ets.sandbox.code_answers import program_of
from ets.tasks import Aime24, Aime25, Benchmark, Gpqa, Gsm8k, Math500
from ets.tasks.expressions import Expression
from ets.types import Problem

CASES = Path(__file__).parents[3] / "shared" / "cases" / "answers.jsonl"
TASKS: dict[str, Benchmark] = {
    "gsm8k": Gsm8k(),
    "math500": Math500(),
    "aime24": Aime24(),
    "aime25": Aime25(),
    "gpqa": Gpqa(),
}
QUESTION = Problem("p", "…")
PROMPT = 'def add(x, y):\n    """The sum of x and y."""\n'


def _cases() -> Iterator[Any]:
    if not CASES.exists():
        yield pytest.param({}, marks=pytest.mark.skip(reason=f"no {CASES.name} in ../shared/cases"))
        return
    for number, line in enumerate(CASES.read_text(encoding="utf-8").splitlines(), 1):
        case = json.loads(line)
        yield pytest.param(case, id=f"{case['task']}-{number}-{case['kind'].replace(' ', '-')}")


@pytest.mark.parametrize("case", _cases())
def test_reported_texts_are_read_as_a_person_reads_them(case: dict[str, str]) -> None:
    if case["task"] == "humaneval":
        scope: dict[str, Any] = {"__name__": "answer"}
        exec(program_of(PROMPT, "add", case["text"]) or "", scope)
        assert case["want"] == "passes" and scope["add"](2, 3) == 5 and scope["add"](-1, 3) == 2
        return
    answer = TASKS[case["task"]].extract(QUESTION, case["text"])
    if "gold" in case:
        assert (answer is not None and answer == Expression(case["gold"])) is (case["want"] == "right")
    else:
        assert ("none" if answer is None else str(answer)) == case["want"]


THOUGHTS = [
    ("<think>It is 7, I think.</think>\nThe answer is 5.", "5"),
    ("<think>7</think>\n<think>8</think> The answer is 5", "5"),
    ("It is 7, I think.\n</think>\n\nThe answer is 5.", "5"),  # the opening tag stood in the prompt
    ("The answer is 7.\n<think>Or is it", None),
    ("<think>\\boxed{7} The answer is 7.", None),
]


@pytest.mark.parametrize("name", ["gsm8k", "math500", "aime24"])
@pytest.mark.parametrize(("text", "answer"), THOUGHTS)
def test_what_was_thought_is_no_answer(name: str, text: str, answer: str | None) -> None:
    found = TASKS[name].extract(QUESTION, text)
    assert (None if found is None else str(found)) == answer


def test_a_section_that_the_prompt_opened_and_nothing_closed_holds_no_answer() -> None:
    opened = Problem("p", "Which?<|assistant|><think>\n")
    assert Gpqa().extract(opened, "The answer is A. Or") is None
    assert Gpqa().extract(opened, "The answer is A. Or</think>The answer is B") == "B"
    assert Gpqa().extract(Problem("p", "Think in <think> tags."), "The answer is A") == "A"


def test_the_tags_are_a_setting_of_the_task() -> None:
    own, none = Gsm8k(), Gsm8k()
    own.thinking, none.thinking = ("[THINK]", "[/THINK]"), None
    text = "[THINK]The answer is 7[/THINK]<think>The answer is 8.</think> It is so."
    assert (own.extract(QUESTION, text), none.extract(QUESTION, text), Gsm8k().extract(QUESTION, text)) == (8, 8, None)
    assert own.extract(QUESTION, "[THINK]7") is None and none.extract(QUESTION, "<think>7") == 7


ANY = {"gsm8k": "5", "math500": "5", "aime24": "5", "gpqa": "B"}
STATED = [
    "The answer is {}",
    "The answer is {}.",
    "the answer is: {}",
    "Thus, the final answer is **{}**.",
    "ANSWER: {}",
    "**Answer:** {}",
    "**Answer: {}**",
    "Answer = {}",
    "Answer: ${}$",
    "Answer: \\({}\\)",
    "Answer:\n\n{}",
    "Answer:\n\\[\n{}\n\\]",
    "Answer:\n$$\n{}\n$$",
    "## Final Answer\n\n{}\n",
    "**Final Answer**\n{}",
    "<answer>{}</answer>",
    "<answer>\n{}\n</answer>\nthat is all",
    "The correct answer would be {}.",
    "The answer must be {}, as we saw in step 9.",
    "The answer is therefore {} (by part 2).",
    "The answer to the whole question is {}.",
    "The answer → {}",
    "Ans: {}",
    "A: {}",
    "The answer is 77777 or so. No: the answer is {}. The answer is nice.",
    "The answer is {}<|im_end|>\n<|im_start|>user\nThe answer is 6",
    "<|im_start|>assistant\nThe answer is {}</s>",
    "The answer is 6. So $\\boxed{{{}}}$",
    "\\boxed{{{}}} The answer is 6.",
    "\\boxed{{\\text{{{}}}}}",
    "\\boxed{{{}}}, in a \\boxed{{}} as you wished, or \\boxed{{...}}",
]


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("form", STATED)
def test_a_statement_is_found_however_it_is_set(name: str, form: str) -> None:
    assert str(TASKS[name].extract(QUESTION, form.format(ANY[name]))) == ANY[name]


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("gsm8k", "The answer is in step 2: 7", 7),
        ("gsm8k", "The answer is a whole number. 7", 7),
        ("aime24", "The answer is a whole number, 7.", None),
        ("aime24", "The answer is 3 + 4, so 7", None),
        ("gpqa", "The answer is a neutron (B)", "B"),
        ("math500", "The answer is an integer. So $x = 7$", "x = 7"),
        ("math500", "The final answer is $x +", None),
    ],
)
def test_what_is_stated_counts_only_if_all_of_it_is_an_answer(name: str, text: str, answer: object) -> None:
    assert TASKS[name].extract(QUESTION, text) == answer


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(
    "part",
    [
        "The answer is ",
        "answer to be ",
        "\\boxed{",
        "**",
        "#### 1 ",
        "so ",
        "(A) ",
        "A: ",
        "<answer>",
        "12 ",
        "\n",
        "$x$ ",
        "= ",
    ],
)
def test_a_long_text_is_read_in_bounded_time(name: str, part: str) -> None:
    begun = time.process_time()
    TASKS[name].extract(QUESTION, part * (30_000 // len(part)))
    assert time.process_time() - begun < 20
