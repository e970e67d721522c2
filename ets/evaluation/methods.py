"""The methods that a run compares, by name, from its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from ets import baselines
from ets.evaluation.fast import FastSampling
from ets.evaluation.proposing import Proposing
from ets.evaluation.ratios import recorded_ratios
from ets.kernel import energy_guided
from ets.rewards import likelihood, self_consistency
from ets.tasks.task import Slow, Task
from ets.transition import require_counts, require_variety
from ets.types import Chain, InputError, Policy, Problem, Reward, Step, StepFn, Text


@dataclass(frozen=True)
class Settings:
    """M, K, λ, whose votes self-consistency counts, the beams of beam search, best-of-N's reward, what ETS-IS needs.

    Best-of-N goes by the likelihood per token: that of a whole text favours short ones.
    """

    candidates: int
    rollouts: int
    lam: float
    pool: Literal["step", "chain"]
    beams: int | None = None
    best_by: str = "likelihood-per-token"
    proposing: Proposing | FastSampling | None = None


@dataclass(frozen=True)
class Method:
    """A step function, how many chains of it a problem gets, and its name among the records of a run.

    `options` are those that belong to this method alone: records made with others are kept apart by them. `ratios`
    says what a record keeps of the importance ratios in a chain's trace, if the method has any; `target`, which law its
    draws are weighed towards, if not the policy's.
    """

    name: str
    label: str
    step: StepFn
    samples: int = 1
    options: tuple[str | int, ...] = ()
    ratios: Callable[[Sequence[Step]], Mapping[str, Any]] | None = None
    target: str = ""

    @property
    def key(self) -> str:
        """The method in the journal, such as `beam-20`."""
        return "-".join(map(str, (self.name, *self.options)))


def agreement(task: Task, pool: Literal["step", "chain"] = "chain") -> Reward:
    """Self-consistency; a slow task finds the answers of a step in parallel."""
    reward = self_consistency(task.extract, pool=pool)
    if not isinstance(task, Slow):
        return reward

    def found_before(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
        task.extract_all((problem, rollout.text) for rollout in rollouts)  # it remembers them
        return reward(problem, rollouts, chain)

    return found_before


def _plain(task: Task, settings: Settings, budget: int) -> Method:
    return Method("plain", f"plain sampling (mean of {budget})", baselines.plain(), samples=budget)


def _majority(task: Task, settings: Settings, budget: int) -> Method:
    """As best-of-N by self-consistency, which it is: so answers that take time are found in parallel."""
    step = baselines.best_of_n(agreement(task), samples=budget)
    return Method("majority", f"majority voting ({budget} samples)", step, options=(budget,))


def _greedy(task: Task, settings: Settings, budget: int) -> Method:
    return Method("greedy", "greedy decoding", baselines.greedy())


def _beam(task: Task, settings: Settings, budget: int) -> Method:
    beams = _beams(settings)
    return Method("beam", f"beam search ({beams} beams)", baselines.beam(beams), options=(beams,))


def _beams(settings: Settings) -> int:
    if settings.beams is None:
        raise InputError("beams is not set, which the method beam needs; set it, or leave beam out")
    return settings.beams


BEST_BY: dict[str, Callable[[Task], Reward]] = {
    "likelihood": lambda task: likelihood(),
    "likelihood-per-token": lambda task: likelihood(per_token=True),
    "self-consistency": agreement,
}
"""By name: rewards that need no training, for best-of-N. (By self-consistency, it is majority voting.)"""


def _best_of_n(task: Task, settings: Settings, budget: int) -> Method:
    step = baselines.best_of_n(BEST_BY[settings.best_by](task), samples=budget)
    label = f"best of {budget} samples, by {settings.best_by}"
    return Method("best-of-n", label, step, options=(settings.best_by, budget))


def _one_step(task: Task, settings: Settings, budget: int) -> Method:
    step = baselines.one_step(agreement(task), samples=budget, lam=settings.lam)
    return Method("one-step", f"one-step ETS ({budget} samples)", step, options=(budget,))


def _ets(task: Task, settings: Settings, budget: int) -> Method:
    step = energy_guided(
        agreement(task, settings.pool),
        candidates=settings.candidates,
        rollouts=settings.rollouts,
        lam=settings.lam,
    )
    return Method("ets", f"ETS (M {settings.candidates}, K {settings.rollouts})", step)


def _ets_is(task: Task, settings: Settings, budget: int) -> Method:
    """The policy that it samples from is a pair, see `ets.evaluation.proposing` and `ets.evaluation.fast`."""
    own = _proposing(settings)
    step = energy_guided(
        agreement(task, settings.pool),
        candidates=own.candidates,
        rollouts=settings.rollouts,
        lam=settings.lam,
        estimator=own.estimator,
    )
    ratios = partial(recorded_ratios, clip=own.clip) if own.weighed else None
    label = own.label(settings.rollouts)
    return Method("ets-is", label, step, options=own.options, ratios=ratios, target=own.target)


def _proposing(settings: Settings) -> Proposing | FastSampling:
    if settings.proposing is None:
        raise InputError(
            "proposal is not set, which the method ets-is needs; name a small model (SMALL_MODEL_PATH in the "
            "scripts), or leave ets-is out"
        )
    return settings.proposing


METHODS: dict[str, Callable[[Task, Settings, int], Method]] = {
    "plain": _plain,
    "majority": _majority,
    "one-step": _one_step,
    "ets": _ets,
    "ets-is": _ets_is,
    "greedy": _greedy,
    "beam": _beam,
    "best-of-n": _best_of_n,
}
"""By name: a function of the task, the settings, and the samples that cost as many tokens as ETS."""


DETERMINISTIC = ("greedy", "beam")
"""Methods whose samples of a problem are all equal, so that one is enough."""


def needs_samples(name: str, repeats: int) -> bool:
    """Whether a method draws so many samples as a budget says."""
    return name not in ("ets", "ets-is", *DETERMINISTIC) and not (name == "plain" and repeats > 1)


def require_methods(names: list[str], samples: int | None, settings: Settings, repeats: int = 1) -> None:
    """Raise `InputError` for unknown methods or settings out of range, before anything is loaded."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"method {repeated[0]!r} is named twice; name it once")
    if unknown := [name for name in names if name not in METHODS]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if samples is None and "ets" not in names and any(needs_samples(name, repeats) for name in names):
        raise InputError(f"methods {','.join(names)} have no ets whose tokens they could match; add it, or set samples")
    if samples is not None:
        require_counts(samples=samples)
    if "beam" in names:
        baselines.beam(_beams(settings))
    if settings.best_by not in BEST_BY:
        raise InputError(f"best_by is {settings.best_by!r}; choose from {', '.join(BEST_BY)}")
    reward = self_consistency(str, pool=settings.pool)
    shared: dict[str, Any] = {"rollouts": settings.rollouts, "lam": settings.lam}
    energy_guided(reward, candidates=settings.candidates, **shared)
    if "ets-is" in names:
        own = _proposing(settings)
        energy_guided(reward, candidates=own.candidates, clip=own.clip, estimator=own.estimator, **shared)


def require_able(policy: Policy, names: list[str], samples: int | None, settings: Settings) -> None:
    """Raise `InputError` for a search that the policy does not have, or several draws from one that draws but one."""
    if "ets-is" in names:
        require_variety(policy, _proposing(settings).candidates)
    for name, require in (("greedy", baselines.require_greedy), ("beam", baselines.require_beam)):
        if name in names:
            require(policy)
    if "ets" in names:
        require_variety(policy, settings.candidates)
    if samples is not None and not {"majority", "best-of-n", "one-step"}.isdisjoint(names):
        require_variety(policy, samples)
