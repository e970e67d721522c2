"""Line charts as inline SVG: what a report shows without a library, and without a script."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, LINE = 560, 300, 52, 44, 12, 18
"""Of the plot with its axes, in pixels; LINE is the height of a line of the legend, which stands below."""
Place: TypeAlias = Callable[[float], float]
"""From a value to where it stands, in pixels."""
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#b83280", "#6b46c1", "#975a16", "#0987a0", "#c53030", "#718096", "#65830f")
SHORT = 34
"""Characters of a name; where none is longer, a long legend has two columns."""


@dataclass(frozen=True)
class Point:
    """A value with its interval, and what is told where the pointer rests on it."""

    x: float
    y: float
    low: float
    high: float
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points that belong together, in the order of x; `look` numbers colour and shape, by default its place."""

    name: str
    points: Sequence[Point]
    dashed: bool = False
    look: int | None = None


@dataclass(frozen=True)
class Axes:
    """What the axes are called; `log` is whether x is on a logarithmic scale, `exact` whether its marks are the values
    themselves instead of round ones; `top` a bound of y, if it has one."""

    x: str
    y: str
    log: bool = False
    exact: bool = False
    top: float = math.inf


def chart(axes: Axes, series: Sequence[Series]) -> str:
    """An SVG element with a line, points, intervals and a name in the legend for each series; empty without points.

    Each series is a group with its name, so that a page's style can let the others fade where the pointer rests on one.
    """
    points = [point for each in series for point in each.points]
    if not points:
        return ""
    across, down, marks = _scales(axes, points)
    columns = 2 if len(series) > 6 and max(len(each.name) for each in series) <= SHORT else 1
    looks = [_Look(n if each.look is None else each.look, each.dashed) for n, each in enumerate(series)]
    groups = [
        f'<g class="series">{_line(each, look, across, down)}{_legend(each.name, look, n, columns)}</g>'
        for n, (each, look) in enumerate(zip(series, looks, strict=True))
    ]
    height = HEIGHT + LINE * -(-len(series) // columns)
    label = escape(f"{axes.y} against {axes.x}")
    middle = (HEIGHT - BOTTOM) / 2
    titles = (
        f'<text class="t" x="{LEFT + (WIDTH - LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(axes.x)}</text>'
        f'<text class="t" transform="translate(12 {middle}) rotate(-90)" text-anchor="middle">{escape(axes.y)}</text>'
    )
    body = "".join([*marks, titles, *groups])
    return f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {height}">{body}</svg>'


def _scales(axes: Axes, points: Sequence[Point]) -> tuple[Place, Place, list[str]]:
    """Where an x and a y stand, in pixels, and the marks of both axes."""
    xs = sorted({point.x for point in points})
    log = axes.log and xs[0] > 0
    ticks = xs[:: 1 + len(xs) // 16] if axes.exact else _log_ticks(xs[0], xs[-1]) if log else _ticks(xs[0], xs[-1])
    first, last = min(ticks[0], xs[0]), max(ticks[-1], xs[-1])
    rows = _ticks(min(point.low for point in points), min(axes.top, max(point.high for point in points)))
    scale = math.log if log else float

    def across(x: float) -> float:
        share = (scale(x) - scale(first)) / (scale(last) - scale(first)) if last > first else 0.5
        return LEFT + 16 + (WIDTH - LEFT - 40) * share

    def down(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (y - rows[0]) / (rows[-1] - rows[0])

    return across, down, [*(_x_mark(across(x), x) for x in ticks), *(_y_mark(down(y), y) for y in rows)]


def _x_mark(at: float, value: float) -> str:
    return f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{value:,.6g}</text>'


def _y_mark(at: float, value: float) -> str:
    return (
        f'<line class="g" x1="{LEFT}" x2="{WIDTH}" y1="{at:.1f}" y2="{at:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:,.6g}</text>'
    )


@dataclass(frozen=True)
class _Look:
    """How a series is drawn: after the last colour the first one comes again, with another shape."""

    number: int
    dashed: bool

    @property
    def colour(self) -> str:
        return COLOURS[self.number % len(COLOURS)]

    def marker(self, x: float, y: float, title: str = "") -> str:
        """A shape around a place, hollow where lines are dashed; with a title it is a point."""
        place, body = f"{x:.1f}", f"<title>{title}</title>" if title else ""
        fill = f'class="hollow" stroke="{self.colour}"' if self.dashed else f'fill="{self.colour}"'
        if self.number < len(COLOURS):
            return f'<circle cx="{place}" cy="{y:.1f}" r="4" {fill}>{body}</circle>'
        return f'<path d="M{place} {y - 5:.1f}l5 5l-5 5l-5-5z" {fill}>{body}</path>'


def _line(series: Series, look: _Look, across: Place, down: Place) -> str:
    at = [(across(point.x), down(point.y), point) for point in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
    dashes = ' stroke-dasharray="4 3"' if look.dashed else ""
    drawn = [f'<polyline points="{path}" fill="none" stroke="{look.colour}"{dashes}/>'] if len(at) > 1 else []
    for x, y, point in at:
        told = escape(f"{series.name}: {point.y:,.4g} ({point.low:,.4g} to {point.high:,.4g}); {point.note}")
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{down(point.low):.1f}" y2="{down(point.high):.1f}"'
        drawn.append(f'<line class="i" {ends} stroke="{look.colour}"/>{look.marker(x, y, told)}')
    return "".join(drawn)


def _legend(name: str, look: _Look, number: int, columns: int) -> str:
    row, column = divmod(number, columns)
    x, y = LEFT + 14 + column * (WIDTH - LEFT) // 2, HEIGHT + 10 + LINE * row
    return f'{look.marker(x, y - 4)}<text x="{x + 12}" y="{y}">{escape(name)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers around all that is shown."""
    span = max(high - low, 1e-9 + abs(high) / 10)
    unit = 10 ** math.floor(math.log10(span / 3))
    step = next(unit * n for n in (1, 2, 5, 10) if span / (unit * n) <= 6)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * n, 9) for n in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Of 1, 2 and 5 times powers of ten, those around all that is shown."""
    numbers = [n * 10.0**power for power in range(math.floor(math.log10(low)), 15) for n in (1, 2, 5)]
    first = max(i for i, number in enumerate(numbers) if number <= low * (1 + 1e-9))
    last = min(i for i, number in enumerate(numbers) if number >= high * (1 - 1e-9))
    shown = numbers[first : max(last, first + 1) + 1]
    return shown if len(shown) <= 9 else [number for number in shown if math.log10(number) % 1 < 1e-6]
