"""The options of `ets eval` that belong to ETS-IS alone, and the pair of models that they make."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ets.commands.engines import ENGINES, engine_policy
from ets.evaluation.proposing import Proposing, bounds_of, opened_pair
from ets.types import InputError

if TYPE_CHECKING:
    from ets.policies.checkpoint import Checkpoint
    from ets.proposal import ImportanceSampling


def _bounds(text: str) -> tuple[float, float]:
    try:
        return bounds_of(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


OPTIONS: dict[str, tuple[Any, str]] = {
    "proposal": (str, "q, what draws the rollouts: a checkpoint with the model's tokens, or an embedded one"),
    "proposal_temperature": (float, "default: the policy's"),
    "proposal_top_k": (int, "default: all tokens; what the proposal cannot draw is missing from the energies"),
    "proposal_top_p": (float, "default: all tokens"),
    "clip": (_bounds, "LOW,HIGH: bounds on the importance ratio (default: none), which bias the energies"),
    "estimator": (str, "of a candidate's energy: plain, the default, which is unbiased, or self-normalised"),
    "is_candidates": (int, "M of ets-is (default: that of ets)"),
    "is_block_size": (int, "tokens per guide step of ets-is (default: those of ets)"),
}


def add_proposal_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options for the method ets-is."""
    group = parser.add_argument_group("options of the method ets-is")
    for name, (kind, text) in OPTIONS.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text, default=None)


def proposing_of(options: argparse.Namespace) -> Proposing | None:
    """The settings of ets-is, or None without a proposal.

    Raises
    ------
    InputError
        For one of its options without a proposal, or an engine that takes none.
    """
    given = [name for name in OPTIONS if getattr(options, name) is not None]
    if given and options.proposal is None:
        raise InputError(
            f"--{given[0].replace('_', '-')} is of the method ets-is, which needs --proposal; name a model"
        )
    if not given:
        return None
    if options.engine != "transformers":
        raise InputError(f"the engine {options.engine} takes no proposal; leave --proposal out")
    return Proposing(
        model=options.proposal,
        candidates=_or(options.is_candidates, options.candidates),
        block_size=_or(options.is_block_size, options.block_size),
        temperature=_or(options.proposal_temperature, options.temperature),
        top_k=options.proposal_top_k,
        top_p=options.proposal_top_p,
        clip=options.clip,
        estimator=options.estimator or "plain",
    )


def proposal_pair(
    proposing: Proposing, checkpoint: Checkpoint, options: argparse.Namespace
) -> tuple[Proposing, ImportanceSampling]:
    """The settings with the proposal's revision, and the pair: the same checkpoint, with ets-is's own block size.

    Raises
    ------
    InputError
        For a missing checkpoint, values out of range, or models that do not fit each other.
    """
    from ets.policies.checkpoint import Checkpoint

    name = ENGINES[options.engine].embedded.get(proposing.model, proposing.model)
    own = argparse.Namespace(**vars(options) | {"block_size": proposing.block_size})
    try:
        return opened_pair(proposing, engine_policy(checkpoint, own), lambda: Checkpoint(name))
    except InputError as error:
        raise InputError(f"for the method ets-is, {error}") from error


def _or(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given
