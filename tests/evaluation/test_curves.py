"""pass@k and maj@k are unbiased, and no text is drawn for them."""

from __future__ import annotations

from itertools import combinations, product
from math import comb
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from ets.evaluation import curves
from ets.evaluation.comparison import Comparison
from ets.evaluation.curves import majority_at, pass_at
from ets.evaluation.journal import Journal
from ets.evaluation.methods import methods_named
from tests.evaluation.letters import SETTINGS, Letters, policies, run_of

LAW = {"a": 0.5, "b": 0.3, None: 0.2}
"""Of a sample's answer; "b" is right."""


def expected(values: dict[tuple[str | None, ...], float], count: int) -> float:
    """The expectation over `count` independent samples of LAW."""
    return sum(
        values[drawn] * float(np.prod([LAW[answer] for answer in drawn])) for drawn in product(LAW, repeat=count)
    )


def voted(answers: tuple[str | None, ...]) -> float:
    """The mean grade over the majority answers, each equally likely; without any answer the mean grade."""
    counts = {answer: answers.count(answer) for answer in answers if answer is not None}
    winners = [answer for answer, votes in counts.items() if votes == max(counts.values())]
    return fmean(float(answer == "b") for answer in winners or answers)


def numbered(answers: tuple[str | None, ...]) -> tuple[list[int], curves.Floats]:
    return [-1 if a is None else "ab".index(a) for a in answers], np.array([float(a == "b") for a in answers])


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_of_n_samples_is_unbiased(k: int) -> None:
    estimates = {drawn: pass_at(k, 4, drawn.count("b")) for drawn in product(LAW, repeat=4)}
    assert expected(estimates, 4) == pytest.approx(1 - (1 - LAW["b"]) ** k)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_maj_at_k_of_n_samples_is_unbiased(k: int) -> None:
    estimates = {drawn: majority_at(k, *numbered(drawn)) for drawn in product(LAW, repeat=4)}
    truth = expected({drawn: voted(drawn) for drawn in product(LAW, repeat=k)}, k)
    assert expected(estimates, 4) == pytest.approx(truth)


def test_the_winner_has_the_mean_grade_of_its_texts() -> None:
    """Texts of one answer may have different grades, such as code that passes by chance."""
    assert majority_at(3, [0, 0, 1], np.array([1.0, 0.0, 1.0])) == 0.5


def test_random_subsets_come_near_all_of_them_at_level_1e_4() -> None:
    """C(14, 6) = 3,003 subsets; the mean of 500 is within 4 standard errors, at most 4 · 0.5 / √500."""
    answers, grades = numbered(("a", "b", "b", None, "a", "a", "b", "b", None, "a", "b", "a", "a", "b"))
    assert comb(14, 6) > curves.SUBSETS
    every = fmean(
        majority_at(6, [answers[n] for n in chosen], grades[list(chosen)]) for chosen in combinations(range(14), 6)
    )
    found = [majority_at(6, answers, grades, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2] and abs(found[0] - every) < 4 * 0.5 / curves.SUBSETS**0.5


def test_curves_are_of_the_samples_that_a_comparison_has_drawn(tmp_path: Path) -> None:
    """7 samples for the largest method, 2 chains: 14 texts a problem, at which pass@k has counted them all."""
    with Journal(tmp_path, {"seed": 0}) as journal:
        methods = methods_named(["plain", "majority", "one-step", "ets"])
        sizes = {"one-step": 7, "majority": 3, "plain": 2}
        comparison = Comparison(run_of(journal, Letters()), policies(), methods, SETTINGS, repeats=2, sizes=sizes)
        entries = comparison.entries([2])
        drawn = len(journal.records)
        points = curves.curves(comparison.pooled)
        assert len(journal.records) == drawn
    assert [point.k for point in points] == [1, 2, 4, 8, 14] and len(entries) == 5
    texts: dict[str, list[float]] = {}
    for (method, problem, _), record in journal.records.items():
        if method.startswith("pool["):
            texts.setdefault(problem, []).extend(text["correct"] for text in record["texts"])
    assert points[0].passed.mean == pytest.approx(points[0].voted.mean)
    assert points[0].passed.mean == pytest.approx(fmean(map(fmean, texts.values())))
    assert points[-1].passed.mean == pytest.approx(fmean(map(max, texts.values())))
    assert [point.passed.mean for point in points] == sorted(point.passed.mean for point in points)


def test_methods_that_draw_no_complete_samples_have_no_curves(tmp_path: Path) -> None:
    with Journal(tmp_path, {"seed": 0}) as journal:
        comparison = Comparison(run_of(journal, Letters()), policies(), methods_named(["ets"]), SETTINGS)
        comparison.entries([2])
        assert curves.curves(comparison.pooled) == []
