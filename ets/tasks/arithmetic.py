"""The embedded arithmetic word problems, in GSM8K's format.

An example row::

    question: Nora has 22 stickers. She buys 4 jars with 5 stickers each. How many stickers does Nora have now?
    answer:   She gets <<5*4=20>>20 stickers.
              Now she has <<22+20=42>>42 stickers.
              #### 42
"""

from __future__ import annotations

import re
from itertools import islice

from ets.demo.family import HELDOUT_SIZE, ProblemFamily, Row
from ets.demo.stories import STORIES
from ets.demo.sums import SUMS
from ets.thinking import THINKING, Tags, after_thinking
from ets.types import InputError, Problem

SHOTS_SEED = 1
"""Worked examples come from the training problems of this seed."""


class Arithmetic:
    """Held-out problems of `ets.demo.stories`; an answer is the whole number after `####`."""

    name = "arithmetic"
    family: ProblemFamily = STORIES
    thinking: Tags | None = THINKING
    """The tags around thinking sections, which hold no answers, or None."""

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        if shots is not None and shots < 0:
            raise InputError(f"shots is {shots}; it must be 0 or more")
        solved = islice(self.family.training(SHOTS_SEED), shots or 0)
        examples = "".join(f"{prompt_of(row)}{completion_of(row)}\n\n" for row in solved)
        return [
            Problem(
                f"{self.name}-{number}",
                examples + prompt_of(row),
                ("\n\nQuestion:",),
                {"answer": number_after_mark(row.answer)},
                thinking=self.thinking,
            )
            for number, row in enumerate(self.family.heldout(HELDOUT_SIZE if count is None else count))
        ]

    def extract(self, problem: Problem, text: str) -> int | None:
        return number_after_mark(after_thinking(text, self.thinking) or "")

    def grade(self, problem: Problem, text: str) -> bool:
        return self.extract(problem, text) == problem.doc["answer"]


class Sums(Arithmetic):
    """Held-out problems of `ets.demo.sums`: shorter problems, for the embedded masked-diffusion model."""

    name = "sums"
    family = SUMS


def number_after_mark(text: str) -> int | None:
    found = re.search(r"####\s*(-?\d{1,18})(?![\d.,]*\d)", text)
    return int(found.group(1)) if found else None


def prompt_of(row: Row) -> str:
    return f"Question: {row.question}\nAnswer:"


def completion_of(row: Row) -> str:
    return f" {row.answer}"
