"""How the benchmarks measure: on which device and for how long, and what the tables are made of."""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import ParamSpec, TypeVar

import torch
from floor import Floor, Peak, seconds_of

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Conditions:
    """Where and for how long something is measured.

    Parameters
    ----------
    device : torch.device
    dtype : torch.dtype
    peak : Peak
        Of the device, in this dtype.
    repeats : int
    deadline : float
        On the clock of `time.perf_counter`: no repeat begins of which the last one says that it would end later.
    threads : int
        Of the CPU, when the run begins.
    """

    device: torch.device
    dtype: torch.dtype
    peak: Peak
    repeats: int
    deadline: float = math.inf
    threads: int = field(default_factory=torch.get_num_threads)

    def rounds(self, works: Sequence[Callable[[], object]]) -> list[list[float]]:
        """Seconds `[works][repeats]`; each repeat runs all works in turn, so that a slow minute slows all of them."""
        repeats: list[list[float]] = []
        while len(repeats) < self.repeats and (not repeats or self._fits(sum(repeats[-1]))):
            repeats.append([seconds_of(work) for work in works])
        return [list(column) for column in zip(*repeats, strict=True)]

    def _fits(self, seconds: float) -> bool:
        return time.perf_counter() + seconds <= self.deadline


class PeakMemory:
    """Calls `work`, and keeps in `bytes` the most memory of each call beyond the memory before it.

    On a CPU (Linux) it is resident memory, on a GPU what PyTorch has allocated.
    """

    def __init__(self, work: Callable[[], object], device: torch.device) -> None:
        self.work, self.device = work, device
        self.bytes: list[int] = []

    def __call__(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.work()
            self.bytes.append(torch.cuda.max_memory_allocated(self.device) - before)
            return
        ctypes.CDLL(None).malloc_trim(0)  # memory that is free, but not returned, would hide a peak
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _resident("VmRSS")
        self.work()
        self.bytes.append(_resident("VmHWM") - before)


def in_new_process(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function of a module, called in a Python process that has run nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


def _resident(name: str) -> int:
    """A number of bytes in the status of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Parameters
    ----------
    label : str
    seconds : list of float
        Ours, by repeat.
    against : list of float
        Those of what it is compared with, by repeat; empty where there is nothing.
    counts : dict
        What was counted, by heading.
    floor : Floor, optional
        What the law needs.
    """

    label: str
    seconds: list[float]
    against: list[float] = field(default_factory=list)
    counts: dict[str, int | float | str] = field(default_factory=dict)
    floor: Floor | None = None

    @property
    def ratios(self) -> list[float]:
        """Times faster, repeat by repeat."""
        return [other / ours for ours, other in zip(self.seconds, self.against, strict=True)] if self.against else []

    def cells(self) -> dict[str, str]:
        """By heading."""
        cells = {"seconds": f"{median(self.seconds):.3g}"}
        if self.ratios:
            low, high = min(self.ratios), max(self.ratios)
            cells = {"compared (s)": f"{median(self.against):.3g}", "ours (s)": cells["seconds"]}
            cells |= {"times faster": f"**{median(self.ratios):.2f}**", "spread": f"{low:.2f} to {high:.2f}"}
        cells |= {name: value if isinstance(value, str) else f"{value:,}" for name, value in self.counts.items()}
        if self.floor:
            cells |= {"needs TFLOP": f"{self.floor.operations / 1e12:.3g}", "needs GB": f"{self.floor.bytes / 1e9:.3g}"}
            cells |= {"floor (s)": f"{self.floor.seconds:.3g}"}
            cells |= {"times the floor": f"{median(self.seconds) / self.floor.seconds:.1f}"}
        return cells


@dataclass(frozen=True)
class Table:
    """What one benchmark found.

    Parameters
    ----------
    name, title, about : str
        About says what is measured, and what it is compared with.
    shape : str
        Of the model and of the setting.
    rows : list of Row
    """

    name: str
    title: str
    about: str
    shape: str
    rows: list[Row]

    def markdown(self) -> str:
        """The table with its heading; a column for whatever any row has, numbers on the right."""
        rows = [{"": row.label, **row.cells()} for row in self.rows]
        headings = list(dict.fromkeys(heading for cells in rows for heading in cells))
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)]]
        lines += [[cells.get(heading, "") for heading in headings] for cells in rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"## {self.title}\n\n{self.about}\n\n{self.shape}{self._repeats()}\n\n{table}\n"

    def _repeats(self) -> str:
        """How often the ways were compared."""
        counts = sorted({len(row.seconds) for row in self.rows if row.against})
        return f" Repeats: {' to '.join(map(str, counts))}." if counts else ""
