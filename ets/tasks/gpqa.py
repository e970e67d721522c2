"""GPQA Diamond: questions by experts of physics, chemistry and biology, with four choices.

An example row (invented, in the dataset's format; the other columns are not used)::

    Question:           Which of these particles carries no electric charge?
    Correct Answer:     the neutron
    Incorrect Answer 1: the proton
    Incorrect Answer 2: the muon
    Incorrect Answer 3: the positron

and as lm-eval passes it on, with the choices shuffled::

    choice1: the muon
    choice2: the neutron
    choice3: the positron
    choice4: the proton
    choices: [the muon, the neutron, the positron, the proton]
    answer:  (B)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from ets.tasks.latex import last_boxed
from ets.tasks.task import Benchmark
from ets.types import Problem

COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")

_LETTER = r"(?:\(\s*(?P<in>[A-Da-d])\s*\)|(?P<bare>[A-D])(?![A-Za-z'’]|\s+(?!because|since|as|and|with|for)[a-z]))"
_ALONE = r"(?!\s*(?:and|or|,|/|&)\s*\(?[A-D]\b)"
_WRAPPING = r"[\s*_:$\\\"'{\[]*(?:(?:text|textbf|mathbf|mathrm)\s*\{\s*)?"
_STATED = re.compile(
    rf"\b(?i:answer|choice|option)[\s*_]*(?:(?i:is)\b|:)(?:[\s*_]*(?i:option|choice)\b)?{_WRAPPING}{_LETTER}{_ALONE}"
)
_BOXED = re.compile(rf"{_WRAPPING}{_LETTER}{_ALONE}")
_FIRST = re.compile(rf"[\s*_]*(?:\((?P<in>[A-D])\)|(?P<bare>[A-D])(?=[\s*_]*(?:[).:,\n]|$))){_ALONE}")
_BRACKETED = re.compile(r"\((?P<in>[A-D])\)(?P<bare>)")


class Gpqa(Benchmark):
    r"""A letter from A to D.

    The first of these that is there decides: a letter in the last ``\boxed{}``; the last "answer is (B)" or
    "Answer: B"; a letter that the text begins with; the last "(B)" in it (lm-eval's flexible-extract). A choice that
    is spelled out, without its letter, is no answer.
    """

    name = "gpqa"
    lm_eval = "gpqa_diamond_generative_n_shot"

    def extract(self, problem: Problem, text: str) -> str | None:
        boxed = _BOXED.match(last_boxed(text) or "")
        stated, bracketed = list(_STATED.finditer(text)), list(_BRACKETED.finditer(text))
        for found in (boxed, *stated[-1:], _FIRST.match(text), *bracketed[-1:]):
            if found:
                return (found["in"] or found["bare"]).upper()
        return None

    def truth(self, row: Mapping[str, Any]) -> str:
        found = re.fullmatch(r"\(([A-D])\)", str(row.get("answer", "")).strip())
        if found is None:
            raise self.no_truth(row, "answer (A) to (D)")
        return found.group(1)


def process_docs(dataset: Any) -> Any:
    """For lm-eval, whose own shuffle depends on the state of a global generator: choices in a fixed order."""
    return dataset.map(shuffled)


def shuffled(row: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a row in an order that a hash of its texts decides, and the right one's letter."""
    texts = [_clean(row[column]) for column in COLUMNS]
    question = str(row["Question"])
    choices = sorted(texts, key=lambda text: hashlib.sha256(f"{question}\0{text}".encode()).digest())
    letter = "ABCD"[choices.index(texts[0])]
    return {f"choice{n}": text for n, text in enumerate(choices, 1)} | {"choices": choices, "answer": f"({letter})"}


def _clean(text: Any) -> str:
    """A choice as lm-eval shows it."""
    return " " if text is None else str(text).strip().replace(" [title]", ". ").replace("  ", " ")
