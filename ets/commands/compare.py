"""`ets compare`: what the same tokens buy elsewhere."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ets.commands.engines import (
    add_engine_arguments,
    closed_after,
    engine_settings,
    flag,
    least_votes,
    require_engine_arguments,
)
from ets.commands.opening import Opened, add_task_arguments, method_names, opened
from ets.commands.traces import add_traces_argument, require_traces, traces_of
from ets.types import InputError

if TYPE_CHECKING:
    from ets.evaluation.compared import Hyper
    from ets.evaluation.comparison import Comparison, Entry
    from ets.report.budgets import Setting

EXAMPLE = """example:
  ets compare --tasks arithmetic --model embedded --count 20 --shots 0 --candidates 2,4 --rollouts 3 --lam 0.1 \\
      --methods plain,majority,one-step,ets,particles,retained,greedy --block-size 16 --max-length 96 \\
      --temperature 1.9 --seeds 4 --seed 0 --width 16
"""
CURRENCY = {"masked-diffusion": "positions"}
"""What budgets are counted in, by engine: a row-forward with a cache costs less than one without, so those are not
counted. For all other engines, generated tokens."""

TOLD = ("rollouts", "lam", "reward", "pool", "temperature", "seed")
"""Settings that a comparison tells of itself, beside the engine's."""
PROMPT = ("prompt", "prompt_kind", "chat")
"""Parts of a configuration that the report shows of prompts."""
METHOD_NAMES = (
    "ets, ets-stopped, retained, lookahead, particles, power, plain, majority, weighted-majority, best-of-n, one-step, "
    "iterated-sir, greedy, beam"
)
"""Those of `ets.evaluation.compared.METHODS`, which takes time to import."""
REWARD_NAMES = "majority, share, likelihood-per-token, likelihood"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, kind: Any, text: str, **options: Any) -> None:
        parser.add_argument(name, type=kind, help=text, required="default" not in options, **options)

    add_task_arguments(parser, several=True)
    add("--methods", str, f"comma-separated, from {METHOD_NAMES} (default: all that the engine has)", default=None)
    add("--candidates", _counts, "budgets: what ETS costs with so many candidates M, such as 2,4,8", default=None)
    add("--budgets", _amounts, "budgets as amounts instead: generated tokens, or computed positions", default=None)
    add("--rollouts", int, "K, rollouts per candidate")
    add("--lam", float, "λ, in units of the reward")
    add("--pool", str, "whose votes the rewards majority and share count: step or chain", default="chain")
    add("--reward", str, f"what guided methods are steered by: {REWARD_NAMES} (default: majority)", default="majority")
    add("--minimum", int, "votes that an answer needs (default: 1; masked diffusion: 2)", default=None)
    add("--seeds", int, "samples of each problem whose scores are averaged (default: 4)", default=4)
    add("--against", str, "the method that others are compared with (default: majority)", default="majority")
    add("--beams", int, "of beam search (default: 20)", default=20)
    add(
        "--resample-below",
        float,
        "particles are resampled below this share of effective ones (default: 0.5)",
        default=0.5,
    )
    add("--alpha", float, "power sampling draws from p_ref to this power (default: 4)", default=4.0)
    add("--iterations", int, "of iterated resampling (default: 4)", default=4)
    add("--scan-rollouts", _counts, "further runs of ETS with so many rollouts, for the plot of scaling", default=())
    add("--scan-guide-steps", _counts, "further runs of ETS with so many guide steps", default=())
    add_traces_argument(parser)
    add("--results", Path, "where results folders are made, named compare-TASK-HASH", default=Path("results"))
    add("--out", Path, "results folder instead, in which each task has its own", default=None)
    add_engine_arguments(parser)


def execute(options: argparse.Namespace) -> None:
    """Compare on one task after the other; folders hold a journal for each method and size, tables and plots.

    Raises
    ------
    InputError
        For bad input, most of it before a model is loaded.
    """
    from ets.evaluation.compared import require_compared
    from ets.report.plots import require_matplotlib
    from ets.transition import require_counts

    require_engine_arguments(options)
    hyper, names = _hyper(options), _names(options)
    require_compared(names, hyper)
    if (options.candidates is None) == (options.budgets is None):
        raise InputError("give either --candidates, whose cost is matched, or --budgets, amounts")
    for scan in ("scan_rollouts", "scan_guide_steps"):
        if getattr(options, scan) and not (options.candidates and "ets" in names):
            raise InputError(f"{flag(scan)} needs --candidates and the method ets, whose middle budget it starts from")
    for guide_steps in options.scan_guide_steps:
        _with_guide_steps(guide_steps, options)
    if options.against not in names:
        raise InputError(f"against is {options.against!r}, which is not among the methods; add it, or name another")
    require_traces(options)
    require_counts(width=options.width, seeds=options.seeds, count=1 if options.count is None else options.count)
    require_matplotlib()
    for name in (name.strip() for name in options.tasks.split(",")):
        _compare(name, names, hyper, options)


def _compare(name: str, names: Sequence[str], hyper: Hyper, options: argparse.Namespace) -> None:
    from ets.baselines import require_beam, require_greedy
    from ets.evaluation.journal import fingerprint
    from ets.report.budgets import Setting
    from ets.report.page import write_report

    found = opened(name, options)
    for method, require in (("greedy", require_greedy), ("beam", require_beam)):
        if method in names:
            require(found.policy)
    configuration = found.configuration(options)
    folder = _folder(found, options, fingerprint(configuration))
    found.ranks.say(f"{found.task.name}: journals in {folder}; the same command goes on where it was interrupted")
    currency = CURRENCY.get(options.engine, "generated")
    told = {name.replace("_", " "): getattr(options, name) for name in TOLD} | engine_settings(options)
    shared = (len(found.problems), options.seeds, currency, options.against)
    setting = Setting(found.task.name, options.model, *shared, told)
    comparison = _comparison(found, configuration, hyper, currency, folder, options)
    with closed_after(found.policy), traces_of(found, folder, options) as traces:
        comparison = replace(comparison, kept=traces.keep)
        entries = comparison.entries(names, options.candidates or options.budgets, options.against)
    if found.ranks.first:
        _write(entries, setting, {name: configuration[name] for name in PROMPT}, folder)
    if options.scan_rollouts or options.scan_guide_steps:
        _scan(name, entries, hyper, setting, folder, options)
    if found.ranks.first:
        print(f"to look at: {write_report(folder)}")


def _comparison(
    found: Opened,
    configuration: dict[str, Any],
    hyper: Hyper,
    currency: str,
    folder: Path,
    options: argparse.Namespace,
) -> Comparison:
    from ets.evaluation.comparison import Comparison

    per_token = options.steps / options.gen_length if currency == "positions" else 1.0
    return Comparison(
        found.task, found.policy, found.problems, hyper, currency, folder, configuration,
        options.seeds, options.width, options.seed, per_token, ranks=found.ranks,
    )  # fmt: skip


def _hyper(options: argparse.Namespace) -> Hyper:
    from dataclasses import fields

    from ets.evaluation.compared import Hyper

    given = {field.name: getattr(options, field.name) for field in fields(Hyper)}
    return Hyper(**given | {"minimum": least_votes(options)})


def _names(options: argparse.Namespace) -> list[str]:
    from ets.evaluation.compared import METHODS

    if options.methods is None:
        without = set() if options.engine == "transformers" else {"beam"}
        without |= set() if options.reward in ("majority", "share") else {"ets-stopped"}
        return [name for name in METHODS if name not in without]
    return method_names(options)


def _folder(found: Opened, options: argparse.Namespace, digits: str) -> Path:
    name = found.task.name
    return Path(options.out / name if options.out else options.results / f"compare-{name}-{digits}")


def _write(entries: Sequence[Entry], setting: Setting, prompt: dict[str, Any], folder: Path) -> None:
    from ets.report.budgets import markdown
    from ets.report.plots import plot_accuracy_by_cost

    text = markdown(entries, setting)
    print(f"\n{text}\n")
    content = {"setting": asdict(setting), "entries": [asdict(entry) for entry in entries], "prompt": prompt}
    (folder / "comparison.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "comparison.md").write_text(f"{text}\n", encoding="utf-8")
    plot_accuracy_by_cost(entries, setting, folder / "accuracy_by_cost.png")
    print(f"results: {folder}/ (comparison.md, comparison.json, accuracy_by_cost.png, and a journal for each method)")


def _scan(
    name: str, entries: Sequence[Entry], hyper: Hyper, setting: Setting, folder: Path, options: argparse.Namespace
) -> None:
    """ETS alone, as one of M, K and I grows and the others stay at the middle budget's."""
    from ets.evaluation.ranks import join
    from ets.report.plots import plot_scaling

    middle = options.candidates[len(options.candidates) // 2]
    guided = [entry for entry in entries if (entry.method, entry.readout) == ("ets", "last")]
    panels: dict[str, list[tuple[float, Entry]]] = {"M, candidates": [(entry.size, entry) for entry in guided]}

    def one(hyper: Hyper, changed: dict[str, Any]) -> Entry:
        found = opened(name, options, changed)
        own = argparse.Namespace(**{**vars(options), **changed})
        with closed_after(found.policy):
            configuration = found.configuration(own)
            comparison = _comparison(found, configuration, hyper, setting.currency, folder / _named(changed), own)
            return comparison.entries(["ets"], [middle], "ets")[0]

    if options.scan_rollouts:
        values = sorted(options.scan_rollouts)
        panels["K, rollouts"] = [(k, one(replace(hyper, rollouts=k), {})) for k in values]
    if options.scan_guide_steps:
        values = sorted(options.scan_guide_steps)
        panels["I, guide steps"] = [(i, one(hyper, _with_guide_steps(i, options))) for i in values]
    if not join().first:
        return
    plot_scaling(panels, setting, folder / "scaling.png")
    content = {name: [[value, asdict(entry)] for value, entry in values] for name, values in panels.items()}
    (folder / "scaling.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _with_guide_steps(guide_steps: int, options: argparse.Namespace) -> dict[str, Any]:
    if options.guide_steps is not None:
        return {"guide_steps": guide_steps}
    block_size = -(-options.max_length // guide_steps)
    if -(-options.max_length // block_size) != guide_steps:
        raise InputError(f"no block size gives {guide_steps} guide steps of {options.max_length} tokens; leave it out")
    return {"block_size": block_size}


def _named(changed: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in changed.items()) or "."


def _counts(text: str) -> tuple[int, ...]:
    return _distinct([_parsed(each, int) for each in text.split(",")])


def _amounts(text: str) -> tuple[float, ...]:
    return _distinct([_parsed(each, float) for each in text.split(",")])


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise argparse.ArgumentTypeError(f"{repeated[0]} is there twice")
    return tuple(values)


def _parsed(text: str, kind: Any) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above zero and finite")
    return value
