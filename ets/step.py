"""The parts that step functions share: draw rows for chains, score texts, choose by weights, check arguments."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from ets.randomness import Purpose, derive, uniform
from ets.types import Chain, Cost, Draw, Floats, InputError, Keys, Policy, Reward, State, Text
from ets.weights import normalised, pick


class RewardError(InputError):
    """Raised for a reward that raises, or returns no usable number for a rollout; the message names the problem."""


def row_keys(chains: Sequence[Chain], purpose: Purpose, *shape: int) -> Keys:
    """Keys `[B, *shape]`: one for each row that the chains' next step draws for a purpose."""
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
    name, begun = chain.problem.id, time.perf_counter()
    try:
        values = np.asarray(reward(chain.problem, texts, chain), dtype=float)
    except Exception as error:
        raise RewardError(f"the reward raised {type(error).__name__} for problem {name!r}: {_line(error)}") from error
    seconds = time.perf_counter() - begun
    require_rewards(values, len(texts), name)
    with np.errstate(over="ignore"):
        scaled = values / lam
    if np.any(np.isposinf(scaled)):
        raise RewardError(f"a reward of {values.max()} over lam {lam} is infinite, problem {name!r}; use a larger lam")
    cost = Cost(rewarded=len({id(text) for text in texts}), reward_seconds=seconds)
    return scaled.reshape(len(rollouts), -1), cost


def require_rewards(values: Sequence[float] | Floats, count: int, name: str) -> Floats:
    """The rewards of a problem's rollouts as an array `[count]`; raises `RewardError` for unusable values."""
    found = np.asarray(values, dtype=float)
    if found.shape != (count,):
        raise RewardError(
            f"the reward gave shape {found.shape} for problem {name!r}; "
            f"it needs one number for each of {count} rollouts"
        )
    if np.any(np.isnan(found)) or np.any(np.isposinf(found)):
        worst = found[np.isnan(found) | np.isposinf(found)][0]
        raise RewardError(
            f"the reward gave {worst} for problem {name!r}; "
            "return a finite number (None is none), or -inf to forbid a text"
        )
    return found


def _line(error: Exception) -> str:
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


def require_positive(**values: float) -> None:
    """Raise `InputError` for the first value that is not a finite number above zero."""
    for name, value in values.items():
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not (number and math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value!r}; it must be a finite number above zero")


def require_counts(**values: int) -> None:
    """Raise `InputError` for the first value that is not a whole number of at least one."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise InputError(f"{name} is {value!r}; it must be a whole number of at least 1")


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
        raise InputError(
            f"the draws of {type(policy).__name__} carry importance ratios, which this method would ignore; "
            "use energy_guided, or the policy without a proposal"
        )


def require_variety(policy: Policy, draws: int) -> None:
    """Raise `InputError` for several draws from a state of a policy whose draws are all equal."""
    if draws > 1 and policy.deterministic:
        raise InputError(
            f"at temperature 0 nothing is random, so all {draws} draws from a state would be equal; "
            "raise the temperature, or draw one"
        )
