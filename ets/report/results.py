"""The files of a results folder that are made of a comparison's entries: summary, table, plots and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ets.evaluation.comparison import Entry
from ets.evaluation.curves import CurvePoint
from ets.evaluation.objective import Optimum
from ets.report.page import write_report
from ets.report.plots import plot_accuracies, plot_accuracy_by_cost, plot_curves, plot_scaling
from ets.report.summary import SUMMARY, Summary, write_summary
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
    write_summary(folder, Summary(setting, entries, panels, points, optimum))
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
