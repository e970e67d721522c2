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

from ets.tasks.answers import last_stated
from ets.tasks.latex import in_words, last_boxed, right_side, undecorated, without_blanks
from ets.tasks.task import AnswerBenchmark

_NUMBER = r"(?P<number>(?:(?<![\w)])[-+])?[$€£]?(?:(?<![\w)])-)?\.?\d[\d,./:]*(?:\s\d+/\d+)?)"
_ANYWHERE = re.compile(_NUMBER)
_UNIT = r"(?:\s*(?:\\?%|[€£$]|\^\s*\{?\\circ\}?))?(?:[\s-]*[a-zA-Z][a-zA-Z'’./-]*(?:\^\d)?){0,6}"
_WHOLE = re.compile(rf"[(\[]?\s*{_NUMBER}(?:\s*[-–]\s*\d+)?\s*[)\]]?{_UNIT}[\s!*]*")
_BOLD = re.compile(r"(?<![-+*/×÷<>]\s)\*\*(?!\d+[.)]\*)([^*\n]{1,60})\*\*(?!\s*[-+*/×÷=<>:])")
_PLAIN = re.compile(r"(?:(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?(?P<decimals>\.\d+)?|(?P<plus>\d+\s)?(?P<over>\d+/\d+))")
DIGITS = 40
"""Longer numbers are no answers."""


class Gsm8k(AnswerBenchmark):
    """A number, in any notation: `$1,200.00` is 1200 and `25%` is 25. A unit after the number does not count.

    The first place that holds a number decides: the last ``####``, the last ``\\boxed{}``, the last "answer is", a
    number in bold that the text begins or ends with, the last number in the text (lm-eval's flexible-extract).
    """

    name = "gsm8k"
    lm_eval = "gsm8k"
    mark = re.compile(r"####(?!\s*\d+[.)]\s+[A-Za-z])")  # `#### 1. Costs` is a heading

    def whole(self, stated: str) -> int | float | None:
        plain = without_blanks(_plain(undecorated(stated)))
        sides = right_side(plain), plain.partition("=")[0].strip()  # 9*2 = 18 and 18 = 9*2
        found = next(filter(None, map(_WHOLE.fullmatch, sides)), None)
        return value_of(found["number"]) if found else None

    def fallback(self, text: str) -> int | float | None:
        plain = without_blanks(_plain(text))
        boxed = list(_ANYWHERE.finditer(last_boxed(plain) or ""))
        numbers = boxed if len(boxed) == 1 else []
        for found in [*numbers, *_in_bold(plain), *list(_ANYWHERE.finditer(plain))[-1:]]:
            value = value_of(found["number"])
            if value is not None:
                return value
        return None

    def truth(self, row: Mapping[str, Any]) -> int | float:
        found = last_stated(str(row.get("answer", "")), self.whole, self.mark)
        if found is None:
            raise self.no_truth(row, "answer that ends in '#### n'")
        return found


def _plain(text: str) -> str:
    r"""The text with minus signs, ``\$``, ``{,}``, thin spaces and fractions written plainly: ``3\frac12`` as 3 1/2."""
    for written, plain in (("−", "-"), ("\\$", "$"), ("{,}", ","), ("\\!", "")):
        text = text.replace(written, plain)
    text = re.sub(r"(?<=\d)(?:\\[, ]|[~\u00a0\u2009\u202f])(?=\d{3})", "", text)
    text = re.sub(r"(?:(\d)\s*)?\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))", _fraction, text)
    return in_words(text)


def _fraction(found: re.Match[str]) -> str:
    over = f"{found[2] or found[3]}/{found[4] or found[5]}"
    return f"{found[1]} {over}" if found[1] else over


def _in_bold(text: str) -> list[re.Match[str]]:
    """The last bold number in the first or the last line."""
    lines = text.strip().split("\n")
    bold = [*_BOLD.finditer(lines[0])] if text.strip().startswith("**") else []
    bold += list(_BOLD.finditer(lines[-1]))
    numbers = [_WHOLE.fullmatch(found.group(1)) for found in bold]
    return [number for number in numbers if number][-1:]


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
