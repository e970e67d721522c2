"""A results folder as one HTML file with tables, charts, texts and traces, which loads nothing from elsewhere.

The page depends on the folder's files alone. Templates escape all texts, traces are packed into letters without markup,
and the page's security policy allows only the viewer's script.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ets.evaluation.comparison import Entry
from ets.evaluation.journal import parsed, records_of
from ets.evaluation.samples import missing_files, read_samples
from ets.evaluation.traces import read_traces
from ets.report.before_after import before_and_after, comparable
from ets.report.charts import Axes, Series, bars, chart
from ets.report.figures import bars_of, compared, effective_size_series, sample_curves, scaling
from ets.report.outcome import sentences, symbols
from ets.report.summary import Summary, finished, read_summary
from ets.report.tables import by_reward
from ets.templates import as_text, render
from ets.trace_view import elide

Stored: TypeAlias = Mapping[str, Any]
"""JSON values of a folder."""
Figures: TypeAlias = Mapping[str, tuple[Axes, Sequence[Series]]]
"""Axes and series by heading."""
NAME = "report.html"
PACKED = 700_000
"""The most characters of packed traces; unless the whole texts are requested, texts are shortened until they fit."""
LIMITS = (20_000, 4_000, 1_000, 400, 160, 60, 24)
"""Limits of a text's characters, tried one after the other."""
ACCURACY, REWARD = "Accuracy against cost", "Mean reward against cost"
BAR_ACCURACY, BAR_REWARD = "Accuracy with 95% intervals", "Mean reward with 95% intervals"
EFFECTIVE, SAMPLES = "Effective sample size", "Complete samples: pass@k and maj@k"


def write_report(folder: Path, *, whole: bool = False) -> Path:
    """Write `report.html` of a folder of `ets eval` or `ets compare`, and return its path.

    Parameters
    ----------
    folder : Path
    whole : bool
        Keep the whole texts of traces, however large the file becomes.

    Raises
    ------
    InputError
        For a folder that holds no finished run, a damaged one, or one of another version.
    """
    with finished(folder):
        page = _report(folder, whole)
    path = folder / NAME
    path.write_text(page, encoding="utf-8")
    return path


def packed(values: Any) -> str:
    """Compress JSON values into letters, digits, +, / and =; equal values give equal letters."""
    content = json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


def packed_traces(traces: Sequence[Stored], *, whole: bool = False) -> str:
    """Pack traces for the viewer; unless `whole`, shorten texts, then leave traces out, until `PACKED` is kept."""
    every, cut = len(traces), any(len(text) > LIMITS[0] for trace in traces for text in trace["texts"])
    if whole:
        return packed({"kept": every, "limit": None, "traces": traces})
    fewer = [(every >> halvings, LIMITS[-1]) for halvings in range(1, every.bit_length() + 1)]
    for count, limit in [*((every, limit) for limit in LIMITS), *fewer]:
        shown = [_shortened(trace, limit) for trace in traces[:count]]
        letters = packed({"kept": every, "limit": limit if cut or limit < LIMITS[0] else None, "traces": shown})
        if len(letters) <= PACKED:
            break
    return letters


def _shortened(trace: Stored, limit: int) -> dict[str, Any]:
    texts = {
        name: elide(str(trace[name]), 4 * limit) for name in ("answer", "prompt", "text") if trace.get(name) is not None
    }
    return {**trace, **texts, "texts": [elide(text, limit) for text in trace["texts"]]}


def markdown_html(text: str) -> str:
    """Render headings, tables, lists and paragraphs; every other character of Markdown stays as it is."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    return Markup(MarkdownIt("zero", {"breaks": True}).enable(["heading", "table", "list", "newline"]).render(text))


def _report(folder: Path, whole: bool) -> str:
    summary = read_summary(folder)
    entries, setting = summary.entries, summary.setting
    journal = folder / "journal.jsonl"
    records, guided = records_of(journal.read_bytes(), journal), _guided(entries)
    stored = parsed((folder / "configuration.json").read_bytes(), str(folder / "configuration.json"))
    rewarded, budgets = by_reward(entries), sorted({entry.budget for entry in entries if entry.budget is not None})
    figures = {REWARD if rewarded else ACCURACY: compared(entries, setting)} if len(budgets) > 1 else {}
    columns = [] if len(budgets) > 1 else bars_of(entries, setting)
    for name, values in summary.panels.items():
        figures[f"Scaling in {name}"] = scaling(name, values, setting)
    figures[SAMPLES] = sample_curves(summary.curves)
    for budget in budgets:
        labels = _guided([entry for entry in entries if entry.budget == budget])
        heading = f"{EFFECTIVE}, budget {budget + 1}" if len(budgets) > 1 else EFFECTIVE
        figures[heading] = effective_size_series(records, labels)
    configuration = {**stored, "repeats": setting.repeats, "problems": setting.problems}
    traces = _graded_traces(folder, records, guided)
    pairs = _pairs(folder, summary, [sys.maxsize] if whole else LIMITS)
    table = (folder / "table.md").read_text(encoding="utf-8")
    charts = [(heading, chart(axes, series)) for heading, (axes, series) in figures.items()]
    return viewer_page(
        "report.html",
        f"{setting.task}: {setting.model}",
        packed_traces(traces, whole=whole) if traces else "",
        outcome=sentences(entries, setting),
        symbols=symbols(table),
        tables=markdown_html(table),
        charts=[(BAR_REWARD if rewarded else BAR_ACCURACY, bars(columns, None if rewarded else 100.0)), *charts],
        before_after=pairs,
        prompt=elide(as_text(configuration["prompt"]), LIMITS[0]),
        prompt_kind=configuration["prompt_kind"],
        settings=[(name, value) for name, value in sorted(configuration.items()) if name != "prompt"],
    )


def _pairs(folder: Path, summary: Summary, limits: Sequence[int]) -> str:
    """The section of texts before and after; a line in its place where a run of an earlier ets left no texts."""
    if not comparable(summary.entries):
        return ""
    if missing := missing_files(folder):
        return render("no_texts.html", missing=missing[0])
    return before_and_after(summary.entries, summary.setting.currency, *read_samples(folder), limits)


def _guided(entries: Sequence[Entry]) -> dict[str, str]:
    """The labels of methods with weighed candidates, by the methods' names in the records."""
    return {e.key: e.label for e in entries if e.readout == "last" and e.budget is not None}


def _graded_traces(folder: Path, records: Sequence[Stored], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The traces of chains that have a record, with the record's grade, in the order of the labels."""
    known = {(r["method"], r["problem"]): r for r in records if r["sample"] == 0}
    traces = [trace for trace in read_traces(folder) if trace["method"] in labels]
    places = {key: place for place, key in enumerate(labels)}
    return [
        trace
        | {name: record[name] for name in ("answer", "correct", "valid", "reward") if name in record}
        | {"label": labels[trace["method"]]}
        for trace in sorted(traces, key=lambda trace: places[trace["method"]])
        if (record := known.get((trace["method"], trace["problem"])))
    ]


def viewer_page(template: str, title: str, traces: str, **values: Any) -> str:
    """A page with the viewer of packed traces, and with the hash of its script as the security policy."""
    script = render("viewer.js")
    policy = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    return render(template, title=elide(title, 200), script=script, policy=policy, traces=traces, **values)
