"""Rewards of rewards: weighted sums, guards against slow and failing calls, and caches of scores."""

from __future__ import annotations

import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Literal, TypeVar, cast

import numpy as np

from ets.event_loop import awaited
from ets.rewards.lifting import REMEMBERED, Same, TextReward
from ets.step import (
    Scoring,
    as_reward,
    is_scoring,
    of_prefixes,
    reads_prefixes,
    require_counts,
    require_positive,
    require_rewards,
)
from ets.types import Chain, Floats, InputError, Problem, Reward, Text

T = TypeVar("T")


def weighted_sum(*terms: tuple[float, Scoring | Reward]) -> Reward:
    """The sum of weight · reward over (weight, reward) pairs.

    If a reward is -inf, the sum is -inf at any weight. If every reward is a fixed function of (problem, text), so is
    the sum, and the law p* ∝ p_ref · exp(r/λ) holds.

    Raises
    ------
    InputError
        For no terms, a term that is no pair, or a weight that is not a finite number.
    """
    if not terms:
        raise InputError("a weighted sum of no rewards; give (weight, reward) pairs")
    for term in terms:
        if not isinstance(term, tuple | list) or len(term) != 2:
            raise InputError(f"a term of the weighted sum is {term!r}; give (weight, reward) pairs")
        weight = term[0]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InputError(f"a weight is {weight!r}; it must be a finite number")
    parts = [(weight, as_reward(part)) for weight, part in terms]

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Floats:
        total = np.zeros(len(rollouts))
        for weight, part in parts:
            values = require_rewards(part(problem, rollouts, chain), len(rollouts), problem.id)
            forbidden = np.isneginf(values)
            total += np.where(forbidden, -np.inf, weight * np.where(forbidden, 0.0, values))
        return total

    combined = cast("Reward", reward)
    return of_prefixes(combined) if all(reads_prefixes(part) for _, part in parts) else combined


def guarded(
    reward: Scoring | Reward, *, seconds: float | None = None, on_error: float | Literal["raise"] = "raise"
) -> Guarded:
    """A reward with a limit on each call's time, and a value for failed calls.

    A call fails if it raises, exceeds the limit, or returns anything but a usable number per rollout. With a limit,
    each call runs in a separate thread. Python cannot end a thread, so a call beyond the limit continues to use the
    machine, and the next call starts meanwhile. Rewards that need the main thread (limits on time by signals, as in
    math-verify) cannot run under a limit.

    The value of a failed call is no fixed function of the text, so the law p* holds only while no call fails. For the
    same reason `cached(guarded(…))` raises `InputError`; write `guarded(cached(…))`.

    Parameters
    ----------
    reward : callable
        `(prompt, text) -> number`, or an `ets.types.Reward`. A guarded call scores all rollouts of a step.
    seconds : float, optional
        Limit for a call; by default no limit.
    on_error : "raise" or float
        "raise" ends the run with the error; the journal keeps the finished problems. A finite number or -inf is the
        value of all rollouts of a failed call. The first failure warns, and `failures` counts all.

    Raises
    ------
    InputError
        For values out of range.
    """
    if seconds is not None:
        require_positive(seconds=seconds)
    if on_error != "raise" and not (isinstance(on_error, int | float) and on_error < math.inf):
        raise InputError(f"on_error is {on_error!r}; give 'raise', a finite number, or -inf")
    return Guarded(as_reward(reward), seconds, on_error)


class Guarded:
    """See `guarded`. `failures` is the number of failed calls so far."""

    def __init__(self, reward: Reward, seconds: float | None, on_error: float | Literal["raise"]) -> None:
        self.reward, self.seconds, self.on_error, self.failures = reward, seconds, on_error, 0
        self.of_prefixes = reads_prefixes(reward)
        self._lock = threading.Lock()

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
        def ask() -> Floats:
            return require_rewards(self.reward(problem, rollouts, chain), len(rollouts), problem.id)

        try:
            return cast("Sequence[float]", ask() if self.seconds is None else _within(self.seconds, ask))
        except (Exception, SystemExit) as error:
            if self.on_error == "raise":
                raise
            self._note(problem, error)
            return [self.on_error] * len(rollouts)

    def _note(self, problem: Problem, error: BaseException) -> None:
        with self._lock:
            self.failures += 1
            first = self.failures == 1
        if first:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            warnings.warn(
                f"the reward failed for problem {problem.id!r} ({reason}); the rollouts of failed calls get "
                f"{self.on_error}, and `failures` counts the calls",
                stacklevel=2,
            )


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of a call in a separate thread; raises `TimeoutError` after `seconds`."""
    found: Future[T] = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not found.done():
        raise TimeoutError(f"the reward took longer than {seconds:g} s, and the call is abandoned")
    return found.result()


def cached(reward: Scoring | TextReward, *, size: int = REMEMBERED) -> TextReward:
    """A reward with a cache of `size` scores, which drops the least recently used score first.

    Only for deterministic rewards of single texts: a function of (prompt, text), with these as the key, or a
    `TextReward` (`reward_model`, `code_verifier`, `verifier`), with the key (problem, text). Any other reward of three
    arguments might compare rollouts, as self-consistency does, so it raises `InputError`.

    A cached score costs no call and next to no `Cost.reward_seconds`, but `Cost.rewarded` counts the text.

    Parameters
    ----------
    reward : callable
    size : int
        Texts, at least 1.

    Raises
    ------
    InputError
        For a reward of (problem, rollouts, chain) that is no `TextReward`, or a size below 1.
    """
    require_counts(size=size)
    if isinstance(reward, TextReward):
        return replace(reward, score_texts=_Remembered(reward.score_texts, Same, size))
    if not is_scoring(reward):
        raise InputError(
            f"the reward {reward!r} may look at other rollouts, so its values cannot be remembered by text; "
            "pass a function of (prompt, text), or a TextReward"
        )

    def score_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
        return awaited(reward(problem.raw_prompt, text) for text in texts)

    return TextReward(_Remembered(score_texts, _prompt_key, size), of_prefixes=reads_prefixes(reward))


def _prompt_key(problem: Problem) -> Hashable:
    """The raw prompt in a form that can be hashed; messages are mappings."""
    prompt = problem.raw_prompt
    return prompt if isinstance(prompt, str) else ("no text", repr(prompt))


class _Remembered:
    """A cache of scores by (`key(problem)`, text); two threads may compute the same score at once."""

    def __init__(
        self,
        score_texts: Callable[[Problem, Sequence[str]], Sequence[float]],
        key: Callable[[Problem], Hashable],
        size: int,
    ) -> None:
        self.score_texts, self.key, self.size = score_texts, key, size
        self._known: OrderedDict[tuple[Hashable, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, problem: Problem, texts: Sequence[str]) -> list[float]:
        key = self.key(problem)
        with self._lock:
            found = {text: self._known[key, text] for text in texts if (key, text) in self._known}
        if new := [text for text in texts if text not in found]:
            (scores,) = awaited([self.score_texts(problem, new)])
            found |= dict(zip(new, scores, strict=True))
        with self._lock:
            for text, score in found.items():
                self._known[key, text] = score
                self._known.move_to_end((key, text))
            while len(self._known) > self.size:
                self._known.popitem(last=False)
        return [found[text] for text in texts]
