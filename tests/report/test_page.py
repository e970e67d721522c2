"""The report: all that is in the folder, nothing that runs or is fetched, and small."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ets.evaluation import traces as kept
from ets.evaluation.comparison import Entry
from ets.evaluation.journal import VERSION
from ets.evaluation.samples import write_samples
from ets.evaluation.traces import compact_trace, read_traces
from ets.report.charts import Axes, Point, Series, chart
from ets.report.figures import effective_size_series
from ets.report.page import PACKED, markdown_html, packed_traces, write_report
from ets.report.tables import Setting
from ets.types import Cost, InputError, Problem, Step, Text
from tests.evaluation.letters import Letters
from tests.report.browser import CHROMIUM, Browser

HOSTILE = '</script><script>hurt=1</script><img src=x onerror="hurt=1">'
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in CHROMIUM")


PROMPT = {"prompt": f"What?{HOSTILE}", "prompt_kind": "as it is"}


def text(content: str, done: bool = False) -> Text:
    return Text(tuple(map(ord, content)), content, -1.0, done)


def guided(starts: Sequence[str], weights: Sequence[float], choice: int, rollouts: Sequence[str], end: bool) -> Step:
    """A step whose rollouts all add the same texts to their candidates."""
    candidates = tuple(text(start, end) for start in starts)
    rows = tuple((c,) * len(rollouts) if end else tuple(text(c.text + r, True) for r in rollouts) for c in candidates)
    terms = np.repeat(np.array(weights)[:, None], len(rollouts), axis=1)
    return Step(candidates, rows, terms, np.array(weights), choice, Cost())


TRACE = (
    guided(["One", f"Two{HOSTILE}"], [0.0, 1.0], 1, [" x", " y"], end=False),
    guided([f"Two{HOSTILE} a", f"Two{HOSTILE} b", f"Two{HOSTILE} c"], [0.0, 2.0, -np.inf], 0, [""], end=True),
)


def line(problem: str, trace: Sequence[Step] = TRACE, prompt: str = f"What?{HOSTILE}") -> dict[str, Any]:
    return {"method": "ets-2", "problem": problem, "sample": 0, "prompt": prompt, **compact_trace(trace)}


COST = {"generated": 50.0, "positions": 90.0, "row_forwards": 0.0, "seconds": 0.1, "reward_seconds": 0.0, "depth": 9.0}
SETTING = Setting("sums", HOSTILE, 2, 1, "generated", "ets")


def entry(method: str, size: int, ids: Sequence[str], **changed: Any) -> Entry:
    fields: dict[str, Any] = {"budget": 0, "readout": "last", "label": f"ETS (M {size})", "draws": 1}
    cost = COST | {"generated": 50.0 * size}
    fields |= {"size": size, "scores": dict.fromkeys(ids, 0.5), "cost": cost, "key": f"{method}-{size}"}
    return Entry(method=method, **{**fields, **changed})


def folder_of(
    folder: Path, entries: Sequence[Entry], table: str, records: Sequence[dict[str, Any]], text: str = "", **panels: Any
) -> Path:
    """What a run leaves, as far as the report reads it, with a trace for each record, and one text for all problems."""
    folder.mkdir(exist_ok=True)
    scans = {name: [[x, asdict(each)] for x, each in values] for name, values in panels.items()}
    content = {"version": VERSION, "setting": asdict(SETTING), "entries": [asdict(each) for each in entries]}
    (folder / "summary.json").write_text(json.dumps(content | {"panels": scans, "curves": []}))
    (folder / "configuration.json").write_text(json.dumps({"task": "sums", "model": HOSTILE, "lam": 0.1, **PROMPT}))
    (folder / "table.md").write_text(table)
    (folder / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    lines = [line(record["problem"]) | {"method": record["method"]} for record in records]
    (folder / "traces.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    samples = [
        {"method": each.key, "readout": each.readout, "problem": id, "sample": 0, "text": text, "correct": True}
        for each in entries
        for id in each.scores
    ]
    write_samples(folder, Letters(), [Problem(id, f"What?{HOSTILE}") for id in entries[0].scores], samples)
    return folder


def record(method: str, problem: str, answer: str) -> dict[str, Any]:
    graded = {"answer": answer, "correct": 1.0, "valid": True, "effective": kept.effective_sizes(TRACE)}
    return {"method": method, "problem": problem, "sample": 0} | graded


def run_folder(folder: Path, problems: int = 2, label: str = f"ETS {HOSTILE}") -> Path:
    """The folder of `ets eval`: ETS, and plain sampling without a budget."""
    ids = [f"p{n}" for n in range(problems)]
    entries = [entry("ets", 2, ids, label=label), entry("plain", 1, ids, label="plain", budget=None)]
    table = f"| method | pass@1 |\n| --- | ---: |\n| {label} |  50.0% |\n\nnote {HOSTILE}\n"
    return folder_of(folder, entries, table, [record("ets-2", problem, HOSTILE) for problem in ids], HOSTILE)


def comparison_folder(folder: Path, problems: int = 2) -> Path:
    """The folder of `ets compare`: ETS at two budgets; 8 candidates were a pilot."""
    ids = [f"p{n}" for n in range(problems)]
    entries = [entry("ets", m, ids, budget=n) for n, m in enumerate((2, 4))]
    vote = replace(entries[0], readout="vote", label="ETS (M 2), vote")
    records = [record(f"ets-{m}", problem, "5") for m in (2, 4, 8) for problem in ids]
    table = "### Budget 1\n\n| method |\n| --- |\n| ETS |\n\n- Better: ETS.\n"
    panels = {"M, candidates": list(enumerate(entries, 1))}
    return folder_of(folder, [*entries, vote], table, records, **panels)


def appears(browser: Browser, selector: str) -> None:
    """Wait for an element, two minutes at most."""
    look = f"const look = () => document.querySelector({selector!r}) ? done(true) : setTimeout(look, 20); look();"
    assert browser.evaluate(f"new Promise((done) => {{ setTimeout(() => done(false), 120000); {look} }})")


def unpacked(page: str) -> Any:
    (letters,) = re.findall(r'<script id="packed" type="text/plain">(.*?)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(letters)))


def test_a_trace_keeps_every_text_once_and_each_as_what_it_adds() -> None:
    found = compact_trace(TRACE)
    assert found["texts"] == ["One", f"Two{HOSTILE}", " x", " y", " a", " b", " c"]
    first, last = found["steps"]
    assert (first["texts"], first["rollouts"], first["choice"]) == ([0, 1], [[2, 3], [2, 3]], 1)
    assert (last["texts"], last["rollouts"], last["terms"]) == ([4, 5, 6], [[], [], []], [[0.0], [2.0], [None]])
    assert last["weights"] == [0.0, 2.0, None] and last["done"] == [1, 1, 1]
    assert first["effective"] == pytest.approx((1 + np.e) ** 2 / (1 + np.e**2), abs=0.005)


def test_torn_lines_are_passed_over_and_the_later_trace_counts(tmp_path: Path) -> None:
    lines = [json.dumps(line("p10")), json.dumps(line("p2", prompt="old")), json.dumps(line("p2", prompt="new"))]
    (tmp_path / "traces.jsonl").write_text("\n".join([*lines, lines[0][:50]]))
    (tmp_path / "traces-1.jsonl").write_text("\n" + json.dumps(line("p3")) + "\n")
    assert [(trace["problem"], trace["prompt"][:3]) for trace in read_traces(tmp_path)] == [
        ("p2", "new"), ("p3", "Wha"), ("p10", "Wha"),
    ]  # fmt: skip


def test_the_report_holds_table_charts_settings_and_graded_traces(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    assert page.count("<svg") == 1 and page.count('<div role="listitem"') == 2  # bars, where all methods cost the same
    assert ">50.0%</td>" in page and "<td>lam</td><td>0.1</td>" in page
    shown = unpacked(page)
    assert (shown["kept"], shown["limit"], len(shown["traces"])) == (2, None, 2)
    assert shown["traces"][0]["answer"] == HOSTILE and shown["traces"][0]["correct"] == 1.0


def test_the_report_holds_texts_before_and_after_where_a_run_has_plain_sampling(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path / "run")).read_text()
    assert page.count("<article>") == 2 and page.partition("Before and after")[2].count('<p class="head">') == 4
    assert "Before and after" not in write_report(comparison_folder(tmp_path / "without")).read_text()
    rows = [entry("ets", 2, ["p0", "p1"]), entry("plain", 1, ["p0", "p1"], budget=None)]
    folder = folder_of(tmp_path / "long", rows, "", [], "a" * 30_000)
    assert "a" * 30_000 not in write_report(folder).read_text()
    assert "a" * 30_000 in write_report(folder, whole=True).read_text()


def test_a_folder_without_returned_texts_names_the_command_that_adds_them(tmp_path: Path) -> None:
    """Folders of an earlier ets: their summary held some texts and prompts."""
    for folder in (run_folder(tmp_path / "run"), comparison_folder(tmp_path / "without")):
        content = json.loads((folder / "summary.json").read_text())
        content["setting"]["prompts"] = {"p0": "What?"}
        content["entries"] = [each | {"texts": {"p0": {"text": "5", "correct": True}}} for each in content["entries"]]
        (folder / "summary.json").write_text(json.dumps(content))
        (folder / "samples.jsonl").unlink()
    page = write_report(tmp_path / "run").read_text()
    note = "The folder has no samples.jsonl: run its command again for the section Before and after."
    assert page.count(note) == 1 and "<article>" not in page and "<h2>Before and after</h2>" not in page
    assert "samples.jsonl" not in write_report(tmp_path / "without").read_text()


def test_the_report_shows_the_first_prompt_and_its_kind(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    values = {"task": "sums", "model": "m", "prompt": f"<s>What?{HOSTILE}", "prompt_kind": "chat template"}
    (folder / "configuration.json").write_text(json.dumps(values))
    page = write_report(folder).read_text()
    assert "by: chat template" in page and "<pre>&lt;s&gt;What?&lt;/script&gt;" in page
    (folder / "configuration.json").write_text(json.dumps({**values, "prompt": [1, 2], "prompt_kind": "token ids"}))
    assert "<pre>[1, 2]</pre>" in write_report(folder).read_text()


def test_the_same_folder_gives_the_same_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write_report(run_folder(tmp_path / "a")).read_bytes()
    monkeypatch.setattr("gzip.time.time", lambda: 1e9)
    assert first == write_report(run_folder(tmp_path / "b")).read_bytes()
    assert first == write_report(tmp_path / "a").read_bytes()


def test_nothing_is_fetched_and_no_text_is_markup(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    assert "<img" not in page and page.count("</script>") == 2
    assert not re.search(r"<[^>&]*(?:src|href)=|url\(|@import|https?:", page)


def test_the_text_of_a_table_stays_as_it_is() -> None:
    """Labels hold asterisks, underscores and addresses, which are no emphasis, links or images here."""
    labels = "p* and p*, a_b_c, `x`, ![y](http://z), &lt;"
    found = markdown_html(f"| a | b |\n| --- | ---: |\n| {labels} | <b> |\n\none\ntwo\n")
    assert "<td>p* and p*, a_b_c, `x`, ![y](http://z), &amp;lt;</td>" in found and "&lt;b&gt;" in found
    assert "<p>one<br" in found and "<img" not in found and "<a " not in found


def test_a_hundred_long_traces_stay_below_a_megabyte_and_whole_ones_on_request(tmp_path: Path) -> None:
    words = np.random.default_rng(0)

    def sentence() -> str:
        return " ".join(map(str, words.integers(0, 2000, 120)))

    def trace() -> list[Step]:
        return [
            guided([sentence() for _ in range(8)], [0.0] * 8, 0, [sentence(), sentence(), sentence()], end=False)
            for _ in range(4)
        ]

    folder = run_folder(tmp_path, problems=100)
    lines = [json.dumps(line(f"p{n}", trace(), prompt=sentence() * 10)) for n in range(100)]
    (folder / "traces.jsonl").write_text("\n".join(lines) + "\n")
    page = write_report(folder).read_text()
    assert len(page) < 1_000_000
    shown = unpacked(page)
    assert len(shown["traces"]) == 100 and shown["limit"] < 1000
    whole = unpacked(write_report(folder, whole=True).read_text())
    assert whole["limit"] is None and whole["traces"][7]["texts"] == json.loads(lines[7])["texts"]


def test_traces_are_left_out_where_even_short_texts_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ets.report.page.PACKED", 1000)
    traces = [line(f"{n} of many {hash((n, 1))}") for n in range(64)]
    found = packed_traces(traces)
    shown = json.loads(gzip.decompress(base64.b64decode(found)))
    assert len(found) <= 1000 < PACKED and shown["kept"] == 64 and 0 < len(shown["traces"]) < 64


def test_a_comparison_shows_its_budgets_scaling_and_effective_sizes(tmp_path: Path) -> None:
    page = write_report(comparison_folder(tmp_path)).read_text()
    assert "<h3>Budget 1</h3>" in page and "<li>Better: ETS.</li>" in page and "Scaling in M, candidates" in page
    assert "Effective sample size, budget 2" in page and page.count("<svg") == 4
    assert ">ETS (M 4)</text>" in page and "M 8" not in page and "ets-2" not in page


def test_a_comparison_shows_traces_of_the_sizes_in_its_table_with_their_grades(tmp_path: Path) -> None:
    shown = unpacked(write_report(comparison_folder(tmp_path)).read_text())["traces"]
    assert [(trace["label"], trace["problem"]) for trace in shown] == [
        (f"ETS (M {m})", problem) for m in (2, 4) for problem in ("p0", "p1")
    ]
    assert {(trace["answer"], trace["correct"]) for trace in shown} == {("5", 1.0)}


def test_traces_of_a_comparison_keep_to_the_same_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ets.report.page.PACKED", 1000)
    shown = unpacked(write_report(comparison_folder(tmp_path, problems=100)).read_text())
    assert shown["kept"] == 200 > len(shown["traces"]) > 0


def test_a_comparison_without_traces_has_a_report(tmp_path: Path) -> None:
    folder = comparison_folder(tmp_path)
    (folder / "traces.jsonl").unlink()
    page = write_report(folder).read_text()
    assert 'type="text/plain"></script>' in page and page.count("<svg") == 4


def test_charts_place_points_by_their_logarithms() -> None:
    points = [Point(x, 50, 40, 60, "note") for x in (10, 100, 1000)]
    svg = chart(Axes("x", "y", log=True), [Series("<a>", points)])
    at = [float(x) for x in re.findall(r'<circle cx="([\d.]+)" cy="[\d.]+" r="4" fill="[^"]+"><title>', svg)]
    assert at[1] - at[0] == pytest.approx(at[2] - at[1], abs=0.2)
    assert "&lt;a&gt;" in svg and "<a>" not in svg


def test_effective_sizes_are_those_of_named_methods_with_several_steps() -> None:
    records = [{"method": name, "effective": [2.0, 4.0]} for name in ("ets", "power")]
    records += [{"method": "plain", "effective": [1.0]}]
    svg = chart(*effective_size_series(records, {"ets": "ETS (M 4)", "plain": "plain"}))
    assert ">ETS (M 4)</text>" in svg and "plain" not in svg and "power" not in svg
    assert chart(*effective_size_series(records, {"plain": "plain"})) == ""


def test_series_beyond_the_colours_have_another_shape_and_dashed_ones_are_hollow() -> None:
    one = [Point(1, 50, 40, 60)]
    svg = chart(Axes("x", "y"), [Series(f"s{n}", one, dashed=n == 1) for n in range(11)])
    first, last = (re.search(rf"<(\w+) [^>]*>(?:<title>s{n}:)", svg) for n in (0, 10))
    assert first and last and (first[1], last[1]) == ("circle", "path")
    assert svg.count('class="hollow"') == 2  # its point, and its mark in the legend
    rows = re.findall(r'<text x="[\d.]+" y="(\d+)">s\d+</text>', svg)
    assert len(rows) == 11 and len(set(rows)) == 6  # two columns


def test_a_candidate_that_is_rewarded_itself_has_no_rollouts() -> None:
    partial = Step((text("so far"),), ((text("so far"),),), np.array([[2.0]]), np.array([3.0]), 0, Cost())
    (step,) = compact_trace([partial])["steps"]
    assert (step["rollouts"], step["terms"], step["done"]) == ([[]], [[2.0]], [0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is damaged"),
        ("{", "is damaged"),
        (f'{{"version": {VERSION}}}', "is damaged"),
        ('[{"label": 1}]', f"has version none, and this ets reads version {VERSION}; finish it with"),
        ('{"version": 2}', f"has version 2, and this ets reads version {VERSION}; finish it with"),
    ],
)
def test_a_damaged_or_an_old_folder_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (run_folder(tmp_path) / "summary.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        write_report(tmp_path)
    assert "\n" not in str(error.value) and ("is damaged" in str(error.value)) == (message == "is damaged")


@needs_browser
def test_in_a_browser_texts_are_texts_and_keys_lead_through_a_trace(tmp_path: Path) -> None:
    with Browser(write_report(run_folder(tmp_path))) as browser:
        appears(browser, ".step")
        here = "document.activeElement.textContent"
        assert browser.evaluate("[typeof hurt, document.images.length].join()") == "undefined,0"
        assert HOSTILE in browser.evaluate("document.querySelector('h1').textContent")
        browser.evaluate("document.querySelector('.path a').focus()")
        browser.press("Enter")
        assert browser.evaluate(here).startswith("► 2 · p 0.73 · log Ê 1.00Two</script>")
        browser.press("Enter")
        appears(browser, ".rollouts")
        opened = browser.evaluate("document.activeElement.parentElement.querySelector('.rollouts').innerText")
        assert "rollout 2, r/λ 1.00:  y" in opened
        browser.press("ArrowRight")
        assert browser.evaluate(here).startswith("2 · p 0.88 · log Ê 2.00 · ended b")
        browser.press("ArrowDown")
        assert browser.evaluate(here).startswith("3 · p 0.00 · log Ê −∞ · ended c")
        browser.press("ArrowLeft")
        assert browser.evaluate(here).startswith("► 2 · p 0.73")
        browser.evaluate("document.querySelector('#next').focus()")
        browser.press("Enter")
        assert browser.evaluate("document.querySelector('#which').value") == f"p1 · ETS {HOSTILE}"
        assert browser.evaluate("[typeof hurt, document.images.length].join()") == "undefined,0"
    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked == [(tmp_path / "report.html").absolute().as_uri()]
    assert not [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


@needs_browser
def test_in_a_browser_a_comparison_leads_from_method_to_method(tmp_path: Path) -> None:
    folder = comparison_folder(tmp_path)
    with Browser(write_report(folder)) as browser:
        appears(browser, ".step")
        named = browser.evaluate("[...document.querySelectorAll('#which option')].map((o) => o.textContent).join()")
        assert named == "p0 · ETS (M 2),p1 · ETS (M 2),p0 · ETS (M 4),p1 · ETS (M 4)"
        assert not browser.evaluate("document.querySelector('.rollouts')")
        browser.evaluate("document.querySelector('.chosen summary').click()")
        appears(browser, ".rollouts")
        assert browser.evaluate("document.querySelectorAll('.chosen').length") == 2
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


@needs_browser
@pytest.mark.parametrize(("reward", "shown"), [({"reward": -0.25}, "−0.25"), ({"reward": None}, "−∞"), ({}, "none")])
def test_in_a_browser_a_text_without_a_grade_has_its_reward(
    reward: dict[str, float | None], shown: str, tmp_path: Path
) -> None:
    records = [{**record("ets-2", "p0", ""), "answer": None, "correct": None, **reward}]
    entries = [entry("ets", 2, ["p0"], scores={}, rewards={"p0": -0.25})]
    with Browser(write_report(folder_of(tmp_path, entries, "| a |\n| --- |\n", records))) as browser:
        appears(browser, ".step")
        content = browser.evaluate("document.querySelector('#trace').textContent")
        assert f"Reward: {shown}" in content and "Answer" not in content
        assert "Mean reward" in browser.evaluate("document.body.textContent")
    assert not [event for event in browser.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]


@needs_browser
def test_in_a_narrow_browser_the_words_of_column_headings_stay_whole(tmp_path: Path) -> None:
    """The table is wider than the window then, and is moved inside its frame."""
    headings = ["method", "accuracy", "minus majority at equal cost, points", "positions", "seconds", "serial depth"]
    cells = ["ETS (M 2, K 2), stopped when all agree, vote", "58.1%", "-25.9 (-29.2 to -22.5), majority", "4", "5", "6"]
    table = "\n".join(f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), cells))
    (comparison_folder(tmp_path) / "table.md").write_text(f"{table}\n")
    lines_of_words = """[...document.querySelectorAll('#tables th')].flatMap((heading) => {
        const words = [...heading.textContent.matchAll(/\\S+/g)], range = document.createRange();
        return words.map((word) => {
            range.setStart(heading.firstChild, word.index);
            range.setEnd(heading.firstChild, word.index + word[0].length);
            return range.getClientRects().length;
        });
    })"""
    with Browser(write_report(tmp_path), (500, 800)) as browser:
        found = browser.evaluate(lines_of_words)
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert found == [1] * sum(len(heading.split()) for heading in headings)
