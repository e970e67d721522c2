"""The embedded short problems: true, stable, and of numbers that are tokens of their own."""

from __future__ import annotations

import hashlib
import re
from itertools import islice

from ets.demo.family import HELDOUT_SIZE
from ets.demo.stories import NAMES
from ets.demo.sums import LARGEST, SUMS, VERBS

ROWS = [*SUMS.heldout(HELDOUT_SIZE), *islice(SUMS.training(5), 2000)]
STEP = re.compile(r"(\d+)([-+])(\d+)=(\d+)")
EVENT = re.compile(r"(?:Then (he|she)|(He|She)) (\w+) (\d+)\.")
SIGN = {verb: sign for sign, verbs in VERBS.items() for verb in verbs}


def told(question: str) -> list[str]:
    """The worked steps of a question, from the words of its story alone."""
    opening, *events = re.findall(r"[^.?]+\.", question)
    have, steps = int(re.fullmatch(r"\w+ has (\d+) \w+\.", opening)[1]), []  # type: ignore[index]
    for event in events:
        *_, verb, n = EVENT.fullmatch(event.strip()).groups()  # type: ignore[union-attr]
        left = have + int(n) if SIGN[verb] == "+" else have - int(n)
        steps.append(f"{have}{SIGN[verb]}{n}={left}")
        have = left
    return steps


def test_held_out_problems_are_the_same_everywhere_and_for_ever() -> None:
    first = SUMS.heldout(1)[0]
    assert first.question == "Omar has 13 cards. He wins 5. Then he gets 1. Then he sells 3. How many?"
    assert first.answer == "13+5=18\n18+1=19\n19-3=16\n#### 16"
    content = "\n".join(f"{row.question}\n{row.answer}" for row in SUMS.heldout(200))
    digest = hashlib.sha256(content.encode()).hexdigest()
    assert digest == "931552f8941d55f8d31c54f0c83f5e27bdefd50a9b08ab5515ca1f11e5204a9f"


def test_every_worked_step_is_true_and_the_last_one_is_the_answer() -> None:
    for row in ROWS:
        *worked, last = row.answer.split("\n")
        results = []
        for line in worked:
            x, sign, y, result = STEP.fullmatch(line).groups()  # type: ignore[union-attr]
            assert int(result) == (int(x) + int(y) if sign == "+" else int(x) - int(y)), row
            assert not results or x == results[-1], row
            results.append(result)
        assert last == f"#### {results[-1]}" and 2 <= len(worked) <= 3, row


def test_the_steps_are_what_the_story_tells() -> None:
    assert all(row.answer.split("\n")[:-1] == told(row.question) for row in ROWS)


def test_no_number_is_above_20_or_below_1() -> None:
    numbers = {int(number) for row in ROWS for number in re.findall(r"\d+", f"{row.question} {row.answer}")}
    assert min(numbers) == 1 and max(numbers) == LARGEST == 20


def test_every_question_ends_alike_and_speaks_of_the_person_it_names() -> None:
    for row in ROWS:
        assert row.question.endswith(". How many?")
        pronouns = {pronoun.lower() for found in EVENT.findall(row.question) for pronoun in found[:2] if pronoun}
        assert pronouns == {NAMES[row.question.split()[0]]}, row


def test_every_answer_and_both_signs_are_common() -> None:
    """A model that always says the same is not often right."""
    answers = [row.answer.rsplit(" ", 1)[1] for row in ROWS]
    assert {int(answer) for answer in answers} == set(range(1, LARGEST + 1))
    assert max(answers.count(answer) for answer in set(answers)) < len(ROWS) / 5
    signs = [sign for row in ROWS for _, sign, _, _ in STEP.findall(row.answer)]
    assert 0.25 < signs.count("+") / len(signs) < 0.75
