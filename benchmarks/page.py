"""What a run of the benchmarks leaves: a Markdown page and a JSON file for the machine, and its line in the index."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from measuring import Conditions, Table

MACHINES = "## Machines\n"
"""In the index, the heading of its last part."""


@dataclass
class Outcome:
    """The tables of one run, and what is missing from them.

    Parameters
    ----------
    suite : str
    dry : bool
        Whether it was a dry run, whose numbers say nothing.
    conditions : Conditions
    tables : list of Table
    left_out, failed : dict
        Reasons by benchmark.
    """

    suite: str
    dry: bool
    conditions: Conditions
    tables: list[Table] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def lawful(self) -> bool:
        """Whether no law test is red, or could not be run to its end."""
        return "laws" not in self.failed and all(
            row.counts.get("law", "passes") == "passes" for table in self.tables for row in table.rows
        )

    @property
    def device(self) -> str:
        """Its name, as it tells it."""
        if self.conditions.device.type == "cuda":
            return torch.cuda.get_device_name(self.conditions.device)
        return f"{_processor()}, {os.cpu_count()} cores"

    @property
    def slug(self) -> str:
        """The device's name in a file name."""
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    @property
    def command(self) -> str:
        dryness = " --dry-run" if self.dry else ""
        return f"python benchmarks/run.py --suite {self.suite}{dryness} --repeats {self.conditions.repeats}"

    def markdown(self) -> str:
        """The page."""
        missing = [f"- `{name}`: {reason}." for name, reason in (self.left_out | self.failed).items()]
        parts = [f"# Speed: {self.device}", f"`{self.command}`", *self._dryness(), self._conditions()]
        parts += ["Left out:\n\n" + "\n".join(missing)] if missing else []
        return "\n\n".join([*parts, *(table.markdown().strip() for table in self.tables)]) + "\n"

    def _dryness(self) -> list[str]:
        return ["A dry run: the same code at tiny shapes. Its numbers say nothing about speed."] if self.dry else []

    def _conditions(self) -> str:
        peak, dtype = self.conditions.peak, str(self.conditions.dtype).removeprefix("torch.")
        versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
        commit = _commit()
        return (
            f"{dtype}, {self.conditions.threads} CPU threads; {versions}{f'; commit {commit}' if commit else ''}. "
            "Medians over repeats, in each of which all ways run in turn; `times faster` and its spread are of the "
            "ratios, repeat by repeat. The floor: what the law's forward passes need, at the most that this "
            f"device was seen to do: {peak.operations / 1e12:.3g} TFLOP/s in a matrix product, {peak.bytes / 1e9:.3g} "
            "GB/s in a copy or read."
        )

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured, every repeat's seconds included."""
        return {
            "suite": self.suite,
            "dry_run": self.dry,
            "device": self.device,
            "dtype": str(self.conditions.dtype).removeprefix("torch."),
            "threads": self.conditions.threads,
            "versions": _versions(),
            "commit": _commit(),
            "peak": asdict(self.conditions.peak),
            "left_out": self.left_out | self.failed,
            "tables": [asdict(table) for table in self.tables],
        }

    def write(self, folder: Path) -> None:
        """The page, the JSON file, and a line in the folder's index if it has one."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.slug}.md").write_text(self.markdown(), encoding="utf-8")
        (folder / f"{self.slug}.json").write_text(json.dumps(self.as_json(), indent=1) + "\n", encoding="utf-8")
        if (folder / "index.md").exists():
            _list_machines(folder)


def _list_machines(folder: Path) -> None:
    index = folder / "index.md"
    before = index.read_text(encoding="utf-8").split(MACHINES)[0]
    devices = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    lines = [f"- [{run['device']}]({stem}.md): the {run['suite']} suite" for stem, run in devices.items()]
    index.write_text(before + MACHINES + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    packages = {"torch": torch, "transformers": transformers, "numpy": np}
    return {"python": platform.python_version()} | {name: module.__version__ for name, module in packages.items()}


def _commit() -> str | None:
    """Of the checkout, with `+` where files differ from it; None where there is none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout else "")
