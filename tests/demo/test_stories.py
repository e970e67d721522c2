"""The embedded word problems: true, stable, and of one person and one thing."""

from __future__ import annotations

import hashlib
import re
from itertools import islice

from ets.demo.family import HELDOUT_SIZE
from ets.demo.stories import LARGEST, STORIES

ROWS = [*STORIES.heldout(HELDOUT_SIZE), *islice(STORIES.training(5), 2000)]
STEP = re.compile(r"<<(\d+)([-+*])(\d+)=(\d+)>>(\d+) ")
APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

STORY = (
    (r"\w+ has (\d+) \w+\.", lambda have, n: n),
    (r"(?:finds|gets|buys|wins) (\d+) more \w+\.", lambda have, n: have + n),
    (r"gives (\d+) \w+ to [A-Z]\w+\.", lambda have, n: have - n),
    (r"loses (\d+) \w+\.", lambda have, n: have - n),
    (r"buys (\d+) \w+ with (\d+) \w+ each\.", lambda have, n, each: have + n * each),
    (r"gives (\d+) \w+ to each of (\d+) friends\.", lambda have, each, n: have - n * each),
    (r"has (two|three) times as many \w+\.", lambda have, n: have * n),
)
"""What each kind of sentence does to the number at hand."""


def told(question: str) -> int:
    """The answer to a question, from the words of its story alone."""
    have = 0
    for sentence in re.findall(r"[^.?]+\.", question):
        matches = [(found, rule) for pattern, rule in STORY if (found := re.search(pattern, sentence))]
        assert len(matches) == 1, sentence
        found, rule = matches[0]
        have = rule(have, *({"two": 2, "three": 3}.get(word) or int(word) for word in found.groups()))
    return have


def test_held_out_problems_are_the_same_everywhere_and_for_ever() -> None:
    content = "\n".join(f"{row.question}\n{row.answer}" for row in STORIES.heldout(200))
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert digest == "3bfddd495fee80d4e048763249a170da799902c2cd5cf139bc9a765fb6518e17"


def test_every_worked_step_is_true_and_the_last_one_is_the_answer() -> None:
    for row in ROWS:
        *worked, last = row.answer.split("\n")
        results = []
        for line in worked:
            [(x, operation, y, result, shown)] = STEP.findall(line)
            assert APPLY[operation](int(x), int(y)) == int(result) == int(shown), row
            results.append(result)
        assert last == f"#### {results[-1]}" and 2 <= len(worked) <= 4, row


def test_the_answer_is_what_the_story_tells() -> None:
    assert all(row.answer.endswith(f"\n#### {told(row.question)}") for row in ROWS)


def test_all_numbers_are_within_what_the_model_has_seen() -> None:
    numbers = {int(number) for row in ROWS for number in re.findall(r"\d+", f"{row.question} {row.answer}")}
    assert max(numbers) <= LARGEST == 99
    negative = re.compile(r"(?<![0-9])-[0-9]")  # a sign, not a subtraction
    assert not any(negative.search(f"{row.question} {row.answer}") for row in ROWS)


def test_the_story_names_one_person_and_one_thing_throughout() -> None:
    for row in ROWS:
        name, thing = re.findall(r"How many (\w+) does (\w+) have now\?$", row.question)[0][::-1]
        assert row.question.startswith(f"{name} has ")
        assert all(line.rstrip(".").endswith(f" {thing}") for line in row.answer.split("\n")[:-1])
