"""Short arithmetic problems, for the embedded masked-diffusion model.

An example row::

    {"question": "Mia has 6 shells. She finds 3. Then she loses 4. How many?",
     "answer": "6+3=9\n9-4=5\n#### 5"}

A problem is a start and two or three events; no number is above 20, so that each number is a single token.
"""

from __future__ import annotations

from ets.demo.family import Dice, ProblemFamily, Row
from ets.demo.stories import NAMES, THINGS

HELDOUT_SEED = 20261122
LARGEST = 20
"""No number of a problem is larger."""

VERBS = {"+": ("finds", "gets", "buys", "wins"), "-": ("loses", "eats", "sells", "drops")}


def _problem(dice: Dice) -> Row:
    """A problem whose running number stays from 1 to `LARGEST`."""
    name, thing, have = dice.pick(tuple(NAMES)), dice.pick(THINGS), dice.between(2, LARGEST)
    question, worked = [f"{name} has {have} {thing}."], []
    for event in range(dice.between(2, 3)):
        sign = dice.pick([s for s, possible in (("+", have < LARGEST), ("-", have > 1)) if possible])
        n = dice.between(1, min(9, LARGEST - have if sign == "+" else have - 1))
        left = have + n if sign == "+" else have - n
        opening = f"Then {NAMES[name]}" if event else NAMES[name].capitalize()
        question.append(f"{opening} {dice.pick(VERBS[sign])} {n}.")
        worked.append(f"{have}{sign}{n}={left}")
        have = left
    return Row(" ".join([*question, "How many?"]), "\n".join([*worked, f"#### {have}"]))


SUMS = ProblemFamily(_problem, HELDOUT_SEED)
