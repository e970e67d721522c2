"""A results folder as one HTML file: tables, charts and the traces that were kept, with nothing from elsewhere.

What the file shows stands in the folder, so it can be made again at any time. All texts are escaped, or packed where no
markup is read; a security policy in the file lets the browser run the viewer's own script alone, and load nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from statistics import quantiles
from typing import Any, TypeAlias

from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.traces import TRACED, read_traces
from ets.report.charts import Axes, Point, Series, chart
from ets.report.comparison import COSTS
from ets.trace_view import elide
from ets.types import InputError

Stored: TypeAlias = Mapping[str, Any]
"""JSON values of a folder."""
NAME = "report.html"
PACKED = 700_000
"""The most characters that the traces take, unless everything is asked for: then texts are shortened until they fit."""
LIMITS = (20_000, 4_000, 1_000, 400, 160, 60, 24)
"""Characters that a text may have, from the first try to the last."""
ACCURACY, EFFECTIVE = "accuracy (%) with 95% interval", "Effective sample size"
_TEMPLATE = Path(__file__).with_name("template.html")


def write_report(folder: Path, *, whole: bool = False) -> Path:
    """Write `report.html` of a folder of `ets eval` or `ets compare`, and return its path.

    Parameters
    ----------
    folder : Path
    whole : bool
        Whether the texts of traces stay whole, however large the file becomes.

    Raises
    ------
    InputError
        For a folder that holds no finished run, or a damaged one.
    """
    compared = (folder / "comparison.json").exists()
    if not compared and not ((folder / "summary.json").exists() and (folder / "configuration.json").exists()):
        raise InputError(f"{str(folder)!r} holds no finished run of ets eval or ets compare; name its results folder")
    try:
        page = _compared(folder, whole) if compared else _evaluated(folder, whole)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{str(folder)!r} is damaged ({error}); run its command again, it goes on there") from error
    path = folder / NAME
    path.write_text(page, encoding="utf-8")
    return path


def packed(values: Any) -> str:
    """JSON values as letters, digits, +, / and =; the same values give the same letters."""
    content = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def packed_traces(traces: Sequence[Stored], *, whole: bool = False) -> str:
    """Traces for the viewer: unless they stay whole, texts are shortened, or else traces left out, until all fit."""
    every, cut = len(traces), any(len(text) > LIMITS[0] for trace in traces for text in trace["texts"])
    if whole:
        return packed({"kept": every, "limit": None, "traces": traces})
    fewer = [(every >> halvings, LIMITS[-1]) for halvings in range(1, every.bit_length() + 1)]
    for count, limit in [*((every, limit) for limit in LIMITS), *fewer]:
        shown = [_shortened(trace, limit) for trace in traces[:count]]
        told = limit if cut or limit < LIMITS[0] else None
        found = packed({"kept": every, "limit": told, "traces": shown})
        if len(found) <= PACKED:
            break
    return found


def markdown_html(text: str) -> str:
    """The Markdown that our tables and summaries use: headings, tables, lists and paragraphs."""
    return "".join(html for kind, lines in groupby(text.splitlines(), _kind) for html in _block(kind, list(lines)))


def _evaluated(folder: Path, whole: bool) -> str:
    rows = _read(folder / "summary.json")
    records = _records(folder / "journal.jsonl")
    configuration = _read(folder / "configuration.json")
    unit = "problem" if rows[0].get("repeats", 1) == 1 else "sample"
    spent = "positions" if any(row["row_forwards"] for row in rows) else "generated"
    points = [
        Series(row["label"], [_share(row[spent], Accuracy(**row["accuracy"]), f"{row[spent]:,.0f} {COSTS[spent]}")])
        for row in rows
    ]
    axes = Axes(f"{COSTS[spent]} per {unit} (log scale)", ACCURACY, log=True, top=100)
    keys = sorted({record["method"] for record in records})
    guided = _guided(rows) or {key: key for key in keys if key.startswith("ets")}  # in older folders
    charts = {"Accuracy against cost": [chart(axes, points)], EFFECTIVE: [effective_chart(records, guided)]}
    title = f"{configuration['task']}: {configuration['model']}"
    return _page(title, folder, configuration, "table.md", charts, _shown_traces(folder, records, guided), whole)


def _compared(folder: Path, whole: bool) -> str:
    content = _read(folder / "comparison.json")
    setting, entries = content["setting"], content["entries"]
    guided = _guided(entries)
    paths = [folder / key / "journal.jsonl" for key in guided]
    records = [record for path in paths if path.exists() for record in _records(path)]
    axes = Axes(f"{COSTS[setting['currency']]} per problem (log scale)", ACCURACY, log=True, top=100)
    charts = {
        "Accuracy against cost": [chart(axes, _by_method(entries, setting))],
        **_scaling_charts(folder / "scaling.json", setting),
        **_effective_by_budget(entries, records),
    }
    title = f"{setting['task']}: {setting['model']}"
    configuration = {name: setting[name] for name in setting if name != "told"} | setting.get("told", {})
    configuration |= content.get("prompt", {})
    return _page(title, folder, configuration, "comparison.md", charts, _shown_traces(folder, records, guided), whole)


def _guided(rows: Sequence[Stored]) -> dict[str, str]:
    """What methods whose guide steps weigh candidates are called, by their names among records.

    Rows from before they told that name are left out.
    """
    last = [row for row in rows if row.get("readout", "last") == "last"]
    return {row["key"]: row["label"] for row in last if row.get("key") and row["method"] in TRACED}


def _by_method(entries: Sequence[Stored], setting: Stored) -> list[Series]:
    """A line for each method and readout; both readouts of a method look alike but for dashes."""
    lines: dict[tuple[str, str], list[Stored]] = {}
    for entry in entries:
        lines.setdefault((entry["method"], entry["readout"]), []).append(entry)
    methods = list(dict.fromkeys(method for method, _ in lines))
    return [
        Series(
            method if readout == "last" else f"{method}, {readout}",
            [_entry_point(entry["cost"][setting["currency"]], entry, setting) for entry in members],
            dashed=readout != "last",
            look=methods.index(method),
        )
        for (method, readout), members in lines.items()
    ]


def _effective_by_budget(entries: Sequence[Stored], records: Sequence[Stored]) -> dict[str, list[str]]:
    """A chart for each budget, by its heading."""
    budgets = sorted({entry["budget"] for entry in entries if entry.get("budget") is not None})
    members = {budget: [entry for entry in entries if entry["budget"] == budget] for budget in budgets}
    return {f"{EFFECTIVE}, budget {b + 1}": [effective_chart(records, _guided(members[b]))] for b in budgets}


def _scaling_charts(path: Path, setting: Stored) -> dict[str, list[str]]:
    """One for each of M, K and I that was scanned, by its heading."""
    charts = {}
    for name, values in (_read(path) if path.exists() else {}).items():
        points = [_entry_point(value, entry, setting) for value, entry in values]
        axes = Axes(f"{name} (log scale)", ACCURACY, log=True, exact=True, top=100)
        charts[f"Scaling in {name}"] = [chart(axes, [Series("ETS", points)])]
    return charts


def effective_chart(records: Sequence[Stored], labels: Mapping[str, str]) -> str:
    """The weights' effective sample sizes at each guide step, median and quartiles, of methods with several steps.

    Parameters
    ----------
    records : sequence of mapping
    labels : mapping of str to str
        The methods that are shown, by their names among records, and what they are called.
    """
    sizes: dict[str, dict[int, list[float]]] = {key: {} for key in labels}
    for record in (record for record in records if record["method"] in labels):
        for number, size in enumerate(record.get("effective", ()), 1):
            sizes[record["method"]].setdefault(number, []).append(size)
    series = [
        Series(labels[key], [_spread(number, found) for number, found in sorted(steps.items())])
        for key, steps in sizes.items()
        if len(steps) > 1 and max(map(max, steps.values())) > 1
    ]
    return chart(Axes("guide step", "effective candidates, quartiles", exact=True), series)


def _spread(number: int, sizes: Sequence[float]) -> Point:
    low, middle, high = quantiles(sizes, n=4, method="inclusive") if len(sizes) > 1 else (sizes[0],) * 3
    return Point(number, middle, low, high, f"{len(sizes)} chains at guide step {number}")


def _entry_point(x: float, entry: Stored, setting: Stored) -> Point:
    draws = entry.get("draws", setting.get("seeds", 1))
    spent = f"{entry['cost'][setting['currency']]:,.0f} {COSTS[setting['currency']]}"
    return _share(x, accuracy(list(entry["scores"].values()), draws), f"{entry['label']}, {spent}")


def _share(x: float, share: Accuracy, note: str) -> Point:
    return Point(x, 100 * share.mean, 100 * share.low, 100 * share.high, note)


def _shown_traces(folder: Path, records: Sequence[Stored], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The traces of these methods whose chains have a record, in the order of the labels, with what it tells."""
    known = {(r["method"], r["problem"]): r for r in records if r["sample"] == 0}
    traces = [trace for trace in read_traces(folder) if trace["method"] in labels]
    places = {key: place for place, key in enumerate(labels)}
    return [
        trace | {name: record[name] for name in ("answer", "correct", "valid")} | {"label": labels[trace["method"]]}
        for trace in sorted(traces, key=lambda trace: places[trace["method"]])
        if (record := known.get((trace["method"], trace["problem"])))
    ]


def _page(
    title: str, folder: Path, configuration: Stored, table: str,
    charts: Mapping[str, Sequence[str]], traces: Sequence[Stored], whole: bool,
) -> str:  # fmt: skip
    template = _TEMPLATE.read_text(encoding="utf-8")
    found = re.search(r"<script>(.*?)</script>", template, flags=re.DOTALL)
    assert found is not None
    listed = [(k, v) for k, v in sorted(configuration.items()) if k != "prompt"]
    settings = "".join(f"<tr><td>{escape(k)}<td>{escape(_told(v))}" for k, v in listed)
    parts = {
        "policy": base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode(),
        "title": escape(elide(title, 200)),
        "tables": markdown_html((folder / table).read_text(encoding="utf-8")),
        "charts": "".join(_figures(heading, drawn) for heading, drawn in charts.items()),
        "prompt": _prompt(configuration),
        "settings": f"<table>{settings}</table>",
        "traces": packed_traces(traces, whole=whole) if traces else "",
    }
    return re.sub(r"\[\[(\w+)\]\]", lambda place: parts[place[1]], template)


def _prompt(configuration: Stored) -> str:
    """The first problem's prompt, and whether a chat template wrote it; older folders do not hold it."""
    if "prompt" not in configuration:
        return ""
    kind = escape(_told(configuration["prompt_kind"]))
    text = escape(elide(_told(configuration["prompt"]), LIMITS[0]))
    return f"<section><h2>Prompt</h2><p>The first problem's, by: {kind}</p><pre>{text}</pre></section>"


def _figures(heading: str, charts: Sequence[str]) -> str:
    return "".join(f"<figure><figcaption>{heading}</figcaption>{svg}</figure>" for svg in charts if svg)


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _shortened(trace: Stored, limit: int) -> dict[str, Any]:
    texts = {name: elide(str(trace[name]), 4 * limit) for name in ("answer", "prompt") if trace.get(name) is not None}
    return {**trace, **texts, "texts": [elide(text, limit) for text in trace["texts"]]}


def _read(path: Path) -> Any:
    return json.loads(path.read_bytes())


def _records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal that another process may be writing to."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _kind(line: str) -> str:
    kinds = {"#": "heading", "|": "table", "-": "list", "": ""}
    return kinds.get(line[:1], "paragraph")


def _block(kind: str, lines: Sequence[str]) -> Iterator[str]:
    if kind == "heading":
        yield from (f"<h3>{escape(line.lstrip('# '))}</h3>" for line in lines)
    elif kind == "table":
        yield _table(lines)
    elif kind == "list":
        yield f"<ul>{''.join(f'<li>{escape(line[2:])}' for line in lines)}</ul>"
    elif kind == "paragraph":
        yield from (f"<p>{escape(line)}</p>" for line in lines)


def _table(lines: Sequence[str]) -> str:
    cells = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
    head = "".join(f"<th>{escape(cell)}" for cell in cells[0])
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}' for cell in row)}" for row in cells[2:])
    return f'<div class="wide"><table class="numbers"><tr>{head}{rows}</table></div>'
