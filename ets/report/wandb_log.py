"""A finished run at Weights & Biases: the configuration, the rows of the table, and the figures."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ets.report.finished import FinishedRun, Row, finished_run
from ets.types import InputError, not_installed

AWAY = ("offline", "disabled", "dryrun")
"""Values of WANDB_MODE that need no account."""


def require_wandb() -> None:
    """Raise `InputError` if wandb is missing or has no account, before a run computes anything.

    In a terminal, wandb asks for a missing key.
    """
    if find_spec("wandb") is None:
        raise not_installed("wandb", "wandb")
    if os.environ.get("WANDB_MODE") in AWAY:
        return
    import wandb

    try:
        wandb.login()
    except wandb.Error as error:
        raise InputError(f"wandb has no account here: {error} Or set WANDB_MODE=offline") from None


def log_to_wandb(folder: Path, project: str) -> None:
    """Log a results folder as one run of a project, named after the folder.

    Raises
    ------
    InputError
        If wandb refuses the run; the results folder is complete.
    """
    import wandb

    finished = finished_run(folder)
    configuration = {**finished.configuration, "problems": finished.setting.problems}
    columns = ["row", *_columns(finished)]
    shared: dict[str, Any] = {"job_type": "eval", "settings": wandb.Settings(console="off")}
    try:
        with wandb.init(project=project, name=folder.resolve().name, config=configuration, **shared) as run:
            rows = [[row.name, *(_values(row).get(name) for name in columns[1:])] for row in finished.rows]
            figures = {path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))}
            run.log({"table": wandb.Table(columns=columns, data=rows), **figures})
            run.summary.update(
                {f"{row.name}/{name}": value for row in finished.rows for name, value in _numbers(row).items()}
            )
    except (wandb.Error, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"wandb refused the run: {reason}; the same command tries again, and draws nothing") from None


def _columns(run: FinishedRun) -> list[str]:
    return list(dict.fromkeys(name for row in run.rows for name in _values(row)))


def _values(row: Row) -> dict[str, Any]:
    names = ("label", "method", "readout", "budget", "size", "target")
    return {**{name: getattr(row.entry, name) for name in names}, **_numbers(row)}


def _numbers(row: Row) -> dict[str, float]:
    """The metrics with their standard errors, the objective, and the costs of a use of the method."""
    found: dict[str, float] = {}
    for name, (mean, error) in row.scores.items():
        found |= {name: mean, **({} if error is None else {f"{name}_stderr": error})}
    objective = {} if row.entry.objective is None else {"objective": row.entry.objective.mean}
    return found | objective | dict(row.entry.cost)
