"""Instructions: prompts with one to three demands on the form of a text, each of a kind that a function checks.

An example row::

    {"prompt": "Describe a market in the morning. Use at least 40 words, and no commas.",
     "instructions": [{"kind": "min-words", "count": 40}, {"kind": "no-commas"}]}
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from ets.rewards.rows import RowReward, demand
from ets.tasks.words import holds, words_of
from ets.types import InputError

KINDS: dict[str, Callable[..., bool]] = {}
"""By kind: a function of the text and of the other fields of the instruction."""
F = TypeVar("F", bound=Callable[..., bool])


@RowReward
def instructions(row: Mapping[str, Any], text: str) -> float:
    """The share of the row's instructions that a text follows; an empty text follows none.

    Many kinds say nothing about an unfinished text (its end, its number of words), so it is no reward of prefixes.
    """
    found = [_followed(each, text) for each in demand(row, "instructions", list, "a list of instructions")]
    return fmean(found) if text.strip() else 0.0


def _followed(instruction: Any, text: str) -> bool:
    values = dict(instruction) if isinstance(instruction, Mapping) else {}
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise InputError(f"kind is {kind!r}; choose from {', '.join(KINDS)}")
    try:
        inspect.signature(KINDS[kind]).bind(text.strip(), **values)
    except TypeError as error:
        raise InputError(f"the fields of the instruction {kind} do not fit: {error}; correct them") from None
    return bool(KINDS[kind](text.strip(), **values))


def _kind(function: F) -> F:
    """Register a check under its name, with hyphens."""
    KINDS[function.__name__.strip("_").replace("_", "-")] = function
    return function


def _sentences(text: str) -> list[str]:
    return [found for found in re.split(r"(?<=[.!?])[\"'”’)]*\s+|\n+", text) if found and re.search(r"\w", found)]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


# Length.


@_kind
def min_words(text: str, count: int) -> bool:
    """At least `count` words."""
    return len(words_of(text)) >= count


@_kind
def max_words(text: str, count: int) -> bool:
    """At most `count` words."""
    return len(words_of(text)) <= count


@_kind
def sentences(text: str, count: int) -> bool:
    """Exactly `count` sentences."""
    return len(_sentences(text)) == count


@_kind
def paragraphs(text: str, count: int) -> bool:
    """Exactly `count` paragraphs, with empty lines between them."""
    return len(re.split(r"\n\s*\n", text)) == count


@_kind
def lines(text: str, count: int) -> bool:
    """Exactly `count` lines with text."""
    return len(_lines(text)) == count


# Words and letters.


@_kind
def include(text: str, words: Sequence[str]) -> bool:
    """All `words` stand in the text, in any case."""
    return all(holds(text, word) for word in words)


@_kind
def exclude(text: str, words: Sequence[str]) -> bool:
    """None of `words` stands in the text, in any case."""
    return not any(holds(text, word) for word in words)


@_kind
def word_count(text: str, word: str, count: int) -> bool:
    """`word` stands in the text at least `count` times."""
    return Counter(map(str.lower, words_of(text)))[word.lower()] >= count


@_kind
def letter_count(text: str, letter: str, count: int) -> bool:
    """`letter` stands in the text at least `count` times, in any case."""
    return text.lower().count(letter.lower()) >= count


@_kind
def without_letter(text: str, letter: str) -> bool:
    """`letter` stands nowhere, in any case."""
    return letter.lower() not in text.lower()


@_kind
def no_repeats(text: str) -> bool:
    """No word stands in the text twice."""
    return max(Counter(map(str.lower, words_of(text))).values(), default=0) == 1


@_kind
def alliteration(text: str, letter: str, count: int) -> bool:
    """At least `count` words begin with `letter`."""
    return sum(word.lower().startswith(letter.lower()) for word in words_of(text)) >= count


# Case.


@_kind
def lowercase(text: str) -> bool:
    """No capital letter."""
    return text.islower()


@_kind
def uppercase(text: str) -> bool:
    """No small letter."""
    return text.isupper()


@_kind
def capital_words(text: str, count: int) -> bool:
    """At least `count` words of two or more letters are in capitals."""
    return sum(word.isupper() and len(word) > 1 for word in words_of(text)) >= count


@_kind
def title_case(text: str) -> bool:
    """Every word begins with a capital letter."""
    words = words_of(text)
    return bool(words) and all(word[0].isupper() for word in words)


# Layout.


@_kind
def bullets(text: str, count: int) -> bool:
    """Exactly `count` lines begin with a dash or a star and a space."""
    return sum(line.startswith(("- ", "* ")) for line in _lines(text)) == count


@_kind
def numbered(text: str, count: int) -> bool:
    """The lines that begin with a number and a dot or a bracket are 1 to `count`, in order."""
    found = [int(number) for line in _lines(text) for number in re.findall(r"\A(\d{1,4})[.)] ", line)]
    return found == list(range(1, count + 1))


@_kind
def heading(text: str) -> bool:
    """The first line is a heading of Markdown, and further text stands below it."""
    return re.match(r"#{1,6} \S", text) is not None and len(_lines(text)) > 1


@_kind
def bold(text: str, count: int) -> bool:
    """At least `count` passages stand between double stars."""
    return len(re.findall(r"\*\*[^*\n]+\*\*", text)) >= count


@_kind
def quoted(text: str) -> bool:
    """The whole text stands in double quotation marks."""
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


@_kind
def json_value(text: str) -> bool:
    """The whole text, or the content of its fence, is JSON: an object or a list."""
    try:
        return isinstance(json.loads(re.sub(r"\A```(?:json)?\n|\n```\Z", "", text)), dict | list)
    except (ValueError, RecursionError):
        return False


@_kind
def brackets(text: str, count: int) -> bool:
    """At least `count` blanks to fill in, such as [name], stand in square brackets."""
    return len(re.findall(r"\[[^\[\]\n]+\]", text)) >= count


@_kind
def sections(text: str, names: Sequence[str]) -> bool:
    """Lines begin with the `names` and a colon, in this order."""
    found = [name for line in _lines(text) for name in names if re.match(rf"[#* ]*{re.escape(name)}[* ]*:", line)]
    return found == list(names)


# Beginning, end and punctuation.


@_kind
def begin(text: str, phrase: str) -> bool:
    """The text begins with `phrase`, in any case."""
    return text.lower().startswith(phrase.lower())


@_kind
def end(text: str, phrase: str) -> bool:
    """The text ends with `phrase`, in any case and with any punctuation after it."""
    return re.sub(r"[\W_]+\Z", "", text).lower().endswith(re.sub(r"[\W_]+\Z", "", phrase).lower())


@_kind
def postscript(text: str) -> bool:
    """The last paragraph or line begins with P.S. and has further words."""
    return re.match(r"P\.? ?S\.?:? +\w", _lines(text)[-1]) is not None if _lines(text) else False


@_kind
def no_commas(text: str) -> bool:
    """No comma."""
    return "," not in text


@_kind
def question(text: str) -> bool:
    """The text ends with a question mark."""
    return text.endswith("?")


@_kind
def no_digits(text: str) -> bool:
    """No digit."""
    return re.search(r"\d", text) is None
