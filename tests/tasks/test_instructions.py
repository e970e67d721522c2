"""Every kind of instruction: a text that follows it, and texts that do not."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ets.tasks import task_named
from ets.tasks.instructions import KINDS, instructions
from ets.types import InputError, Problem

PAGE = Path(__file__).parents[2] / "docs" / "prompts.md"
# By kind: the fields, texts that follow the instruction, and texts that do not.
CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("min-words", {"count": 3}, ["one two three", "a b c d"], ["one two", "1 2 3 4", "well-known fact"]),
    ("max-words", {"count": 3}, ["one two three", "a"], ["a b c d"]),
    ("sentences", {"count": 2}, ["I came. I saw!", "Who? Me", 'He said "yes." Then he left.'], ["I came.", "A. B. C."]),
    ("paragraphs", {"count": 2}, ["a\n\nb", "a\nb\n \n\nc"], ["a\nb", "a\n\nb\n\nc"]),
    ("lines", {"count": 2}, ["a\nb", "a\n\nb\n"], ["a b", "a\nb\nc"]),
    ("include", {"words": ["red", "blue"]}, ["Red, then BLUE."], ["red", "redder and blue"]),
    ("exclude", {"words": ["red", "blue"]}, ["green", "redder"], ["It is Red.", "blue red"]),
    ("word-count", {"word": "The", "count": 2}, ["the cat, the dog"], ["the cat", "the theatre"]),
    ("letter-count", {"letter": "z", "count": 2}, ["Zigzag", "jazz"], ["zebra"]),
    ("without-letter", {"letter": "e"}, ["a cat"], ["hat, bed", "Eva"]),
    ("no-repeats", {}, ["one two three", "a"], ["The end of the day", "1 2"]),
    ("alliteration", {"letter": "s", "count": 2}, ["Sly snakes"], ["sly cats", "as is"]),
    ("lowercase", {}, ["a cat, 2 dogs"], ["A cat", "1 2"]),
    ("uppercase", {}, ["STOP! 2"], ["Stop", "12"]),
    ("capital-words", {"count": 2}, ["COME NOW, Tom", "GO GO go"], ["COME now", "I A B"]),
    ("title-case", {}, ["The Old Man", "A 1 B"], ["The old Man", "12"]),
    ("bullets", {"count": 2}, ["- a\n- b", "Two:\n* a\n* b\nDone"], ["- a", "- a\n- b\n- c", "-a\n-b"]),
    ("numbered", {"count": 2}, ["1. a\n2. b", "So:\n1) a\n2) b"], ["1. a", "2. a\n1. b", "1. a\n2. b\n3. c"]),
    ("heading", {}, ["# Title\ntext", "## A b\n\nc"], ["Title\ntext", "# Title", "#Title\ntext"]),
    ("bold", {"count": 2}, ["**a** and **b c**"], ["**a**", "*a* *b*", "** **"]),
    ("quoted", {}, ['"Go now."', "“Go.”"], ['He said "go"', '"Go', '""']),
    ("json-value", {}, ['{"a": 1}', "[1, 2]", '```json\n{"a": 1}\n```'], ['{"a": }', "3", "It is {}"]),
    ("brackets", {"count": 2}, ["Dear [name], see [place]"], ["Dear [name]", "[] []"]),
    ("sections", {"names": ["In", "Out"]}, ["In: a\nOut: b", "**In:** a\n## Out: c"], ["Out: a\nIn: b", "In: a"]),
    ("begin", {"phrase": "It was"}, ["It was late", "IT WAS."], ["So it was", "It is"]),
    ("end", {"phrase": "at last."}, ["We ate at last", "Sleep, at LAST!”"], ["at last we ate", ""]),
    ("postscript", {}, ["Dear\n\nP.S. Bring tea", "a\nPS: b"], ["P.S. Hi\n\nBye", "Dear", "a\nP.S."]),
    ("no-commas", {}, ["a b"], ["a, b"]),
    ("question", {}, ["Who?"], ["Who? Me.", "Who"]),
    ("no-digits", {}, ["two cats"], ["2 cats"]),
]  # fmt: skip


def test_each_of_thirty_kinds_has_a_case() -> None:
    assert [kind for kind, *_ in CASES] == list(KINDS) and len(KINDS) == 30


@pytest.mark.parametrize(("kind", "fields", "followed", "broken"), CASES, ids=[kind for kind, *_ in CASES])
def test_a_kind_tells_followed_from_broken(
    kind: str, fields: dict[str, Any], followed: list[str], broken: list[str]
) -> None:
    problem = Problem("p", "", doc={"instructions": [{"kind": kind, **fields}]})
    assert [instructions._scored(problem, f" {text}\n") for text in followed] == [1.0] * len(followed)
    assert [instructions._scored(problem, text) for text in broken] == [0.0] * len(broken)
    assert instructions._scored(problem, " \n") == 0.0  # an empty text follows nothing


def test_the_reward_is_the_share_of_followed_instructions() -> None:
    row = {"instructions": [{"kind": "no-commas"}, {"kind": "question"}, {"kind": "min-words", "count": 3}]}
    values = [instructions._scored(Problem("p", "", doc=row), text) for text in ("a, b", "a?", "a b c?")]
    assert values == pytest.approx([0, 2 / 3, 1])


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ({"kind": "sonnet"}, "kind is 'sonnet'; choose from min-words, max-words"),
        ("lines", "kind is None; choose from"),
        ({"kind": "lines"}, "the fields of the instruction lines do not fit: missing .*'count'; correct them"),
        ({"kind": "question", "count": 1}, "the fields of the instruction question do not fit: .*'count'; correct"),
    ],
)
def test_an_instruction_that_is_none_is_one_line(instruction: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        instructions.require([Problem("p", "", doc={"instructions": [instruction]})])


def test_every_kind_is_asked_for_twice_or_more() -> None:
    rows = [problem.doc["instructions"] for problem in task_named("instructions").problems()]
    asked = Counter(each["kind"] for row in rows for each in row)
    assert asked.keys() == KINDS.keys() and min(asked.values()) >= 2
    assert {len(row) for row in rows} == {1, 2, 3} and len(rows) >= 60


def test_the_page_lists_every_kind() -> None:
    for kind, check in KINDS.items():
        fields = ", ".join(f"`{name}`" for name in list(inspect.signature(check).parameters)[1:])
        assert f"\n| `{kind}` | {fields} | {check.__doc__} |\n" in PAGE.read_text(encoding="utf-8")
