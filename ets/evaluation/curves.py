"""pass@k and maj@k for k = 1, 2, 4, … of the complete samples that a comparison has drawn anyway."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.journal import Record
from ets.evaluation.pool import Sample
from ets.types import Floats

SUBSETS = 500
"""maj@k is a mean over all subsets of k samples, or over so many random ones if there are more."""
Integers: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CurvePoint:
    """pass@k and maj@k, means over problems with Wilson's 95% intervals, all in [0, 1].

    Parameters
    ----------
    k : int
    passed, voted : Accuracy
    """

    k: int
    passed: Accuracy
    voted: Accuracy


def curve_of(content: Mapping[str, Any]) -> CurvePoint:
    """A point from its JSON values."""
    return CurvePoint(content["k"], Accuracy(**content["passed"]), Accuracy(**content["voted"]))


def curves(pooled: Sequence[Sample], *, seed: int = 0) -> list[CurvePoint]:
    """The points at k = 1, 2, 4, …, and at the number of samples of a problem, all its chains together.

    Parameters
    ----------
    pooled : sequence of Sample
        With equally many texts. Without any text, or without right answers, there are no points.
    seed : int
        Of the random subsets.
    """
    grades: dict[str, list[Record]] = {}
    for sample in pooled:
        grades.setdefault(sample.problem.id, []).extend(sample.grades)
    answered = all(text["correct"] is not None for texts in grades.values() for text in texts)
    most = min(map(len, grades.values()), default=0) if answered else 0
    points = []
    for k in [k for k in (2**n for n in range(most.bit_length())) if k < most] + [most] * (most > 0):
        passed = [pass_at(k, len(each), sum(bool(text["correct"]) for text in each)) for each in grades.values()]
        voted = [majority_at(k, *_votes(each), seed=seed) for each in grades.values()]
        points.append(CurvePoint(k, accuracy(passed, most), accuracy(voted, most)))
    return points


def pass_at(k: int, count: int, right: int) -> float:
    """The unbiased estimate of the probability that k samples hold a right one: 1 - C(n - c, k) / C(n, k).

    It is the share of the subsets of k of the n samples with at least one of the c right ones (Chen et al., arXiv
    2107.03374).
    """
    return 1 - comb(count - right, k) / comb(count, k)


def majority_at(k: int, answers: Sequence[int], grades: Floats, *, seed: int = 0) -> float:
    """An unbiased estimate of the expected grade of majority voting among k samples.

    The mean over subsets of k of the n samples: all of them, or `SUBSETS` random ones. In a subset, the majority answer
    has the mean grade of its texts there; answers with equally many votes are equally likely, as in a random order
    (`ets.rewards.majority` takes the answer that reached the count first). Without any answer the grade is the mean.

    Parameters
    ----------
    k : int
    answers : sequence of int
        By sample the number of its answer; -1 for a text without an answer.
    grades : array
        `[n]`, in [0, 1].
    seed : int
    """
    chosen = _subsets(len(answers), k, seed)  # [S, k]
    number, size = np.asarray(answers) + 1, max(answers, default=-1) + 2
    cells = (number[chosen] + size * np.arange(len(chosen))[:, None]).ravel()
    counts = np.bincount(cells, minlength=size * len(chosen)).reshape(-1, size).astype(float)  # [S, A]
    sums = np.bincount(cells, grades[chosen].ravel(), size * len(chosen)).reshape(-1, size)
    silent = counts[:, 0] == k
    counts[~silent, 0] = 0.0  # texts without an answer do not vote
    winning = counts == counts.max(1, keepdims=True)
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=winning)
    return float(np.mean(means.sum(1) / winning.sum(1)))


@lru_cache(maxsize=32)
def _subsets(count: int, k: int, seed: int) -> Integers:
    if comb(count, k) <= SUBSETS:
        return np.array(list(combinations(range(count), k)))
    rng = np.random.default_rng([seed, count, k])
    return rng.permuted(np.tile(np.arange(count), (SUBSETS, 1)), axis=1)[:, :k]


def _votes(texts: Sequence[Record]) -> tuple[list[int], Floats]:
    """The number of each text's answer and the texts' grades; equal JSON values are equal answers."""
    numbers: dict[str, int] = {}
    answers = [
        -1 if text["answer"] is None else numbers.setdefault(json.dumps(text["answer"], default=str), len(numbers))
        for text in texts
    ]
    return answers, np.array([float(text["correct"]) for text in texts])
