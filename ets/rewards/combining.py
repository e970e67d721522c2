"""Rewards made of rewards: weighted sums, guards against slow and failing ones, and remembered scores."""

from __future__ import annotations

import math
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from queue import SimpleQueue
from typing import Literal, TypeVar, cast

import numpy as np

from ets.rewards.lifting import REMEMBERED, Same, TextReward
from ets.step import Scoring, as_reward, is_scoring, require_counts, require_positive, require_rewards
from ets.types import Chain, Floats, InputError, Problem, Reward, Text

T = TypeVar("T")


def weighted_sum(*terms: tuple[float, Scoring | Reward]) -> Reward:
    """The sum of weight · reward over (weight, reward) pairs.

    A text that one reward forbids (-inf) stays forbidden, whatever that reward's weight is. If every part is a fixed
    function of (problem, text), so is the sum, and the law p* ∝ p_ref · exp(r/λ) holds for it.

    Raises
    ------
    InputError
        For no terms, one that is no pair, or a weight that is not a finite number.
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

    return cast("Reward", reward)


def guarded(
    reward: Scoring | Reward, *, seconds: float | None = None, on_error: float | Literal["raise"] = "raise"
) -> Guarded:
    """A reward with a limit on each call's time, and a policy for calls that fail.

    A call fails if it raises, exceeds its seconds, or returns anything but one usable number per rollout. With a
    limit, each call runs in a thread of its own. A call that exceeds it is abandoned, not killed: Python cannot end a
    thread, so it may go on using the machine, and what it changes then may meet the next call, which does not wait for
    it. Rewards that need the main thread (limits on time by signals, as in math-verify) cannot run under a limit.

    A value that stands in for a failed call is no fixed function of the text: the law p* then holds only as far as
    calls do not fail. `cached(guarded(…))` is refused for the same reason; write `guarded(cached(…))`.

    Parameters
    ----------
    reward : callable
        `(prompt, text) -> number`, or an `ets.types.Reward`. One that scores single texts is asked about all rollouts
        of a step in one call.
    seconds : float, optional
        For one call; by default there is no limit.
    on_error : "raise" or float
        Raise, so that the run ends with the error (what is finished stays in the journal); or the value of all
        rollouts of a failed call: a finite number, or -inf to forbid them. The first failure is told in a warning, and
        `failures` counts them.

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
        self._lock = threading.Lock()

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
        def ask() -> Floats:
            return require_rewards(self.reward(problem, rollouts, chain), len(rollouts), problem.id)

        try:
            return cast("Sequence[float]", ask() if self.seconds is None else _within(self.seconds, ask))
        except Exception as error:
            if self.on_error == "raise":
                raise
            self._note(problem, error)
            return [self.on_error] * len(rollouts)

    def _note(self, problem: Problem, error: Exception) -> None:
        with self._lock:
            self.failures += 1
            first = self.failures == 1
        if first:
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            warnings.warn(
                f"the reward failed for problem {problem.id!r} ({said}); its rollouts get {self.on_error}, as those of "
                "further calls that fail, which are counted in `failures`",
                stacklevel=2,
            )


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The call's result, from a thread of its own; raises `TimeoutError` if it is not there in time."""
    found: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def work() -> None:
        try:
            found.put((call(), None))
        except BaseException as error:
            found.put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if found.empty():
        raise TimeoutError(f"the reward took longer than {seconds:g} s, and its call is abandoned")
    result, error = found.get()
    if error is not None:
        raise error
    return cast("T", result)


def cached(reward: Scoring | TextReward, *, size: int = REMEMBERED) -> TextReward:
    """A reward that remembers its last `size` texts, least recently used ones going first.

    Only for deterministic rewards of single texts: a function of (prompt, text), whose results are remembered by
    these, or a `TextReward` (`reward_model`, `code_verifier`, `verifier`), by (problem, text). A reward that looks at
    the other rollouts, such as self-consistency, cannot be told from one that does not, so none of three arguments is
    accepted unless it is declared as a `TextReward`.

    A text that is remembered costs no call and next to no `Cost.reward_seconds`, but it is counted in `Cost.rewarded`,
    which says what the sampler asked about.

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
        return TextReward(_Remembered(reward.score_texts, Same, size))
    if not is_scoring(reward):
        raise InputError(
            f"the reward {reward!r} may look at other rollouts, so its values cannot be remembered by text; "
            "pass a function of (prompt, text), or a TextReward"
        )

    def score_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
        return [reward(problem.prompt, text) for text in texts]

    return TextReward(_Remembered(score_texts, lambda problem: problem.prompt, size))


class _Remembered:
    """Scores of texts, those of the last `size` known; of a text that two threads ask about at once, both calls count.

    `asked` says by what, beside the text, a score is remembered.
    """

    def __init__(
        self,
        score_texts: Callable[[Problem, Sequence[str]], Sequence[float]],
        asked: Callable[[Problem], Hashable],
        size: int,
    ) -> None:
        self.score_texts, self.asked, self.size = score_texts, asked, size
        self._known: OrderedDict[tuple[Hashable, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, problem: Problem, texts: Sequence[str]) -> list[float]:
        asked = self.asked(problem)
        with self._lock:
            found = {text: self._known[asked, text] for text in texts if (asked, text) in self._known}
        if new := [text for text in texts if text not in found]:
            found |= dict(zip(new, self.score_texts(problem, new), strict=True))
        with self._lock:
            for text, score in found.items():
                self._known[asked, text] = score
                self._known.move_to_end((asked, text))
            while len(self._known) > self.size:
                self._known.popitem(last=False)
        return [found[text] for text in texts]
