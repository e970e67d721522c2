"""Plain functions of (prompt, text) as rewards."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

from ets.types import Chain, InputError, Problem, Reward, Text

Scoring: TypeAlias = Callable[[Any, str], float]
"""What a user writes: `(prompt, text) -> number`, the prompt as it was given."""


def per_text(scoring: Scoring) -> Reward:
    """Lift `(prompt, text) -> number` to a reward.

    A candidate that has ended stands for all its rollouts: it is scored once.
    """

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        distinct = {id(text): text for text in rollouts}
        values = {key: scoring(problem.prompt, text.text) for key, text in distinct.items()}
        return [values[id(text)] for text in rollouts]

    return reward


def as_reward(function: Scoring | Reward) -> Reward:
    """A reward from either kind of callable: `(prompt, text)` is lifted, `(problem, rollouts, chain)` kept.

    A callable that accepts both two and three arguments is lifted, unless its second one is named `rollouts`.

    Raises
    ------
    InputError
        If it can be called with neither two nor three positional arguments.
    """
    if not callable(function):
        raise InputError(f"the reward is {function!r}, which is no function; pass one of (prompt, text)")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables tell no signature
        return per_text(cast("Scoring", function))
    takes_rollouts = list(signature.parameters)[1:2] == ["rollouts"]
    for count, lifted in ((3, False),) if takes_rollouts else ((2, True), (3, False)):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return per_text(cast("Scoring", function)) if lifted else cast("Reward", function)
    raise InputError(f"the reward takes {signature}; it must accept (prompt, text) or (problem, rollouts, chain)")
