"""GPQA Diamond: questions by experts of physics, chemistry and biology, with four choices.

An example row (invented, in the dataset's format; the other columns are not used)::

    Question:           Which of these particles carries no electric charge?
    Correct Answer:     the neutron
    Incorrect Answer 1: the proton
    Incorrect Answer 2: the muon
    Incorrect Answer 3: the positron

and as lm-eval passes the row on, with the choices shuffled::

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

from ets.tasks.latex import in_words, undecorated
from ets.tasks.task import AnswerBenchmark

COLUMNS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")

_OTHERS = r"(?!\s*(?:and|or|,|/|&)\s*(?:\(?[A-D](?![a-zA-Z])|$))"
_LETTER = (
    rf"(?:\(\s*(?P<in>[A-Da-d])\s*\)|(?P<bare>[A-D])(?=\s*(?:$|[).:,])|\s+(?:because|since|as|with|for)\b)){_OTHERS}"
)
_WHOLE = re.compile(
    rf"(?i:(?:the\s+)?(?:(?:correct|right)\s+)?(?:option|choice|answer|letter)\s*:?\s*)?{_LETTER}.*", re.DOTALL
)
_QUOTED = r"[ \t*_$\"']*"
_ONE = rf"{_QUOTED}(?:(?i:option|choice|answer)\s{_QUOTED})?(?:\((?P<in>[A-D])\)|(?P<bare>[A-D]))[*_$\"']*"
_DENIED = r"(?:not|never|hardly|partly|partially|less|least|neither)\b"
_CONCLUDED = re.compile(
    rf"""
    (?:\b(?i:so|hence|thus|therefore)\b,?|\b(?i:option|choice|answer)|^){_ONE}\s+(?:is|must\s+be)\s+(?:the\s+)?
    (?:(?!{_DENIED})\w+\s+)?(?:correct|right|best|true)\b
    """,
    re.VERBOSE | re.MULTILINE,
)
_CHOSEN = re.compile(
    rf"""
    (?i:(?<!neither\s)(?<!nor\s))\b(?i:so|hence|thus|therefore|is|choose|pick|select|go\s+with|leaves|it['’]s),?(?:\s+the)?\s{_ONE}(?=[*_\s]*(?:[.;](?:\s|$)|$))
    """,
    re.VERBOSE | re.MULTILINE,
)
_FIRST_LINE = re.compile(r"[\s*_]*(?:\((?P<in>[A-D])\)|(?P<bare>[A-D]))[*_.): ]*(?:\n|$)")
_FIRST = re.compile(rf"[\s*_]*(?:\((?P<in>[A-D])\)|(?P<bare>[A-D])(?=[\s*_]*[).:,])){_OTHERS}")
_LATER = re.compile(r"\((?P<in>[A-D])\)|(?<![\w-])(?P<bare>[B-D])(?![\w=-])|^\s*(?P<listed>A)[).:]", re.MULTILINE)
_BRACKETED = re.compile(r"\((?P<in>[A-D])\)(?P<bare>)")


class Gpqa(AnswerBenchmark):
    r"""A letter from A to D.

    The first place that holds a letter decides: a letter in the last ``\boxed{}``; the last "answer is (B)" or
    "Answer: B"; a letter at the beginning, unless the text discusses another letter afterwards; the last "So B is
    correct" or "I choose B"; the last "(B)" (lm-eval's flexible-extract). A choice that is spelled out, without its
    letter, is no answer, and neither is a letter in C60 or D-glucose.
    """

    name = "gpqa"
    lm_eval = "gpqa_diamond_generative_n_shot"

    def whole(self, stated: str) -> str | None:
        return _letter(_WHOLE.fullmatch(in_words(undecorated(stated)).strip("[]{}'\"! ")))

    def fallback(self, text: str) -> str | None:
        alone = _FIRST_LINE.match(text)
        concluded = sorted([*_CONCLUDED.finditer(text), *_CHOSEN.finditer(text)], key=lambda found: found.end())
        bracketed = list(_BRACKETED.finditer(text))
        found = (alone, *concluded[-1:], _first(text), *bracketed[-1:])
        return next((_letter(each) for each in found if each), None)

    def truth(self, row: Mapping[str, Any]) -> str:
        found = re.fullmatch(r"\(([A-D])\)", str(row.get("answer", "")).strip())
        if found is None:
            raise self.no_truth(row, "answer (A) to (D)")
        return found.group(1)


def _letter(found: re.Match[str] | None) -> str | None:
    return (found["in"] or found["bare"]).upper() if found else None


def _first(text: str) -> re.Match[str] | None:
    """The letter at the beginning of a text, if the text discusses no other letter."""
    found = _FIRST.match(text)
    if found is None:
        return None
    others = (later["in"] or later["bare"] or later["listed"] for later in _LATER.finditer(text, found.end()))
    return None if any(other != _letter(found) for other in others) else found


def process_docs(dataset: Any) -> Any:
    """For lm-eval: choices in a fixed order. (The shuffle of lm-eval depends on a global random generator.)"""
    return dataset.map(shuffled)


def shuffled(row: Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a row in the order of their hashes, and the letter of the right choice."""
    texts = [_clean(row[column]) for column in COLUMNS]
    question = str(row["Question"])
    choices = sorted(texts, key=lambda text: hashlib.sha256(f"{question}\0{text}".encode()).digest())
    letter = "ABCD"[choices.index(texts[0])]
    return {f"choice{n}": text for n, text in enumerate(choices, 1)} | {"choices": choices, "answer": f"({letter})"}


def _clean(text: Any) -> str:
    """A choice as lm-eval shows it."""
    return " " if text is None else str(text).strip().replace(" [title]", ". ").replace("  ", " ")
