"""Fixed rewards for the embedded problems, named as `benchmarks/demo_rewards.py:graded` in a command."""

from __future__ import annotations

import operator
import re
from statistics import fmean

from ets.rewards import verifier
from ets.tasks import Arithmetic
from ets.types import Reward

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
CALCULATION = re.compile(r"(\d+)([-+*])(\d+)=(\d+)")


def graded(prompt: str, text: str) -> float:
    """The share of these that hold, from 0 to 1: each calculation, each number of the question used, the last line.

    It does not know the answer.
    """
    calculations = CALCULATION.findall(text)
    used = re.findall(r"\d+", text)
    checks = [OPERATIONS[sign](int(a), int(b)) == int(result) for a, sign, b, result in calculations]
    checks += [number in used for number in re.findall(r"\d+", prompt)]
    checks += [bool(calculations) and text.strip().split("\n")[-1] == f"#### {calculations[-1][3]}"]
    return fmean(checks)


def about(prompt: str, text: str) -> float:
    """The share of a question's numbers, and its thing, that a text repeats: 1 for an answer to this question."""
    (thing,) = re.findall(r"How many (\w+) does", prompt)
    numbers = set(re.findall(r"\d+", text))
    return fmean([thing in text, *(number in numbers for number in re.findall(r"\d+", prompt))])


right_answer: Reward = verifier(Arithmetic().extract, lambda problem, answer: answer == problem.doc["answer"])
"""1 for the right answer, which the reward knows, and 0 for another one."""
