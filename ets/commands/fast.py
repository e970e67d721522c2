"""The options of `ets eval` that make the fast sampler of ETS-IS for masked diffusion."""

from __future__ import annotations

import argparse
from typing import Any

from ets.commands.engines import flag
from ets.commands.opening import method_names
from ets.evaluation.fast import FAST, FastSampling, opened_sampler
from ets.types import InputError, Policy

OPTIONS: dict[str, tuple[Any, str]] = {
    "level": (str, "weights of the fast sampler's paths: 0 (the default: none), 1 or 1F"),
    "fast_cache": (str, "dual or prefix"),
    "fast_refresh": (int, "denoising steps of a block after which the whole canvas is computed (default: the block)"),
    "fast_threshold": (float, "a step reveals every position whose confidence reaches this"),
    "fast_factor": (float, "the same, by the factor rule"),
    "fast_remasking": (str, "which positions are revealed first; level 1 needs a rule that no drawn token decides"),
    "fast_temperature": (float, "of the fast sampler"),
}
SHARED = ("clip", "is_candidates")
"""Further options, which ETS-IS has for other models too."""


def add_fast_arguments(parser: argparse.ArgumentParser) -> None:
    """A group of options for the method ets-is with masked diffusion."""
    group = parser.add_argument_group(
        "options of the method ets-is with masked diffusion, for a fast sampler (default: the policy's own)"
    )
    for name, (kind, text) in OPTIONS.items():
        group.add_argument(flag(name), type=kind, help=text, default=None)


def fast_of(options: argparse.Namespace) -> FastSampling | None:
    """The settings of ets-is, or None where none is given.

    Raises
    ------
    InputError
        For the method or one of its options without anything that makes the sampler fast.
    """
    named = [name for name in (*OPTIONS, *SHARED) if getattr(options, name) is not None]
    settings = {name: getattr(options, f"fast_{name}") for name in FAST}
    if all(value is None for value in settings.values()):
        wanting = "the method ets-is" if "ets-is" in method_names(options) else named and flag(named[0])
        if wanting:
            raise InputError(f"{wanting} needs a fast sampler; say what makes it fast, such as --fast-cache dual")
        return None
    return FastSampling(
        level=options.level or "0",
        candidates=options.candidates if options.is_candidates is None else options.is_candidates,
        clip=options.clip,
        **settings,
    )


def fast_policy(fast: FastSampling, exact: Policy) -> tuple[FastSampling, Policy]:
    """The settings with nothing left out, and what ets-is samples from.

    Raises
    ------
    InputError
        For values out of range, or a pair of samplers that has no ratio at this level.
    """
    try:
        return opened_sampler(fast, exact)
    except InputError as error:
        raise InputError(f"for the method ets-is, {error}") from error
