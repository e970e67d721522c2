"""Methods that choose among pooled samples are what they are alone, and pools grow without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from ets.baselines import best_of_n, one_step, plain
from ets.evaluation.journal import Journal
from ets.evaluation.pool import MOST, Completions, Sample, SamplePool, chosen, completions, nearest
from ets.rewards import majority, per_text
from ets.runner import run
from ets.types import Cost, Draw, Keys, Policy, State, StepFn, Text
from tests.evaluation.letters import MASKED_DIFFUSION, Letters, compared, run_of, table, timeless, without_seconds
from tests.laws.tabular import TabularModel

TASK = Letters()
PROBLEMS = TASK.problems(6, 0)
LIKING = per_text(lambda prompt, text: text.count("a"))
METHODS: dict[str, Callable[[int], StepFn]] = {
    "majority": lambda n: best_of_n(majority(lambda text: text[:1] or None), samples=n),
    "one-step": lambda n: one_step(LIKING, samples=n, lam=0.5),
    "best-of-n": lambda n: best_of_n(LIKING, samples=n),
}
POLICIES: dict[str, Callable[[], Policy]] = {"autoregressive": table, "masked diffusion": lambda: MASKED_DIFFUSION}


def pooled(folder: Path, *counts: int, policy: Policy | None = None, repeats: int = 1) -> list[Sample]:
    """The samples of a pool that grows to each count in turn."""
    with Journal(folder, {"seed": 0}) as journal:
        pool = SamplePool(run_of(journal, TASK, problems=PROBLEMS), policy or table(), "pool", repeats)
        return [pool.samples(count) for count in counts][-1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", POLICIES)
def test_a_choice_has_the_weights_and_the_cost_of_the_method_alone(kind: str, method: str, tmp_path: Path) -> None:
    policy, step = POLICIES[kind](), METHODS[method](5)
    for sample in pooled(tmp_path, 7, policy=policy):
        alone = next(iter(run(policy, step, [sample.problem], width=1, seed=0)))
        weights = np.exp(alone.trace[0].log_weights - alone.trace[0].log_weights.max())
        right = [TASK.grade(sample.problem, text.text) for text in alone.trace[0].candidates]
        choice = chosen(step, sample, seed=0)
        assert choice.correct == pytest.approx(float(weights @ right / weights.sum())) and choice.samples == 5
        assert (choice.cost.generated, choice.cost.positions) == (alone.cost.generated, alone.cost.positions)
        if kind == "autoregressive":  # alone, equal canvases are one text to the reward
            assert choice.cost.rewarded == alone.cost.rewarded == 5


def test_a_choice_costs_the_same_whenever_it_is_shown(tmp_path: Path) -> None:
    """Where the reward of the pool decides, its recorded seconds are the cost of the choice."""
    with Journal(tmp_path, {"seed": 0}) as journal:
        pool = SamplePool(run_of(journal, TASK, problems=PROBLEMS), table(), "pool", 1, LIKING)
        first, second = ([chosen(METHODS["one-step"](n), s, 0, scored=True) for s in pool.samples(4)] for n in (4, 4))
        unscored = [chosen(METHODS["majority"](4), s, 0) for s in pool.samples(4)]
        fewer = [chosen(METHODS["one-step"](2), s, 0, scored=True) for s in pool.samples(4)]
    assert [choice.cost for choice in first] == [choice.cost for choice in second]
    for scored, plain_choice, half in zip(first, unscored, fewer, strict=True):
        assert (
            scored.cost.reward_seconds == pytest.approx(2 * half.cost.reward_seconds) and scored.cost.reward_seconds > 0
        )
        assert plain_choice.cost.reward_seconds == 0
        assert scored.cost.seconds == pytest.approx(plain_choice.cost.seconds + scored.cost.reward_seconds)


def test_texts_of_equal_weight_count_alike(tmp_path: Path) -> None:
    sample = pooled(tmp_path, 3)[0]
    mean = fmean(grade["correct"] for grade in sample.grades)
    assert chosen(one_step(per_text(lambda prompt, text: 1.0), samples=3, lam=1.0), sample, 0).correct == mean
    assert chosen(plain(), sample, 0).samples == 1


@pytest.mark.parametrize("kind", POLICIES)
@pytest.mark.parametrize("repeats", [1, 2])
def test_a_grown_pool_has_the_texts_of_one_drawn_at_once(kind: str, repeats: int, tmp_path: Path) -> None:
    grown, once = (
        pooled(tmp_path / name, *counts, policy=POLICIES[kind](), repeats=repeats)
        for name, counts in (("grown", (2, 3, 7)), ("once", (7,)))
    )
    assert [(s.problem.id, s.sample) for s in grown] == [(s.problem.id, s.sample) for s in once]
    for one, other in zip(grown, once, strict=True):
        assert [draw.text for draw in one.draws] == [draw.text for draw in other.draws]
        assert [grade["text"] for grade in one.grades] == [grade["text"] for grade in other.grades]
        assert [cost.generated for cost in one.costs] == [cost.generated for cost in other.costs]
        assert [cost.positions for cost in one.costs] == [cost.positions for cost in other.costs]


def test_a_smaller_pool_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    large, small = pooled(tmp_path, 8), pooled(tmp_path, 8, 3)
    assert [sample.draws for sample in small] == [sample.draws[:3] for sample in large]
    assert [sample.costs for sample in small] == [sample.costs[:3] for sample in large]
    assert all(len(sample.draws) == len(sample.costs) == len(sample.grades) == 3 for sample in small)


def test_only_problems_that_lack_samples_are_drawn(tmp_path: Path) -> None:
    def drawn(count: int, problems: int) -> int:
        with Journal(tmp_path, {"seed": 0}) as journal:
            before = len(journal.records)
            SamplePool(run_of(journal, TASK, problems=PROBLEMS[:problems]), table(), "pool", 1).samples(count)
            return len(journal.records) - before

    assert [drawn(4, 2), drawn(4, 6), drawn(6, 1), drawn(6, 6), drawn(5, 6)] == [2, 4, 1, 5, 0]


def test_a_pool_that_was_cut_between_samples_of_one_problem_goes_on(tmp_path: Path) -> None:
    """The journal holds part 1 of sample 0 alone, and a later command asks for more texts."""
    whole = pooled(tmp_path / "whole", 7, repeats=2)
    pooled(tmp_path / "cut", 3, repeats=1)
    again = pooled(tmp_path / "cut", 7, repeats=2)
    assert [sample.draws for sample in again] == [sample.draws for sample in whole]


@pytest.mark.parametrize("number", [1, 2, 5, 9])
@pytest.mark.parametrize("guess", [1, 4, 30])
def test_the_number_of_samples_that_cost_an_amount_is_found(number: int, guess: int, tmp_path: Path) -> None:
    with Journal(tmp_path, {"seed": 0}) as journal:
        pool = SamplePool(run_of(journal, TASK, problems=PROBLEMS), table(), "pool", 1)
        costs = pool.mean_costs(12, "generated")
        assert np.all(np.diff(costs) > 0)
        assert pool.until(float(costs[number - 1]), "generated", guess) == number
        assert pool.until(float(costs[number - 1] + costs[number]) / 2 + 0.01, "generated", guess) == number + 1


def test_the_nearer_of_two_numbers_is_taken() -> None:
    costs = np.array([60.0, 120.0, 180.0])
    assert [nearest(costs, amount) for amount in (1, 85, 95, 1000)] == [1, 1, 2, 3]
    assert nearest(np.array([60.0, 60.0, 60.0, 90.0]), 61) == 3  # free samples are drawn


class Equal(TabularModel):
    """All samples of a problem are equal, and all but the first of a part are free."""

    def finish(self, states: Any, keys: Any) -> list[Draw]:
        draws = super().finish(states, np.full_like(keys, 7))
        return [Draw(d.state, d.text, d.logp, d.cost if n == 0 else Cost()) for n, d in enumerate(draws)]


def test_a_pool_whose_samples_are_free_ends_with_a_warning(tmp_path: Path) -> None:
    with Journal(tmp_path, {"seed": 0}) as journal:
        pool = SamplePool(run_of(journal, TASK, problems=PROBLEMS[:1]), Equal(vocabulary=4, max_length=4), "pool", 1)
        one = float(pool.mean_costs(1, "generated")[0])
        with pytest.warns(UserWarning, match=f"{8 * MOST} samples cost .*% of the budget; set samples"):
            assert pool.until(8 * one, "generated", 8) == 8 * MOST


def test_draws_survive_the_journal(tmp_path: Path) -> None:
    """Log-probabilities and tokens, for rewards that look at more than the text."""
    pooled(tmp_path, 4)
    again = pooled(tmp_path, 4)
    problem = PROBLEMS[0]
    chain = next(iter(run(table(), completions(0, 4), [problem], width=1, seed=0)))
    expected = [text for (text,) in chain.trace[0].rollouts]
    assert [draw.text for draw in again[0].draws] == expected and isinstance(expected[0], Text)
    assert isinstance(again[0].draws[0].state, Completions)


class Twice:
    """Counts the rows that a policy draws."""

    def __init__(self) -> None:
        self.table, self.rows, self.deterministic = table(), 0, False

    @property
    def ledger(self) -> Cost:
        return self.table.ledger

    def start(self, problems: Any) -> list[State]:
        return list(self.table.start(problems))

    def extend(self, states: Any, keys: Keys) -> list[Draw]:
        return self.table.extend(states, keys)

    def finish(self, states: Any, keys: Keys) -> list[Draw]:
        self.rows += len(states)
        return self.table.finish(states, keys)


def test_methods_that_choose_share_their_samples(tmp_path: Path) -> None:
    """Five methods of 8 samples draw 8 samples of each of 12 problems."""
    policy, names = Twice(), ["plain", "majority", "weighted-majority", "best-of-n", "one-step", "iterated-sir"]
    entries, records = compared(tmp_path, names, samples=8, policy=policy)
    assert policy.rows == 8 * 12 and {method for method, _, _ in records} == {"pool[0:8]"}
    one_by_one = []
    for name in names:
        one_by_one += compared(tmp_path / name, [name], samples=8)[0]
    assert without_seconds(entries) == without_seconds(one_by_one)


def test_the_base_policy_has_a_pool_of_another_name(tmp_path: Path) -> None:
    entries, records = compared(tmp_path, ["base", "plain"], samples=4)
    assert entries[0].label == "base model (T 0.7, top-k 20, top-p 0.8; mean of 4)"
    texts = {method: [text["text"] for text in r["texts"]] for (method, _, _), r in records.items()}
    assert set(texts) == {"pool[0:4]", "pool-base-0.7-20-0.8[0:4]"} and len({str(t) for t in texts.values()}) == 2
    alone, found = compared(tmp_path / "alone", ["plain"], samples=4)
    assert without_seconds(entries[1:]) == without_seconds(alone)
    assert timeless(found).items() <= timeless(records).items()
