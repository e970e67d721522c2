"""The view of a result in a notebook and in a terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import ets
from ets.evaluation.traces import compact_trace
from ets.trace_view import CANDIDATES, ROLLOUTS, STEPS, elide, trace_html, trace_text
from ets.types import Cost, Step, Text

COST = Cost(prompt=40, candidate=1000, rollout=2000, generated=3100, rewarded=24, seconds=1.234)


def text(content: str, done: bool = False) -> Text:
    return Text((1,), content, -1.0, done)


def step(contents: list[str], log_weights: list[float], choice: int, rollouts: int = 1, done: bool = False) -> Step:
    """A step whose rollouts all have their candidate's log-weight as r/λ."""
    candidates = tuple(text(content, done) for content in contents)
    rows = tuple(
        (candidate,) * rollouts if done else tuple(text(f"{candidate.text} end{k}", True) for k in range(rollouts))
        for candidate in candidates
    )
    weights = np.array(log_weights)
    return Step(candidates, rows, np.repeat(weights[:, None], rollouts, axis=1), weights, choice, Cost())


TWO_STEPS = (
    step(["One", "Two", "Three"], [0.0, 1.0, 0.5], 1),
    step(["Two more", "Two and", "Two less"], [0.0, 0.0, 2.0], 2, rollouts=2, done=True),
)


def move(before: float, after: float, choice: int) -> Step:
    return replace(step(["Two more", "Two less"], [before, after], choice, done=True), cut=1)


def test_moves_show_their_cut_and_whether_they_were_accepted() -> None:
    void = replace(step(["Two less"], [0.5], 0, done=True), cut=0)
    trace = [*TWO_STEPS, move(-2.0, 0.5, 1), move(0.5, -1.0, 0), void, step(["Two less"] * 3, [0.0] * 3, 1, done=True)]
    shown = trace_text("Two less", None, trace, COST)
    accepted = "step 3, the text after guide step 1 is redrawn: accepted (probability of acceptance 1.00), r/λ -2.00"
    rejected = "is redrawn: rejected (probability of acceptance 0.22), r/λ 0.50 to -1.00"
    for line in (
        f"{accepted} to 0.50: 'less'\n",
        f"{rejected}\n",
        "step 5, the whole text is redrawn: the budget ended",
    ):
        assert line in shown
    assert "\nstep 6, a choice among the ends of the last 3 cycles of moves: chose 2 of 3" in shown
    page = trace_html("Two less", None, trace, COST)
    assert f"{rejected}</summary>" in page.replace(" (of 6)", "")
    rows = [cells for _, cells in Page(page).rows]
    assert ["present", "more", "-2.00"] in rows and ["► redrawn", "less", "0.50"] in rows


def test_the_last_step_is_shown_after_the_omitted_ones() -> None:
    shown = trace_text("Two", None, [TWO_STEPS[0]] * (STEPS + 5), COST).splitlines()
    assert shown[-2:-1] == ["… 4 more steps: see .trace"] and shown[-1].startswith(f"guide step {STEPS + 5}: ")


class Page(HTMLParser):
    """The rows of all tables as texts, the names of all elements, and whether each is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[str]]] = []
        self.names: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append((dict(attrs).get("class", ""), []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[-1][1][-1] += data


def test_text_answer_and_cost_are_shown() -> None:
    html, plain = trace_html("Two less", 42, TWO_STEPS, COST), trace_text("Two less", 42, TWO_STEPS, COST)
    for shown in (html, plain):
        assert "Two less" in shown and "42" in shown
        assert "3,100 tokens generated, 3,040 positions computed (prompt 40, candidates 1,000, rollouts 2,000)" in shown
        assert "24 texts rewarded, 1.23 s" in shown
    alone = trace_text("Two less", None, TWO_STEPS, Cost(generated=8, seconds=1.0))
    assert "cost: 8 tokens generated, 1.00 s" in alone  # of an engine that counts no positions
    assert "answer" not in trace_html("Two less", None, TWO_STEPS, COST)
    assert "answer" not in trace_text("Two less", None, TWO_STEPS, COST)


def test_a_candidate_is_shown_by_its_new_text_weight_and_probability() -> None:
    rows = Page(trace_html("Two less", None, TWO_STEPS, COST)).rows
    total = 2 + np.exp(2.0)
    assert ("", ["1", " more", "0.00", f"{1 / total:.2f}", ""]) in rows
    assert ("chosen", ["► 3", " less", "2.00", f"{np.exp(2.0) / total:.2f}", ""]) in rows


def test_the_chosen_candidate_of_each_step_is_marked_and_no_other() -> None:
    rows = Page(trace_html("Two less", None, TWO_STEPS, COST)).rows
    assert [cells[0] for name, cells in rows if name == "chosen"] == ["► 2", "► 3"]
    assert sum("►" in cell for _, cells in rows for cell in cells) == 2


def test_bars_are_as_long_as_the_probabilities() -> None:
    html = trace_html("a", None, [step(["a", "b"], [np.log(3.0), 0.0], 0)], COST)
    long, short = (int(width) for width in re.findall(r'class="bar" style="width:(\d+)px"', html))
    assert long / short == pytest.approx(3.0, rel=0.1)


def test_the_effective_sample_size_is_shown() -> None:
    steps = [step(["a", "b", "c", "d"], [0.0] * 4, 0)]
    assert "effective sample size 4.0" in trace_html("a", None, steps, COST)
    assert "chose 1 of 4 (p 0.25), effective sample size 4.0" in trace_text("a", None, steps, COST)


def test_rollouts_are_folded_and_shown_by_the_added_text() -> None:
    html = trace_html("Two less", None, TWO_STEPS, COST)
    assert "<details><summary>3 rollouts</summary>" in html
    assert ("", ["2", " end0", "1.00"]) in Page(html).rows


def test_the_row_of_a_complete_candidate_stands_once() -> None:
    rows = Page(trace_html("Two less", None, TWO_STEPS, COST)).rows
    assert rows.count(("", ["3", "nothing: it is complete", "2.00"])) == 1


def test_markup_in_texts_and_answers_is_escaped() -> None:
    evil = "<script>alert('x')</script>&\"<img src=x onerror=1>"
    trace = [step([evil, "b"], [0.0, 0.0], 0, rollouts=2)]
    html = trace_html(evil, evil, trace, COST)
    assert set(Page(html).names) <= {
        *("div", "style", "pre", "b", "span", "details", "summary", "table", "tr", "th", "td", "code")
    }
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&#34;" in html


def test_markup_that_is_cut_by_eliding_is_escaped_after_the_cut() -> None:
    html = trace_html("<b>" * 3000, None, [step(["<b>" * 300, "&amp;" * 300], [0.0, 0.0], 0)], COST)
    assert "b" not in Page(html).names
    assert not re.search(r"&(?!lt;|gt;|amp;|#34;|#39;)", html)


def test_nothing_comes_from_the_network_and_nothing_runs() -> None:
    html = trace_html("Two less", 42, TWO_STEPS, COST)
    assert not re.search(r"https?:|//|src=|href=|url\(|@import|<script|\son\w+=", html)


def test_long_texts_lose_their_middle() -> None:
    assert elide("a" * 10, 10) == "a" * 10
    assert elide("a" * 6 + "-" * 1000 + "b" * 3, 9) == "aaaaaa […1,000 characters…] bbb"
    long = "start " + "x" * 100_000 + " finish"
    for shown in (trace_html, trace_text):
        whole = shown(long, long, [step([long], [0.0], 0)], COST)
        assert len(whole) < 15_000
        assert "start" in whole and "finish" in whole and "characters…]" in whole


def test_large_traces_are_cut_and_the_rest_is_counted() -> None:
    weights = list(np.linspace(0.0, 1.0, 100))
    trace = [step([f"c{m}" for m in range(100)], weights, 0, rollouts=50)] * 100
    html = trace_html("c0", None, trace, COST)
    assert len(html) < 300_000
    assert f"… {100 - STEPS - 1} more steps" in html
    assert f"… {100 - CANDIDATES} more candidates" in html
    assert f"… {50 - ROLLOUTS} more" in html
    assert Page(html).rows[1] == ("chosen", ["► 1", "c0", "0.00", "0.01", ""])  # shown, though its weight is least
    assert trace_text("c0", None, trace, COST).count("\n") < STEPS + 5


def test_a_weight_of_zero_is_minus_infinity_without_a_bar() -> None:
    rows_of = Page(trace_html("b", None, [step(["a", "b"], [-np.inf, 0.0], 1)], COST)).rows
    assert ("", ["1", "a", "−∞", "0.00", ""]) in rows_of
    assert trace_html("b", None, [step(["a", "b"], [-np.inf, 0.0], 1)], COST).count('class="bar"') == 1


def test_a_step_without_information_says_so() -> None:
    blind, seeing = step(["a", "b"], [-np.inf, -np.inf], 1), step(["bc", "bd"], [0.0, 0.0], 0)
    for shown in (trace_html, trace_text):
        assert "chose 2 of 2, uniformly: every weight is zero" in shown("bc", None, [blind, seeing], COST)
        assert "no sample of p*" not in shown("bc", None, [blind, seeing], COST)
        assert "no sample of p*" in shown("b", None, [blind], COST)


def test_a_text_that_a_stop_string_shortened_adds_nothing_and_one_that_does_not_continue_is_whole() -> None:
    trace = [step(["abc\n"], [0.0], 0), step(["abc", "abX"], [0.0, 0.0], 1)]
    cells = [row[1] for _, row in Page(trace_html("abX", None, trace, COST)).rows]
    assert "nothing" in cells and "abX" in cells


def test_a_canvas_is_shown_as_it_was_produced() -> None:
    trace = [step([" 13+5=·"], [0.0], 0), step([" 13+5=18"], [0.0], 0)]
    assert [row[1] for _, row in Page(trace_html(" 13+5=18", None, trace, COST)).rows if row[1] == " 13+5=18"]
    assert compact_trace(trace)["text"] == " 13+5=18"
    grown = [step([" 13+5=\ufffd"], [0.0], 0), step([" 13+5=\u00e9"], [0.0], 0)]
    assert compact_trace(grown)["texts"][-1] == "\u00e9" and compact_trace(grown)["text"] == " 13+5=\u00e9"
    assert "text" not in compact_trace([step(["a"], [0.0], 0), step(["ab"], [0.0], 0)])


def test_the_terminal_gets_one_line_per_step() -> None:
    lines = trace_text("Two less", 42, TWO_STEPS, COST).splitlines()
    assert lines[:3] == ["Two less", "", "answer: 42"]
    assert lines[4:] == [
        "guide step 1: chose 2 of 3 (p 0.51), effective sample size 2.6: 'Two'",
        "guide step 2: chose 3 of 3 (p 0.79), effective sample size 1.6: ' less'",
    ]


def test_control_characters_do_not_reach_the_terminal() -> None:
    shown = trace_text("a\x1b[2Jb\tc\nd\r", "\x07", [step(["\x1b[31m", "b"], [0.0, 0.0], 0)], COST)
    assert "a�[2Jb\tc\nd�" in shown
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", shown)


@pytest.mark.parametrize("content", ["", " ", "\n", "ünï⟨⟩ 漢字 🙂", "\ud800"])
def test_unusual_texts_are_shown(content: str) -> None:
    trace = [step([content, content + "x"], [0.0, -0.5], 0)]
    assert Page(trace_html(content, content, trace, COST)).rows
    assert "guide step 1" in trace_text(content, content, trace, COST)


def test_a_trace_of_no_steps_is_shown() -> None:
    assert "<table>" not in trace_html("", None, (), COST)
    assert trace_text("a", None, (), COST).startswith("a\n")


def test_baselines_traces_are_shown() -> None:
    from ets.baselines import majority_voting
    from ets.testing import TabularPolicy

    policy = TabularPolicy(vocabulary=3, block_size=1, max_length=3)
    step_of = majority_voting(lambda found: found[:1] or None, samples=5)
    (chain,) = ets.run(policy, step_of, [ets.Problem("p", (1,))], width=1, seed=0)
    assert len(Page(trace_html(chain.state.text, None, chain.trace, chain.cost)).rows) == 2 + 2 * 5


def test_results_show_themselves(tiny_checkpoint: Any) -> None:
    options: dict[str, Any] = {"block_size": 2, "max_length": 4, "candidates": 3, "rollouts": 2}
    out = ets.sample("ab", model=tiny_checkpoint, reward=lambda prompt, found: found.count("a"), **options)
    assert str(out) == trace_text(out.text, out.answer, out.trace, out.cost)
    assert out._repr_html_() == trace_html(out.text, out.answer, out.trace, out.cost)


@pytest.mark.parametrize(
    ("prompts", "progress", "shown"),
    [(["ab", "b", "c"], True, True), (["ab", "b", "c"], False, False), (["ab"], True, False), ("ab", True, False)],
)
def test_a_progress_bar_is_shown_for_several_prompts_only(
    tiny_checkpoint: Any, prompts: Any, progress: bool, shown: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"block_size": 2, "max_length": 4, "candidates": 2, "rollouts": 1, "progress": progress}
    results = ets.sample(prompts, model=tiny_checkpoint, reward=lambda prompt, found: 0.0, **options)
    assert isinstance(results, list) == isinstance(prompts, list)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("3/3" in err and "under way, guide step" in err) if shown else err == ""


def test_nothing_heavy_is_imported() -> None:
    check = "import sys, ets.trace_view\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_line_breaks_are_visible_in_the_table_and_kept_in_the_text() -> None:
    html = trace_html("a\nb", None, [step(["a\nb"], [0.0], 0)], COST)
    assert "<pre>a\nb</pre>" in html
    assert "<td>a↵ b</td>" in html
