"""A finished run is shown again, without torch, when nothing has changed that its command reads or has written.

A results folder then holds `fingerprint.txt`: a digest of the command with its inputs, and a digest of the folder's
files. Where a digest differs, or an input is on another machine, the command opens the model and the journal as usual.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import ets
from ets.evaluation.journal import written_to
from ets.evaluation.ranks import alone
from ets.policies.checkpoint_files import find_files
from ets.policies.registry import ENGINES
from ets.types import InputError

if TYPE_CHECKING:
    from ets.commands.evaluate import Plan

FILE = "fingerprint.txt"
ELSEWHERE = ("out", "results", "methods")
"""Fields of a plan that its digest does not hold as they are: folders, and methods, whose step functions are code."""


def command_digest(plan: Plan) -> str | None:
    """The digest of a plan, of the code and of all files that it names.

    None if the run logs to Weights & Biases, or reads a model or code that may have changed unnoticed: on the hub, of a
    server, of an engine of a user, or in an installed module. Problems on the hub count as unchanged.
    """
    asked, settings = plan.asked, plan.settings
    if asked.engine not in ENGINES or asked.engine == "endpoint" or plan.wandb is not None:
        return None
    embedded = ENGINES[asked.engine].embedded
    try:
        models = [find_files(embedded.get(name, name)) for name in (asked.model, plan.values.get("proposal")) if name]
    except InputError:  # the setup raises it, with the part that the model has in the run
        return None
    if not all(model.local() for model in models):
        return None
    named = [asked.task, settings.reward, settings.best_by or "", (plan.chat and plan.chat.template) or ""]
    pairs = [(name, name.rpartition(":")[0] or name) for name in named]
    if any(":" in name and not place.endswith(".py") and not place.startswith("ets.") for name, place in pairs):
        return None
    paths = [Path(place).expanduser() for place in (*(place for _, place in pairs), asked.data) if place]
    read = [file for model in models for file in model.local()] + [file for path in paths for file in _files(path)]
    values = {name: value for name, value in vars(plan).items() if name not in ELSEWHERE}
    methods = [(name, method.digest) for name, method in plan.methods.items()]
    machine = platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES"), version("torch"), version("transformers")
    return _digest([values, methods, machine, _states(read), _states(Path(ets.__file__).parent.rglob("*.py"))])


def finished_folder(plan: Plan, command: str) -> Path | None:
    """The results folder of a finished run of this command, if its files are as the run has left them.

    None for one of several processes, which may be on different machines: all of them open the model.
    """
    if not alone():
        return None
    place = plan.out or plan.results
    found = [path for path in (place / FILE, *place.glob(f"*/{FILE}")) if path.is_file()]
    lines = {path.parent: path.read_text(encoding="utf-8", errors="replace").split() for path in found}
    finished = (folder for folder, line in lines.items() if line[:1] == [command] and line[1:] == [_written(folder)])
    return next(finished, None)


def write_fingerprint(folder: Path, command: str) -> None:
    """Write the digests, after all other files of the folder."""
    with written_to(folder):
        (folder / FILE).write_text(f"{command}\n{_written(folder)}\n", encoding="utf-8")


def _written(folder: Path) -> str:
    return _digest(_states(path for path in _files(folder) if path.name != FILE))


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]


def _states(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and time of change of each file."""
    found = sorted(path.resolve() for path in paths)
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
