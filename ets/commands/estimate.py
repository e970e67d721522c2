"""`ets estimate`: what a run of `ets eval` will take, before it begins."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ets.commands import eval as eval_command
from ets.commands.engines import closed_after, require_engine_arguments
from ets.commands.opening import Opened, method_names, opened
from ets.commands.proposals import proposal_pair
from ets.types import InputError

if TYPE_CHECKING:
    from ets.evaluation.estimate import Estimate, Estimation
    from ets.evaluation.methods import Settings
    from ets.policies.checkpoint import Checkpoint

EXAMPLE = """the options are those of ets eval: put estimate in the place of eval. Example:
  ets estimate --task arithmetic --model embedded --count 200 --shots 0 --methods plain,majority,ets \\
      --candidates 8 --rollouts 3 --lam 0.1 --pool chain --block-size 16 --max-length 96 \\
      --temperature 1.9 --seed 0 --width 8 --calibrate 30
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    eval_command.add_arguments(parser)
    text = "seconds of real guide steps, to tell lengths and times (default: 30); 0: bounds alone, and no weights"
    parser.add_argument("--calibrate", type=float, default=30.0, help=text)


def execute(options: argparse.Namespace) -> None:
    """Print a table; the results folder is neither read nor written.

    Raises
    ------
    InputError
        As for `ets eval`, or for a calibration that is no time.
    """
    from ets.evaluation.methods import require_able, require_methods
    from ets.step import require_counts

    if not 0 <= options.calibrate < math.inf:
        raise InputError(f"calibrate is {options.calibrate}; give seconds, or 0 for none")
    require_engine_arguments(options)
    methods = method_names(options)
    settings = eval_command.settings_of(options)
    require_methods(methods, options.samples, settings, options.repeats)
    require_counts(width=options.width, repeats=options.repeats, count=1 if options.count is None else options.count)
    found = opened(options.task, options)
    require_able(found.policy, methods, options.samples, settings)
    estimation = _estimation(found, methods, settings, options)
    with closed_after(found.policy):
        estimates = estimation.estimates(methods, options.samples, options.calibrate)
    _print(estimates, estimation, options)


def _estimation(found: Opened, methods: Sequence[str], settings: Settings, options: argparse.Namespace) -> Estimation:
    from ets.evaluation.estimate import Estimation

    own = {}
    if "base" in methods:
        own["base"] = eval_command.base_policy(found.policy, settings.base)
    if "ets-is" in methods and settings.proposing is not None:
        proposing, own["ets-is"] = proposal_pair(settings.proposing, found.policy, found.checkpoint, options)
        settings = replace(settings, proposing=proposing)
    prompts = [len(state.prompt) for state in found.starts]  # type: ignore[attr-defined]
    shared = {"width": options.width, "seed": options.seed, "repeats": options.repeats}
    return Estimation(found.task, found.policy, found.problems, prompts, settings, own=own, **shared)


def _limit(models: Sequence[Checkpoint], options: argparse.Namespace) -> tuple[float, str]:
    """Bytes that rows under way may take in the run, and by what; weights that a calibration has not loaded count."""
    import torch

    from ets.policies.memory import free_bytes

    if options.memory_gib is not None:
        return options.memory_gib * 2.0**30, "--memory-gib"
    free = free_bytes(torch.device("cpu" if models[0].placement.startswith("cpu") else "cuda"))
    to_load = 0 if options.calibrate else sum(model.weight_bytes for model in models)
    return max(0.0, free - to_load) / 2, "half of what is free beside the weights"


def _memory_line(worst: float, limit: float, why: str) -> str:
    """Whether the rows of a method may have to be split."""
    from ets.evaluation.estimate import size

    said = f"the limit of the rows' cache is {size(limit)} ({why})"
    if worst <= limit:
        return f"{said}; the largest, {size(worst)}, is within it"
    return f"{said}; the largest, {size(worst)}, exceeds it: its rows may be split, which takes more time"


def _print(estimates: Sequence[Estimate], estimation: Estimation, options: argparse.Namespace) -> None:
    from ets.evaluation.estimate import models_of, size, table

    prompts = estimation.prompts
    print(f"{len(prompts)} problems, with prompts of {min(prompts)} to {max(prompts)} tokens; the whole run:\n")
    print(f"{table(estimates)}\n")
    models = models_of([estimation.policy, *estimation.own.values()])
    weights = ", ".join(f"{model.name}: {size(model.weight_bytes)} ({model.number_type})" for model in models)
    print(f"weights of {weights}".replace("torch.", ""))
    worst = max((estimate.cache for estimate in estimates if estimate.cache is not None), default=None)
    if worst is not None:
        print(_memory_line(worst, *_limit(models, options)))
    if options.calibrate:
        said = "expected numbers are those of real guide steps on some problems, and times those of this machine"
        print(f"{said} as it was then; loading, grading and plots come on top")
