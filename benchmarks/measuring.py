"""What the benchmarks share: seconds, ratios repeat by repeat, the machine, and the page that is committed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch

PAGES = Path(__file__).parents[1] / "docs" / "benchmarks"


def rounds(works: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds `[repeats, works]`; each repeat runs all works in turn, so that a slow minute slows all of them."""
    return [[_seconds(work) for work in works] for _ in range(repeats)]


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def times_faster(measured: Sequence[Sequence[float]], slow: int, fast: int) -> tuple[float, str]:
    """The median over repeats of one work's seconds over another's, and the spread."""
    ratios = sorted(row[slow] / row[fast] for row in measured)
    return median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"


def machine() -> str:
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":")[1].strip()
            break
    return f"{name}, {os.cpu_count()} cores, torch {torch.__version__} with {torch.get_num_threads()} threads, float32"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rule, *rows))


def write_page(name: str, text: str) -> None:
    """Print a page and put it into `docs/benchmarks/`."""
    print(text)
    PAGES.mkdir(parents=True, exist_ok=True)
    (PAGES / f"{name}.md").write_text(text, encoding="utf-8")
