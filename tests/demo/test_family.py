"""What every family of embedded problems promises: stable, different, and never shared between the splits."""

from __future__ import annotations

from itertools import islice

import pytest

from ets.demo.family import HELDOUT_SIZE, Dice, ProblemFamily, Row
from ets.demo.stories import STORIES
from ets.demo.sums import SUMS
from ets.types import InputError

FAMILIES = pytest.mark.parametrize("family", [STORIES, SUMS], ids=["stories", "sums"])


@FAMILIES
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_training_never_asks_a_held_out_question(family: ProblemFamily, seed: int) -> None:
    kept = {row.question for row in family.heldout(HELDOUT_SIZE)}
    assert not any(row.question in kept for row in islice(family.training(seed), 20_000))


@FAMILIES
def test_held_out_problems_are_all_different_and_fewer_are_the_first_of_more(family: ProblemFamily) -> None:
    rows = family.heldout(HELDOUT_SIZE)
    assert len({row.question for row in rows}) == HELDOUT_SIZE
    assert family.heldout(1) == rows[:1] and family.heldout(50) == rows[:50]


@FAMILIES
def test_training_is_a_function_of_the_seed(family: ProblemFamily) -> None:
    first, again, other = (list(islice(family.training(seed), 100)) for seed in (3, 3, 4))
    assert first == again and len({*first} & {*other}) < 5


@FAMILIES
@pytest.mark.parametrize("count", [0, -1, HELDOUT_SIZE + 1])
def test_more_problems_than_there_are_or_none_are_refused(family: ProblemFamily, count: int) -> None:
    with pytest.raises(InputError, match=f"^{count} held-out problems .* 1 to {HELDOUT_SIZE}$"):
        family.heldout(count)


@FAMILIES
def test_the_seed_of_the_held_out_problems_is_refused_for_training(family: ProblemFamily) -> None:
    """At once, not when the first problem is taken."""
    with pytest.raises(
        InputError, match=f"^seed {family.heldout_seed} is negative or belongs to the held-out problems"
    ):
        family.training(family.heldout_seed)
    with pytest.raises(InputError, match=r"^seed -1 is negative"):
        family.training(-1)


def test_a_training_problem_that_is_held_out_is_dropped() -> None:
    """Checked where it happens all the time: a family with little more to ask than it holds out."""
    family = ProblemFamily(lambda dice: Row(str(dice.between(1, HELDOUT_SIZE + 1000)), ""), heldout_seed=1)
    kept = {row.question for row in family.heldout(HELDOUT_SIZE)}
    asked = {row.question for row in islice(family.training(2), 2000)}
    assert len(kept) == HELDOUT_SIZE and 500 < len(asked) <= 1000 and not asked & kept


def test_dice_reach_every_choice_and_nothing_else() -> None:
    dice = Dice(0)
    assert {dice.between(3, 6) for _ in range(200)} == {3, 4, 5, 6}
    assert {dice.pick("abc") for _ in range(200)} == {*"abc"}
    assert [dice.between(4, 4), dice.pick("z")] == [4, "z"]
