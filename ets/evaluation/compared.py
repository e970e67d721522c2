"""The methods of a comparison, by name, each with the size that a larger budget raises."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from ets import baselines
from ets.evaluation.methods import REWARDS, comparing
from ets.evaluation.pooled import pool
from ets.kernel import energy_guided
from ets.rewards import likelihood, majority
from ets.rewards.self_consistency import Pool
from ets.step import require_counts, require_positive
from ets.stopping import all_at_maximum
from ets.tasks.task import Task
from ets.types import InputError, Reward, StepFn

VOTED = "vote"
"""The readout of a method's second row, where it has one; that of the first is `last`."""


@dataclass(frozen=True)
class Hyper:
    """What the methods share beside their sizes.

    `reward` is a key of `ets.evaluation.methods.REWARDS`, with the votes of `pool`, of which an answer needs `minimum`;
    `resample_below` the share of effective particles below which they are resampled;
    `alpha` the power of power sampling; `iterations` those of iterated sampling-importance-resampling.
    """

    rollouts: int
    lam: float
    pool: Pool
    reward: str = "majority"
    minimum: int = 1
    beams: int = 20
    resample_below: float = 0.5
    alpha: float = 4.0
    iterations: int = 4


Guide: TypeAlias = Callable[[Task, Hyper, int], StepFn]


@dataclass(frozen=True)
class Guided:
    """A method that steers while it samples.

    Parameters
    ----------
    step : callable
        Of the task, the shared settings and the size.
    label : str
        With `{size}` and the fields of `Hyper`.
    samples : callable
        How many complete samples cost about as much as one more of the size: for a first guess.
    options : tuple of str
        The fields of `Hyper` that its results depend on.
    votes : bool
        Whether its rollouts can vote, for a row of their own.
    at_candidates : bool
        Whether a budget that is given as candidates of ETS is its own size, as for ETS itself.
    """

    step: Guide
    label: str
    samples: Callable[[Hyper], float]
    options: tuple[str, ...] = ("rollouts", "lam", "pool", "reward", "minimum")
    votes: bool = True
    at_candidates: bool = False

    def labelled(self, hyper: Hyper, size: int) -> str:
        return self.label.format(size=size, **vars(hyper))


@dataclass(frozen=True)
class Choosing:
    """A method that chooses among N complete samples; made of the task, the shared settings and N."""

    step: Guide
    label: str

    def labelled(self, hyper: Hyper, size: int) -> str:
        return self.label.format(size=size, **vars(hyper))


def reward_of(task: Task, hyper: Hyper) -> Reward:
    """The reward that guided methods are steered by."""
    return REWARDS[hyper.reward](task, hyper.pool, hyper.minimum)


def _ets(task: Task, hyper: Hyper, size: int) -> StepFn:
    return energy_guided(reward_of(task, hyper), candidates=size, rollouts=hyper.rollouts, lam=hyper.lam)


def _ets_stopped(task: Task, hyper: Hyper, size: int) -> StepFn:
    decided = all_at_maximum(1.0)
    shared: dict[str, Any] = {"rollouts": hyper.rollouts, "lam": hyper.lam}
    return energy_guided(reward_of(task, hyper), candidates=size, decided=decided, **shared)


def _retained(task: Task, hyper: Hyper, size: int) -> StepFn:
    return baselines.retained_rollouts(reward_of(task, hyper), candidates=size, rollouts=hyper.rollouts, lam=hyper.lam)


def _lookahead(task: Task, hyper: Hyper, size: int) -> StepFn:
    shared: dict[str, Any] = {"rollouts": hyper.rollouts, "lam": hyper.lam, "threshold": hyper.resample_below}
    return baselines.lookahead(reward_of(task, hyper), particles=size, **shared)


def _particles(task: Task, hyper: Hyper, size: int) -> StepFn:
    """Votes are those of a step: in the pool of a chain, partial texts would vote for no answer again and again."""
    shared: dict[str, Any] = {"lam": hyper.lam, "threshold": hyper.resample_below}
    return baselines.particle_filter(reward_of(task, replace(hyper, pool="step")), particles=size, **shared)


def _power(task: Task, hyper: Hyper, size: int) -> StepFn:
    return baselines.power_sampling(alpha=hyper.alpha, moves=size)


GUIDED: dict[str, Guided] = {
    "ets": Guided(_ets, "ETS (M {size}, K {rollouts})", lambda hyper: 2.0 * hyper.rollouts, at_candidates=True),
    "ets-stopped": Guided(
        _ets_stopped,
        "ETS (M {size}, K {rollouts}), stopped when all agree",
        lambda hyper: 1.0 * hyper.rollouts,
        at_candidates=True,
    ),
    "retained": Guided(_retained, "retained rollouts (M {size}, K {rollouts})", lambda hyper: 1.5 * hyper.rollouts),
    "lookahead": Guided(
        _lookahead,
        "look-ahead SMC ({size} particles, K {rollouts})",
        lambda hyper: 2.0 * hyper.rollouts,
        options=("rollouts", "lam", "pool", "reward", "minimum", "resample_below"),
    ),
    "particles": Guided(
        _particles,
        "particle filter ({size} particles)",
        lambda hyper: 1.0,
        options=("lam", "reward", "minimum", "resample_below"),
        votes=False,
    ),
    "power": Guided(
        _power, "power sampling (p_ref^{alpha:g}, {size} moves)", lambda hyper: 1.0, options=("alpha",), votes=False
    ),
}
"""By name: methods with guide steps. Where they have M, that is their size, and K stays as it is."""


def _majority(task: Task, hyper: Hyper, size: int) -> StepFn:
    return baselines.best_of_n(comparing(majority, task, "step", 1), samples=size)


def _weighted_majority(task: Task, hyper: Hyper, size: int) -> StepFn:
    return baselines.weighted_majority(task.extract, likelihood(per_token=True), samples=size, lam=hyper.lam)


def _one_step(task: Task, hyper: Hyper, size: int) -> StepFn:
    return baselines.one_step(reward_of(task, hyper), samples=size, lam=hyper.lam)


def _best_of_n(task: Task, hyper: Hyper, size: int) -> StepFn:
    return baselines.best_of_n(likelihood(per_token=True), samples=size)


def _iterated(task: Task, hyper: Hyper, size: int) -> StepFn:
    """N + (iterations - 1)(N - 1) texts in all: with at most so many iterations, as many as fit; size or one fewer."""

    def total(iterations: int) -> int:
        return iterations * ((size - 1) // iterations) + 1

    iterations = max(range(2 if size > 2 else 1, hyper.iterations + 1), key=lambda n: (total(n), n), default=1)
    samples = (size - 1) // iterations + 1
    return baselines.iterated_sir(reward_of(task, hyper), samples=samples, iterations=iterations, lam=hyper.lam)


CHOOSING: dict[str, Choosing] = {
    "plain": Choosing(lambda task, hyper, size: pool(size), "plain sampling (mean of {size})"),
    "majority": Choosing(_majority, "majority voting ({size})"),
    "weighted-majority": Choosing(_weighted_majority, "majority weighted by exp(logp per token / {lam:g}) ({size})"),
    "best-of-n": Choosing(_best_of_n, "best of {size}, by likelihood per token"),
    "one-step": Choosing(_one_step, "one-step ETS ({size})"),
    "iterated-sir": Choosing(_iterated, "iterated resampling ({size} in all)"),
}
"""By name: methods that choose among N complete samples, which they share."""

SEARCHES: dict[str, Callable[[Hyper], tuple[StepFn, str, tuple[int, ...]]]] = {
    "greedy": lambda hyper: (baselines.greedy(), "greedy decoding", ()),
    "beam": lambda hyper: (baselines.beam(hyper.beams), f"beam search ({hyper.beams} beams)", (hyper.beams,)),
}
"""By name: step function, label and options of what is the same at every budget."""

METHODS: Mapping[str, object] = {**GUIDED, **CHOOSING, **SEARCHES}


def require_compared(names: list[str], hyper: Hyper) -> None:
    """Raise `InputError` for unknown methods or settings out of range, before anything is loaded."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"method {repeated[0]!r} is named twice; name it once")
    if unknown := [name for name in names if name not in METHODS]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if hyper.reward not in REWARDS:
        raise InputError(f"reward is {hyper.reward!r}; choose from {', '.join(REWARDS)}")
    if "ets-stopped" in names and hyper.reward not in ("majority", "share"):
        raise InputError(f"ets-stopped stops when all rollouts agree, and reward is {hyper.reward!r}; leave it out")
    if hyper.pool not in ("step", "chain"):
        raise InputError(f"pool is {hyper.pool!r}; choose 'step' or 'chain'")
    if not 0 <= hyper.resample_below <= 1:
        raise InputError(f"resample_below is {hyper.resample_below!r}; it must be a share, from 0 to 1")
    require_counts(rollouts=hyper.rollouts, beams=hyper.beams, iterations=hyper.iterations, minimum=hyper.minimum)
    require_positive(lam=hyper.lam, alpha=hyper.alpha)
