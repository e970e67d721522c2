"""Arithmetic word problems in GSM8K's format, from a small grammar of stories.

An example row::

    {"question": "Mia has 14 shells. She buys 3 bags with 6 shells each. Then she gives 9 shells to
                  Tom. How many shells does Mia have now?",
     "answer": "She buys <<3*6=18>>18 shells.\nNow she has <<14+18=32>>32 shells.\n
                In the end she has <<32-9=23>>23 shells.\n#### 23"}

A problem is a start and one to four events; an event changes one running number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ets.demo.family import Dice, ProblemFamily, Row

HELDOUT_SEED = 20260121
LARGEST = 99
"""No number of a problem is larger."""

NAMES = {
    "Mia": "she", "Ana": "she", "Zoe": "she", "Lily": "she", "Nora": "she", "Emma": "she",
    "Tom": "he", "Ben": "he", "Max": "he", "Leo": "he", "Sam": "he", "Omar": "he",
}  # fmt: skip
THINGS = (
    "apples", "shells", "books", "coins", "stamps", "marbles", "cards", "pencils",
    "cookies", "stickers", "flowers", "eggs",
)  # fmt: skip
PACKS = ("bags", "boxes", "packs", "jars")


@dataclass(frozen=True)
class _Story:
    dice: Dice
    pronoun: str
    other: str
    thing: str
    later: bool  # after the first event; a sentence may open with "Then"

    def opening(self) -> str:
        return f"Then {self.pronoun}" if self.later else self.pronoun.capitalize()

    def holds(self, calculation: str, result: int) -> str:
        opening = self.dice.pick(("Now", "Then", "So", "After that"))
        return f"{opening} {self.pronoun} has <<{calculation}={result}>>{result} {self.thing}."


# An event maps the current number to a sentence of the question, the worked steps and the new number, or to None if
# the number does not allow the event.
_Event = Callable[[_Story, int], tuple[str, list[str], int] | None]


def _more(story: _Story, have: int) -> tuple[str, list[str], int] | None:
    if have > LARGEST - 2:
        return None
    n = story.dice.between(2, min(40, LARGEST - have))
    verb = story.dice.pick(("finds", "gets", "buys", "wins"))
    sentence = f"{story.opening()} {verb} {n} more {story.thing}."
    first, second = story.dice.pick(((have, n), (n, have)))
    return sentence, [story.holds(f"{first}+{second}", have + n)], have + n


def _fewer(story: _Story, have: int) -> tuple[str, list[str], int] | None:
    if have < 4:
        return None
    n = story.dice.between(2, min(40, have - 1))
    ending = story.dice.pick((f"gives {n} {story.thing} to {story.other}", f"loses {n} {story.thing}"))
    return f"{story.opening()} {ending}.", [story.holds(f"{have}-{n}", have - n)], have - n


def _packs(story: _Story, have: int) -> tuple[str, list[str], int] | None:
    groups, each = story.dice.between(2, 6), story.dice.between(2, 9)
    bought = groups * each
    if have + bought > LARGEST:
        return None
    sentence = f"{story.opening()} buys {groups} {story.dice.pick(PACKS)} with {each} {story.thing} each."
    x, y = story.dice.pick(((groups, each), (each, groups)))
    verb = story.dice.pick(("buys", "gets"))
    first = f"{story.pronoun.capitalize()} {verb} <<{x}*{y}={bought}>>{bought} {story.thing}."
    return sentence, [first, story.holds(f"{have}+{bought}", have + bought)], have + bought


def _friends(story: _Story, have: int) -> tuple[str, list[str], int] | None:
    friends, each = story.dice.between(2, 5), story.dice.between(2, 6)
    given = friends * each
    if given >= have:
        return None
    sentence = f"{story.opening()} gives {each} {story.thing} to each of {friends} friends."
    x, y = story.dice.pick(((friends, each), (each, friends)))
    verb = story.dice.pick(("gives", "gives away"))
    first = f"{story.pronoun.capitalize()} {verb} <<{x}*{y}={given}>>{given} {story.thing}."
    return sentence, [first, story.holds(f"{have}-{given}", have - given)], have - given


def _times(story: _Story, have: int) -> tuple[str, list[str], int] | None:
    factor = story.dice.between(2, 3)
    if have * factor > LARGEST:
        return None
    word = {2: "two", 3: "three"}[factor]
    sentence = f"After a while {story.pronoun} has {word} times as many {story.thing}."
    return sentence, [story.holds(f"{have}*{factor}", have * factor)], have * factor


_EVENTS: tuple[_Event, ...] = (_more, _fewer, _packs, _friends, _times)


def _problem(dice: Dice) -> Row:
    """A problem of two to four worked steps; an event with packs or friends takes two steps."""
    name = dice.pick(tuple(NAMES))
    other = dice.pick([n for n in NAMES if n != name])
    thing, have = dice.pick(THINGS), dice.between(5, 40)
    question = [f"{name} has {have} {thing}."]
    worked: list[str] = []
    budget = dice.between(2, 4)
    while len(worked) < budget:
        story = _Story(dice, NAMES[name], other, thing, later=len(question) > 1)
        event = dice.pick(_EVENTS)(story, have)
        if event is not None and len(worked) + len(event[1]) <= budget:
            question.append(event[0])
            worked.extend(event[1])
            have = event[2]
    question.append(f"How many {thing} does {name} have now?")
    return Row(" ".join(question), "\n".join([*worked, f"#### {have}"]))


STORIES = ProblemFamily(_problem, HELDOUT_SEED)
