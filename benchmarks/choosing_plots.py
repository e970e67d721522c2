"""The pictures of docs/choosing.md, from its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from choosing_laws import BUDGETS

from ets.report.charts import COLOURS

Rows = Sequence[dict[str, Any]]
STEPS_SHOWN = (("graded", 0.5), ("graded", 0.05), ("pass", 0.05))


def draw(figures: dict[str, Any], folder: Path) -> None:
    """Write all of them, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    laws, demo = figures["laws"], figures["demo"]
    pictures: dict[str, tuple[int, Callable[[Any], None]]] = {
        "lambda_exact": (2, lambda panels: _lambda_exact(panels, laws)),
        "lambda_demo": (2, lambda panels: _lambda_demo(panels, demo)),
        "rollouts": (3, lambda panels: _rollouts(panels, laws, demo)),
        "steps": (3, lambda panels: _steps(panels, laws)),
    }
    for name, (panels, fill) in pictures.items():
        _picture(folder / f"{name}.png", panels, fill)


def _picture(path: Path, panels: int, fill: Callable[[Any], None]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * panels, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels)
    fill(axes)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _lambda_exact(panels: Any, laws: dict[str, Any]) -> None:
    for (name, of), colour in zip(laws.items(), COLOURS, strict=False):
        rows = of["lam"]
        lams = _column(rows, "lam")
        panels[0].plot(lams, _column(rows, "reward"), "-", color=colour, label=f"{name}: p*")
        panels[0].plot(lams, _column(rows, "sampled"), "--", color=colour, label=f"{name}: sampler, M 8")
        panels[0].axhline(rows[0]["plain"], color=colour, linewidth=0.8, linestyle=":")
        panels[1].plot(lams, _column(rows, "moved"), "-", color=colour, label=f"{name}: p* to p_ref")
        panels[1].plot(lams, _column(rows, "distance"), "--", color=colour, label=f"{name}: sampler to p*")
    panels[0].set(xscale="log", xlabel="λ", ylabel="mean reward (dotted: p_ref)")
    panels[1].set(xscale="log", xlabel="λ", ylabel="total variation")


def _lambda_demo(panels: Any, demo: dict[str, Any]) -> None:
    for name, colour in zip(("right answer", "graded"), COLOURS, strict=False):
        rows = [row for row in demo["lam"] if row["reward"] == name]
        _with_intervals(panels[0], rows, "lam", name, colour)
        panels[1].plot(_column(rows, "lam"), _column(rows, "effective"), "o-", color=colour, label=name)
    panels[0].axhline(demo["plain"]["right"], color="grey", linewidth=0.8, linestyle=":", label="model alone")
    panels[0].set(xscale="log", xlabel="λ", ylabel="right answers, 95% interval", ylim=(0, 1.02))
    panels[1].set(xscale="log", xlabel="λ", ylabel="effective candidates / M", ylim=(0, 1.02))


def _rollouts(panels: Any, laws: dict[str, Any], demo: dict[str, Any]) -> None:
    colours = iter(COLOURS)
    for name, of in laws.items():
        for lam in dict.fromkeys(_column(of["pairs"], "lam")):
            colour = next(colours)
            for panel, question in zip(panels, ("pairs", "shared"), strict=False):
                rows = [row for row in of[question] if row["lam"] == lam]
                panel.plot(
                    _column(rows, "rollouts"), _column(rows, "distance"), "o-", color=colour, label=f"{name}, λ {lam:g}"
                )
    for name, colour in zip(dict.fromkeys(_column(demo["pairs"], "reward")), COLOURS, strict=False):
        _with_intervals(panels[2], [row for row in demo["pairs"] if row["reward"] == name], "rollouts", name, colour)
    panels[0].set(title="exact, M·K = 32", xscale="log", xlabel="K", ylabel="total variation to p*")
    panels[1].set(title="exact, same tokens", xscale="log", xlabel="K")
    for panel, question in zip(panels, ("pairs", "shared"), strict=False):
        _marked(panel, [row["distance"] for of in laws.values() for row in of[question]])
    panels[2].set(title="demonstration, M·K = 12", xlabel="K", ylabel="right answers, 95% interval", ylim=(0, 1.02))
    for panel, rows in zip(panels, (laws["pass"]["pairs"], laws["pass"]["shared"], demo["pairs"]), strict=True):
        ticks = sorted(set(_column(rows, "rollouts")))
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()


def _steps(panels: Any, laws: dict[str, Any]) -> None:
    for panel, (name, lam) in zip(panels, STEPS_SHOWN, strict=True):
        rows = [row for row in laws[name]["steps"] if row["lam"] == lam]
        for number, colour in zip(dict.fromkeys(_column(rows, "guide_steps")), COLOURS, strict=False):
            of = [row for row in rows if row["guide_steps"] == number]
            panel.plot(_column(of, "tokens"), _column(of, "distance"), "o-", color=colour, label=f"I = {number}")
        panel.set(title=f"{name}, λ {lam:g}", xscale="log", xlabel="generated tokens, at most")
        _marked(panel, _column(rows, "distance"))
        panel.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        panel.minorticks_off()
    panels[0].set_ylabel("total variation to p*")


def _marked(panel: Any, values: Sequence[float]) -> None:
    """A logarithmic y with plain numbers, of which matplotlib would show one or none."""
    marks = [n * 10.0**power for power in range(-4, 1) for n in (1, 2, 5)]
    shown = [mark for mark in marks if min(values) / 1.5 <= mark <= max(values) * 1.5]
    panel.set_yscale("log")
    panel.set_yticks(shown, [f"{mark:g}" for mark in shown])
    panel.minorticks_off()


def _with_intervals(panel: Any, rows: Rows, x: str, name: str, colour: str) -> None:
    low = [row["right"] - row["low"] for row in rows]
    high = [row["high"] - row["right"] for row in rows]
    style = {"color": colour, "capsize": 3, "label": name}
    at = [row[x] * 1.03 ** COLOURS.index(colour) for row in rows]  # beside each other
    panel.errorbar(at, _column(rows, "right"), yerr=(low, high), fmt="o-", **style)


def _column(rows: Rows, name: str) -> list[Any]:
    return [row[name] for row in rows]
