"""The files of a results folder that are made of a comparison's entries: summary, table, plots and report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ets.evaluation.comparison import Entry, json_rewards
from ets.evaluation.curves import CurvePoint
from ets.evaluation.journal import VERSION
from ets.evaluation.objective import Optimum
from ets.evaluation.ratios import without_nan
from ets.report.page import SUMMARY, write_report
from ets.report.plots import plot_accuracies, plot_accuracy_by_cost, plot_curves, plot_scaling
from ets.report.tables import Setting, by_reward, markdown


def write_results(
    entries: Sequence[Entry],
    panels: Mapping[str, Sequence[tuple[float, Entry]]],
    setting: Setting,
    folder: Path,
    points: Sequence[CurvePoint] = (),
    optimum: Optimum | None = None,
) -> None:
    """Write the files, and print the table and their places."""
    text = markdown(entries, setting, points, optimum)
    print(f"\n{text}\n")
    scans = {name: [[value, _values(entry)] for value, entry in values] for name, values in panels.items()}
    content = {
        "version": VERSION,
        "setting": asdict(setting),
        "entries": [_values(entry) for entry in entries],
        "panels": scans,
        "curves": [asdict(point) for point in points],
        "optimum": None if optimum is None else asdict(optimum),
    }
    (folder / SUMMARY).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "table.md").write_text(f"{text}\n", encoding="utf-8")
    one = len({entry.budget for entry in entries if entry.budget is not None}) < 2
    plot, name = (plot_accuracies, "{}.png") if one else (plot_accuracy_by_cost, "{}_by_cost.png")
    name = name.format("reward" if by_reward(entries) else "accuracy")
    plot(entries, setting, folder / name)
    if len(points) > 1:
        plot_curves(points, setting, folder / "pass_at_k.png")
    if panels:
        plot_scaling(panels, setting, folder / "scaling.png")
    print(f"results: {folder}/ (configuration.json, journal.jsonl, {SUMMARY}, table.md, {name})")
    print(f"to look at: {write_report(folder)}")


def _values(entry: Entry) -> dict[str, Any]:
    values = {**asdict(entry), "rewards": json_rewards(entry.rewards)}
    if entry.rival is not None:
        values["rival"]["rewards"] = json_rewards(entry.rival.rewards)
    if entry.ratios is not None:
        values["ratios"] = {**without_nan(values["ratios"])}
    return values
