"""Opens a run: the task's problems, the checkpoint and the policies, checked before any weights are loaded."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ets import __version__
from ets.chat import Chat, ChatTemplate, kind_of
from ets.evaluation.methods import METHODS, MethodSettings
from ets.own_code import code_digest, named_object
from ets.policies.registry import EngineEntry, engine_named, law_of, own_policy, policy_of
from ets.policies.settings import FastSampler, Sampling, Weighing, Weights
from ets.policies.weighed import weighed_policy
from ets.rewards import RowReward
from ets.settings import boolean, fields_of, setting
from ets.types import InputError, Policy

if TYPE_CHECKING:
    from ets.evaluation.ranks import Ranks
    from ets.policies.checkpoint import Checkpoint
    from ets.tasks import Task
    from ets.types import Problem

_TASKS = (
    "math500, gsm8k, humaneval, gpqa, aime24, aime25, humaneval-plus, mbpp-plus or ifeval; arithmetic or sums, the "
    "embedded problems; prompts with a reward from prompts.jsonl, or tone, tone-openings (for base models), "
    "without-letter, exact-length, must-contain, json-schema, instructions; or file.py:name"
)


@dataclass(frozen=True)
class RunSettings(Weights):
    """What a run asks, of which model."""

    task: str = setting("", f"the task, or several: {_TASKS}", flags=("tasks",))
    model: str = setting("", "a checkpoint's folder, GGUF file or hub name, or embedded, embedded-small")
    engine: str = setting(
        "transformers", "transformers, vllm, endpoint, masked-diffusion, uniform-diffusion, or file.py:engine"
    )
    count: int | None = setting(None, "problems (default: all)", int)
    shots: int | None = setting(None, "solved examples in each prompt (default: the task's number)", int)
    data: Path | None = setting(None, "the benchmark's data, a folder or a file (default: from the hub)", Path)
    seed: int = setting(0, "seed of all randomness", int)
    width: int = setting(8, "problems that advance together; results depend on it by rounding errors alone", int)
    stops: str | None = setting(
        None, "where generated code ends: completion or answer (default: completion; of a chat, answer)"
    )
    unsafe_code: bool = setting(False, "run code that a model wrote without the sandbox: True or False", boolean)


@dataclass(frozen=True)
class Setup:
    """What a comparison runs on.

    Parameters
    ----------
    task, problems
    engine : EngineEntry
    policies : mapping of str to Policy
        By law: "" is the policy of most methods; "base" and "ets-is" where a method samples from them.
    targets : mapping of str to str
        By law: the law that weighed draws follow, where it is not the policy's.
    settings : MethodSettings
        Complete: with the least votes of the engine, and the revision of the proposal.
    configuration : dict
        Everything that records depend on, except for the problems and the settings of single methods.
    ranks : Ranks
    """

    task: Task
    problems: Sequence[Problem]
    engine: EngineEntry
    policies: Mapping[str, Policy]
    targets: Mapping[str, str]
    settings: MethodSettings
    configuration: dict[str, Any]
    ranks: Ranks

    @property
    def policy(self) -> Policy:
        return self.policies[""]

    @property
    def notes(self) -> list[str]:
        """Lines that the tables show: targets of weighed draws, and why the draws of a server are approximate."""
        targets = [f"{law}: its target is {target}" for law, target in self.targets.items()]
        approximate = self.configuration.get("approximate")
        return targets + ([f"approximate: {approximate}"] if approximate else [])

    @property
    def per_token(self) -> float:
        """Model calls in a row that a token takes: 1, or denoising steps over tokens."""
        schedule = getattr(self.policy, "schedule", None)
        return 1.0 if schedule is None else schedule.steps / schedule.gen_length


def open_setup(
    asked: RunSettings,
    values: Mapping[str, Any],
    settings: MethodSettings,
    methods: Iterable[str],
    chat: Chat | None = None,
) -> Setup:
    """The setup of a run; no weights are loaded.

    Parameters
    ----------
    asked : RunSettings
    values : mapping of str to value
        Settings of the engine, and of `Weighing` and `FastSampler` for the method ets-is.
    settings : MethodSettings
    methods : iterable of str
        Names, which say whether the policies "base" and "ets-is" are needed.
    chat : Chat, optional
        Prompts by a chat template.

    Raises
    ------
    InputError
        For a missing checkpoint, settings out of range or of another engine, or prompts that do not fit.
    """
    from ets.evaluation.hosted import conditions, opened_task
    from ets.evaluation.ranks import join, require_shareable

    engine, ranks = engine_named(asked.engine), join()
    require_shareable(asked.engine, ranks)
    task = opened_task(asked.task, asked.data, unsafe=asked.unsafe_code, stops=asked.stops, chat=chat)
    policy, checkpoint = _policy(asked, engine, values, ranks.device)
    laws = {METHODS[name].law for name in methods if name in METHODS}
    policies, targets = {"": policy}, dict[str, str]()
    if "base" in laws:
        policies["base"] = _base_policy(policy, settings)
    if "ets-is" in laws:
        if ranks.size > 1 and values.get("proposal_engine") == "vllm":
            raise InputError(f"proposal_engine is vllm, which takes one process, not {ranks.size}; leave it out")
        weighed = weighed_policy(policy, values, lambda name: _checkpoint(asked, name, ranks.device))
        policies["ets-is"] = weighed.policy
        settings = replace(settings, weighing=weighed.description, weighed_label=weighed.label)
        targets |= {"ets-is": weighed.target} if weighed.target else {}
    problems, chat = _problems(task, asked, checkpoint, chat)
    _require_rows(settings, problems)
    for each in policies.values():
        each.start(problems)  # a prompt that does not fit is named before the weights are loaded
    if settings.minimum is None:
        settings = replace(settings, minimum=engine.minimum)
    _say_truncation(values, policy, checkpoint, ranks)
    first = problems[0]
    depends = {
        "placement": getattr(checkpoint, "placement", None),
        "model_revision": getattr(checkpoint, "revision", None),
        **(_of_policy(values) if ":" in asked.engine else {}),
        **law_of(policy),
        **{name: getattr(asked, name) for name in ("model", "engine", "seed", "unsafe_code")},
        **{name: getattr(settings, name) for name in SHARED},
        **conditions(task),
        **_own_code(asked, settings),
        "task": task.name,
        "chat": None if chat is None else chat.settings,
        "prompt_kind": kind_of(first),
        "prompt": first.prompt if isinstance(first.prompt, str) else list(first.prompt),
        "ets": __version__,
    }
    return Setup(task, problems, engine, policies, targets, settings, depends, ranks)


SHARED = ("rollouts", "lam", "pool", "reward", "minimum")
"""Settings of the methods that a results folder has once; others are in the names of the records."""


def _policy(asked: RunSettings, engine: EngineEntry, values: Mapping[str, Any], device: str | None) -> tuple[Any, Any]:
    """The policy, and its checkpoint; a policy of a user need not have a checkpoint."""
    own = _of_policy(values)
    if asked.dtype and (":" in asked.engine or asked.engine == "endpoint"):
        raise InputError(f"dtype is {asked.dtype}, but the engine {asked.engine} loads the weights; leave it out")
    if ":" in asked.engine:
        policy: Any = own_policy(asked.engine, asked.model, own)
        return policy, getattr(policy, "checkpoint", None)
    checkpoint = _checkpoint(asked, asked.model, device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is approximate")  # the command prints it
        return policy_of(lambda: checkpoint, engine=asked.engine, **own), checkpoint


def _of_policy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in fields_of(Weighing, FastSampler)}


def _checkpoint(asked: RunSettings, name: str, device: str | None) -> Checkpoint:
    return _opened(engine_named(asked.engine).embedded.get(name, name), device, asked.dtype)


@lru_cache(maxsize=2)
def _opened(name: str, device: str | None, dtype: str | None) -> Checkpoint:
    """The checkpoint, whose weights several tasks and scans of a command share."""
    from ets.policies.checkpoint import Checkpoint

    return Checkpoint(name, dtype, device)


def _problems(
    task: Task, asked: RunSettings, checkpoint: Checkpoint | None, chat: Chat | None
) -> tuple[list[Problem], Chat | None]:
    """The problems with their prompts, by the chat template where there is one or a problem holds messages."""
    template = None if chat is None else _template(checkpoint, chat)  # a missing one is named before problems are read
    problems = task.problems(asked.count, asked.shots)
    if not problems:
        raise InputError(f"the task {task.name!r} gave no problems; problems(count, shots) must return at least one")
    if template is None and any(problem.messages for problem in problems):
        template = _template(checkpoint, Chat())
    if template is None:
        return list(problems), None
    return [template.problem(problem) for problem in problems], template.chat


def _require_rows(settings: MethodSettings, problems: Sequence[Problem]) -> None:
    """Raise `InputError` for a row that lacks what a reward of rows reads, before the weights are loaded."""
    for name in filter(None, {settings.reward, settings.best_by}):
        reward = named_object(name, "reward") if ":" in name else None
        if isinstance(reward, RowReward):
            reward.require(problems)


def _template(checkpoint: Checkpoint | None, chat: Chat) -> ChatTemplate:
    if checkpoint is None:
        raise InputError("the policy has no checkpoint, whose tokenizer holds the chat template; leave the chat out")
    return ChatTemplate(checkpoint.tokenizer, chat, checkpoint.name, checkpoint.end_ids)


def _base_policy(policy: Any, settings: MethodSettings) -> Policy:
    """The policy of the method base: the same model at the law of the paper's Base row."""
    law = Sampling(settings.base_temperature, settings.base_top_k, settings.base_top_p)
    if not hasattr(policy, "at_law"):
        raise InputError(f"{type(policy).__name__} has no top-k and top-p; leave the method base out, and take plain")
    return policy.at_law(law)


def _say_truncation(values: Mapping[str, Any], policy: Policy, checkpoint: Checkpoint | None, ranks: Ranks) -> None:
    """Print the numbers that stand for `checkpoint`, and the settings of generate that no policy applies."""
    found = {name: law_of(policy)[name] for name in ("top_k", "top_p") if values.get(name) == "checkpoint"}
    if not found or checkpoint is None:
        return
    cut = ", ".join(f"{name} {value}" for name, value in found.items())
    ranks.say(f"p_ref has the checkpoint's {cut} (its generation_config, as transformers' generate reads it)")
    if unapplied := checkpoint.unapplied:
        lacking = ", ".join(f"{name} {value:g}" for name, value in unapplied.items())
        ranks.say(f"note: p_ref is without the checkpoint's {lacking}, which generate would apply too")


def _own_code(asked: RunSettings, settings: MethodSettings) -> dict[str, Any]:
    """Digests of the code that a user named as `file.py:name`, by name; a step function's digest is in its records."""
    kinds = {asked.engine: "engine", asked.task: "task", settings.reward: "reward", settings.best_by: "reward"}
    code = {name: code_digest(name, kind) for name, kind in kinds.items() if name and ":" in name}
    return {"own_code": code} if code else {}
