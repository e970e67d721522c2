"""`ets study`: which rewards without training tell right answers from wrong ones."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ets.commands.engines import ENGINES, add_engine_arguments, closed_after, flag, require_engine_arguments
from ets.commands.opening import add_task_arguments, opened

EXAMPLE = """example:
  ets study --task arithmetic --model embedded --count 20 --shots 0 --samples 8 --max-length 96 \\
      --temperature 1.9 --seed 0 --width 8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_task_arguments(parser)
    parser.add_argument("--samples", type=int, required=True, help="answers to each problem")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="where results folders are made, named study-TASK-HASH"
    )
    parser.add_argument("--out", type=Path, default=None, help="this run's results folder instead")
    add_engine_arguments(parser)


def execute(options: argparse.Namespace) -> None:
    """Check everything that can be checked, then load the model, draw, and write the folder.

    Raises
    ------
    InputError
        For bad input, before the model is loaded.
    """
    from ets.evaluation.evaluate import Evaluation
    from ets.evaluation.journal import Journal, fingerprint
    from ets.evaluation.reward_study import OF_CERTAINTY, draws, noted_rewards, reward_study
    from ets.policies.making import RESOURCES
    from ets.report.plots import require_matplotlib
    from ets.report.reward_plots import write_study
    from ets.step import require_counts, require_variety

    options = _in_one_step(options)
    require_engine_arguments(options)
    method, count = draws(options.samples), 1 if options.count is None else options.count
    require_counts(width=options.width, count=count)
    require_matplotlib()
    certainty = options.engine not in RESOURCES
    if not certainty:
        unknown = " and ".join(OF_CERTAINTY)
        print(
            f"note: without {unknown}: the engine {options.engine} does not tell how certain a model is",
            file=sys.stderr,
        )
    found = opened(options.task, options, certainty=certainty)
    require_variety(found.policy, options.samples)
    configuration = found.configuration(options)
    folder = options.out or options.results / f"study-{found.task.name}-{fingerprint(configuration)}"
    with Journal(folder, configuration, found.ranks) as journal:
        found.ranks.say(
            f"{len(journal.records)} answers drawn in {folder}; the same command goes on where it was interrupted"
        )
        evaluation = Evaluation(
            found.task, found.policy, found.problems, journal, options.width, options.seed, noted=noted_rewards
        )
        with closed_after(found.policy):
            evaluation.run(method)
        study = reward_study(found.task, found.problems, evaluation.records(method), seed=options.seed)
    if not found.ranks.first:
        return
    print(f"\n{write_study(study, f'{found.task.name}: {options.model}', folder)}\n")
    print(f"results: {folder}/ (configuration.json, journal.jsonl, summary.json, table.md, rewards.png)")


def _in_one_step(options: argparse.Namespace) -> argparse.Namespace:
    """The options with one guide step, which is what drawing a whole answer is."""
    needs, changed = ENGINES[options.engine].needs, vars(options).copy()
    whole = {"block_size": options.max_length or 1, "guide_steps": 1}
    for name in (name for name in whole if name in needs):
        if changed[name] is not None:
            print(f"note: {flag(name)} has no effect: answers are drawn in one piece", file=sys.stderr)
        changed[name] = whole[name]
    return argparse.Namespace(**changed)
