"""What `ets eval` can sample with, the hyper-parameters that each engine takes, and the policy that they make."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ets import demo
from ets.exits import exiting_at_sigterm
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
    needs : mapping of str to (type, str)
        Options that must be given: by name, with their type and help text.
    takes : mapping of str to (type, str, value)
        Options that may be given, and what holds where they are not: equal settings are one configuration.
    embedded : mapping of str to str
        Names for the models that come along, and their folders.
    budget : callable
        Makes of the policy and its start states what methods are compared at.
    renamed : mapping of str to str
        Options that `policy_of` knows by another name.
    resources : mapping of str to (type, str)
        Options that say what it may use, and that results do not depend on.
    place : mapping of str to (type, str)
        Options that must be given, and that results do not depend on: where it is.
    minimum : int
        Votes that an answer needs to be the majority's, where `--minimum` is not given.
    """

    needs: dict[str, tuple[Any, str]]
    takes: dict[str, tuple[Any, str, Any]]
    embedded: dict[str, str]
    budget: Callable[[Any, Sequence[State]], Budget]
    renamed: Mapping[str, str] = field(default_factory=dict)
    resources: dict[str, tuple[Any, str]] = field(default_factory=dict)
    place: dict[str, tuple[Any, str]] = field(default_factory=dict)
    minimum: int = 1

    @property
    def options(self) -> dict[str, tuple[Any, str]]:
        """All options, by name, with their type and help text."""
        return self.needs | {name: option[:2] for name, option in self.takes.items()} | self.place | self.resources


def _generated_tokens(policy: Any, starts: Sequence[State]) -> Budget:
    from ets.evaluation.budget import GeneratedTokens

    return GeneratedTokens()


def _computed_positions(policy: Any, starts: Sequence[State]) -> Budget:
    from ets.evaluation.budget import ComputedPositions

    return ComputedPositions(policy.sample_positions(starts))


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return text == "True"


CHECKPOINT = "checkpoint: the value that transformers' generate takes for it from the generation configuration"


def number_or(kind: Callable[[str], Any], word: str, value: Any) -> Callable[[str], Any]:
    """Reads a number, or a word that stands for a value: "none" for None."""

    def read(text: str) -> Any:
        try:
            return value if text == word else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number; give one, or {word}") from None

    return read


TOP_K, TOP_P = (number_or(kind, "checkpoint", "checkpoint") for kind in (int, float))
_AUTOREGRESSIVE = Engine(
    needs={
        "block_size": (int, "tokens per guide step"),
        "max_length": (int, "tokens in all"),
    },
    takes={
        "top_k": (
            TOP_K,
            f"sample from the k most probable tokens; {CHECKPOINT}",
            None,
        ),
        "top_p": (
            TOP_P,
            f"sample from the most probable tokens whose mass reaches p; {CHECKPOINT}",
            1.0,
        ),
    },
    embedded={"embedded": demo.model_path("reference"), "embedded-small": demo.model_path("small")},
    budget=_generated_tokens,
)
ENGINES = {
    "transformers": _AUTOREGRESSIVE,
    "vllm": replace(
        _AUTOREGRESSIVE,
        resources={
            "replicas": (int, "copies of the model, on GPUs of their own: vLLM's data parallelism (default: 1)"),
            "tensor_parallel": (int, "GPUs that share each copy: vLLM's tensor parallelism (default: 1)"),
            "utilization": (float, "share of a GPU's memory that vLLM may take (default: 0.9)"),
        },
    ),
    "endpoint": replace(
        _AUTOREGRESSIVE,
        place={"endpoint": (str, "the address of an OpenAI-compatible server, such as http://localhost:8000/v1")},
        resources={
            "served_model": (str, "the name that the server knows the model by (default: the only one that it serves)"),
            "key_variable": (str, "environment variable that holds the API key (default: OPENAI_API_KEY)"),
            "connections": (int, "requests under way at once (default: 256)"),
            "seconds": (float, "how long the server may take for a row before it is asked again (default: 1800)"),
        },
    ),
    "masked-diffusion": Engine(
        needs={
            "gen_length": (int, "tokens of the canvas"),
            "steps": (int, "denoising steps in all"),
            "block_length": (int, "tokens of a block; blocks are filled from left to right"),
            "guide_steps": (int, "I, guide steps, which split the denoising steps evenly"),
            "cfg": (float, "classifier-free guidance; 0 for none"),
            "remasking": (str, "low_confidence, largest, random, margin or entropy"),
        },
        takes={
            "stop_at_end": (_truth, "True: leave out the blocks after one that holds an end token", False),
            "threshold": (float, "a step reveals every position whose confidence reaches this", None),
            "factor": (float, "the same, by the factor rule", None),
            "cache": (str, "dual or prefix; like threshold and factor, it makes p_ref a faster sampler", None),
            "refresh": (int, "denoising steps of a block after which the whole canvas is computed", None),
        },
        embedded={"embedded": demo.model_path("diffusion")},
        budget=_computed_positions,
        renamed={"gen_length": "max_length"},
        minimum=2,
    ),
}


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """`--engine`, and a group of options for each engine, or for several that share them."""
    parser.add_argument("--engine", choices=ENGINES, default="transformers", help="what runs the model")
    groups: dict[tuple[str, ...], Any] = {}
    options = {name: option for engine in ENGINES.values() for name, option in engine.options.items()}
    for option, (kind, text) in options.items():
        owners = tuple(name for name, engine in ENGINES.items() if option in engine.options)
        if owners not in groups:
            names = " and ".join(filter(None, (", ".join(owners[:-1]), owners[-1])))
            groups[owners] = parser.add_argument_group(f"options of the engine {names}")
        groups[owners].add_argument(flag(option), type=kind, help=text, default=None)


def require_engine_arguments(options: argparse.Namespace) -> None:
    """Raise `InputError` for a needed option that is missing, or one that belongs to another engine."""
    engine = ENGINES[options.engine]
    for option in (*engine.needs, *engine.place):
        if getattr(options, option) is None:
            raise InputError(f"the engine {options.engine} needs {flag(option)}; see ets eval --help")
    for option in (option for other in ENGINES.values() for option in other.options):
        if option not in engine.options and getattr(options, option) is not None:
            raise InputError(f"{flag(option)} is no option of the engine {options.engine}; leave it out")


def engine_policy(checkpoint: Checkpoint, options: argparse.Namespace, **settings: Any) -> Policy:
    """The policy that the engine's options, and further settings of `policy_of`, make of a checkpoint."""
    from ets.policies.making import policy_of

    engine = ENGINES[options.engine]
    own = {engine.renamed.get(name, name): getattr(options, name) for name in engine.options}
    shared = {name: getattr(options, name) for name in ("temperature", "memory_gib")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is approximate")  # the command says so itself
        return policy_of(lambda: checkpoint, engine=options.engine, **own, **shared, **settings)


@contextmanager
def closed_after(policy: Policy) -> Iterator[None]:
    """End what a policy has started, such as an engine's processes, however the block ends; for use in the main thread.

    A signal to terminate would end this process at once, and leave the others.
    """
    close = getattr(policy, "close", None)
    if close is None:
        yield
        return
    with exiting_at_sigterm():
        try:
            yield
        finally:
            close()


def engine_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The engine's options by name, for the configuration of a results folder."""
    engine = ENGINES[options.engine]
    given = {name: getattr(options, name) for name in (*engine.needs, *engine.takes)}
    left_out = {name: option[2] for name, option in engine.takes.items() if given[name] is None}
    return {"engine": options.engine} | given | left_out


def least_votes(options: argparse.Namespace) -> int:
    """Votes that an answer needs, by `--minimum` or the engine."""
    return int(ENGINES[options.engine].minimum if options.minimum is None else options.minimum)


def truncation_of(policy: Policy, options: argparse.Namespace) -> dict[str, Any]:
    """The numbers of `--top-k checkpoint` and `--top-p checkpoint`, by name."""
    named = [name for name in ("top_k", "top_p") if getattr(options, name) == "checkpoint"]
    sampling = getattr(policy, "sampling", None)
    left_out = {name: option[2] for name, option in _AUTOREGRESSIVE.takes.items()}
    found = {name: getattr(sampling, name) for name in named}
    return {name: left_out[name] if value is None else value for name, value in found.items()}


def served_settings(policy: Policy) -> dict[str, Any]:
    """What results depend on that only a server knows, and nothing that they would depend on in this process."""
    from ets.policies.autoregressive.server import Endpoint

    engine = getattr(policy, "engine", None)
    if not isinstance(engine, Endpoint):
        return {}
    return {"served_model": engine.model, "approximate": engine.approximate, "placement": "the server's"}


def flag(option: str) -> str:
    """An option as it is typed."""
    return f"--{option.replace('_', '-')}"
