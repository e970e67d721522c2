"""Rewards of a task's row: the demands of a prompt stand in `Problem.doc`, and a text meets a share of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ets.event_loop import awaited
from ets.step import failure
from ets.thinking import after_thinking, begun
from ets.types import Chain, InputError, Problem, Text

T = TypeVar("T")


class RowReward:
    """A fixed reward of (row, text), as a decorator: the row is `problem.doc`, a line of a file of prompts.

    Thinking sections do not count: the function receives the text after them, which is empty before they end. Equal
    texts of a call are scored once. `ets.of_prefixes` may decorate it too.

    Parameters
    ----------
    score : callable
        `(row, text) -> number`; it may be an `async def` function.

    Examples
    --------
    >>> @RowReward
    ... def named(row, text):
    ...     return float(row["name"] in text)
    """

    def __init__(self, score: Callable[[Mapping[str, Any], str], float]) -> None:
        self.score, self.__doc__ = score, score.__doc__

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        distinct = dict.fromkeys(rollout.text for rollout in rollouts)
        values = dict(zip(distinct, awaited(self._asked(problem, text) for text in distinct), strict=True))
        return [float(values[rollout.text]) for rollout in rollouts]

    def _scored(self, problem: Problem, text: str) -> float:
        return float(awaited([self._asked(problem, text)])[0])

    def _asked(self, problem: Problem, text: str) -> Any:
        tags = problem.thinking
        before = begun(problem.prompt, tags) if isinstance(problem.prompt, str) else ""
        return self.score(problem.doc, after_thinking(before + text, tags) or "")

    def require(self, problems: Iterable[Problem]) -> None:
        """Score an empty text of each problem; raises `InputError` for a row that lacks what the function reads."""
        for problem in problems:
            try:
                self._scored(problem, "")
            except InputError as error:
                raise InputError(f"{problem.place or f'the row of {problem.called}'}: {error}") from error
            except (Exception, SystemExit) as error:
                raise InputError(failure(problem, error)) from error


def demand(row: Mapping[str, Any], name: str, kind: type[T], example: str) -> T:
    """A value of a row; raises `InputError` for a missing one, an empty one, or one of another type."""
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) or not value:
        raise InputError(f"{name} is {value!r}; give {example}" if name in row else f"no {name!r}; give {example}")
    return value
