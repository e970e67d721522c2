"""GSM8K: school word problems, whose answer is a number.

An example row (invented, in the dataset's format)::

    question: A crate holds 1,200 nails. Ida sells 3 crates at $4 each. How many dollars does she get?
    answer:   She sells 3 crates at $4 each.
              So she gets 3*4=$<<3*4=12>>12.
              #### 12
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from ets.tasks.latex import last_boxed
from ets.tasks.task import Benchmark
from ets.types import Problem

_NUMBER = r"(?P<number>(?:(?<![\w)])[-+])?[$€£]?(?:(?<![\w)])-)?\.?\d[\d,./:]*(?:\s\d+/\d+)?)"
_OPENING = r"[\s*_$€£\\(\[{:=]*?"
_HASHES = re.compile(rf"####{_OPENING}{_NUMBER}")
_STATED = re.compile(rf"answer[\s*_]*(?:is|:|=){_OPENING}{_NUMBER}", re.IGNORECASE)
_ANYWHERE = re.compile(_NUMBER)
_PLAIN = re.compile(r"(?:(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?|(?P<plus>\d+\s)?(?P<over>\d+/\d+))")
DIGITS = 40
"""Longer numbers are no answers."""


class Gsm8k(Benchmark):
    """A number, whatever it is written like: `$1,200.00` is 1200 and `25%` is 25, and a unit behind it does not count.

    The first of these that holds a number decides: the first ``####``, the last ``\\boxed{}``, the last "answer is",
    the last number in the text (lm-eval's flexible-extract).
    """

    name = "gsm8k"
    lm_eval = "gsm8k"

    def extract(self, problem: Problem, text: str) -> int | float | None:
        found = reading(text)
        return found[1] if found else None

    def truth(self, row: Mapping[str, Any]) -> int | float:
        found = reading(str(row.get("answer", "")))
        if found is None or found[0] != "####":
            raise self.no_truth(row, "answer that ends in '#### n'")
        return found[1]


def reading(text: str) -> tuple[str, int | float] | None:
    """The answer in a text, and where it was found: "####", "boxed", "answer is" or "last number"."""
    plain = _plain(text)
    for place, numbers in (
        ("####", _HASHES.finditer(plain)),
        ("boxed", _boxed(plain)),
        ("answer is", reversed(list(_STATED.finditer(plain)))),
        ("last number", list(_ANYWHERE.finditer(plain))[-1:]),
    ):
        for found in numbers:
            value = value_of(found["number"])
            if value is not None:
                return place, value
    return None


def _plain(text: str) -> str:
    r"""The text with typographic minus signs, ``\$``, ``{,}``, thin spaces and ``\frac{1}{2}`` written plainly."""
    for written, plain in (("−", "-"), ("\\$", "$"), ("{,}", ","), ("\\!", ""), ("\\,", ",")):
        text = re.sub(r"(?<=\d)\\,(?=\d{3})", ",", text) if written == "\\," else text.replace(written, plain)
    return re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", text)


def _boxed(text: str) -> list[re.Match[str]]:
    """The number in the last box, if it holds no more than one."""
    numbers = list(_ANYWHERE.finditer(last_boxed(text) or ""))
    return numbers if len(numbers) == 1 else []


def value_of(number: str) -> int | float | None:
    """The value of a number with an optional sign, currency, thousands separators and fraction; None for others."""
    body = number.strip("+-$€£").rstrip(",.:/")
    found = _PLAIN.fullmatch(body) if 0 < len(body) <= DIGITS else None
    if found is None:
        return None
    try:
        value = Fraction(f"{found['whole'] or 0}{found['decimals'] or ''}".replace(",", ""))
        value += int(found["plus"] or 0) + Fraction(found["over"] or 0)
    except ZeroDivisionError:
        return None
    if "-" in number:
        value = -value
    return int(value) if value.denominator == 1 else float(value)
