"""The methods that a run compares, by name, from its hyper-parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ets import baselines
from ets.evaluation.base import Base
from ets.evaluation.fast import FastSampling
from ets.evaluation.proposing import Proposing
from ets.evaluation.ratios import recorded_ratios
from ets.kernel import energy_guided
from ets.proposal import Clip
from ets.rewards import agreement_share, likelihood, majority
from ets.rewards.self_consistency import Pool
from ets.tasks.task import Slow, Task
from ets.transition import require_counts, require_variety
from ets.types import Chain, InputError, Policy, Problem, Reward, Step, StepFn, Text


@dataclass(frozen=True)
class Settings:
    """The settings of the methods.

    Parameters
    ----------
    candidates, rollouts, lam : int, int, float
        M, K and λ.
    pool : {"step", "chain"}
        Whose votes the rewards `majority` and `share` count.
    beams : int, optional
        Of beam search.
    reward : str
        A key of `REWARDS`: what one-step ETS, ETS and ETS-IS are steered by.
    minimum : int
        Votes that an answer needs where `reward` is `majority` or `share`. Best-of-N by a vote asks for none.
    best_by : str
        A key of `REWARDS`: what best-of-N goes by. The likelihood of a whole text favours short texts.
    sizes : mapping of str to int
        By method: its N, in the place of the N that costs as much as ETS.
    base : Base
        The law of the method `base`.
    proposing : Proposing or FastSampling, optional
        What ETS-IS samples from.
    """

    candidates: int
    rollouts: int
    lam: float
    pool: Pool
    beams: int | None = None
    reward: str = "majority"
    minimum: int = 1
    best_by: str = "majority"
    sizes: Mapping[str, int] = field(default_factory=dict)
    base: Base = field(default_factory=Base)
    proposing: Proposing | FastSampling | None = None


@dataclass(frozen=True)
class Method:
    """A step function, how many chains of it a problem gets, and its name among the records of a run.

    `options` are those that belong to this method alone: records made with others are kept apart by them. `ratios`
    says what a record keeps of the importance ratios in a chain's trace, if the method has any; `target`, which law its
    draws are weighed towards, if not the policy's. `votes`: whether the vote over all rollouts is a row of its own.
    """

    name: str
    label: str
    step: StepFn
    samples: int = 1
    options: tuple[str | int, ...] = ()
    ratios: Callable[[Sequence[Step]], Mapping[str, Any]] | None = None
    target: str = ""
    votes: bool = False

    @property
    def key(self) -> str:
        """The method in the journal, such as `beam-20`."""
        return "-".join(map(str, (self.name, *self.options)))


def comparing(compare: Callable[..., Reward], task: Task, pool: Pool, minimum: int) -> Reward:
    """A reward that compares answers, `majority` or `agreement_share`; a slow task finds a step's in parallel."""
    reward = compare(task.extract, pool=pool, minimum=minimum)
    if not isinstance(task, Slow):
        return reward

    def found_before(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
        task.extract_all((problem, rollout.text) for rollout in rollouts)  # it remembers them
        return reward(problem, rollouts, chain)

    return found_before


REWARDS: dict[str, Callable[[Task, Pool, int], Reward]] = {
    "majority": partial(comparing, majority),
    "share": partial(comparing, agreement_share),
    "likelihood": lambda task, pool, minimum: likelihood(),
    "likelihood-per-token": lambda task, pool, minimum: likelihood(per_token=True),
}
"""By name: rewards that need no training. From the task, whose votes count, and the votes that an answer needs."""


def reward_named(name: str, task: Task, settings: Settings) -> Reward:
    """A key of `REWARDS` with the settings' pool and minimum."""
    return REWARDS[name](task, settings.pool, settings.minimum)


def _steered(label: str, settings: Settings) -> str:
    """A label that names the reward, where it is another than the paper's."""
    return label if settings.reward == "majority" else f"{label}, by {settings.reward}"


def _base(task: Task, settings: Settings, budget: int) -> Method:
    law = settings.base
    options = (f"T{law.temperature:g}", f"k{law.top_k}", f"p{law.top_p}")
    return Method("base", f"base model ({law.label}; mean of {budget})", baselines.plain(), budget, options)


def _plain(task: Task, settings: Settings, budget: int) -> Method:
    return Method("plain", f"plain sampling (mean of {budget})", baselines.plain(), samples=budget)


def _majority(task: Task, settings: Settings, budget: int) -> Method:
    """Majority voting is best-of-N by the reward `majority`, which finds slow answers in parallel."""
    step = baselines.best_of_n(comparing(majority, task, "step", 1), samples=budget)
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


def _best_of_n(task: Task, settings: Settings, budget: int) -> Method:
    """N complete texts vote as they are: `minimum` is for the rewards that steer."""
    step = baselines.best_of_n(REWARDS[settings.best_by](task, settings.pool, 1), samples=budget)
    label = f"best of {budget} samples, by {settings.best_by}"
    return Method("best-of-n", label, step, options=(settings.best_by, budget))


def _one_step(task: Task, settings: Settings, budget: int) -> Method:
    step = baselines.one_step(reward_named(settings.reward, task, settings), samples=budget, lam=settings.lam)
    return Method("one-step", _steered(f"one-step ETS ({budget} samples)", settings), step, options=(budget,))


def _ets(task: Task, settings: Settings, budget: int) -> Method:
    step = energy_guided(
        reward_named(settings.reward, task, settings),
        candidates=settings.candidates,
        rollouts=settings.rollouts,
        lam=settings.lam,
    )
    label = f"ETS (M {settings.candidates}, K {settings.rollouts})"
    return Method("ets", _steered(label, settings), step, votes=True)


def _ets_is(task: Task, settings: Settings, budget: int) -> Method:
    """The policy that it samples from is a pair, see `ets.evaluation.proposing` and `ets.evaluation.fast`."""
    own = _proposing(settings)
    step = energy_guided(
        reward_named(settings.reward, task, settings),
        candidates=own.candidates,
        rollouts=settings.rollouts,
        lam=settings.lam,
    )
    ratios = partial(recorded_ratios, clip=own.clip) if own.weighed else None
    label = _steered(own.label(settings.rollouts), settings)
    return Method("ets-is", label, step, options=own.options, ratios=ratios, target=own.target, votes=True)


def _proposing(settings: Settings) -> Proposing | FastSampling:
    if settings.proposing is None:
        raise InputError(
            "proposal is not set, which the method ets-is needs; name a small model (SMALL_MODEL_PATH in the "
            "scripts), or leave ets-is out"
        )
    return settings.proposing


METHODS: dict[str, Callable[[Task, Settings, int], Method]] = {
    "base": _base,
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


AVERAGED = ("base", "plain")
"""Methods whose score is a mean over single samples; with repeats it is a mean over so many."""


def needs_samples(name: str, settings: Settings, repeats: int) -> bool:
    """Whether a budget says how many samples a method draws."""
    fixed = name in ("ets", "ets-is", *DETERMINISTIC) or name in settings.sizes
    return not fixed and not (name in AVERAGED and repeats > 1)


def require_methods(names: list[str], samples: int | None, settings: Settings, repeats: int = 1) -> None:
    """Raise `InputError` for unknown methods or settings out of range, before anything is loaded."""
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"method {repeated[0]!r} is named twice; name it once")
    if unknown := [name for name in names if name not in METHODS]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}")
    if samples is None and "ets" not in names and any(needs_samples(name, settings, repeats) for name in names):
        raise InputError(
            f"methods {','.join(names)} have no ets whose tokens they could match; add it, or set samples or sizes"
        )
    if samples is not None:
        require_counts(samples=samples)
    if "beam" in names:
        baselines.beam(_beams(settings))
    for name, value in (("reward", settings.reward), ("best_by", settings.best_by)):
        if value not in REWARDS:
            raise InputError(f"{name} is {value!r}; choose from {', '.join(REWARDS)}")
    reward = majority(str, pool=settings.pool, minimum=settings.minimum)
    shared: dict[str, Any] = {"rollouts": settings.rollouts, "lam": settings.lam}
    energy_guided(reward, candidates=settings.candidates, **shared)
    if "ets-is" in names:
        own = _proposing(settings)
        energy_guided(reward, candidates=own.candidates, **shared)
        Clip(own.clip)
    _require_sizes(settings.sizes, repeats)


def _require_sizes(sizes: Mapping[str, int], repeats: int) -> None:
    fixed = ("ets", "ets-is", *DETERMINISTIC)
    for name, size in sizes.items():
        if name not in METHODS or name in fixed:
            sized = ", ".join(method for method in METHODS if method not in fixed)
            why = "which draws no N samples" if name in fixed else "which does not exist"
            raise InputError(f"sizes names the method {name!r}, {why}; choose from {sized}")
        require_counts(**{f"the size of {name}": size})
        if name in AVERAGED and repeats > 1:
            raise InputError(
                f"sizes names {name}, whose samples are the repeats ({repeats}) here; leave one of them out"
            )


def require_able(policy: Policy, names: list[str], samples: int | None, settings: Settings) -> None:
    """Raise `InputError` for a search that the policy does not have, or several draws from one that draws but one."""
    if "ets-is" in names:
        require_variety(policy, _proposing(settings).candidates)
    for name, require in (("greedy", baselines.require_greedy), ("beam", baselines.require_beam)):
        if name in names:
            require(policy)
    if "ets" in names:
        require_variety(policy, settings.candidates)
    for name in (name for name in names if name in ("majority", "best-of-n", "one-step")):
        require_variety(policy, settings.sizes.get(name, samples or 1))
