"""What `ets eval` can sample with, the hyper-parameters that each engine takes, and the policy that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ets import demo
from ets.types import InputError

if TYPE_CHECKING:
    from ets.evaluation.budget import Budget
    from ets.policies.checkpoint import Checkpoint
    from ets.types import Policy, State


@dataclass(frozen=True)
class Engine:
    """One way to run a model.

    Parameters
    ----------
    needs, takes : mapping of str to (type, str)
        Options that must be given, and that may be: by name, with their type and help text.
    embedded : mapping of str to str
        Names for the models that come along, and their folders.
    policy : callable
        Makes a policy of a checkpoint and the options.
    budget : callable
        Makes of the policy and its start states what methods are compared at.
    """

    needs: dict[str, tuple[Any, str]]
    takes: dict[str, tuple[Any, str]]
    embedded: dict[str, str]
    policy: Callable[[Checkpoint, argparse.Namespace], Policy]
    budget: Callable[[Any, Sequence[State]], Budget]


def _transformers(checkpoint: Checkpoint, options: argparse.Namespace) -> Policy:
    from ets.policies.autoregressive import Horizon, Sampling
    from ets.policies.transformers import TransformersPolicy

    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    horizon = Horizon(options.block_size, options.max_length)
    return TransformersPolicy(checkpoint, sampling, horizon, memory_gib=options.memory_gib)


def _generated_tokens(policy: Any, starts: Sequence[State]) -> Budget:
    from ets.evaluation.budget import GeneratedTokens

    return GeneratedTokens()


def _masked_diffusion(checkpoint: Checkpoint, options: argparse.Namespace) -> Policy:
    from ets.policies.masked_diffusion import MaskedDiffusionPolicy
    from ets.policies.unmasking import Schedule, Unmasking

    unmasking = Unmasking(options.temperature, options.remasking, options.cfg, bool(options.stop_at_end))
    schedule = Schedule(options.gen_length, options.steps, options.block_length, options.guide_steps)
    return MaskedDiffusionPolicy(checkpoint, unmasking, schedule, memory_gib=options.memory_gib)


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text == "True"


def _computed_positions(policy: Any, starts: Sequence[State]) -> Budget:
    from ets.evaluation.budget import ComputedPositions

    return ComputedPositions(policy.sample_positions(starts))


ENGINES = {
    "transformers": Engine(
        needs={
            "block_size": (int, "tokens per guide step"),
            "max_length": (int, "tokens in all"),
        },
        takes={
            "top_k": (int, "sample from the k most probable tokens"),
            "top_p": (float, "sample from the most probable tokens whose mass reaches p"),
        },
        embedded={"embedded": demo.model_path("reference"), "embedded-small": demo.model_path("small")},
        policy=_transformers,
        budget=_generated_tokens,
    ),
    "masked-diffusion": Engine(
        needs={
            "gen_length": (int, "tokens of the canvas"),
            "steps": (int, "denoising steps in all"),
            "block_length": (int, "tokens of a block; blocks are filled from left to right"),
            "guide_steps": (int, "I, guide steps, which split the denoising steps evenly"),
            "cfg": (float, "classifier-free guidance; 0 for none"),
            "remasking": (str, "low_confidence, random, margin or entropy"),
        },
        takes={"stop_at_end": (_truth, "True: leave out the blocks after one that holds an end token")},
        embedded={"embedded": demo.model_path("diffusion")},
        policy=_masked_diffusion,
        budget=_computed_positions,
    ),
}


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """`--engine`, and a group of options for each."""
    parser.add_argument("--engine", choices=ENGINES, default="transformers", help="what runs the model")
    for name, engine in ENGINES.items():
        group = parser.add_argument_group(f"options of the engine {name}")
        for option, (kind, text) in (engine.needs | engine.takes).items():
            group.add_argument(_flag(option), type=kind, help=text, default=None)


def require_engine_arguments(options: argparse.Namespace) -> None:
    """Raise `InputError` for a needed option that is missing, or one that belongs to another engine."""
    engine = ENGINES[options.engine]
    for option in engine.needs:
        if getattr(options, option) is None:
            raise InputError(f"the engine {options.engine} needs {_flag(option)}; see ets eval --help")
    own = engine.needs | engine.takes
    for option in (option for other in ENGINES.values() for option in other.needs | other.takes):
        if option not in own and getattr(options, option) is not None:
            raise InputError(f"{_flag(option)} is no option of the engine {options.engine}; leave it out")


def engine_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's options by name, for the configuration of a results folder."""
    engine = ENGINES[options.engine]
    return {"engine": options.engine} | {option: getattr(options, option) for option in engine.needs | engine.takes}


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
