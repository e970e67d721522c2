"""Line charts as inline SVG, drawn without a plotting library and shown without a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ets.templates import render

WIDTH, BOTTOM, LEFT, TOP, LINE = 560, 256, 72, 12, 18
"""Pixels: the chart's width, the lower, left and upper edge of the plot, and a line of the legend below the plot."""
MARGIN = 44
"""Pixels below the plot for the x axis."""
Scale: TypeAlias = Callable[[float], float]
"""From a value to its place in pixels."""
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#b83280", "#6b46c1", "#975a16", "#0987a0", "#c53030", "#718096", "#65830f")
SHORT = 34
"""Characters of a short name; a long legend of short names has two columns."""


@dataclass(frozen=True)
class Point:
    """A value with its interval, the note of its tooltip, and a label that a PNG prints next to it."""

    x: float
    y: float
    low: float
    high: float
    note: str = ""
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Points in the order of x; `look` numbers colour and shape, by default the place among the series."""

    name: str
    points: Sequence[Point]
    dashed: bool = False
    look: int | None = None


@dataclass(frozen=True)
class Axes:
    """The names of both axes; a log scale of x; ticks at the values of x (`exact`), not at round numbers; y's bound."""

    x: str
    y: str
    log: bool = False
    exact: bool = False
    top: float = math.inf


@dataclass(frozen=True)
class Bar:
    """A value with its interval and texts: the name, the value, and the cost."""

    name: str
    mean: float
    low: float
    high: float
    shown: str
    cost: str
    marked: bool = False


def bars(found: Sequence[Bar], top: float | None = None) -> str:
    """Return bars with intervals as HTML, from 0 to `top` or to the largest value; "" without bars."""
    if not found:
        return ""
    low = min(0.0, *(bar.low for bar in found))
    high = max(0.0, *(bar.high for bar in found)) if top is None else top
    span = (high - low) or 1.0

    def place(start: float, end: float) -> str:
        return f"left: {100 * (start - low) / span:.2f}%; width: {100 * (end - start) / span:.2f}%"

    rows = [
        {"bar": bar, "fill": place(*sorted((0.0, bar.mean))), "interval": place(bar.low, min(bar.high, high))}
        for bar in found
    ]
    return render("bars.html", rows=rows)


def chart(axes: Axes, series: Sequence[Series]) -> str:
    """Return an SVG element with a line, points, intervals and a legend entry for each series; "" without points.

    Each series is a group, so that the page's style can fade the other groups while the pointer rests on one.
    """
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    across, down, columns, rows = _scales(axes, points)
    width = 2 if len(series) > 6 and max(len(each.name) for each in series) <= SHORT else 1
    drawn = []
    for number, each in enumerate(series):
        line, column = divmod(number, width)
        place = {"x": LEFT + 14 + column * (WIDTH - LEFT) // 2, "baseline": BOTTOM + MARGIN + 10 + LINE * line}
        shown = [_point(each.name, point, across, down) for point in each.points]
        drawn.append({"name": each.name, "points": shown, "look": _look(number, each), **place})
    height = BOTTOM + MARGIN + LINE * -(-len(series) // width)
    size = {"width": WIDTH, "height": height, "left": LEFT, "bottom": BOTTOM}
    return render("chart.svg", axes=axes, series=drawn, columns=columns, rows=rows, **size)


def _point(name: str, point: Point, across: Scale, down: Scale) -> dict[str, Any]:
    note = f"{name}: {point.y:,.4g} ({point.low:,.4g} to {point.high:,.4g}); {point.note}"
    return {"x": across(point.x), "y": down(point.y), "low": down(point.low), "high": down(point.high), "note": note}


def _look(number: int, series: Series) -> dict[str, Any]:
    """Colour and shape: after the last colour, the first one comes again with another shape."""
    number = number if series.look is None else series.look
    return {"colour": COLOURS[number % len(COLOURS)], "diamond": number >= len(COLOURS), "dashed": series.dashed}


def _scales(
    axes: Axes, points: Sequence[Point]
) -> tuple[Scale, Scale, list[tuple[float, str]], list[tuple[float, str]]]:
    """Return the scales of x and y, and the ticks of both axes: each a place in pixels and a label."""
    xs = sorted({point.x for point in points})
    log = axes.log and xs[0] > 0
    ticks = xs[:: 1 + len(xs) // 16] if axes.exact else log_ticks(xs[0], xs[-1]) if log else _ticks(xs[0], xs[-1])
    first, last = min(ticks[0], xs[0]), max(ticks[-1], xs[-1])
    rows = _ticks(min(point.low for point in points), min(axes.top, max(point.high for point in points)))
    scale = math.log if log else float

    def across(x: float) -> float:
        share = (scale(x) - scale(first)) / (scale(last) - scale(first)) if last > first else 0.5
        return round(LEFT + 16 + (WIDTH - LEFT - 40) * share, 1)

    def down(y: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (y - rows[0]) / (rows[-1] - rows[0]), 1)

    return across, down, [(across(x), f"{x:,.6g}") for x in ticks], [(down(y), f"{y:,.6g}") for y in rows]


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers around the range."""
    span = max(high - low, abs(high) / 10) or 1.0
    unit = 10 ** math.floor(math.log10(span / 3))
    step = next(unit * n for n in (1, 2, 5, 10) if span / (unit * n) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 9) for n in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """The products of 1, 2 or 5 and a power of ten around the range; only powers of ten if there are many."""
    numbers = [n * 10.0**power for power in range(math.floor(math.log10(low)), 15) for n in (1, 2, 5)]
    first = max(i for i, number in enumerate(numbers) if number <= low * (1 + 1e-9))
    last = min(i for i, number in enumerate(numbers) if number >= high * (1 - 1e-9))
    shown = numbers[first : max(last, first + 1) + 1]
    return shown if len(shown) <= 9 else [number for number in shown if math.log10(number) % 1 < 1e-6]
