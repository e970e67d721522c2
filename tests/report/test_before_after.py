"""Texts before and after: of the first problems, the best method on the right, everything escaped and bounded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ets.evaluation.comparison import Entry
from ets.report.before_after import BOUND, before_and_after
from ets.report.page import LIMITS
from tests.report.browser import CHROMIUM, Browser

HOSTILE = '</section></details><script>hurt=1</script><img src=x onerror="hurt=1">'
IDS = [f"p{n}" for n in range(12)]
PROMPTS = {id: f"Prompt of {id}." for id in IDS}
COST = {"generated": 50.0, "positions": 90.0, "row_forwards": 0.0, "seconds": 0.1, "reward_seconds": 0.0, "depth": 9.0}


Row = tuple[Entry, dict[str, Any]]
"""An entry, and its text for each problem."""


def row(
    method: str, reward: float, budget: int | None = None, target: str = "p*", texts: Any = None, **changed: Any
) -> Row:
    """A row of a run without right answers; a larger budget costs more."""
    label = method if budget is None else f"{method} at {budget}"
    fields: dict[str, Any] = {"scores": {}, "rewards": dict.fromkeys(IDS, reward), "draws": 1, "key": label}
    fields |= {"label": label, "size": 1, "cost": {**COST, "generated": 50.0 + 50 * (budget or 0)}, "target": target}
    if texts is None:
        texts = {id: {"text": f"{label} on {id}", "correct": None, "reward": reward} for id in IDS}
    return Entry(method=method, readout="last", budget=budget, **{**fields, **changed}), texts


def with_texts(rows: list[Row], texts: dict[str, Any], **changed: Any) -> list[Row]:
    """The rows with other texts, all of the same reward."""
    return [row(each.method, 0.5, each.budget, each.target, texts, **changed) for each, _ in rows]


PLAIN = row("plain", 0.25, target="p_ref")
ROWS = [
    PLAIN,
    row("ets", 0.9, budget=0),
    row("ets", 0.6, budget=1),
    row("refined", 0.75, budget=1),
    row("best-of-n", 0.8, budget=1, target="argmax r"),
    row("greedy", 0.7, target=""),
]


def shown(rows: list[Row], prompts: dict[str, Any] = PROMPTS, limits: Any = LIMITS) -> str:
    """The section of the problems that have prompts: text, token ids, or messages."""
    problems = []
    for id, prompt in prompts.items():
        messages = prompt if isinstance(prompt[0], dict) else []
        problems.append({"id": id, "prompt": "rendered" if messages else prompt, "messages": messages})
        problems[-1]["user_text"] = None
    samples = {(entry.key, entry.readout): {id: [t] for id, t in texts.items()} for entry, texts in rows if texts}
    return before_and_after([entry for entry, _ in rows], "generated", problems, samples, limits)


def cards(article: str) -> list[tuple[str, str, str]]:
    """The label, the grade and the text of each card of a row."""
    found = re.findall(
        r'<p class="head"><span>(.*?)</span>(?: <b>(.*?)</b>)?</p>\n(?:<div class="text">|<p class="note">)(.*?)</',
        article,
    )
    return [(re.sub("<.*?>", "", label), grade, text) for label, grade, text in found]


def test_the_first_ten_problems_have_plain_sampling_on_the_left_and_the_best_method_for_the_target_on_the_right() -> (
    None
):
    section = shown(ROWS)
    head, *articles = section.split("<article>")
    assert [re.findall(r"<h3>(.*?)</h3>", article) for article in articles] == [[f"{n + 1}. p{n}"] for n in range(10)]
    assert "The first 10 problems in the task's order" in head and "no text is selected by its content" in head
    assert "highest mean reward among those with the target p* at the largest budget" in " ".join(head.split())
    assert "refined at 1: mean reward 0.750" in head and "plain: mean reward 0.250" in head
    for id, article in zip(IDS, articles, strict=False):
        assert f"Prompt of {id}." in article
        before, after, *further = cards(article)
        assert before == ("Before: plain sampling", "reward 0.250", f"plain on {id}")
        assert after == ("After: refined at 1", "reward 0.750", f"refined at 1 on {id}")
        assert [label for label, _, _ in further] == ["ets at 1", "best-of-n at 1", "greedy"]
        assert "by 3 further methods" in article


def test_where_no_method_has_the_target_the_best_of_all_is_on_the_right() -> None:
    section = shown([PLAIN, ROWS[4], ROWS[5]])
    assert "After: best-of-n at 1" in re.sub("<.*?>", "", section) and "target p*" not in section
    assert "by 1 further method<" in section


def test_the_largest_budget_is_the_one_of_the_largest_cost_whatever_its_place() -> None:
    """`--budgets 800,200` numbers the larger budget 0."""
    first = row("ets", 0.1, budget=0, cost={**COST, "generated": 800.0})
    section = shown([PLAIN, first, row("ets", 0.9, budget=1)])
    assert "ets at 0 on p0" in section and "ets at 1" not in section


def test_problems_with_right_answers_are_right_or_wrong_and_compared_by_accuracy() -> None:
    def graded(method: str, right: int, **changed: Any) -> Row:
        texts = {id: {"text": f"{method} {id}", "correct": n < right} for n, id in enumerate(IDS)}
        scores = {id: float(n < right) for n, id in enumerate(IDS)}
        return row(method, 0.0, rewards={}, scores=scores, texts=texts, **changed)

    section = shown([graded("plain", 1), graded("ets", 6, budget=0), graded("refined", 3, budget=0)])
    assert "highest accuracy" in section and "ets at 0: accuracy 50.0%" in section
    _, first, second, *_ = section.split("<article>")
    assert [grade for _, grade, _ in cards(first)] == ["right", "right", "right"]
    assert [grade for _, grade, _ in cards(second)] == ["wrong", "right", "right"]


def test_a_chosen_text_has_its_own_grade_instead_of_the_expectation_over_the_choice() -> None:
    half = {"text": "5", "correct": 0.5, "reward": 0.5, "chosen": {"correct": False, "reward": 0.125}}
    _, after = cards(shown([PLAIN, row("best-of-n", 0.5, budget=0, texts={"p0": half})], {"p0": "2 + 2?"}))
    assert after == ("After: best-of-n at 0", "wrong, reward 0.125", "5")


def test_rewards_of_minus_infinity_and_empty_texts_are_named() -> None:
    forbidden, asked = {"p0": {"text": "\n", "correct": None, "reward": None}}, {"p0": "Say."}
    before, after = cards(shown([row("plain", 0.0, texts=forbidden), ROWS[3]], asked))
    assert before == ("Before: plain sampling", "reward −∞", "no text") and after[1] == "reward 0.750"
    tens = {"p0": {"text": "a", "correct": None, "reward": -12.5}}
    assert cards(shown([row("plain", 0.0, texts=tens), ROWS[3]], asked))[0][1] == "reward −12.50"


@pytest.mark.parametrize(
    "prompt", [HOSTILE, [{"role": HOSTILE, "content": HOSTILE}], [{"role": "user", "content": 9 * HOSTILE}]]
)
def test_prompts_roles_labels_and_texts_are_no_markup(prompt: Any) -> None:
    texts = {id: {"text": HOSTILE, "correct": None, "reward": 0.5} for id in (HOSTILE, "p0")}
    section = shown(with_texts(ROWS, texts, label=HOSTILE), {HOSTILE: prompt, "p0": prompt})
    assert section.count("&lt;script&gt;hurt=1") > 12
    assert not re.search(r"<script|<img|<[^>&]*(?:src|href|onerror)=", section)
    assert section.count("<section") == section.count("</section>") == 1


def test_messages_are_turns_with_their_roles() -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sing & dance."}]
    section = shown(ROWS, {"p0": turns, "p1": [7, 8]})
    _, first, second, *_ = section.split("<article>")
    assert re.findall(r'<div class="turn"><b>(.*?)</b><div class="text">(.*?)</div>', first) == [
        ("system", "Be brief."), ("user", "Sing &amp; dance."),
    ]  # fmt: skip
    assert '<div class="turn"><div class="text">[7, 8]</div>' in second


def test_a_long_prompt_shows_both_its_ends_and_opens_to_the_whole() -> None:
    asked = "Begin. " + "So he has many. " * 100 + "How many?"
    article = shown(ROWS, {"p0": asked}).split("<article>")[1]
    preview = re.findall(r'<summary class="text">(.*?)</summary>', article)[0]
    assert preview.startswith("Begin. ") and preview.endswith("How many?") and "characters…]" in preview
    assert asked in article


def test_the_section_is_absent_without_plain_sampling_another_method_or_texts() -> None:
    assert shown(ROWS[1:]) == "" and shown([PLAIN]) == ""
    assert shown([PLAIN, row("ets", 0.5, budget=0, texts={})]) == ""
    assert shown([row("plain", 0.5, texts={}), *ROWS[1:]]) == ""


def test_long_texts_are_shortened_until_the_section_is_small_unless_they_are_requested_whole() -> None:
    rows = with_texts(ROWS, {id: {"text": "<&>" * 5000, "correct": None, "reward": 0.5} for id in IDS})
    prompts = dict.fromkeys(IDS, "Tell me. " * 9000)
    section = shown(rows, prompts)
    assert len(section) <= BOUND and "characters…]" in section
    whole = shown(rows, prompts, [10**9])
    assert "&lt;&amp;&gt;" * 5000 in whole and "Tell me. " * 8999 in whole


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in CHROMIUM")
@pytest.mark.parametrize(("width", "columns"), [(1280, 2), (390, 1)])
def test_in_a_browser_both_texts_are_side_by_side_and_on_a_telephone_below_each_other(
    width: int, columns: int, tmp_path: Path
) -> None:
    from ets.templates import render

    long = {id: {"text": "a" * 3000, "correct": None, "reward": 0.5} for id in IDS[:2]}
    rows, asked = with_texts(ROWS, long), dict.fromkeys(long, "Say.")
    values: dict[str, Any] = {
        "title": "t",
        "script": "",
        "policy": "'none'",
        "tables": "",
        "charts": [],
        "traces": "",
        "outcome": [],
        "symbols": [],
    }
    values |= {"prompt": "", "prompt_kind": "", "settings": []}
    page = tmp_path / "report.html"
    page.write_text(render("report.html", before_after=shown(rows, asked), **values), encoding="utf-8")
    with Browser(page, (width, 900)) as browser:
        if width < 600:
            browser.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=True)
        tops = "[...document.querySelectorAll('article:first-of-type > .cards > .card')].map((c) => c.offsetTop)"
        assert browser.evaluate(f"new Set({tops}).size") == 3 - columns
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.evaluate("document.querySelector('article > details').open = true")
        further = "[...document.querySelectorAll('article:first-of-type details .card')]"
        opened = f"{further}.map((card) => card.offsetHeight > 0).join()"
        assert browser.evaluate(opened) == "true,true,true"
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
