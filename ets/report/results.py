"""The files of a results folder that are made of a comparison's entries: summary, table, plots and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ets.evaluation.comparison import Entry
from ets.evaluation.curves import CurvePoint
from ets.evaluation.objective import Optimum
from ets.report.page import NAME as REPORT
from ets.report.page import write_report
from ets.report.plots import plot_accuracies, plot_accuracy_by_cost, plot_curves, plot_scaling
from ets.report.summary import SUMMARY, Summary, finished, read_summary, write_summary
from ets.report.tables import Setting, by_reward, markdown, settings_line
from ets.types import counted


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
    plot = plot_accuracy_by_cost if _several(entries) else plot_accuracies
    plot(entries, setting, folder / _plot_name(entries))
    if len(points) > 1:
        plot_curves(points, setting, folder / "pass_at_k.png")
    if panels:
        plot_scaling(panels, setting, folder / "scaling.png")
    write_report(folder)
    _print_places(entries, folder)


def show_results(folder: Path, budgets: Sequence[float]) -> None:
    """Print the lines of a finished run again, from its files."""
    with finished(folder):
        summary, table = read_summary(folder), (folder / "table.md").read_text(encoding="utf-8")
        chains = (folder / "journal.jsonl").read_bytes().count(b"\n")
    print(chains_line(chains, folder))
    print(settings_line(summary.setting, budgets))
    print(f"\n{table}")
    _print_places(summary.entries, folder)


def chains_line(chains: int, folder: Path) -> str:
    return f"{counted(chains, 'finished chain')} in {folder}; the same command goes on where it ended"


def _several(entries: Sequence[Entry]) -> bool:
    return len({entry.budget for entry in entries if entry.budget is not None}) > 1


def _plot_name(entries: Sequence[Entry]) -> str:
    return ("reward" if by_reward(entries) else "accuracy") + ("_by_cost" if _several(entries) else "") + ".png"


def _print_places(entries: Sequence[Entry], folder: Path) -> None:
    name = _plot_name(entries)
    print(f"results: {folder}/ (configuration.json, journal.jsonl, {SUMMARY}, table.md, {name})")
    print(f"to look at: {folder / REPORT}")
