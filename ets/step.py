"""The parts that step functions share: draw rows for chains, score texts, choose by weights, check arguments."""

from __future__ import annotations

import inspect
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from traceback import extract_tb
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from ets.event_loop import awaited
from ets.randomness import Purpose, derive, uniform
from ets.types import Chain, Cost, Draw, Floats, InputError, Keys, Policy, Problem, Reward, State, Text
from ets.weights import log_mean_exp, normalised, pick


class RewardError(InputError):
    """Raised for a reward that raises, or returns no usable number for a rollout; the message names the problem."""


F = TypeVar("F", bound=Callable[..., Any])
Scoring: TypeAlias = Callable[[Any, str], float]
"""A reward as a user writes it: `(prompt, text) -> number`, with `Problem.raw_prompt`: the text or the messages as they
were given, never the text of a chat template."""
Decided: TypeAlias = Callable[[Problem, Sequence[Sequence[Text]], Floats, Chain], bool]
"""A rule of `ets.stopping`: whether the chain may end, from the problem, a step's rollouts `[M, K]`, their r `[M, K]`
(as the reward returned them, up to rounding) and the chain before the step."""


def per_text(scoring: Scoring) -> Reward:
    """Lift `(prompt, text) -> number` to a reward; the calls of an `async def` function run concurrently.

    A candidate that has ended stands for all its rollouts: it is scored once.
    """

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        distinct = {id(text): text for text in rollouts}
        found = awaited(scoring(problem.raw_prompt, text.text) for text in distinct.values())
        values = dict(zip(distinct, found, strict=True))
        return [values[id(text)] for text in rollouts]

    return reward


def as_reward(function: Scoring | Reward) -> Reward:
    """A reward from either kind of callable: `(prompt, text)` is lifted, `(problem, rollouts, chain)` kept.

    A callable that accepts both two and three arguments is lifted, unless its second one is named `rollouts`. Either
    kind may be an `async def` function.

    Raises
    ------
    InputError
        If it can be called with neither two nor three positional arguments.
    """
    if not is_scoring(function):
        return cast("Reward", _awaiting(function) if _is_async(function) else function)
    reward = per_text(cast("Scoring", function))
    return of_prefixes(reward) if reads_prefixes(function) else reward


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function as a function that waits for the result."""
    return wraps(function)(lambda problem, rollouts, chain: awaited([function(problem, rollouts, chain)])[0])


def of_prefixes(reward: F) -> F:
    """Declare, as a decorator, that a reward is informative for unfinished texts too.

    `ets.refined` then begins with a particle filter. For example, a reward that counts the met demands of a text is a
    reward of prefixes, and a verifier of the final answer is none. A wrong declaration costs tokens, and leaves the law
    of the moves as it is.
    """
    try:
        reward.of_prefixes = True  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise InputError(f"{reward!r} cannot carry the declaration of_prefixes; wrap it in a function") from None
    return reward


def reads_prefixes(reward: Scoring | Reward) -> bool:
    """Whether `of_prefixes` has declared it."""
    return bool(getattr(reward, "of_prefixes", False))


def is_scoring(function: Scoring | Reward) -> bool:
    """Whether `as_reward` lifts it; raises as that does."""
    if not callable(function):
        raise InputError(f"the reward is {function!r}, which is no function; pass one of (prompt, text)")
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in callables tell no signature
        return True
    takes_rollouts = list(signature.parameters)[1:2] == ["rollouts"]
    count = accepted_arguments(signature, (3,) if takes_rollouts else (2, 3))
    if count is None:
        raise InputError(f"the reward takes {signature}; it must accept (prompt, text) or (problem, rollouts, chain)")
    return count == 2


def accepted_arguments(signature: inspect.Signature, counts: Sequence[int]) -> int | None:
    """The first of some numbers of positional arguments that a callable can be called with."""
    for count in counts:
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return count
    return None


def row_keys(chains: Sequence[Chain], purpose: Purpose, *shape: int) -> Keys:
    """Keys `[B, *shape]`: one for each row that the chains' next step draws for a purpose."""
    require_rows(len(chains) * math.prod(shape), "the draws of a step")
    keys = np.array([chain.key for chain in chains], np.uint64)
    steps = np.array([len(chain.trace) for chain in chains], np.uint64)
    keys = derive(keys, steps, int(purpose))
    for size in shape:
        keys = derive(keys[..., None], np.arange(size))
    return keys


def draw_for_chains(
    method: Callable[[Sequence[State], Keys], list[Draw]], chains: Sequence[Chain], purpose: Purpose, copies: int
) -> list[list[Draw]]:
    """`[B, copies]` draws, `copies` from the state of each chain, whose work they share."""
    keys = row_keys(chains, purpose, copies)
    draws = method([chain.state for chain in chains for _ in range(copies)], keys.ravel())
    return [draws[b * copies : (b + 1) * copies] for b in range(len(chains))]


def score(reward: Reward, lam: float, chain: Chain, rollouts: Sequence[Sequence[Text]]) -> tuple[Floats, Cost]:
    """The scaled rewards r/λ `[M, K]` of a step's rollouts, and the cost of the reward.

    Raises
    ------
    RewardError
        If the reward raises, returns NaN or +inf, or not one number per rollout, or if r/λ is infinite.
    """
    texts = [text for row in rollouts for text in row]
    begun = time.perf_counter()
    try:
        found = reward(chain.problem, texts, chain)
        if np.ndim(found) == 1 and any(isinstance(value, str) for value in found):
            raise TypeError("a reward is text; return a number")
        values = np.asarray(found, dtype=float)
    except (Exception, SystemExit) as error:
        raise RewardError(failure(chain.problem, error)) from error
    seconds = time.perf_counter() - begun
    require_rewards(values, len(texts), chain.problem.called)
    with np.errstate(over="ignore"):
        scaled = values / lam
    if np.any(lost := np.isinf(scaled) & np.isfinite(values)):
        raise RewardError(
            f"a reward of {values[lost][0]} over lam {lam} is infinite, {chain.problem.called}; use a larger lam"
        )
    cost = Cost(rewarded=len({id(text) for text in texts}), reward_seconds=seconds)
    return scaled.reshape(len(rollouts), -1), cost


def failure(problem: Problem, error: BaseException) -> str:
    """The error of a reward in one line, with its place in the code; a missing field of the problem's row by name."""
    frame = extract_tb(error.__traceback__)[-1]
    code = f"{Path(frame.filename).name}, line {frame.lineno}"
    if problem.place and isinstance(error, KeyError) and error.args and error.args[0] not in problem.doc:
        missing = f"{problem.place} has no {error.args[0]!r}, a KeyError of the reward ({code})"
        return f"{missing}; add it, or correct the reward"
    return f"the reward raised {type(error).__name__} for {problem.called}: {_line(error)} ({code}); correct it"


def require_rewards(values: Sequence[float] | Floats, count: int, called: str) -> Floats:
    """The rewards of a problem's rollouts as an array `[count]`; raises `RewardError` for unusable values."""
    found = np.asarray(values, dtype=float)
    if found.shape != (count,):
        raise RewardError(
            f"the reward gave shape {found.shape} for {called}; it needs one number for each of {count} rollouts"
        )
    if np.any(np.isnan(found)) or np.any(np.isposinf(found)):
        worst = found[np.isnan(found) | np.isposinf(found)][0]
        raise RewardError(
            f"the reward gave {worst} for {called} (None counts as nan); "
            "return a finite number, or -inf to forbid a text"
        )
    return found


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def choice_uniforms(chains: Sequence[Chain]) -> list[float]:
    """`[B]` uniforms in [0, 1), one for the choice of each chain's next step."""
    return uniform(row_keys(chains, Purpose.CHOICE)).tolist()


def choose(log_weights: Floats, number: float) -> int:
    """The index that a uniform number selects in proportion to exp(log_weights); if all are -inf, uniformly."""
    return pick(normalised(log_weights), number)


def choose_pair(log_weights: Floats, number: float) -> tuple[int, int]:
    """The row and column of `[M, K]` log-weights that a uniform number selects, as `choose` does."""
    row, column = divmod(choose(log_weights.ravel(), number), log_weights.shape[1])
    return row, column


def choose_rollout(log_weights: Floats, log_terms: Floats, number: float) -> tuple[int, int]:
    """A candidate by its weight `[M]`, and one of its rollouts in proportion to exp(log_terms) `[M, K]`.

    The uniform number selects the same candidate as `choose`.
    """
    return choose_pair(spread(log_weights, log_terms), number)


def spread(log_weights: Floats, log_terms: Floats) -> Floats:
    """Each candidate's weight `[M]`, spread over its rollouts `[M, K]` in proportion to exp(log_terms)."""
    means = log_mean_exp(log_terms, axis=1)
    return log_terms + (log_weights - np.where(np.isneginf(means), 0.0, means))[:, None]


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no bool."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def require_positive(**values: float) -> None:
    """Raise `InputError` for the first value that is not a finite number above zero."""
    for name, value in values.items():
        if not (is_number(value) and value > 0):
            raise InputError(f"{name} is {value!r}; it must be a finite number above zero")
        if name in FLATTENING:
            warn_of_rounding(**{name: value})


FLATTENING = {"lam": (1e15, "rewards"), "temperature": (1e8, "logits")}
"""By setting: a value above which a number of about 1 over the setting is below the precision of its type."""


def warn_of_rounding(**values: float) -> None:
    """Warn of a value that leaves nothing but rounding of what it divides."""
    for name, value in values.items():
        most, divided = FLATTENING[name]
        if value > most:
            text = f"{name} is {value:g}, and {divided} of about 1 over it differ by rounding alone; lower it"
            warnings.warn(text, stacklevel=3)


def require_counts(**values: int) -> None:
    """Raise `InputError` for the first value that is not a whole number of at least one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if value > sys.maxsize:
            raise InputError(f"{name} is {value}; give at most {sys.maxsize}")


ROW_BYTES = 1024
"""The least memory that a drawn text takes, with its tokens and log-probabilities."""


def require_rows(rows: int, what: str) -> None:
    """Raise `InputError` for more texts than this machine's memory holds; `what` names their number."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if rows * ROW_BYTES > memory:
        raise InputError(
            f"{what} are {rows:,} texts at once, which take at least {rows * ROW_BYTES / 2**30:,.0f} GiB, and this "
            f"machine has {memory / 2**30:,.0f} GiB; choose fewer"
        )


def require_share(**values: float) -> None:
    """Raise `InputError` for the first value that is no number above 0 and up to 1."""
    for name, value in values.items():
        require_positive(**{name: value})
        if value > 1:
            raise InputError(f"{name} is {value!r}; it must be a share, above 0 and at most 1")


def shared_out(chains: Sequence[Chain], cost: Cost) -> list[Chain]:
    """The chains, whose last steps are charged with shares of the forward passes and seconds, by token positions."""
    positions = [chain.trace[-1].cost.positions for chain in chains]
    total = sum(positions)
    shares = [p / total if total else 1 / len(chains) for p in positions]
    return [
        chain.charged(Cost(forwards=cost.forwards * share, seconds=cost.seconds * share))
        for chain, share in zip(chains, shares, strict=True)
    ]


def require_unweighed(policy: Policy) -> None:
    """Raise `InputError` for a policy whose draws carry importance ratios, in methods that have no weights for them."""
    if getattr(policy, "weighed", False):
        drawing = type(getattr(policy, "policy", policy)).__name__
        raise InputError(
            f"the draws of {drawing} carry importance ratios, which this method would ignore; "
            "use energy_guided, or the policy without a proposal"
        )


def require_variety(policy: Policy, draws: int) -> None:
    """Raise `InputError` for several draws from a state of a policy whose draws are all equal."""
    if draws > 1 and policy.deterministic:
        raise InputError(
            f"at temperature 0 nothing is random, so all {draws} draws from a state would be equal; "
            "raise the temperature, or draw one (candidates 1)"
        )
