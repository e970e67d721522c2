"""The series of every figure, from the entries and records of a results folder; SVG and PNG draw the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean, quantiles
from typing import Any

from ets.evaluation.comparison import Entry
from ets.evaluation.curves import CurvePoint
from ets.evaluation.intervals import Accuracy
from ets.report.charts import Axes, Bar, Point, Series
from ets.report.tables import COSTS, Setting, by_reward, interval, mean_reward, reward_interval
from ets.types import counted

ACCURACY, REWARD = "accuracy (%) with 95% interval", "mean reward with 95% interval"
APART = 0.016
"""Points of different series stand at least this share of the x axis apart."""


def compared(entries: Sequence[Entry], setting: Setting) -> tuple[Axes, list[Series]]:
    """A line for each method and readout, by accuracy or by mean reward.

    The readouts of a method share a colour, and all but `last` are dashed. Points of nearly equal cost stand next to
    each other, so that every interval is visible; their notes have the costs.
    """
    lines: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        lines.setdefault((entry.method, entry.readout), []).append(entry)
    methods = list(dict.fromkeys(entry.method for entry in entries))
    series = [
        Series(
            method if readout == "last" else f"{method}, {readout}",
            _entry_points([(entry.cost[setting.currency], entry) for entry in members], setting),
            dashed=readout != "last",
            look=methods.index(method),
        )
        for (method, readout), members in lines.items()
    ]
    return _axes(f"{COSTS[setting.currency]} per problem (log scale)", entries), apart(series)


def bars_of(entries: Sequence[Entry], setting: Setting) -> list[Bar]:
    """A bar for each entry of one budget; an entry without a finite mean reward has none where rewards are compared."""
    found, rewarded = [], by_reward(entries)
    for entry in entries:
        for point in _entry_points([(1.0, entry)], setting):
            shown = f"{point.y:.1f}% ({point.low:.1f}% to {point.high:.1f}%)"
            use = "sample" if entry.method == "plain" else "problem"
            cost = f"{point.label} {COSTS[setting.currency]} per {use}"
            value = (point.y, point.low, point.high, mean_reward(entry) if rewarded else shown)
            found.append(Bar(entry.label, *value, cost, entry.target.startswith("p*")))
    return found


def apart(series: Sequence[Series]) -> list[Series]:
    """Move points that are closer than `APART` on a log scale of x, in the order of the series, around their middle."""
    points = {(n, i): math.log(p.x) for n, each in enumerate(series) for i, p in enumerate(each.points) if p.x > 0}
    gap = APART * max(math.log(2), max(points.values(), default=0.0) - min(points.values(), default=0.0))
    groups = list[list[tuple[int, int]]]()

    def places(group: Sequence[tuple[int, int]]) -> list[float]:
        middle = fmean(points[point] for point in group)
        return [middle + gap * (order - (len(group) - 1) / 2) for order in range(len(group))]

    for point in sorted(points, key=lambda point: points[point]):
        groups.append([point])
        while len(groups) > 1 and places(groups[-1])[0] - places(groups[-2])[-1] < gap:
            groups[-2:] = [sorted(groups[-2] + groups[-1])]
    moved = {point: math.exp(x) for group in groups for point, x in zip(group, places(group), strict=True)}
    return [
        replace(each, points=[replace(p, x=moved.get((n, i), p.x)) for i, p in enumerate(each.points)])
        for n, each in enumerate(series)
    ]


def scaling(name: str, values: Sequence[tuple[float, Entry]], setting: Setting) -> tuple[Axes, list[Series]]:
    """ETS against one of M, K and I."""
    axes = replace(_axes(f"{name} (log scale)", [entry for _, entry in values]), exact=True)
    return axes, [Series("ETS", _entry_points(values, setting))]


def sample_curves(points: Sequence[CurvePoint]) -> tuple[Axes, list[Series]]:
    """pass@k and maj@k of the complete samples against k."""
    axes = Axes("k, complete samples (log scale)", ACCURACY, log=True, exact=True, top=100)
    passed = [_point(point.k, point.passed, f"k = {point.k}") for point in points]
    voted = [_point(point.k, point.voted, f"k = {point.k}") for point in points]
    return axes, [Series("pass@k", passed), Series("maj@k", voted)]


def effective_size_series(records: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> tuple[Axes, list[Series]]:
    """Median and quartiles of the effective sample size at each guide step, for methods with several steps.

    Parameters
    ----------
    records : sequence of mapping
    labels : mapping of str to str
        The labels of the shown methods, by the methods' names in the records.
    """
    sizes: dict[str, dict[int, list[float]]] = {key: {} for key in labels}
    for record in (record for record in records if record["method"] in labels):
        for number, size in enumerate(record["effective"], 1):
            sizes[record["method"]].setdefault(number, []).append(size)
    series = [
        Series(labels[key], [_quartiles(number, found) for number, found in sorted(steps.items())])
        for key, steps in sizes.items()
        if len(steps) > 1 and max(map(max, steps.values())) > 1
    ]
    return Axes("guide step", "effective candidates, quartiles", exact=True), series


def _quartiles(number: int, sizes: Sequence[float]) -> Point:
    low, middle, high = quantiles(sizes, n=4, method="inclusive") if len(sizes) > 1 else (sizes[0],) * 3
    return Point(number, middle, low, high, f"{counted(len(sizes), 'chain')} at guide step {number}")


def _axes(x: str, entries: Sequence[Entry]) -> Axes:
    return Axes(x, REWARD, log=True) if by_reward(entries) else Axes(x, ACCURACY, log=True, top=100)


def _entry_points(values: Sequence[tuple[float, Entry]], setting: Setting) -> list[Point]:
    """The points of some entries; an entry without a finite mean reward has none where rewards are compared."""
    points, rewarded = [], by_reward([entry for _, entry in values])
    for x, entry in values:
        spent = f"{entry.cost[setting.currency]:,.0f}"
        note = f"{entry.label}, {spent} {COSTS[setting.currency]}"
        if not rewarded:
            points.append(_point(x, interval(entry), note, spent))
        elif mean := reward_interval(entry):
            points.append(Point(x, mean.mean, mean.low, mean.high, note, spent))
    return points


def _point(x: float, share: Accuracy, note: str, label: str = "") -> Point:
    return Point(x, 100 * share.mean, 100 * share.low, 100 * share.high, note, label)
