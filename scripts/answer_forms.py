"""How many answers of GSM8K and MATH-500 are read wrongly, by the form in which a model writes them.

    python scripts/answer_forms.py --data ../shared/data [--pairs 40000]

Each right answer of the two test sets is written in each form below, and graded. Then answers of MATH-500 that are
written differently are compared with each other, and the pairs that count as equal are printed, to be looked at.
Texts are made here; no model is needed.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

from ets.tasks import task_named
from ets.tasks.expressions import Expression
from ets.tasks.latex import last_boxed
from ets.types import Problem

COT = "There are 3 parts. First we take 12 of them, then 4 more, so 12 + 4 = 16.\n"
"""Thoughts with numbers that are not the answer."""

SHARED = {
    "box": r"{c}So we get $\boxed{{{a}}}$.",
    "box, display": "{c}Therefore\n\\[\n\\boxed{{{a}}}\n\\]",
    "box, then text": r"{c}So $\boxed{{{a}}}$. (As asked for, it stands inside \boxed{{}}, in step 9.)",
    "fbox": r"{c}$\fbox{{{a}}}$",
    "framebox": r"{c}$\framebox{{{a}}}$",
    "box without its backslash": "{c}The result is boxed{{{a}}}",
    "box with spaces": r"{c}$\boxed{{\ {a}\,}}$",
    "box with a full stop": r"{c}$\boxed{{{a}.}}$",
    "box, bold inside": r"{c}$\boxed{{\mathbf{{{a}}}}}$",
    "box, boldsymbol inside": r"{c}$\boxed{{\boldsymbol{{{a}}}}}$",
    "box, coloured inside": r"{c}$\boxed{{\color{{red}}{{{a}}}}}$",
    "two boxes": r"{c}First $\boxed{{7777}}$, but no: $\boxed{{{a}}}$",
    "answer is": "{c}The answer is ${a}$.",
    "final answer is, I hope": "{c}Final Answer: The final answer is ${a}$. I hope it is correct.",
    "answer is, then text": "{c}The answer is ${a}$, which is more than we thought in step 2.",
    "answer would be": "{c}So the answer would be ${a}$.",
    "answer, bold label": "{c}**Answer:** ${a}$",
    "answer, bold": "{c}**Answer: ${a}$**",
    "answer, parentheses": "{c}Answer: \\({a}\\)",
    "answer, without dollars": "{c}Answer: {a}",
    "answer, next line": "{c}The final answer is:\n\n${a}$",
    "answer, display": "{c}The final answer is:\n\\[\n{a}\n\\]",
    "answer, double dollars": "{c}The final answer is\n$$\n{a}\n$$",
    "heading": "{c}### Final Answer\n${a}$",
    "heading, bold": "{c}**Final Answer**\n\n${a}$",
    "answer tags": "{c}<answer>\n{a}\n</answer>",
    "thinking, then a box": "<think>{c}Is it \\boxed{{7777}}?</think>\n\n$\\boxed{{{a}}}$",
    "thinking without its opening tag": "{c}The answer is 7777.\n</think>\n\nThe answer is ${a}$.",
    "another family's end token": "{c}The answer is ${a}$<|eot_id|>",
}
MATH = SHARED | {
    "box with a unit": r"{c}$\boxed{{{a}\text{{ units}}}}$",
    "box of a value with a name": r"{c}$\boxed{{f(3) = {a}}}$",
    "answer after an equals sign": "{c}The answer is $x = {a}$.",
}
NUMBERS = {
    **SHARED,
    **{f"{name}, then a number": form + "\n\nThat was checked in 2 ways." for name, form in SHARED.items()},
    "####": "{c}#### {a}",
    "#### with a dollar sign": "{c}#### ${a}",
    "#### after headings": "#### 1. First\n{c}#### {a}",
    "box with a unit": r"{c}$\boxed{{{a}\text{{ apples}}}}$",
    "box with thin groups": r"{c}$\boxed{{{thin}}}$",
    "answer with groups": "{c}The answer is {grouped}.",
    "answer with blanks between groups": "{c}The answer is {blank}.",
    "answer with narrow blanks between groups": "{c}The answer is {narrow}.",
    "answer in dollars": "{c}The answer is ${a}.00.",
    "answer with a unit": "{c}The answer is {a} apples in 3 bags.",
    "answer in a chain": "{c}The answer is 3 + {less} = {a}.",
    "bold, then text": "**{a}** apples. (16 - 3 - 4 = 9, then twice.)",
    "the last number": "{c}So she has {a} of them.",
    "Ans:": "{c}Ans: {a}",
    "A:": "{c}A: {a}",
    "arrow": "{c}The answer → {a}",
}

COLUMNS = {"gsm8k": "answer", "math500": "solution"}
"""Where a row of each task has its solution."""


def golds(data: Path) -> dict[str, list[tuple[dict[str, Any], str]]]:
    """By task, each row and its right answer as it is written in it."""
    found = {}
    for task, read in (("gsm8k", _hashes), ("math500", last_boxed)):
        lines = (data / task / "test.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        found[task] = [(row, str(read(row[COLUMNS[task]]))) for row in rows]
    return found


def _hashes(answer: str) -> str:
    return answer.rpartition("####")[2].strip().replace(",", "")


def written(form: str, answer: str) -> str:
    """A text in a form of this module."""
    fields = {"a": answer, "c": COT}
    if re.fullmatch(r"-?\d+", answer):
        number = int(answer)
        groups = f"{number:,}"
        fields |= {"grouped": groups, "blank": groups.replace(",", " "), "narrow": groups.replace(",", "\u202f")}
        fields |= {"thin": groups.replace(",", r"\,"), "less": str(number - 3)}
    return form.format(**fields)


def failures(
    rows: list[tuple[dict[str, Any], str]], forms: Mapping[str, str], right: Callable[[dict[str, Any], str], bool]
) -> Iterator[tuple[str, list[str]]]:
    """By form, the answers that are not read from it."""
    for name, form in forms.items():
        fitting = [(row, answer) for row, answer in rows if _fits(name, answer)]
        yield name, [answer for row, answer in fitting if not right(row, written(form, answer))]


def _fits(name: str, answer: str) -> bool:
    """Whether an answer can be written so: no word has a unit, or equals x."""
    return not (
        ("unit" in name or "equals" in name or "value" in name) and re.search(r"\\text\{[(a-zA-Z]|=|\\in", answer)
    )


def equal_pairs(answers: list[str], most: int) -> tuple[int, list[tuple[str, str]]]:
    """How many pairs of answers that are written differently were compared, and the pairs that are equal."""
    pairs = [
        pair for pair in combinations(sorted(set(answers)), 2) if not all(re.fullmatch(r"-?\d+", each) for each in pair)
    ]
    chosen = pairs[:: max(1, len(pairs) // most)] if most < len(pairs) else pairs
    return len(chosen), [pair for pair in chosen if Expression(pair[0]) == Expression(pair[1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with gsm8k/ and math500/")
    parser.add_argument("--pairs", type=int, default=40_000, help="how many pairs to compare, 0 for none")
    asked = parser.parse_args()
    rows = golds(asked.data)
    for name, forms in (("gsm8k", NUMBERS), ("math500", MATH)):
        task, begun, total = task_named(name), time.monotonic(), Counter[str]()
        right = lambda row, text, task=task: task.grade(Problem("p", "", doc=row), text)  # noqa: E731
        own = [answer for row, answer in rows[name] if not right(row, row[COLUMNS[name]])]
        print(f"{name}: {len(own)} of {len(rows[name])} answers are not read from their own solutions")
        print(f"{name}: {len(rows[name])} answers in {len(forms)} forms; not read:")
        for form, wrong in failures(rows[name], forms, right):
            total["wrong"] += len(wrong)
            print(f"  {len(wrong):5d}  {form}  {'; '.join(wrong[:15])}", flush=True)
        print(f"  {total['wrong']:5d}  in all ({time.monotonic() - begun:.0f} s)")
    if asked.pairs:
        begun = time.monotonic()
        count, equal = equal_pairs([answer for _, answer in rows["math500"]], asked.pairs)
        print(f"{count} pairs of answers that are written differently, {len(equal)} of them equal:")
        for one, other in equal:
            print(f"  {one}   =   {other}")
        print(f"({time.monotonic() - begun:.0f} s)")


if __name__ == "__main__":
    main()
