"""Plain functions as what the sampler wants: of (prompt, text) as rewards, of a text as readers of answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import TypeAlias, cast

from ets.event_loop import awaited
from ets.step import accepted_arguments
from ets.types import Chain, InputError, Problem, Text

ReadText: TypeAlias = Callable[[str], Hashable | None]
ReadProblem: TypeAlias = Callable[[Problem, str], Hashable | None]
Extract: TypeAlias = ReadText | ReadProblem
"""The answer in a text, in a form in which equal answers compare equal; None if there is none.

`text -> answer`, or `(problem, text) -> answer` where the answer depends on what was asked.
"""

REMEMBERED = 2**16
"""Texts whose answers are remembered."""


@dataclass(eq=False)
class TextReward:
    """A reward that declares itself a fixed function of (problem, text): its scores may be cached by text.

    Parameters
    ----------
    score_texts : callable
        `(problem, texts) -> numbers`, of texts that all differ; it may be an `async def` function.
    read : callable
        The part of a rollout that is scored, by default the text.
    of_prefixes : bool
        Whether the reward is informative for unfinished texts too, see `ets.of_prefixes`.
    """

    score_texts: Callable[[Problem, Sequence[str]], Sequence[float]]
    read: Callable[[Text], str] = attrgetter("text")
    of_prefixes: bool = False

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        """Equal texts are scored once, however often they were drawn."""
        texts = [self.read(rollout) for rollout in rollouts]
        distinct = list(dict.fromkeys(texts))
        (scores,) = awaited([self.score_texts(problem, distinct)])
        known = dict(zip(distinct, scores, strict=True))
        return [known[text] for text in texts]


def as_extract(function: Extract) -> ReadProblem:
    """A reader of answers from either kind of callable: `(text)` is lifted, `(problem, text)` kept.

    A callable that accepts both one and two arguments reads texts alone, unless its first one is named `problem`.

    Raises
    ------
    InputError
        If it can be called with neither one nor two positional arguments.
    """
    if _reads_problem(function):
        return cast("ReadProblem", function)
    read = cast("ReadText", function)
    return lambda problem, text: read(text)


def remembering(function: Extract) -> ReadProblem:
    """`as_extract`, each text read once; once for each problem if the function wants to know it."""
    if not _reads_problem(function):
        return as_extract(lru_cache(REMEMBERED)(cast("ReadText", function)))
    read = cast("ReadProblem", function)
    known = lru_cache(REMEMBERED)(lambda asked, text: read(asked.problem, text))
    return lambda problem, text: known(Same(problem), text)


@dataclass(frozen=True, eq=False)
class Same:
    """A problem by identity: ids come again in other runs, and a problem that is referred to here stays itself."""

    problem: Problem

    def __hash__(self) -> int:
        return id(self.problem)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.problem is self.problem


def pattern_extract(pattern: str, name: str = "extract") -> Callable[[str], str | None]:
    """A reader of answers: the first group of the last match, or the whole match where the pattern has no group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{name} is {pattern!r}, which is no regular expression: {error}") from None

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return found[-1].group(min(1, compiled.groups)) if found else None

    return extract


def _reads_problem(function: Extract) -> bool:
    if not callable(function):
        raise InputError(f"extract is {function!r}, which is no function; pass one of a text")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables tell no signature
        return False
    named = list(signature.parameters)[:1] == ["problem"]
    count = accepted_arguments(signature, (2, 1) if named else (1, 2))
    if count is None:
        raise InputError(f"extract takes {signature}; it must accept (text) or (problem, text)")
    return count == 2
