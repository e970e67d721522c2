"""Families of embedded problems: rows, dice, and disjoint splits."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

from ets.types import InputError

HELDOUT_SIZE = 2000
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A problem in GSM8K's row format: a question, and worked steps that end in ``#### n``."""

    question: str
    answer: str


class Dice:
    """Random choices from ``random()`` alone, whose stream Python guarantees for a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random() * len(options))]

    def between(self, low: int, high: int) -> int:
        return low + int(self._random() * (high - low + 1))


class ProblemFamily:
    """Problems of a grammar in two disjoint splits, held-out and training.

    The splits have different seeds, and `training` drops every held-out question.

    Parameters
    ----------
    problem : callable
        Draws a problem with dice.
    heldout_seed : int
    """

    def __init__(self, problem: Callable[[Dice], Row], heldout_seed: int) -> None:
        self._problem, self.heldout_seed = problem, heldout_seed

    @cached_property
    def _heldout(self) -> tuple[Row, ...]:
        dice = Dice(self.heldout_seed)
        rows = {row.question: row for row in (self._problem(dice) for _ in range(2 * HELDOUT_SIZE))}
        return tuple(islice(rows.values(), HELDOUT_SIZE))

    def heldout(self, count: int) -> tuple[Row, ...]:
        """The first `count` held-out problems; raises `InputError` for a count above `HELDOUT_SIZE` or below 1."""
        if not 0 < count <= HELDOUT_SIZE:
            raise InputError(f"{count} held-out problems are out of range; choose 1 to {HELDOUT_SIZE}")
        return self._heldout[:count]

    def training(self, seed: int) -> Iterator[Row]:
        """An endless stream of training problems without the held-out questions."""
        if seed < 0 or seed == self.heldout_seed:
            raise InputError(f"seed {seed} is negative or belongs to the held-out problems; choose another")
        dice, excluded = Dice(seed), {row.question for row in self._heldout}
        return (row for row in iter(lambda: self._problem(dice), None) if row.question not in excluded)
