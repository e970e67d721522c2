"""What commands that run a task on a model open first: everything that can be checked before the weights are loaded."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ets import __version__
from ets.chat import Chat, ChatTemplate, kind_of
from ets.commands.chat import add_chat_arguments, chat_of
from ets.commands.engines import ENGINES, engine_policy, engine_settings, served_settings, truncation_of
from ets.types import InputError

if TYPE_CHECKING:
    from ets.evaluation.budget import Budget
    from ets.evaluation.ranks import Ranks
    from ets.policies.checkpoint import Checkpoint
    from ets.tasks import Task
    from ets.types import Policy, Problem, State


@dataclass(frozen=True)
class Opened:
    """A task's problems, and the policy that samples for them; their start states have been made."""

    task: Task
    checkpoint: Checkpoint
    policy: Policy
    problems: Sequence[Problem]
    starts: Sequence[State]
    ranks: Ranks
    chat: Chat | None = None

    def budget(self, engine: str) -> Budget:
        """What methods are compared at."""
        return ENGINES[engine].budget(self.policy, self.starts)

    def configuration(self, options: argparse.Namespace) -> dict[str, Any]:
        """What results depend on, whatever the methods: equal settings give equal values, however they were given.

        Of the problems it holds the first one's prompt alone, so that a run can grow: each record has its own digest.
        """
        from ets.evaluation.hosted import conditions

        first = self.problems[0]
        return {
            **{name: getattr(options, name) for name in ("model", "temperature", "unsafe_code", "seed")},
            **engine_settings(options),
            **truncation_of(self.policy, options),
            **conditions(self.task),
            "task": self.task.name,
            "chat": None if self.chat is None else self.chat.settings,
            "prompt_kind": kind_of(first),
            "prompt": first.prompt if isinstance(first.prompt, str) else list(first.prompt),
            "model_revision": self.checkpoint.revision,
            "placement": self.checkpoint.placement,
            "ets": __version__,
            **served_settings(self.policy),
        }


def add_task_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Which task or tasks, which problems, which model, and where results go."""

    def add(name: str, kind: Any, text: str, **options: Any) -> None:
        parser.add_argument(name, type=kind, help=text, required="default" not in options, **options)

    tasks = "math500, gsm8k, humaneval, gpqa or aime24; arithmetic or sums, the embedded problems; or file.py:name"
    add("--tasks" if several else "--task", str, f"comma-separated, from {tasks}" if several else tasks)
    add("--model", str, "a checkpoint's folder or hub name, or the engine's embedded one: embedded, embedded-small")
    add("--count", int, "problems (default: all)", default=None)
    add("--shots", int, "solved examples in each prompt (default: the task's own number)", default=None)
    add("--data", Path, "the benchmark's data, a folder or a file (default: from the hub)", default=None)
    add("--temperature", float, "of the reference policy")
    add("--seed", int, "of all randomness")
    add("--width", int, "problems that advance together; results depend on it by rounding errors alone")
    add("--memory-gib", float, "limit on the cache of rows under way (default: half of the free memory)", default=None)
    stops = "humaneval alone: completion (the default), which ends with a function's body, or answer (that of a chat)"
    add("--stops", str, stops, default=None)
    parser.add_argument("--unsafe-code", action="store_true", help="run code that a model wrote without the sandbox")
    add_chat_arguments(parser)


def method_names(options: argparse.Namespace) -> list[str]:
    """The methods that a list names."""
    return [name.strip() for name in options.methods.split(",")]


def opened(name: str, options: argparse.Namespace, changed: Mapping[str, Any] | None = None, **settings: Any) -> Opened:
    """The task by this name, and what the options make of the model.

    `changed` are options that others replace, `settings` further ones of the policy. A prompt that does not fit is
    named before the weights are loaded.
    """
    from ets.evaluation.hosted import opened_task
    from ets.evaluation.ranks import join, require_shareable
    from ets.policies.checkpoint import Checkpoint

    options, ranks = argparse.Namespace(**{**vars(options), **(changed or {})}), join()
    require_shareable(options.engine, ranks)
    chat = chat_of(options)
    task = opened_task(name, options.data, unsafe=options.unsafe_code, stops=options.stops, chat=chat)
    checkpoint = Checkpoint(ENGINES[options.engine].embedded.get(options.model, options.model), device=ranks.device)
    policy = engine_policy(checkpoint, options, **settings)
    template = None if chat is None else _template(checkpoint, chat)  # a missing one is named before problems are read
    problems = task.problems(options.count, options.shots)
    if not problems:
        raise InputError(f"the task {name!r} gave no problems; its problems(count, shots) must give at least one")
    if template is None and any(problem.messages for problem in problems):
        template = _template(checkpoint, Chat())
    if template is not None:
        problems = [template.problem(problem) for problem in problems]
    if truncation := truncation_of(policy, options):
        cut = ", ".join(f"{name} {value}" for name, value in truncation.items())
        ranks.say(f"p_ref has the checkpoint's {cut} (its generation_config, as transformers' generate reads it)")
    if truncation and (unapplied := checkpoint.unapplied):
        lacking = ", ".join(f"{name} {value:g}" for name, value in unapplied.items())
        ranks.say(f"note: p_ref is without the checkpoint's {lacking}, which generate would apply too")
    return Opened(
        task, checkpoint, policy, problems, policy.start(problems), ranks, template.chat if template else None
    )


def _template(checkpoint: Checkpoint, chat: Chat) -> ChatTemplate:
    return ChatTemplate(checkpoint.tokenizer, chat, checkpoint.name, checkpoint.end_ids)
