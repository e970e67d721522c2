"""`summary.json`: a comparison's setting, entries, scans and curves as JSON values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ets.evaluation.comparison import Entry, entry_of, json_rewards
from ets.evaluation.curves import CurvePoint, curve_of
from ets.evaluation.journal import VERSION, known_fields, require_version
from ets.evaluation.objective import Optimum, optimum_of
from ets.evaluation.ratios import without_nan
from ets.report.tables import Setting
from ets.types import InputError

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`.

    Parameters
    ----------
    setting : Setting
    entries : sequence of Entry
        The rows of the table.
    panels : mapping of str to sequence of (float, Entry)
        By the name of a scanned setting: its values, with ETS at each of them.
    curves : sequence of CurvePoint
    optimum : Optimum, optional
        p* by estimate.
    """

    setting: Setting
    entries: Sequence[Entry]
    panels: Mapping[str, Sequence[tuple[float, Entry]]]
    curves: Sequence[CurvePoint]
    optimum: Optimum | None = None


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`."""
    content = {
        "version": VERSION,
        "setting": asdict(summary.setting),
        "entries": [_values(entry) for entry in summary.entries],
        "panels": {name: [[x, _values(entry)] for x, entry in values] for name, values in summary.panels.items()},
        "curves": [asdict(point) for point in summary.curves],
        "optimum": None if summary.optimum is None else asdict(summary.optimum),
    }
    (folder / SUMMARY).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_summary(folder: Path) -> Summary:
    """Read `summary.json`; call it inside `finished`.

    Raises
    ------
    InputError
        For a folder of another version.
    OSError, ValueError, LookupError, TypeError
        For a damaged file.
    """
    content = json.loads((folder / SUMMARY).read_bytes())
    require_version(content, folder)
    return Summary(
        Setting(**known_fields(Setting, content["setting"])),
        list(map(entry_of, content["entries"])),
        {name: [(x, entry_of(entry)) for x, entry in values] for name, values in content["panels"].items()},
        list(map(curve_of, content["curves"])),
        optimum_of(content["optimum"]) if content.get("optimum") else None,
    )


@contextmanager
def finished(folder: Path) -> Iterator[None]:
    """Turn the errors of a block that reads a results folder into `InputError`.

    Raises
    ------
    InputError
        For a folder without a summary, before the block runs, and for a damaged folder.
    """
    if not (folder / SUMMARY).exists():
        raise InputError(f"{str(folder)!r} holds no finished run of ets eval or ets compare; name its results folder")
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{str(folder)!r} is damaged ({error}); run its command again to continue the run") from error


def _values(entry: Entry) -> dict[str, Any]:
    values = {**asdict(entry), "rewards": json_rewards(entry.rewards)}
    if entry.rival is not None:
        values["rival"]["rewards"] = json_rewards(entry.rival.rewards)
    if entry.ratios is not None:
        values["ratios"] = {**without_nan(values["ratios"])}
    return values
