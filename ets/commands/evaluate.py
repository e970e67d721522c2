"""`ets eval` and `ets compare`: methods on a task, at one budget or at several.

`plan_of` is the one function that reads an `argparse.Namespace`; everything below it takes dataclasses.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ets.chat import Chat
from ets.commands.chat import add_chat_arguments, chat_of
from ets.evaluation.methods import (
    METHODS,
    Method,
    MethodSettings,
    methods_named,
    require_able,
    require_answers,
    require_settings,
)
from ets.evaluation.setup import RunSettings, open_setup
from ets.policies.checkpoint_files import find_files
from ets.policies.registry import ENGINES, SETTINGS
from ets.policies.settings import MAX_LENGTH, FastSampler, Weighing
from ets.settings import add_flags, fields_of, flag, made
from ets.step import require_counts, require_rows
from ets.tasks import Task, has_answers, task_named
from ets.types import InputError

if TYPE_CHECKING:
    from ets.evaluation.comparison import Comparison, Entry
    from ets.evaluation.curves import CurvePoint
    from ets.evaluation.journal import Journal
    from ets.evaluation.objective import Optimum
    from ets.evaluation.setup import Setup
    from ets.report.tables import Setting

EXAMPLE = """example:
  ets eval --task arithmetic --model embedded --count 20 --shots 0 --methods plain,majority,ets \\
      --candidates 8 --rollouts 3 --lam 0.1 --block-size 16 --max-length 96 --temperature 1.5
"""
COMPARE_EXAMPLE = """example:
  ets compare --tasks arithmetic --model embedded --count 20 --shots 0 --candidates 2,4 --rollouts 3 --lam 0.1 \\
      --methods plain,majority,one-step,ets,particles,retained,greedy --block-size 16 --max-length 96 \\
      --temperature 1.9 --repeats 4 --width 16
"""
Panels: TypeAlias = "dict[str, list[tuple[float, Entry]]]"
"""Entries by the scanned number, by the name of a plot's panel."""
FOLDER_LETTERS = 80
"""The most letters of a task's name in the name of its results folder."""
_ONLY_ETS = {"ets": METHODS["ets"]}
OWNERS: tuple[type, ...] = (RunSettings, MethodSettings, *SETTINGS, Weighing, FastSampler)


@dataclass(frozen=True)
class Plan:
    """A command: its settings, its methods and budgets, and the place of its results."""

    asked: RunSettings
    settings: MethodSettings
    values: dict[str, Any]
    methods: dict[str, Method]
    budgets: tuple[float, ...]
    chat: Chat | None = None
    tasks: tuple[str, ...] = ()
    repeats: int = 1
    samples: int | None = None
    sizes: dict[str, int] = field(default_factory=dict)
    against: str | None = None
    traces: int = 3
    results: Path = Path("results")
    out: Path | None = None
    scan_rollouts: tuple[int, ...] = ()
    scan_guide_steps: tuple[int, ...] = ()
    wandb: str | None = None

    @property
    def middle(self) -> float:
        """The budget that scans start from."""
        return self.budgets[len(self.budgets) // 2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `ets eval`."""
    _add_shared(parser)


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `ets compare`: those of `ets eval`, several budgets, and rivals at equal cost."""
    _add_shared(parser, several=True)
    parser.set_defaults(repeats=4, against="majority")


def _add_shared(parser: argparse.ArgumentParser, several: bool = False) -> None:
    names = f"comma-separated, from {', '.join(METHODS)}; or file.py:function, a step function"
    parser.add_argument("--methods", required=not several, help=names)
    parser.add_argument("--step", action="append", default=[], help="a step function as file.py:function, as a method")
    budgets = (
        "M, candidates per guide step of ETS, whose cost is the budget; several, such as 2,4,8, are several budgets"
    )
    parser.add_argument("--candidates", type=_counts, help=f"{budgets} (default: 8)")
    text = "budgets as amounts per problem: generated tokens; with diffusion, token positions that the model computes"
    parser.add_argument("--budgets", "--tokens", type=_amounts, help=text)
    text = "samples of each problem that every score is a mean of (avg@k)"
    parser.add_argument("--repeats", "--seeds", type=int, default=1, help=f"{text} (default: {4 if several else 1})")
    text = "N of the methods that choose among N samples (default: the N that costs what ETS costs)"
    parser.add_argument("--samples", type=int, help=text)
    text = "N of single methods, such as best-of-n=15,one-step=20"
    parser.add_argument("--sizes", type=_sizes, default={}, help=text)
    text = "the method that others are compared with at equal cost"
    rival = "majority; without right answers one-step" if several else "none"
    parser.add_argument("--against", help=f"{text} (default: {rival})")
    text = "problems, from the first on, whose guided chains keep their traces for the report (default: 3)"
    parser.add_argument("--traces", type=int, default=3, help=text)
    text = "further runs of ETS with so many {}, for the plot of scaling"
    parser.add_argument("--scan-rollouts", type=_counts, default=(), help=text.format("rollouts"))
    parser.add_argument("--scan-guide-steps", type=_counts, default=(), help=text.format("guide steps"))
    folders = "where results folders are made, named TASK-HASH by their configuration (default: results)"
    parser.add_argument("--results", type=Path, default=Path("results"), help=folders)
    parser.add_argument(
        "--out", type=Path, help="this run's results folder instead; with several tasks, one in it each"
    )
    text = "log the table, the figures and the configuration to this project of Weights & Biases"
    parser.add_argument("--wandb", nargs="?", const="ets", metavar="PROJECT", help=f"{text} (default: ets)")
    add_flags(parser, RunSettings, MethodSettings, leave_out=("candidates",))
    add_flags(parser, *SETTINGS, title="settings of the policy and of its engine", leave_out=("certainty",))
    add_flags(parser, Weighing, FastSampler, title="settings of the method ets-is")
    add_chat_arguments(parser)


def plan_of(options: argparse.Namespace, task: str = "") -> Plan:
    """The plan of the options for one of their tasks, by default the first.

    A task without right answers has a reward of its own, or the options name one; the rival at equal cost is then
    one-step in place of majority. Raises `InputError` for options that do not fit each other or the task.
    """
    given = {name: value for name, value in vars(options).items() if name in fields_of(*OWNERS)}
    candidates = given.pop("candidates", None)
    if candidates and options.budgets:
        raise InputError("give either --candidates, whose cost is the budget, or --tokens (--budgets), amounts")
    budgets: tuple[float, ...] = options.budgets or candidates or (8,)
    asked = made(RunSettings, given)
    for name in ("task", "model"):
        if not getattr(asked, name):
            raise InputError(f"{flag(name)} is not given; add it, for example {flag(name)} {_EXAMPLES[name]}")
    tasks = tuple(_names(asked.task))
    asked = replace(asked, task=task or tasks[0])
    asks, against = task_named(asked.task), options.against
    if not has_answers(asks):
        given["reward"] = given.get("reward") or _reward_of(asks)
        against = "one-step" if against == "majority" else against
    settings = made(MethodSettings, {**given, "candidates": int(max(candidates or (8,)))})
    names = _names(options.methods) if options.methods else _all_methods(asked, settings, has_answers(asks))
    policy = {name: value for name, value in given.items() if name in fields_of(*SETTINGS, Weighing, FastSampler)}
    if settings.needs_certainty(names):
        policy["certainty"] = True
    methods = methods_named([*names, *options.step])
    require_answers(asks, methods, settings)
    return Plan(
        asked=asked,
        settings=settings,
        values=policy,
        methods=methods,
        budgets=budgets,
        chat=chat_of(options),
        tasks=tasks,
        against=against,
        **{name: getattr(options, name) for name in _PLAIN},
    )


_EXAMPLES = {"task": "arithmetic", "model": "embedded"}
_PLAIN = ("repeats", "samples", "sizes", "traces", "results", "out", "scan_rollouts", "scan_guide_steps", "wandb")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _reward_of(task: Task) -> str:
    """The reward of a task without right answers; raises `InputError` where it has none."""
    reward: str = getattr(task, "reward", "")
    if not reward:
        raise InputError(f"the task {task.name} has no right answers; add --reward file.py:function or module:function")
    return reward


def _all_methods(asked: RunSettings, settings: MethodSettings, answers: bool) -> list[str]:
    """The methods that every policy of an engine has."""
    left_out = {"base", "ets-is"} | (set() if asked.engine == "transformers" else {"beam"})
    left_out |= {name for name, method in METHODS.items() if method.answers and not answers}
    left_out |= {"greedy"} if asked.engine == "uniform-diffusion" else set()
    left_out |= {"ets-stopped"} if settings.fixed_reward else set()
    left_out |= set() if _records_certainty(asked.engine) else {"confident-majority"}
    return [name for name in METHODS if name not in left_out]


def _records_certainty(engine: str) -> bool:
    return engine in ENGINES and "certainty" in fields_of(*ENGINES[engine].settings)


def execute(options: argparse.Namespace) -> None:
    """Check everything that can be checked, then compare on one task after the other, and write the results folders.

    Raises
    ------
    InputError
        For bad input, most of it before a model is loaded.
    """
    from ets.commands.fingerprint import command_digest, finished_folder
    from ets.report.results import show_results

    plans = plans_of(options)
    digests = [command_digest(plan) for plan in plans]
    found = [finished_folder(plan, digest) for plan, digest in zip(plans, digests, strict=True) if digest is not None]
    folders = [folder for folder in found if folder is not None]
    if len(folders) == len(plans):
        for plan, folder in zip(plans, folders, strict=True):
            show_results(folder, plan.budgets)
        return
    for (setup, plan), digest in zip(prepared(plans), digests, strict=True):
        compare(setup, plan, digest)


def plans_of(options: argparse.Namespace) -> list[Plan]:
    """The plan of each task, all of them checked as far as no model is needed."""
    plans = [plan_of(options, task) for task in _names(getattr(options, "task", ""))]
    for plan in plans:
        _require_plan(plan)
        if plan.asked.engine in ENGINES:  # a missing model is named before the heavy imports
            find_files(ENGINES[plan.asked.engine].embedded.get(plan.asked.model, plan.asked.model))
    return plans


def prepared(plans: Sequence[Plan]) -> list[tuple[Setup, Plan]]:
    """The setup of each task, all of them checked before the first one runs."""
    found = []
    for plan in plans:
        setup = open_setup(plan.asked, plan.values, plan.settings, plan.methods, plan.chat)
        require_able(setup.policies, plan.methods, plan.budgets, setup.engine.currency)
        for method in plan.methods.values():
            if method.digest:
                method.step(setup.task, setup.settings, 1)  # raises if the user's function makes no step function
        found.append((setup, plan))
    unused = [flag(name) for name in plans[0].values if name in fields_of(Weighing, FastSampler)]
    if unused and "ets-is" not in plans[0].methods:
        found[0][0].ranks.say(f"note: {', '.join(unused)}: no effect without the method ets-is")
    return found


def _require_plan(plan: Plan) -> None:
    from ets.report.plots import require_matplotlib
    from ets.report.wandb_log import require_wandb

    require_settings(plan.methods, plan.settings, plan.sizes)
    if (
        "confident-majority" in plan.methods
        and plan.asked.engine in ENGINES
        and not _records_certainty(plan.asked.engine)
    ):
        raise InputError(
            f"confident-majority reads the certainty of tokens, which the engine {plan.asked.engine} does not record; "
            "leave it out"
        )
    require_counts(
        width=plan.asked.width, repeats=plan.repeats, **({} if plan.samples is None else {"samples": plan.samples})
    )
    if plan.asked.count is not None:
        require_counts(count=plan.asked.count)
    if plan.traces < 0:
        raise InputError(f"traces is {plan.traces}; give a number of problems, or 0 for none")
    if plan.against is not None and plan.against not in plan.methods:
        raise InputError(f"against is {plan.against!r}, which is not among the methods; add it, or name another")
    if (plan.scan_rollouts or plan.scan_guide_steps) and not (
        "ets" in plan.methods and isinstance(plan.budgets[0], int)
    ):
        raise InputError("a scan needs the method ets and budgets in candidates; add them")
    _require_budget(plan)
    rollouts = max((plan.settings.rollouts, *plan.scan_rollouts))
    candidates = max(
        (size for size in (*plan.budgets, plan.settings.is_candidates) if isinstance(size, int)), default=1
    )
    require_rows(candidates * rollouts, f"{candidates} candidates with {rollouts} rollouts")
    for name, size in {"samples": plan.samples, "beams": plan.settings.beams, **plan.sizes}.items():
        require_rows(size or 1, f"{size} {name}")
    for guide_steps in plan.scan_guide_steps:
        _with_guide_steps(plan.values, guide_steps)
    require_matplotlib()
    if plan.wandb is not None:
        require_wandb()


def _require_budget(plan: Plan) -> None:
    """Raise `InputError` for methods whose size depends on the cost of ETS, where ETS is not among the methods."""
    if "ets" in plan.methods or not isinstance(plan.budgets[0], int):
        return
    for name, method in plan.methods.items():
        fixed = plan.samples is not None or name in plan.sizes
        if (method.kind == "among" and not fixed) or (method.kind == "guided" and not method.at_candidates):
            raise InputError(
                f"the size of {name} follows from the cost of ets, which is not among the methods; "
                "add it, or set samples, sizes or budgets"
            )


def compare(setup: Setup, plan: Plan, digest: str | None = None) -> None:
    """Run the plan on a task, and write its results folder: journal, tables, plots and report.

    `digest`, of `command_digest`, is written for the same command again.
    """
    from ets.commands.fingerprint import write_fingerprint
    from ets.evaluation.journal import Journal
    from ets.report.results import chains_line, write_results
    from ets.report.tables import settings_line
    from ets.report.wandb_log import log_to_wandb

    folder = _folder(setup, plan)
    with Journal(folder, setup.configuration, setup.ranks) as journal:
        setup.ranks.say(chains_line(len(journal.records), folder))
        setup.ranks.say(settings_line(_setting(setup, plan), plan.budgets))
        entries, panels, points, optimum = entries_of(setup, plan, journal)
    if setup.ranks.first:
        write_results(entries, panels, _setting(setup, plan), folder, points, optimum)
    if setup.ranks.first and digest is not None:
        write_fingerprint(folder, digest)
    if setup.ranks.first and plan.wandb is not None:
        log_to_wandb(folder, plan.wandb)


def entries_of(
    setup: Setup, plan: Plan, journal: Journal
) -> tuple[list[Entry], Panels, list[CurvePoint], Optimum | None]:
    """The entries of a plan on a task, those of its scans, the curves, and p* by estimate.

    The journal's folder then holds the traces, the problems and the samples.
    """
    from ets.evaluation.curves import curves
    from ets.evaluation.objective import reference_of
    from ets.evaluation.samples import write_samples
    from ets.evaluation.traces import Traces
    from ets.exits import closed_after

    traced = [problem.id for problem in setup.problems[: plan.traces]]
    with Traces(journal.folder, traced, setup.ranks) as traces, closed_after(*setup.policies.values()):
        for line in setup.notes:
            setup.ranks.say(line)
        comparison = comparison_of(setup, plan, journal, kept=traces.keep)
        entries = comparison.entries(plan.budgets, plan.against)
        panels = _scans(setup, plan, comparison, entries)
    if setup.ranks.first:
        write_samples(journal.folder, setup.task, setup.problems, comparison.returned(entries))
    pooled = comparison.pooled
    points, reference = curves(pooled, seed=plan.asked.seed), reference_of(pooled, setup.settings.lam)
    optimum = None
    if reference is not None:
        entries = [replace(e, objective=reference.objective(e.rewards) if e.rewards else None) for e in entries]
        optimum = reference.optimum
    return entries, panels | _scan_of_guide_steps(setup, plan, journal.folder), points, optimum


def _folder(setup: Setup, plan: Plan) -> Path:
    from ets.evaluation.journal import fingerprint

    task = _folder_name(setup.task.name)
    if plan.out is not None:
        return plan.out if len(plan.tasks) == 1 else plan.out / task
    if len(plan.budgets) > 1:  # a folder that further budgets extend
        return plan.results / f"compare-{task}-{fingerprint(setup.configuration)}"
    every = {**setup.configuration, **asdict(setup.settings), "budget": plan.budgets}
    return plan.results / f"{task}-{fingerprint(every)}"


def _folder_name(task: str) -> str:
    """A task's name as one part of a path, which names no folder above the results."""
    return re.sub(r"[^\w.-]", "_", task)[:FOLDER_LETTERS].lstrip(".") or "task"


def _setting(setup: Setup, plan: Plan) -> Setting:
    from ets.report.tables import Setting

    hidden = {"task", "model", "prompt", "prompt_kind", "model_revision", "placement", "ets", "approximate", "own_code"}
    hidden.add("reward")  # in the head of each table
    shown = {n: v for n, v in setup.configuration.items() if n not in hidden and isinstance(v, int | float | str)}
    problems, currency = len(setup.problems), setup.engine.currency
    shared = (setup.task.name, plan.asked.model, problems, plan.repeats, currency)
    shots = plan.asked.shots if plan.asked.shots is not None else getattr(setup.task, "shots", 0)
    amounts = [amount for amount in plan.budgets if isinstance(amount, float)]
    return Setting(*shared, plan.against, setup.notes, shown, setup.settings.reward, shots, amounts)


def comparison_of(setup: Setup, plan: Plan, journal: Journal, **options: Any) -> Comparison:
    """The comparison of a plan on a setup, whose records go to a journal."""
    from ets.evaluation.comparison import Comparison
    from ets.evaluation.run import Run

    run = Run(
        setup.task,
        setup.problems,
        journal,
        plan.asked.width,
        plan.asked.seed,
        per_token=setup.per_token,
        **options,
    )
    currency = setup.engine.currency
    shared: dict[str, Any] = {"repeats": plan.repeats, "sizes": plan.sizes, "samples": plan.samples}
    return Comparison(run, setup.policies, plan.methods, setup.settings, currency, **shared)


def _scans(setup: Setup, plan: Plan, comparison: Comparison, entries: Sequence[Entry]) -> Panels:
    """ETS alone, as M or K grows and the other stays at that of the middle budget."""
    if not (plan.scan_rollouts or plan.scan_guide_steps):
        return {}
    guided = [entry for entry in entries if (entry.method, entry.readout) == ("ets", "last")]
    panels: Panels = {"M, candidates": [(entry.size, entry) for entry in guided]}
    for rollouts in sorted(plan.scan_rollouts):
        settings = replace(setup.settings, rollouts=rollouts)
        changed = replace(comparison, methods=_ONLY_ETS, settings=settings, _targets={})
        panels.setdefault("K, rollouts", []).append((rollouts, changed.entries([plan.middle])[0]))
    return panels


def _scan_of_guide_steps(setup: Setup, plan: Plan, folder: Path) -> Panels:
    """ETS alone, as I grows: each number of guide steps is a policy with a journal, opened after the one before."""
    from ets.evaluation.journal import Journal
    from ets.exits import closed_after

    found: list[tuple[float, Entry]] = []
    for guide_steps in sorted(plan.scan_guide_steps):
        values = _with_guide_steps(plan.values, guide_steps)
        other = open_setup(plan.asked, values, plan.settings, _ONLY_ETS, plan.chat)
        place = folder / f"guide_steps={guide_steps}"
        with Journal(place, other.configuration, setup.ranks) as journal, closed_after(*other.policies.values()):
            entries = comparison_of(other, replace(plan, methods=_ONLY_ETS), journal).entries([plan.middle])
        found.append((guide_steps, entries[0]))
    return {"I, guide steps": found} if found else {}


def _with_guide_steps(values: dict[str, Any], guide_steps: int) -> dict[str, Any]:
    if "guide_steps" in values:
        return {**values, "guide_steps": guide_steps}
    length = values.get("max_length", MAX_LENGTH)
    block_size = -(-length // guide_steps)
    if -(-length // block_size) != guide_steps:
        raise InputError(f"no block size gives {guide_steps} guide steps of {length} tokens; leave it out")
    return {**values, "block_size": block_size}


def _sizes(text: str) -> dict[str, int]:
    """N by method, from `NAME=N,NAME=N`."""
    try:
        pairs = [(name.strip(), int(size)) for name, size in (entry.split("=") for entry in text.split(","))]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of sizes; give N by name: best-of-n=15") from None
    if len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} names a method twice; name it once")
    return dict(pairs)


def _counts(text: str) -> tuple[int, ...]:
    return _distinct([_above_zero(each, int) for each in text.split(",")])


def _amounts(text: str) -> tuple[float, ...]:
    return _distinct([_above_zero(each, float) for each in text.split(",")])


def _distinct(values: list[Any]) -> tuple[Any, ...]:
    if repeated := [value for value in values if values.count(value) > 1]:
        raise argparse.ArgumentTypeError(f"{repeated[0]} is there twice")
    return tuple(values)


def _above_zero(text: str, kind: Any) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not above zero and finite")
    return value
