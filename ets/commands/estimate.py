"""`ets estimate`: what a run of `ets eval` will take, measured on a few problems."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ets.commands import eval as eval_command
from ets.commands.engines import closed_after, require_engine_arguments
from ets.commands.opening import method_names, opened
from ets.commands.proposals import proposal_pair
from ets.types import InputError

if TYPE_CHECKING:
    from ets.evaluation.journal import Journal
    from ets.types import Policy, Problem

EXAMPLE = """the options are those of ets eval: put estimate in the place of eval. Example:
  ets estimate --task arithmetic --model embedded --count 200 --shots 0 --methods plain,majority,ets \\
      --candidates 8 --rollouts 3 --lam 0.1 --pool chain --block-size 16 --max-length 96 \\
      --temperature 1.9 --seed 0 --width 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    eval_command.add_arguments(parser)
    text = "problems to run, evenly spaced over the task (default: as many as advance together, --width)"
    parser.add_argument("--problems", type=int, default=None, help=text)


def execute(options: argparse.Namespace) -> None:
    """Run every method on a few problems and print a table; the results folder is neither read nor written.

    Raises
    ------
    InputError
        As for `ets eval`, or for several processes.
    """
    from ets.evaluation.estimate import estimates, size, table
    from ets.evaluation.evaluate import Evaluation
    from ets.evaluation.methods import require_able, require_methods
    from ets.transition import require_counts

    require_engine_arguments(options)
    methods = method_names(options)
    settings = eval_command.settings_of(options)
    require_methods(methods, options.samples, settings, options.repeats)
    number = options.width if options.problems is None else options.problems
    count = 1 if options.count is None else options.count
    require_counts(width=options.width, repeats=options.repeats, count=count, problems=number)
    found = opened(options.task, options)
    if found.ranks.size > 1:
        raise InputError(f"{found.ranks.size} processes run ets estimate; run one, and divide its times by theirs")
    require_able(found.policy, methods, options.samples, settings)
    own: dict[str, Policy] = {}
    if "base" in methods:
        own["base"] = eval_command.base_policy(found.policy, settings.base)
    if "ets-is" in methods and settings.proposing is not None:
        proposing, own["ets-is"] = proposal_pair(settings.proposing, found.policy, found.checkpoint, options)
        settings = replace(settings, proposing=proposing)

    def evaluation(problems: Sequence[Problem], journal: Journal) -> Evaluation:
        return Evaluation(
            found.task, found.policy, problems, journal, options.width, options.seed, settings,
            repeats=options.repeats, own=own,
        )  # fmt: skip

    budget = options.samples or found.budget(options.engine)
    with closed_after(found.policy):
        measured = estimates(evaluation, found.problems, number, methods, budget)
    ran, all_problems = min(number, len(found.problems)), len(found.problems)
    print(f"\n{all_problems} problems; the whole run, extrapolated from {ran}:\n\n{table(measured)}\n")
    print(f"weights of {found.checkpoint.name}: {size(found.checkpoint.weight_bytes)}")
    print("times are those of this machine, without loading, grading and plots")
