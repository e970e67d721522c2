"""The reward study: areas against all pairs, its records, and what it says where an area does not exist."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from ets.evaluation.journal import Record
from ets.evaluation.reward_study import (
    AGREEMENT,
    OF_A_TEXT,
    agreement,
    draws,
    noted_rewards,
    reward_study,
    study_summary,
    study_table,
    wins,
)
from ets.rewards import agreement_share
from ets.runner import run
from ets.types import Chain, InputError, Problem, Text


class Letters:
    """The answer is a text's first letter; "a" is right."""

    name = "letters"

    def extract(self, problem: Problem, text: str) -> str | None:
        return text[:1] or None

    def grade(self, problem: Problem, text: str) -> bool:
        return text[:1] == "a"


class SlowLetters(Letters):
    """The same, all texts at once alone."""

    def extract_all(self, texts: Iterable[tuple[Problem, str]]) -> list[str | None]:
        return [Letters.extract(self, *pair) for pair in texts]

    def grade_all(self, texts: Iterable[tuple[Problem, str]]) -> list[bool]:
        return [self.grade(*pair) for pair in texts]

    def extract(self, problem: Problem, text: str) -> str | None:
        raise AssertionError("asked for one text")


def problems(count: int) -> list[Problem]:
    return [Problem(f"p{n}", "abc") for n in range(count)]


def records_of(values: Sequence[Sequence[tuple[float, bool, str]]], names: Iterable[str] = OF_A_TEXT) -> list[Record]:
    """Of each problem's (reward, right, text): that reward under all names."""
    return [
        {"problem": f"p{p}", "correct": right, "text": text, "rewards": dict.fromkeys(names, value)}
        for p, group in enumerate(values)
        for value, right, text in group
    ]


def auc_of_pairs(group: Iterable[tuple[float, bool, str]]) -> float:
    """By its definition: over all pairs of a right and a wrong answer."""
    answers = list(group)
    right, wrong = ([value for value, known, _ in answers if known is kind] for kind in (True, False))
    found = [(good > bad) + (good == bad) / 2 for good, bad in itertools.product(right, wrong)]
    return float(np.mean(found)) if found else math.nan


@pytest.fixture
def with_ties() -> list[list[tuple[float, bool, str]]]:
    """Five problems of eight answers; one has none that is right, one none that is wrong, and a reward may be -inf."""
    rng = np.random.default_rng(0)
    chances = (0.5, 0.3, 0.7, 0.0, 1.0)
    groups = [
        [(float(rng.integers(4) + p), bool(rng.random() < chance), "") for _ in range(8)]
        for p, chance in enumerate(chances)
    ]
    groups[0][0] = (-math.inf, *groups[0][0][1:])
    return groups


def test_areas_are_those_of_all_pairs_with_ties_a_half(with_ties: list[list[tuple[float, bool, str]]]) -> None:
    study = reward_study(Letters(), problems(5), records_of(with_ties))
    for each in study.separations[:-1]:
        assert each.pooled.auc == pytest.approx(auc_of_pairs(itertools.chain(*with_ties)))
        assert each.within.auc == pytest.approx(np.nanmean([auc_of_pairs(group) for group in with_ties[:3]]))
        assert each.pooled.low < each.pooled.auc < each.pooled.high
    assert study.mixed == 3 and study.problems == 5 and study.samples == 8


def test_wins_are_counted_for_every_pair_of_problems(with_ties: list[list[tuple[float, bool, str]]]) -> None:
    scores = [np.array([value for value, _, _ in group]) for group in with_ties]
    right = [np.array([known for _, known, _ in group]) for group in with_ties]
    found = wins(scores, right)
    for p, q in itertools.product(range(5), repeat=2):
        pairs = itertools.product(scores[p][right[p]], scores[q][~right[q]])
        assert found[p, q] == sum((good > bad) + (good == bad) / 2 for good, bad in pairs)


def test_a_constant_reward_is_chance_and_a_perfect_one_certain() -> None:
    known = [[True, False, True], [False, False, True]]
    for value_of, expected in ((lambda right: 3.0, 0.5), (float, 1.0), (lambda right: -float(right), 0.0)):
        values = [[(value_of(right), right, "") for right in group] for group in known]
        for each in reward_study(Letters(), problems(2), records_of(values)).separations[:-1]:
            for area in (each.pooled, each.within):
                assert (area.auc, area.low, area.high) == (expected, expected, expected)


def test_telling_easy_problems_from_hard_ones_is_no_merit_within_a_problem() -> None:
    """Rewards that are the problem's share of right answers."""
    known = [[True, True, False], [True, False, False]]
    values = [[(float(np.mean(group)), right, "") for right in group] for group in known]
    each = reward_study(Letters(), problems(2), records_of(values)).separations[0]
    assert each.pooled.auc == pytest.approx(6 / 9) and each.within.auc == 0.5  # 4 wins, 1 loss, 4 ties


def test_the_interval_covers_the_truth_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Normal scores, shifted by 1 for right answers: the AUC is Φ(1/√2).

    95% less what a percentile interval of 40 problems lacks, 1.7 points by 2,500 repetitions: from 360 to 385 of 400,
    but for a chance of 1%. An interval of 90% covers it 355 times here.
    """
    monkeypatch.setattr("ets.evaluation.reward_study.RESAMPLES", 200)
    truth, rng, covered = 0.5 * (1 + math.erf(0.5)), np.random.default_rng(1), 0
    for repetition in range(400):
        right = rng.random((40, 6)) < 0.5
        scores = rng.normal(size=(40, 6)) + right
        values = [list(zip(s.tolist(), r.tolist(), [""] * 6, strict=True)) for s, r in zip(scores, right, strict=True)]
        study = reward_study(Letters(), problems(40), records_of(values, ["any"]), seed=repetition)
        covered += study.separations[0].pooled.low <= truth <= study.separations[0].pooled.high
    assert 360 <= covered <= 385


def test_the_ends_of_the_interval_are_those_of_resampled_problems() -> None:
    """Twenty problems where the right answer has the higher reward and twenty where it has the lower one: both AUCs of
    a resample are its share of the former, a binomial number of 40 over 40, whose quantiles at 2.5% and 97.5% are 14
    and 26. (At 1% and 5% the lower ones are 13 and 15; ten thousand resamples miss by chance 1 time in 15,000.)"""
    values = [[(float(n % 2), True, ""), (float(1 - n % 2), False, "")] for n in range(40)]
    each = reward_study(Letters(), problems(40), records_of(values)).separations[0]
    for area in (each.pooled, each.within):
        assert (area.auc, area.low, area.high) == pytest.approx((0.5, 14 / 40, 26 / 40))


@pytest.mark.parametrize("right", [True, False])
def test_without_a_pair_there_is_no_area(right: bool) -> None:
    study = reward_study(Letters(), problems(2), records_of([[(1.0, right, "a")] * 3] * 2))
    assert study.mixed == 0 and "| none |" in " ".join(study_table(study).split())
    summary = json.loads(json.dumps(study_summary(study), allow_nan=False))
    assert summary["rewards"][AGREEMENT]["pooled"] == {"auc": None, "low": None, "high": None}


@pytest.mark.parametrize("task", [Letters(), SlowLetters()])
def test_agreement_is_the_share_of_votes(task: Any) -> None:
    problem, texts = Problem("p", "abc"), ["a1", "b1", "a2", "", "a3", "c", "b2"]
    chain = Chain(problem, 0, 1, None)  # type: ignore[arg-type]
    reward = agreement_share(Letters().extract, pool="step")
    expected = reward(problem, [Text((), text, 0.0, True) for text in texts], chain)
    assert agreement(task, problem, texts).tolist() == pytest.approx(list(expected))


def test_records_keep_the_rewards_of_what_was_drawn(make_tiny: Any) -> None:
    policy = make_tiny(certainty=True)
    for chain in run(policy, draws(2).step, problems(3), width=3, seed=0, samples=2):
        (text,) = chain.trace[0].candidates
        assert text.text == chain.state.text and text.certainty is not None
        assert noted_rewards(chain)["rewards"] == {
            "likelihood-per-token": text.logp / len(text.tokens),
            "negative-entropy": -text.certainty.mean_entropy,
            "self-certainty": text.certainty.mean_self_certainty,
        }


@pytest.mark.parametrize(("samples", "message"), [(0, "samples is 0"), (1, "one answer to a problem agrees with itse")])
def test_too_few_samples_are_refused(samples: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        draws(samples)
