"""Rewards that a command line can name: ready-made ones, and functions of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ets.own_code import named_object
from ets.types import InputError

if TYPE_CHECKING:
    from ets.types import Reward

NAMES = ("majority", "share", "likelihood", "likelihood-per-token", "entropy", "self-certainty")
OF_CERTAINTY = ("entropy", "self-certainty")
"""Rewards that want `certainty=True`."""


def named_reward(name: str, extract: Callable[[str], Any] | None) -> Reward:
    """A reward by its name, `module:function` or `file.py:function`.

    Raises
    ------
    InputError
        For a name or a function that is not there, code that raises when it is read, or a reward that compares answers
        without a reader of answers.
    """
    from ets import rewards

    comparing = {"majority": rewards.majority, "share": rewards.agreement_share}
    if name in comparing:
        if extract is None:
            raise InputError(f"the reward {name} compares answers; add --extract with a pattern that finds them")
        return comparing[name](extract)
    ready: dict[str, Callable[[], Reward]] = {
        "likelihood": rewards.likelihood,
        "likelihood-per-token": partial(rewards.likelihood, per_token=True),
        "entropy": rewards.entropy,
        "self-certainty": rewards.self_certainty,
    }
    return ready[name]() if name in ready else rewards.as_reward(_function(name))


def pattern_extract(pattern: str) -> Callable[[str], str | None]:
    """A reader of answers: the first group of the last match, or the whole of it where the pattern has no group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"extract is {pattern!r}, which is no regular expression: {error}") from None

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return found[-1].group(min(1, compiled.groups)) if found else None

    return extract


def _function(name: str) -> Any:
    """The function that `module:function` or `file.py:function` names; its module is executed."""
    if ":" not in name:
        raise InputError(f"the reward is {name!r}; give {', '.join(NAMES)}, module:function or file.py:function")
    return named_object(name, "reward")
