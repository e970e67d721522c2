"""The options of `ets eval` that belong to ETS-IS alone, and the pair of models that they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ets.commands.engines import ENGINES, engine_policy, flag
from ets.commands.fast import OPTIONS as FAST_OPTIONS
from ets.commands.fast import SHARED, add_fast_arguments, fast_of, fast_policy
from ets.evaluation.fast import FastSampling
from ets.evaluation.proposing import Proposing, bounds_of, opened_pair
from ets.types import InputError

if TYPE_CHECKING:
    from ets.policies.checkpoint import Checkpoint
    from ets.types import Policy


def _bounds(text: str) -> tuple[float, float]:
    try:
        return bounds_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


OPTIONS: dict[str, tuple[Any, str]] = {
    "proposal": (str, "q, what draws the rollouts: a checkpoint with the model's tokens, or an embedded one"),
    "proposal_temperature": (float, "default: the policy's"),
    "clip": (_bounds, "LOW,HIGH: bounds on the importance ratio (default: none), which bias the energies"),
    "is_candidates": (int, "M of ets-is (default: that of ets)"),
    "is_block_size": (int, "tokens per guide step of ets-is (default: those of ets)"),
}
_OF_PROPOSALS = tuple(name for name in OPTIONS if name not in SHARED)


def add_proposal_arguments(parser: argparse.ArgumentParser) -> None:
    """Groups of options for the method ets-is."""
    group = parser.add_argument_group("options of the method ets-is")
    for name, (kind, text) in OPTIONS.items():
        group.add_argument(flag(name), type=kind, help=text, default=None)
    add_fast_arguments(parser)


def proposing_of(options: argparse.Namespace) -> Proposing | FastSampling | None:
    """The settings of ets-is, or None without a proposal or a fast sampler.

    Raises
    ------
    InputError
        For one of its options without a proposal or a fast sampler, or an engine that takes none.
    """
    if options.engine == "masked-diffusion":
        if given := [name for name in _OF_PROPOSALS if getattr(options, name) is not None]:
            raise InputError(f"the engine {options.engine} takes no proposal; leave {flag(given[0])} out")
        return fast_of(options)
    if given := [name for name in FAST_OPTIONS if getattr(options, name) is not None]:
        raise InputError(f"{flag(given[0])} is of ets-is with masked diffusion; leave it out")
    return _small_model_of(options)


def _small_model_of(options: argparse.Namespace) -> Proposing | None:
    given = [name for name in OPTIONS if getattr(options, name) is not None]
    if given and options.proposal is None:
        raise InputError(f"{flag(given[0])} is of the method ets-is, which needs --proposal; name a model")
    if not given:
        return None
    if options.engine != "transformers":
        raise InputError(f"the engine {options.engine} takes no proposal; leave --proposal out")
    return Proposing(
        model=options.proposal,
        candidates=_or(options.is_candidates, options.candidates),
        block_size=_or(options.is_block_size, options.block_size),
        temperature=_or(options.proposal_temperature, options.temperature),
        top_k=options.top_k,
        top_p=options.top_p,
        clip=options.clip,
    )


def proposal_pair(
    proposing: Proposing | FastSampling, policy: Policy, checkpoint: Checkpoint, options: argparse.Namespace
) -> tuple[Proposing | FastSampling, Policy]:
    """The settings with nothing left out, and what ets-is samples from.

    That is a fast sampler weighed towards the policy, or the pair of a proposal and the same checkpoint with ets-is's
    own block size.

    Raises
    ------
    InputError
        For a missing checkpoint, values out of range, or what does not fit together.
    """
    if isinstance(proposing, FastSampling):
        return fast_policy(proposing, policy)
    from ets.policies.checkpoint import Checkpoint

    name = ENGINES[options.engine].embedded.get(proposing.model, proposing.model)
    own = argparse.Namespace(**vars(options) | {"block_size": proposing.block_size})
    try:
        return opened_pair(
            proposing, engine_policy(checkpoint, own), lambda: Checkpoint(name, device=checkpoint.device)
        )
    except InputError as error:
        raise InputError(f"for the method ets-is, {error}") from error


def proposed_by(options: argparse.Namespace) -> str:
    """The first of the options that belong to ets-is, for a message."""
    return flag(next(name for name in (*OPTIONS, *FAST_OPTIONS) if getattr(options, name) is not None))


def _or(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given
