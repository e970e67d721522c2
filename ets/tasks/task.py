"""What a benchmark is to the evaluation."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from ets.types import Problem


class Task(Protocol):
    """A benchmark: its problems, the answer in a text, and whether an answer is right."""

    name: str

    def problems(self, count: int, shots: int) -> list[Problem]:
        """The first `count` problems, each prompt opening with `shots` solved examples."""
        ...

    def extract(self, text: str) -> Hashable | None:
        """The answer in a text, equal answers comparing equal; None if there is none."""
        ...

    def grade(self, problem: Problem, text: str) -> bool:
        """Whether the text solves the problem."""
        ...
