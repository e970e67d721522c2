"""The methods of a comparison, by name: a new method is a step function and one line in `METHODS`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from ets import baselines
from ets.kernel import energy_guided
from ets.own_code import code_digest, named_object, running
from ets.rewards import likelihood, majority
from ets.rewards.registry import COMPARING, NAMES, OF_CERTAINTY, OF_TEXTS, comparing, named_reward, require_reward
from ets.rewards.self_consistency import VotePool
from ets.settings import Guide, number_or, setting
from ets.step import require_counts, require_positive, require_share, require_variety
from ets.stopping import all_at_maximum
from ets.suffix_moves import Plan, refined
from ets.tasks.task import Task, has_answers
from ets.types import InputError, Policy, Reward, StepFn, counted
from ets.walk import lengths_of


@dataclass(frozen=True)
class MethodSettings(Guide):
    """The settings of the methods; those of the policy are in `ets.policies.settings`."""

    reward: str = setting(
        "majority", f"the reward of all methods: {', '.join(NAMES)}; or file.py:function or module:function"
    )
    pool: VotePool = setting("chain", "the rollouts whose votes the rewards majority and share count: step or chain")
    minimum: int | None = setting(None, "votes that an answer needs (default: 1; masked diffusion: 2)", int)
    best_by: str | None = setting(None, "the reward of best-of-n (default: the reward of the run)")
    beams: int = setting(20, "beams of beam search", int, flags=("num_beams",))
    base_temperature: float = setting(0.7, "temperature of the method base, the paper's Base row", float)
    base_top_k: int | None = setting(20, "top-k of the method base, or none", number_or(int, "none", None))
    base_top_p: float | None = setting(0.8, "top-p of the method base, or none", number_or(float, "none", None))
    resample_below: float = setting(0.5, "share of effective particles below which they are resampled", float)
    alpha: float = setting(4.0, "power sampling draws from p_ref to this power", float)
    iterations: int = setting(4, "iterations of iterated resampling", int)
    confident_share: float = setting(0.5, "share of the samples that vote in confident-majority", float)
    is_candidates: int | None = setting(None, "M of ets-is (default: that of ets)", int)
    weighing: str = ""
    """What ets-is draws from and how it weighs the draws; `ets.evaluation.setup` completes it."""
    weighed_label: str = ""
    """The label of ets-is with its level or block size; `ets.evaluation.setup` completes it."""

    @property
    def votes_needed(self) -> int:
        return 1 if self.minimum is None else self.minimum

    @property
    def fixed_reward(self) -> bool:
        """Whether the reward is a function of a text, not of the votes of several texts."""
        return self.reward not in COMPARING

    def needs_certainty(self, methods: Collection[str]) -> bool:
        """Whether a reward or a method reads `Text.certainty`, which a policy records by a setting."""
        return bool({self.reward, self.best_by} & set(OF_CERTAINTY)) or "confident-majority" in methods


@dataclass(frozen=True)
class Method:
    """One method.

    Parameters
    ----------
    step : callable
        The step function, of the task, the settings and the size.
    label : str
        With `{size}`, `{particles}` and `{moves}` (the size with its noun), `{by}` (", by REWARD" where `best_by` is
        given), `{vote}` (the reward of weighted votes), and the fields of `MethodSettings`.
    kind : {"guided", "among", "averaged", "search"}
        "guided": a step function with guide steps, whose size grows with the budget. "among": it chooses among N
        complete samples, which all such methods share. "averaged": the mean score of single samples. "search": the
        same at every budget.
    depends : tuple of str
        The settings that its records depend on.
    votes : bool
        Whether the vote over its rollouts is a second row.
    samples : callable
        Complete samples that cost about as much as one more of the size, for a first guess.
    at_candidates : bool
        Whether a budget that is given as candidates of ETS is this method's size too.
    at_most : bool
        Whether the size is the most samples, as many as the budget pays for, of which the method may draw fewer.
    in_tokens : bool
        Whether the size is the most tokens that a chain generates.
    law : str
        The policy that it samples from: "" for the run's, "base" or "ets-is".
    digest : str
        Of the file that holds a user's step function.
    target : str
        The law that the method tends to as its budget grows, with the fields of `MethodSettings`; "" where there is
        none.
    answers : bool
        Whether the method reads answers, which a task of prompts has none of.
    by_steps : callable, optional
        A step function of the same law whose text only grows, by a guide step at a time; None where a later step may
        change the text.
    """

    step: Callable[[Task, MethodSettings, int], StepFn]
    label: str
    kind: Literal["guided", "among", "averaged", "search"] = "guided"
    depends: tuple[str, ...] = ("rollouts", "lam", "pool", "reward", "minimum")
    votes: bool = False
    samples: Callable[[MethodSettings], float] = lambda settings: 1.0
    at_candidates: bool = False
    at_most: bool = False
    in_tokens: bool = False
    law: str = ""
    digest: str = ""
    target: str = "p*"
    answers: bool = False
    by_steps: Callable[[Task, MethodSettings, int], StepFn] | None = None

    def labelled(self, settings: MethodSettings, size: int) -> str:
        template = (self.law == "ets-is" and settings.weighed_label) or self.label
        by = "" if settings.best_by is None else f", by {settings.best_by}"
        sizes = {"size": size, "particles": counted(size, "particle"), "moves": counted(size, "move")}
        return template.format(**sizes, by=by, vote=_vote_weight(settings), **asdict(settings))

    def targeted(self, settings: MethodSettings) -> str:
        """The target of the sampled text; with a reward of votes p* is that of the votes so far."""
        votes = " of the votes" if settings.reward in COMPARING and self.target == "p*" else ""
        return self.target.format(**asdict(settings)) + votes

    def scored(self, name: str, settings: MethodSettings) -> bool:
        """Whether the method scores texts by the run's reward, not by votes or by `best_by`."""
        return not (name == "best-of-n" and settings.best_by) and name not in ("majority", "confident-majority")

    @property
    def of_one_prompt(self) -> bool:
        """Whether the method answers a single prompt from the run's policy: `ets serve` offers it."""
        return not self.law and self.kind != "search"

    def key(self, name: str, settings: MethodSettings, size: int) -> str:
        """The method in the journal, such as `ets-8-rollouts=3-lam=0.1-…`."""
        settled = [f"{each}={getattr(settings, each)}" for each in self.depends]
        return "-".join([name, str(size), *settled, *filter(None, [self.digest])])


def steering(task: Task, settings: MethodSettings) -> Reward:
    """The reward of guided methods."""
    return named_reward(settings.reward, task, pool=settings.pool, minimum=settings.votes_needed)


def recorded_reward(method: Method, task: Task, settings: MethodSettings) -> Reward | None:
    """The reward that the records of a method keep: the run's, if it is a fixed function of the text.

    It is None for votes, and for rewards of the policy's records, such as `likelihood`, where the texts have another
    law: greedy decoding, beam search, the base model, and ets-is.
    """
    other_law = bool(method.law) or method.kind == "search"
    if not settings.fixed_reward or (settings.reward in OF_TEXTS and other_law):
        return None
    return steering(task, settings)


def _vote_weight(settings: MethodSettings) -> str:
    return "r" if settings.fixed_reward else "logp per token"


def _guide(settings: MethodSettings, size: int) -> dict[str, Any]:
    return {"candidates": size, "rollouts": settings.rollouts, "lam": settings.lam}


def _ets(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return energy_guided(steering(task, settings), **_guide(settings, size))


def _ets_stopped(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return energy_guided(steering(task, settings), **_guide(settings, size), decided=all_at_maximum(1.0))


def _retained(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return baselines.retained_rollouts(steering(task, settings), **_guide(settings, size))


def _refined(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return refined(steering(task, settings), lam=settings.lam, budget=size)


def _adaptive_majority(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return baselines.adaptive_majority(task.extract, samples=size)


def _lookahead(task: Task, settings: MethodSettings, size: int) -> StepFn:
    shared: dict[str, Any] = {"lam": settings.lam, "threshold": settings.resample_below}
    return baselines.lookahead(steering(task, settings), particles=size, rollouts=settings.rollouts, **shared)


def _particles(task: Task, settings: MethodSettings, size: int) -> StepFn:
    """The votes are those of a step: in the pool of a chain, unfinished texts would vote again and again."""
    shared: dict[str, Any] = {"lam": settings.lam, "threshold": settings.resample_below}
    return baselines.particle_filter(steering(task, replace(settings, pool="step")), particles=size, **shared)


def _power(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return baselines.power_sampling(alpha=settings.alpha, moves=size)


def _majority(task: Task, settings: MethodSettings, size: int) -> StepFn:
    """Majority voting is best-of-N by the reward `majority`."""
    return baselines.best_of_n(comparing(majority, task, "step", 1), samples=size)


def _weighted_majority(task: Task, settings: MethodSettings, size: int) -> StepFn:
    """By the run's reward; by the likelihood per token where that reward is a vote itself."""
    reward = steering(task, settings) if settings.fixed_reward else likelihood(per_token=True)
    return baselines.weighted_majority(task.extract, reward, samples=size, lam=settings.lam)


def _confident_majority(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return baselines.confident_majority(task.extract, samples=size, share=settings.confident_share)


def _one_step(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return baselines.one_step(steering(task, settings), samples=size, lam=settings.lam)


def _best_of_n(task: Task, settings: MethodSettings, size: int) -> StepFn:
    by = settings.reward if settings.best_by is None else settings.best_by
    return baselines.best_of_n(named_reward(by, task, pool="step", minimum=1), samples=size)


def _iterated(task: Task, settings: MethodSettings, size: int) -> StepFn:
    """N + (iterations - 1)(N - 1) texts in all: the most that the size allows, with at most so many iterations."""

    def total(iterations: int) -> int:
        return iterations * ((size - 1) // iterations) + 1

    iterations = max(range(2 if size > 2 else 1, settings.iterations + 1), key=lambda n: (total(n), n), default=1)
    samples = (size - 1) // iterations + 1
    shared: dict[str, Any] = {"samples": samples, "iterations": iterations, "lam": settings.lam}
    return baselines.iterated_sir(steering(task, settings), **shared)


def _plain(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return baselines.plain()


def _plain_by_steps(task: Task, settings: MethodSettings, size: int) -> StepFn:
    return baselines.plain_by_steps()


def _twice(settings: MethodSettings) -> float:
    """Complete samples that cost about as much as a candidate of ETS with its rollouts."""
    return 2.0 * settings.rollouts


_BASE = "base model (T {base_temperature:g}, top-k {base_top_k}, top-p {base_top_p}; mean of {size})"
_WEIGHED = ("rollouts", "lam", "pool", "reward", "minimum", "weighing")
METHODS: dict[str, Method] = {
    "base": Method(_plain, _BASE, "averaged", (), law="base", target="p of the base row"),
    "plain": Method(
        _plain, "plain sampling (mean of {size})", "averaged", (), target="p_ref", by_steps=_plain_by_steps
    ),
    "majority": Method(_majority, "majority voting ({size})", "among", (), target="mode of p_ref", answers=True),
    "confident-majority": Method(
        _confident_majority,
        "majority of the most confident {confident_share:.0%} ({size})",
        "among",
        (),
        target="mode of confident votes",
        answers=True,
    ),
    "weighted-majority": Method(
        _weighted_majority,
        "majority weighted by exp({vote} / {lam:g}) ({size})",
        "among",
        (),
        target="mode of p*",
        answers=True,
    ),
    "best-of-n": Method(_best_of_n, "best of {size}{by}", "among", (), target="argmax r"),
    "one-step": Method(_one_step, "one-step ETS ({size})", "among"),
    "iterated-sir": Method(_iterated, "iterated resampling ({size} in all)", "among"),
    "ets": Method(
        _ets,
        "ETS (M {size}, K {rollouts})",
        votes=True,
        samples=_twice,
        at_candidates=True,
        by_steps=_ets,
    ),
    "ets-is": Method(
        _ets,
        "ETS-IS (M {size}, K {rollouts})",
        depends=_WEIGHED,
        votes=True,
        samples=_twice,
        at_candidates=True,
        law="ets-is",
    ),
    "ets-stopped": Method(
        _ets_stopped,
        "ETS (M {size}, K {rollouts}), stopped when all agree",
        votes=True,
        samples=lambda settings: 1.0 * settings.rollouts,
        at_candidates=True,
        answers=True,
        by_steps=_ets_stopped,
    ),
    "retained": Method(
        _retained,
        "retained rollouts (M {size}, K {rollouts})",
        votes=True,
        samples=lambda settings: 1.5 * settings.rollouts,
        by_steps=_retained,
    ),
    "refined": Method(
        _refined,
        "refined ({size} tokens)",
        depends=("lam", "reward", "minimum"),
        votes=True,
        in_tokens=True,
    ),
    "adaptive-majority": Method(
        _adaptive_majority,
        "adaptive majority voting (at most {size})",
        depends=(),
        at_most=True,
        target="mode of p_ref",
        answers=True,
    ),
    "lookahead": Method(
        _lookahead,
        "look-ahead SMC ({particles}, K {rollouts})",
        depends=("rollouts", "lam", "pool", "reward", "minimum", "resample_below"),
        votes=True,
        samples=_twice,
    ),
    "particles": Method(
        _particles,
        "particle filter ({particles})",
        depends=("lam", "reward", "minimum", "resample_below"),
    ),
    "power": Method(_power, "power sampling (p_ref^{alpha:g}, {moves})", depends=("alpha",), target="p_ref^{alpha:g}"),
    "greedy": Method(lambda task, settings, size: baselines.greedy(), "greedy decoding", "search", (), target=""),
    "beam": Method(
        lambda task, settings, size: baselines.beam(settings.beams),
        "beam search ({beams} beams)",
        "search",
        ("beams",),
        target="",
    ),
}


def own_method(name: str) -> Method:
    """A guided method from `file.py:function`, a function of `energy_guided`'s arguments that returns a step function.

    The function takes the reward, and by keyword those of `candidates`, `rollouts` and `lam` that its signature has. At
    a budget in candidates of ETS its M is that number.

    Raises
    ------
    InputError
        For a name that is not there, or a function that takes no reward.
    """
    made_step, digest = step_of(name), code_digest(name, "step function")

    def step(task: Task, settings: MethodSettings, size: int) -> StepFn:
        return made_step(steering(task, settings), **_guide(settings, size))

    label = f"{name.rpartition(':')[2]} (M {{size}}, K {{rollouts}})"
    return Method(step, label, votes=True, samples=_twice, at_candidates=True, digest=digest, target="")


def step_of(name: str) -> Callable[..., StepFn]:
    """The function that `file.py:function` names, called with the guide settings that its signature has."""
    function = named_object(name, "step function")
    parameters = inspect.signature(function).parameters if callable(function) else {}
    if not parameters:
        raise InputError(f"the step function {name!r} takes no reward; give a function of (reward, *, candidates, …)")
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())

    def made_step(reward: Reward, **guide: Any) -> StepFn:
        given = {key: value for key, value in guide.items() if open_ended or key in parameters}
        try:
            inspect.signature(function).bind(reward, **given)
        except TypeError as error:
            wanted = "a function of (reward, *, candidates, rollouts, lam) that returns a step function"
            raise InputError(f"the function {name!r} cannot be called: {error}; give {wanted}") from error
        with running(f"the function {name!r}"):
            step = function(reward, **given)
        if not callable(step):
            kind = type(step).__name__
            raise InputError(f"the function {name!r} made a {kind}; it must make a step function of (policy, chains)")
        return step

    return made_step


def methods_named(names: Sequence[str]) -> dict[str, Method]:
    """The methods by name; a name with a colon is `own_method`.

    Raises
    ------
    InputError
        For a name that is unknown, or there twice.
    """
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"method {repeated[0]!r} is named twice; name it once")
    if unknown := [name for name in names if name not in METHODS and ":" not in name]:
        raise InputError(f"unknown method {unknown[0]!r}; choose from {', '.join(METHODS)}, or file.py:function")
    return {name: own_method(name) if ":" in name else METHODS[name] for name in names}


def require_settings(methods: Mapping[str, Method], settings: MethodSettings, sizes: Mapping[str, int]) -> None:
    """Raise `InputError` for settings out of range, or sizes of methods without any, before a model is loaded."""
    require_reward(settings.reward)
    if settings.best_by is not None:
        require_reward(settings.best_by, "best_by")
    if "ets-stopped" in methods and settings.fixed_reward:
        raise InputError(f"ets-stopped stops when all rollouts agree, and reward is {settings.reward!r}; leave it out")
    majority(str, pool=settings.pool, minimum=settings.votes_needed)
    counts = ("candidates", "rollouts", "beams", "iterations")
    require_counts(**{name: getattr(settings, name) for name in counts})
    if settings.is_candidates is not None:
        require_counts(is_candidates=settings.is_candidates)
    require_positive(lam=settings.lam, alpha=settings.alpha)
    if not 0 <= settings.resample_below <= 1:
        raise InputError(f"resample_below is {settings.resample_below!r}; it must be a share, from 0 to 1")
    require_share(confident_share=settings.confident_share)
    for name, size in sizes.items():
        if name not in METHODS or METHODS[name].kind not in ("among", "averaged"):
            sized = ", ".join(name for name, method in METHODS.items() if method.kind in ("among", "averaged"))
            raise InputError(f"sizes names the method {name!r}, which draws no N samples; choose from {sized}")
        require_counts(**{f"the size of {name}": size})


def require_answers(task: Task, methods: Mapping[str, Method], settings: MethodSettings) -> None:
    """Raise `InputError` for a method or a reward that compares answers, where the task has none."""
    if has_answers(task):
        return
    none = f"compares answers, and the task {task.name} has none"
    for name, method in methods.items():
        if method.answers:
            raise InputError(f"the method {name} {none}; leave it out")
    rewards = {"reward": settings.reward, "best_by": settings.best_by if "best-of-n" in methods else None}
    for name, reward in rewards.items():
        if reward in COMPARING:
            raise InputError(f"{name} is {reward!r}, which {none}; name a reward of texts, such as file.py:function")


def require_able(
    policies: Mapping[str, Policy], methods: Mapping[str, Method], budgets: Sequence[float], currency: str = "generated"
) -> None:
    """Raise `InputError` for a method that a policy does not have, or cannot have at these budgets."""
    searches = {"greedy": baselines.require_greedy, "beam": baselines.require_beam}
    alone = budgets == (1,)  # one candidate of ETS is one draw
    for name, method in methods.items():
        if name in searches:
            searches[name](policies[method.law])
        elif method.kind in ("guided", "among") and not (alone and method.at_candidates):
            require_variety(policies[method.law], 2)
        if method.in_tokens:
            lengths = lengths_of(policies[method.law])
            if currency == "generated" and not isinstance(budgets[0], int):
                Plan(int(min(budgets)), 0.0, 1).require_room(lengths)
