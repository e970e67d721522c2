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

from ets.commands.engines import (
    add_engine_arguments,
    closed_after,
    flag,
    least_votes,
    number_or,
    require_engine_arguments,
)
from ets.commands.opening import Opened, add_task_arguments, method_names, opened
from ets.commands.proposals import add_proposal_arguments, proposal_pair, proposed_by, proposing_of
from ets.commands.traces import add_traces_argument, require_traces, traces_of
from ets.evaluation.base import Base

if TYPE_CHECKING:
    from ets.evaluation.evaluate import Row
    from ets.evaluation.methods import Settings
    from ets.types import Policy


BASE: dict[str, tuple[Any, str]] = {
    "temperature": (float, "temperature"),
    "top_k": (number_or(int, "none", None), "top-k, or none"),
    "top_p": (number_or(float, "none", None), "top-p, or none"),
}
"""The fields of `Base` as options of the method `base`: their types and meanings."""
EXAMPLE = """example:
  ets eval --task arithmetic --model embedded --count 20 --shots 0 --methods plain,majority,ets \\
      --candidates 8 --rollouts 3 --lam 0.1 --pool chain --block-size 16 --max-length 96 \\
      --temperature 1.5 --seed 0 --width 8
"""
RESULTS_DEPEND_ON = ("candidates", "rollouts", "lam", "pool", "reward", "minimum")
"""Beside the task, the model and the engine's settings. What belongs to one method is in the names of its records."""
REWARDS = "majority, the default and the paper's; share, of votes; likelihood-per-token; or likelihood"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, kind: Any, text: str, **options: Any) -> None:
        parser.add_argument(name, type=kind, help=text, required="default" not in options, **options)

    add_task_arguments(parser)
    names = "base, plain, greedy, beam, best-of-n, majority, one-step, ets and ets-is"
    add("--methods", str, f"comma-separated, from {names}")
    add("--candidates", int, "M, candidates per guide step")
    add("--rollouts", int, "K, rollouts per candidate")
    add("--lam", float, "λ, in units of the reward")
    add("--pool", str, "whose votes the rewards majority and share count: step or chain")
    add("--reward", str, f"what one-step, ets and ets-is are steered by: {REWARDS}", default="majority")
    add("--minimum", int, "votes that an answer needs (default: 1; masked diffusion: 2)", default=None)
    add("--beams", int, "of beam search, if it is among the methods", default=None)
    add(
        "--best-by",
        str,
        "best-of-n's reward, from the same four (default: majority); likelihood favours short texts",
        default="majority",
    )
    sizes = "N of single methods, such as best-of-n=15,one-step=20 (default: as many as cost what ETS costs)"
    add("--sizes", _sizes, sizes, default=dict[str, int]())
    for name, (kind, text) in BASE.items():
        value = getattr(Base, name)
        add(flag(f"base_{name}"), kind, f"of the method base: {text} (default: {value})", default=value)
    add("--samples", int, "samples of the other methods (default: as many as cost what ETS costs)", default=None)
    add("--repeats", int, "k of avg@k: samples of each problem that every method's score is a mean of", default=1)
    add_traces_argument(parser)
    folders = "where results folders are made, named TASK-HASH by their configuration"
    add("--results", Path, folders, default=Path("results"))
    add("--out", Path, "this run's results folder instead", default=None)
    add_engine_arguments(parser)
    add_proposal_arguments(parser)


def _sizes(text: str) -> dict[str, int]:
    """N by method, from `NAME=N,NAME=N`."""
    try:
        pairs = [(name.strip(), int(size)) for name, size in (entry.split("=") for entry in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes; give such as best-of-n=15") from None
    if len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names a method twice; name it once")
    return dict(pairs)


def execute(options: argparse.Namespace) -> None:
    """Check everything that can be checked, then load the model, run, and write the folder.

    Raises
    ------
    InputError
        For bad input, most of it before the model is loaded.
    """
    from ets.evaluation.evaluate import Evaluation
    from ets.evaluation.journal import Journal, fingerprint
    from ets.evaluation.methods import require_able, require_methods
    from ets.evaluation.tables import approximate_lines
    from ets.report.plots import require_matplotlib
    from ets.transition import require_counts

    require_engine_arguments(options)
    methods, settings = method_names(options), settings_of(options)
    require_methods(methods, options.samples, settings, options.repeats)
    require_counts(width=options.width, repeats=options.repeats, count=1 if options.count is None else options.count)
    require_traces(options)
    require_matplotlib()
    found = opened(options.task, options)
    require_able(found.policy, methods, options.samples, settings)
    own: dict[str, Policy] = {}
    if "base" in methods:
        own["base"] = base_policy(found.policy, settings.base)
    if "ets-is" in methods:
        settings, own["ets-is"] = _paired(settings, found, options)
    elif settings.proposing is not None:
        found.ranks.say(f"note: {proposed_by(options)} has no effect without the method ets-is", file=sys.stderr)
    for other in own.values():
        other.start(found.problems)
    configuration = found.configuration(options) | {name: getattr(settings, name) for name in RESULTS_DEPEND_ON}
    approximate = str(configuration.get("approximate", ""))
    folder = options.out or options.results / f"{found.task.name}-{fingerprint(configuration)}"
    with Journal(folder, configuration, found.ranks) as journal, traces_of(found, folder, options) as traces:
        found.ranks.say(
            f"{len(journal.records)} finished chains in {folder}; the same command goes on where it was interrupted"
        )
        for line in (*_targets(settings, methods), *approximate_lines(approximate)):
            found.ranks.say(line)
        evaluation = Evaluation(
            found.task, found.policy, found.problems, journal, options.width, options.seed, settings,
            repeats=options.repeats, own=own, kept=traces.keep,
        )  # fmt: skip
        with closed_after(found.policy):
            rows = evaluation.compare(methods, options.samples or found.budget(options.engine))
    if found.ranks.first:
        _write(rows, f"{found.task.name}: {options.model}", folder, approximate)


def settings_of(options: argparse.Namespace) -> Settings:
    """The methods' settings, as the options give them."""
    from ets.evaluation.methods import Settings

    names = ("candidates", "rollouts", "lam", "pool", "reward", "beams", "best_by", "sizes")
    own = {name: getattr(options, name) for name in names}
    base = {name: getattr(options, f"base_{name}") for name in BASE}
    return Settings(**own, minimum=least_votes(options), base=Base(**base), proposing=proposing_of(options))


def base_policy(policy: Policy, base: Base) -> Policy:
    """The policy of the method `base`: the same model at the law of that row."""
    from ets.policies.autoregressive import Sampling
    from ets.policies.making import at_law

    return at_law(policy, Sampling(**asdict(base)))


def _paired(settings: Settings, found: Opened, options: argparse.Namespace) -> tuple[Settings, Policy]:
    """The settings with nothing left out, and what ets-is samples from."""
    assert settings.proposing is not None
    proposing, pair = proposal_pair(settings.proposing, found.policy, found.checkpoint, options)
    return replace(settings, proposing=proposing), pair


def _targets(settings: Settings, methods: Sequence[str]) -> list[str]:
    """A line for a method whose draws are weighed towards another law than the policy's."""
    from ets.evaluation.tables import target_line

    own = settings.proposing if "ets-is" in methods else None
    return [target_line(own.label(settings.rollouts), own.target)] if own and own.target else []


def _summary(row: Row) -> dict[str, Any]:
    """A row as JSON values; importance ratios and a target of a method that has any."""
    from ets.evaluation.ratios import without_nan

    values = {name: value for name, value in asdict(row).items() if name != "target" or value}
    ratios = values.pop("ratios")
    return values if row.ratios is None else {**values, "ratios": {**without_nan(ratios), "wide": row.ratios.wide}}


def _write(rows: Sequence[Row], title: str, folder: Path, approximate: str) -> None:
    from ets.evaluation.tables import approximate_lines, ratio_lines, score_table, table
    from ets.report.page import write_report
    from ets.report.plots import plot_accuracies

    parts = (table(rows), score_table(rows, "lm-eval"), ratio_lines(rows), *approximate_lines(approximate))
    text, told = "\n\n".join(filter(None, parts)), {"approximate": approximate} if approximate else {}
    print(f"\n{text}\n")
    summary = json.dumps([_summary(row) | told for row in rows], indent=2)
    (folder / "summary.json").write_text(f"{summary}\n", encoding="utf-8")
    (folder / "table.md").write_text(f"{text}\n", encoding="utf-8")
    plot_accuracies(rows, title, folder / "accuracy.png")
    print(f"results: {folder}/ (configuration.json, journal.jsonl, summary.json, table.md, accuracy.png)")
    print(f"to look at: {write_report(folder)}")
