"""`ets eval`: measure methods on a task.

Hyper-parameters have no defaults here: they stand in the scripts that call this command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ets import __version__
from ets.commands.engines import (
    ENGINES,
    add_engine_arguments,
    closed_after,
    engine_policy,
    engine_settings,
    require_engine_arguments,
    served_settings,
)
from ets.commands.proposals import add_proposal_arguments, proposal_pair, proposed_by, proposing_of
from ets.types import InputError

if TYPE_CHECKING:
    from ets.evaluation.evaluate import Row
    from ets.evaluation.methods import Settings
    from ets.evaluation.ranks import Ranks
    from ets.policies.checkpoint import Checkpoint
    from ets.tasks import Task
    from ets.types import Policy, Problem

EXAMPLE = """example:
  ets eval --task arithmetic --model embedded --count 20 --shots 0 --methods plain,majority,ets \\
      --candidates 8 --rollouts 3 --lam 0.1 --pool chain --block-size 16 --max-length 96 \\
      --temperature 1.5 --seed 0 --width 8
"""
RESULTS_DEPEND_ON = ("task", "model", "candidates", "rollouts", "lam", "pool", "temperature", "unsafe_code", "seed")
"""Beside the problems and the engine's settings. What belongs to one method is in the names of its records."""
COPIED_BY = {"vllm": "--replicas (GEN_DP in the scripts)", "endpoint": "the server's own --data-parallel-size"}
"""Engines that several processes would not share; what copies their model instead."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, kind: Any, text: str, **options: Any) -> None:
        parser.add_argument(name, type=kind, help=text, required="default" not in options, **options)

    add("--task", str, "math500, gsm8k, humaneval, gpqa or aime24; arithmetic or sums, the embedded problems")
    add("--model", str, "a checkpoint's folder or hub name, or the engine's embedded one: embedded, embedded-small")
    add("--count", int, "problems (default: all)", default=None)
    add("--shots", int, "solved examples in each prompt (default: the task's own number)", default=None)
    add("--data", Path, "the benchmark's data, a folder or a file (default: from the hub)", default=None)
    add("--methods", str, "comma-separated, from plain, greedy, beam, best-of-n, majority, one-step, ets and ets-is")
    add("--candidates", int, "M, candidates per guide step")
    add("--rollouts", int, "K, rollouts per candidate")
    add("--lam", float, "λ, in units of the reward")
    add("--pool", str, "whose votes the self-consistency reward counts: step or chain")
    add("--beams", int, "of beam search, if it is among the methods", default=None)
    add(
        "--best-by",
        str,
        "best-of-n's reward: likelihood-per-token, likelihood (which favours short texts) or self-consistency",
        default="likelihood-per-token",
    )
    add("--temperature", float, "of the reference policy")
    add("--samples", int, "samples of the other methods (default: as many as cost what ETS costs)", default=None)
    add("--repeats", int, "k of avg@k: samples of each problem that every method's score is a mean of", default=1)
    add("--seed", int, "of all randomness")
    add("--width", int, "problems that advance together; results depend on it by rounding errors alone")
    add("--memory-gib", float, "limit on the cache of rows under way (default: half of the free memory)", default=None)
    add(
        "--results",
        Path,
        "where results folders are made, named TASK-HASH by their configuration",
        default=Path("results"),
    )
    add(
        "--stops",
        str,
        "humaneval alone: completion, which ends where a function's body does (the default), or answer, which does not",
        default=None,
    )
    parser.add_argument("--unsafe-code", action="store_true", help="run code that a model wrote without the sandbox")
    add("--out", Path, "this run's results folder instead", default=None)
    add_engine_arguments(parser)
    add_proposal_arguments(parser)


def execute(options: argparse.Namespace) -> None:
    """Check everything that can be checked, then load the model, run, and write the folder.

    Raises
    ------
    InputError
        For bad input, most of it before the model is loaded.
    """
    from ets.evaluation.evaluate import Evaluation
    from ets.evaluation.hosted import opened_task
    from ets.evaluation.journal import Journal, fingerprint
    from ets.evaluation.methods import require_able, require_methods
    from ets.evaluation.ranks import join
    from ets.evaluation.tables import approximate_lines
    from ets.policies.checkpoint import Checkpoint
    from ets.report.plots import require_matplotlib
    from ets.transition import require_counts

    require_engine_arguments(options)
    ranks = join()
    _require_shareable(options.engine, ranks)
    engine, methods = ENGINES[options.engine], [name.strip() for name in options.methods.split(",")]
    task = opened_task(options.task, options.data, unsafe=options.unsafe_code, stops=options.stops)
    settings = _settings(options)
    require_methods(methods, options.samples, settings, options.repeats)
    require_counts(width=options.width, repeats=options.repeats, count=1 if options.count is None else options.count)
    require_matplotlib()
    checkpoint = Checkpoint(engine.embedded.get(options.model, options.model), device=ranks.device)
    policy = engine_policy(checkpoint, options)
    require_able(policy, methods, options.samples, settings)
    own: dict[str, Policy] = {}
    if "ets-is" in methods:
        settings, own["ets-is"] = _paired(settings, policy, checkpoint, options)
    elif settings.proposing is not None:
        ranks.say(f"note: {proposed_by(options)} has no effect without the method ets-is", file=sys.stderr)
    problems = task.problems(options.count, options.shots)
    starts = policy.start(problems)  # a prompt that does not fit is named before the weights are loaded
    for other in own.values():
        other.start(problems)
    configuration = _configuration(options, checkpoint, task, problems) | served_settings(policy)
    approximate = str(configuration.get("approximate", ""))
    folder = options.out or options.results / f"{task.name}-{fingerprint(configuration)}"
    with Journal(folder, configuration, ranks) as journal:
        ranks.say(
            f"{len(journal.records)} finished chains in {folder}; the same command goes on where it was interrupted"
        )
        for line in (*_targets(settings, methods), *approximate_lines(approximate)):
            ranks.say(line)
        evaluation = Evaluation(
            task, policy, problems, settings, journal, options.width, options.seed, repeats=options.repeats, own=own
        )
        with closed_after(policy):
            rows = evaluation.compare(methods, options.samples or engine.budget(policy, starts))
    if ranks.first:
        _write(rows, f"{task.name}: {options.model}", folder, approximate)


def _require_shareable(engine: str, ranks: Ranks) -> None:
    """Raise `InputError` for several processes with an engine that has its own ways to share its work."""
    if ranks.size > 1 and engine in COPIED_BY:
        raise InputError(
            f"the engine {engine} takes one process, not {ranks.size}; for copies of the model, use {COPIED_BY[engine]}"
        )


def _settings(options: argparse.Namespace) -> Settings:
    from ets.evaluation.methods import Settings

    own = {name: getattr(options, name) for name in ("candidates", "rollouts", "lam", "pool", "beams", "best_by")}
    return Settings(**own, proposing=proposing_of(options))


def _paired(
    settings: Settings, policy: Policy, checkpoint: Checkpoint, options: argparse.Namespace
) -> tuple[Settings, Policy]:
    """The settings with nothing left out, and what ets-is samples from."""
    assert settings.proposing is not None
    proposing, pair = proposal_pair(settings.proposing, policy, checkpoint, options)
    return replace(settings, proposing=proposing), pair


def _targets(settings: Settings, methods: Sequence[str]) -> list[str]:
    """A line for a method whose draws are weighed towards another law than the policy's."""
    from ets.evaluation.tables import target_line

    own = settings.proposing if "ets-is" in methods else None
    return [target_line(own.label(settings.rollouts), own.target)] if own and own.target else []


def _configuration(
    options: argparse.Namespace, checkpoint: Checkpoint, task: Task, problems: Sequence[Problem]
) -> dict[str, Any]:
    """Everything that the results depend on: equal settings give equal values, however they were given."""
    from ets.evaluation.hosted import conditions, digest

    return {
        **{name: getattr(options, name) for name in RESULTS_DEPEND_ON},
        **engine_settings(options),
        **conditions(task),
        "problems": f"{len(problems)}, {digest(problems)}",
        "model_revision": checkpoint.revision,
        "placement": checkpoint.placement,
        "ets": __version__,
    }


def _summary(row: Row) -> dict[str, Any]:
    """A row as JSON values; importance ratios and a target of a method that has any."""
    from ets.evaluation.ratios import without_nan

    values = {name: value for name, value in asdict(row).items() if name != "target" or value}
    ratios = values.pop("ratios")
    return values if row.ratios is None else {**values, "ratios": {**without_nan(ratios), "wide": row.ratios.wide}}


def _write(rows: Sequence[Row], title: str, folder: Path, approximate: str) -> None:
    from ets.evaluation.tables import approximate_lines, ratio_lines, score_table, table
    from ets.report.plots import plot_accuracies

    parts = (table(rows), score_table(rows, "lm-eval"), ratio_lines(rows), *approximate_lines(approximate))
    text, told = "\n\n".join(filter(None, parts)), {"approximate": approximate} if approximate else {}
    print(f"\n{text}\n")
    summary = json.dumps([_summary(row) | told for row in rows], indent=2)
    (folder / "summary.json").write_text(f"{summary}\n", encoding="utf-8")
    (folder / "table.md").write_text(f"{text}\n", encoding="utf-8")
    plot_accuracies(rows, title, folder / "accuracy.png")
    print(f"results: {folder}/ (configuration.json, journal.jsonl, summary.json, table.md, accuracy.png)")
