"""Every benchmark in one run, as ratios against the plain way: `python benchmarks/run.py --suite cpu|gpu [--dry-run]`

Models have random weights of stated shapes, and one is the real model of a pip package; nothing is downloaded. The
outcome is one Markdown page and one JSON file per machine in docs/benchmarks/; a dry run, which does all the same at
tiny shapes, and a run of some benchmarks only print theirs, unless --out says where they go. The laws come first: where
they do not hold, nothing is timed.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # imports the package without an installation, and tests.laws

from ets.exits import NOTHING_KEPT, exit_status  # noqa: E402
from ets.types import InputError, one_line  # noqa: E402

if TYPE_CHECKING:
    from measuring import Conditions
    from page import Outcome
    from suite import Benchmark

PAGES = ROOT / "docs" / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all went well, 1 if a law does not hold or a benchmark failed, 2 with one line for bad input."""
    status = 0

    def command() -> None:
        nonlocal status
        status = int(not _execute(_options(arguments)))

    return exit_status(command, NOTHING_KEPT) or status


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=("cpu", "gpu"), required=True)
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, two repeats, on whatever device there is")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these benchmarks; a wrong name lists them all")
    parser.add_argument("--repeats", type=int, help="3 unless given; in a dry run 2")
    parser.add_argument("--out", type=Path, help="a folder for the page and the JSON file")
    return parser.parse_args(arguments)


def _execute(options: argparse.Namespace) -> bool:
    """Run, print and write; whether all that ran went well."""
    begun = time.perf_counter()
    _require_device(options)
    from page import Outcome

    chosen, conditions = _chosen(options.only), _conditions(options, begun)
    outcome = Outcome(options.suite, options.dry_run, conditions)
    for benchmark in chosen:
        _measure(benchmark, outcome)
    print(outcome.markdown())
    out = options.out or (None if options.dry_run or options.only else PAGES)
    if out:
        outcome.write(out)
        print(f"wrote {outcome.slug}.md and {outcome.slug}.json")
    return outcome.lawful and not outcome.failed


def _chosen(only: Sequence[str] | None) -> list[Benchmark]:
    from suite import BENCHMARKS

    names = [benchmark.name for benchmark in BENCHMARKS]
    if unknown := sorted(set(only or ()) - set(names)):
        raise InputError(f"unknown benchmark {unknown[0]!r}; choose from {', '.join(names)}")
    return [benchmark for benchmark in BENCHMARKS if not only or benchmark.name in only]


def _require_device(options: argparse.Namespace) -> None:
    """At once, before anything else is imported."""
    import torch

    if options.suite == "gpu" and not (options.dry_run or torch.cuda.is_available()):
        raise InputError("--suite gpu needs a GPU, and there is none here; add --dry-run to try it at tiny shapes")
    if options.repeats is not None and options.repeats < 1:
        raise InputError(f"--repeats is {options.repeats}; give at least 1")


def _conditions(options: argparse.Namespace, begun: float) -> Conditions:
    """A dry run takes any device, fewer repeats, and as long as it takes."""
    import torch
    from floor import measured_peak
    from measuring import Conditions
    from suite import SUITES

    suite = SUITES[options.suite]
    device = torch.device("cuda" if options.suite == "gpu" and torch.cuda.is_available() else "cpu")
    peak = measured_peak(device, suite.dtype, dry=options.dry_run)
    repeats = options.repeats or (2 if options.dry_run else 3)
    minutes = math.inf if options.dry_run else suite.minutes
    return Conditions(device, suite.dtype, peak, repeats, begun + 60 * minutes)


def _measure(benchmark: Benchmark, outcome: Outcome) -> None:
    """One benchmark's table, or why there is none: one that fails does not take the others' tables with it."""
    from suite import DRY, SUITES

    conditions = outcome.conditions
    reason = benchmark.why_not(outcome.suite, conditions.deadline - time.perf_counter())
    if reason or not outcome.lawful:
        outcome.left_out[benchmark.name] = reason or "the laws do not hold on this device, or could not be tested"
        return
    print(f"{benchmark.name}: {benchmark.what} …", file=sys.stderr)
    try:
        outcome.tables.append(benchmark.measure(DRY if outcome.dry else SUITES[outcome.suite].sizes, conditions))
    except Exception as error:
        traceback.print_exc()
        outcome.failed[benchmark.name] = f"it failed: {one_line(error)}"
    _free_memory()


def _free_memory() -> None:
    """A model's, before the next one is made."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
