"""The registry of rewards by name. A new reward is a function and a line in this module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ets.own_code import named_object
from ets.rewards.likelihood import entropy, likelihood, self_certainty
from ets.rewards.self_consistency import PooledReward, VotePool, agreement_share, majority
from ets.step import as_reward
from ets.types import Chain, InputError, Problem, Reward, Text


class Reader(Protocol):
    """Reads answers, as a task does. An optional method `extract_all` reads many texts in parallel."""

    @property
    def extract(self) -> Callable[..., Any]: ...


def comparing(compare: Callable[..., PooledReward], reader: Reader, pool: VotePool, minimum: int) -> Reward:
    """The reward `majority` or `agreement_share`; a reader with `extract_all` reads a step's texts in parallel."""
    reward = compare(reader.extract, pool=pool, minimum=minimum)
    return ReadFirst(reward, reader.extract_all) if hasattr(reader, "extract_all") else reward


@dataclass(frozen=True)
class ReadFirst:
    """A reward of answers whose reader reads all texts of a step first, in parallel, and remembers the answers."""

    reward: PooledReward
    read_all: Callable[[Iterable[tuple[Problem, str]]], object]

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
        self.read_all((problem, rollout.text) for rollout in rollouts)
        return self.reward(problem, rollouts, chain)

    def fixed(self, problem: Problem, texts: Sequence[Text]) -> Reward:
        """As `PooledReward.fixed`."""
        self.read_all((problem, text.text) for text in texts)
        return self.reward.fixed(problem, texts)


COMPARING: dict[str, Callable[..., PooledReward]] = {"majority": majority, "share": agreement_share}
"""By name: rewards that compare answers."""
OF_TEXTS: dict[str, Callable[[], Reward]] = {
    "likelihood": likelihood,
    "likelihood-per-token": partial(likelihood, per_token=True),
    "entropy": entropy,
    "self-certainty": self_certainty,
}
"""By name: rewards that need no answers."""
OF_CERTAINTY = ("entropy", "self-certainty")
"""Rewards that need a policy that records certainty."""
NAMES = (*COMPARING, *OF_TEXTS)


def require_reward(name: str, setting: str = "reward") -> None:
    """Raise `InputError` for a name that is neither in `NAMES` nor of the form `module:function`."""
    if name not in NAMES and ":" not in name:
        raise InputError(f"{setting} is {name!r}; choose from {', '.join(NAMES)}, module:function or file.py:function")


def named_reward(name: str, reader: Reader | None, *, pool: VotePool = "chain", minimum: int = 1) -> Reward:
    """A reward by its name in `NAMES`, or the function that `module:function` or `file.py:function` names.

    Parameters
    ----------
    name : str
    reader : Reader, optional
        Reads the answers that `majority` and `share` compare.
    pool, minimum
        As for `ets.rewards.majority`.

    Raises
    ------
    InputError
        For an unknown name, code that raises at import, or a reward that compares answers without a reader.
    """
    require_reward(name)
    if name in COMPARING:
        if reader is None:
            raise InputError(f"the reward {name} compares answers; add --extract with a pattern that finds them")
        return comparing(COMPARING[name], reader, pool, minimum)
    return OF_TEXTS[name]() if name in OF_TEXTS else as_reward(named_object(name, "reward"))
