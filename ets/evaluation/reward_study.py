"""Which rewards without training tell right answers from wrong ones: the paper's study behind its choice of a reward.

N answers to each problem are drawn, and each reward is judged by its AUC: the probability that it puts a right answer
above a wrong one, ties counting one half. Over all pairs of answers a reward is credited with telling easy problems
from hard ones, too, which guides nobody at a given problem; the mean of the AUCs within problems leaves that out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ets import baselines
from ets.evaluation.bootstrap import RESAMPLES
from ets.evaluation.intervals import Accuracy, accuracy
from ets.evaluation.journal import Record
from ets.evaluation.methods import Method
from ets.evaluation.tables import aligned
from ets.rewards import entropy, likelihood, self_certainty
from ets.step import require_counts
from ets.tasks.task import Slow, Task
from ets.types import Chain, Floats, InputError, Problem, Reward

OF_A_TEXT: Mapping[str, Reward] = {
    "likelihood-per-token": likelihood(per_token=True),
    "negative-entropy": entropy(),
    "self-certainty": self_certainty(),
}
"""Rewards of one text by itself, which are recorded as it is drawn."""
OF_CERTAINTY = ("negative-entropy", "self-certainty")
"""Those of how certain the model was, which engines that draw by themselves (vllm, endpoint) do not tell."""
AGREEMENT = "agreement-share"
"""The share of a problem's answers that agree with an answer: known when all are drawn."""


@dataclass(frozen=True)
class Area:
    """An AUC with its 95% interval; NaN where no pair of a right and a wrong answer exists."""

    auc: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Separation:
    """How a reward tells right answers from wrong ones.

    Parameters
    ----------
    reward : str
    pooled : Area
        Over all pairs of a right answer and a wrong one.
    within : Area
        The mean of the AUCs within the problems that have both.
    right, wrong : array
        The reward's values.
    """

    reward: str
    pooled: Area
    within: Area
    right: Floats
    wrong: Floats


@dataclass(frozen=True, eq=False)
class RewardStudy:
    """What is known of N answers to each of some problems.

    Parameters
    ----------
    problems, samples : int
    mixed : int
        Problems that have both right and wrong answers.
    accuracy : Accuracy
        The share of right answers.
    separations : tuple of Separation
        One for each reward.
    """

    problems: int
    samples: int
    mixed: int
    accuracy: Accuracy
    separations: tuple[Separation, ...]


def draws(samples: int) -> Method:
    """The method that a study samples by: N plain samples of each problem.

    Raises `InputError` for fewer than two, which agree with nobody.
    """
    require_counts(samples=samples)
    if samples < 2:
        raise InputError("samples is 1, and one answer to a problem agrees with itself alone; draw 2 or more")
    return Method("draw", f"drawing {samples} answers", baselines.plain(), samples=samples)


def noted_rewards(chain: Chain) -> dict[str, Any]:
    """What a record keeps of an answer that has been drawn: its own rewards, as far as they can be known."""
    texts = chain.trace[0].candidates
    unknown = OF_CERTAINTY if texts[0].certainty is None else ()
    known = {name: reward for name, reward in OF_A_TEXT.items() if name not in unknown}
    return {"rewards": {name: reward(chain.problem, texts, chain)[0] for name, reward in known.items()}}


def reward_study(task: Task, problems: Sequence[Problem], records: Sequence[Record], *, seed: int = 0) -> RewardStudy:
    """What a study's records show.

    Parameters
    ----------
    task : Task
        Whose answers are counted.
    problems : sequence of Problem
    records : sequence of Record
        Made with `noted_rewards`, equally many of each problem.
    seed : int
        Of the bootstrap over problems, whose resamples are the same for all rewards.
    """
    by_problem: dict[str, list[Record]] = {problem.id: [] for problem in problems}
    for record in records:
        by_problem[record["problem"]].append(record)
    groups = list(by_problem.values())
    right = [np.array([record["correct"] for record in group], bool) for group in groups]
    scores = {
        name: [np.array([r["rewards"][name] for r in group]) for group in groups] for name in groups[0][0]["rewards"]
    }
    scores[AGREEMENT] = [
        agreement(task, problem, [record["text"] for record in by_problem[problem.id]]) for problem in problems
    ]
    counts = _resampled(len(groups), seed)
    samples = len(groups[0])
    return RewardStudy(
        len(groups),
        samples,
        sum(bool(values.any() and not values.all()) for values in right),
        accuracy([fmean(values.tolist()) for values in right], samples),
        tuple(_separation(name, values, right, counts) for name, values in scores.items()),
    )


def agreement(task: Task, problem: Problem, texts: Sequence[str]) -> Floats:
    """The share `[N]` of a problem's texts that agree with each, 0 for a text without an answer."""
    pairs = [(problem, text) for text in texts]
    answers = task.extract_all(pairs) if isinstance(task, Slow) else [task.extract(*pair) for pair in pairs]
    counts = Counter(answers)
    return np.array([0.0 if answer is None else counts[answer] / len(texts) for answer in answers])


def wins(scores: Sequence[Floats], right: Sequence[NDArray[np.bool_]]) -> Floats:
    """`[P, P]`, in how many pairs of a right answer to problem p and a wrong one to q the right one scores higher.

    Ties count one half. The trace has the pairs within problems.

    Parameters
    ----------
    scores, right : sequence of arrays
        `[P]` arrays `[N]`: of each problem's answers.
    """
    of_right = np.concatenate([values[known] for values, known in zip(scores, right, strict=True)])
    owner = np.repeat(np.arange(len(right)), [known.sum() for known in right])
    found = np.zeros((len(right), len(right)))
    for q, (values, known) in enumerate(zip(scores, right, strict=True)):
        wrong = np.sort(values[~known])
        below = (np.searchsorted(wrong, of_right, "left") + np.searchsorted(wrong, of_right, "right")) / 2
        found[:, q] = np.bincount(owner, below, minlength=len(right))
    return found


def _resampled(problems: int, seed: int) -> Floats:
    """How often `[1 + RESAMPLES, P]` each problem counts: once, and as often as a resample holds it."""
    counts = np.random.default_rng(seed % 2**64).multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)
    return np.vstack((np.ones(problems), counts))


def _separation(name: str, scores: Sequence[Floats], right: Sequence[NDArray[np.bool_]], counts: Floats) -> Separation:
    found = wins(scores, right)
    good, bad = (np.array([known.sum() for known in kind], float) for kind in (right, [~known for known in right]))
    pooled = _ratio(((counts @ found) * counts).sum(1), (counts @ good) * (counts @ bad))
    mixed = good * bad > 0
    each = found.diagonal()[mixed] / (good * bad)[mixed]
    within = _ratio(counts[:, mixed] @ each, counts[:, mixed].sum(1))
    values, known = np.concatenate(scores), np.concatenate(right)
    return Separation(name, _area(pooled), _area(within), values[known], values[~known])


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _area(aucs: Floats) -> Area:
    """From the AUC, and those of the resamples that have one: a percentile bootstrap."""
    known = aucs[1:][np.isfinite(aucs[1:])]
    low, high = np.quantile(known, (0.025, 0.975)) if known.size else (np.nan, np.nan)
    return Area(float(aucs[0]), float(low), float(high))


def study_table(study: RewardStudy) -> str:
    """A Markdown table, and what it is of."""
    headings = ("reward", "AUC, all answers", "95% interval", "AUC, within a problem", "95% interval")
    rows = [(each.reward, *_cells(each.pooled), *_cells(each.within)) for each in study.separations]
    share = study.accuracy
    return (
        f"{aligned([headings, *rows])}\n\n"
        f"{study.samples} answers to each of {study.problems} problems, {share.mean:.1%} of them right "
        f"({share.low:.1%} to {share.high:.1%}); {study.mixed} problems have right and wrong ones. The AUC is the "
        "probability that a right answer has a higher reward than a wrong one, ties counting one half: 50% is chance."
    )


def _cells(area: Area) -> tuple[str, str]:
    if np.isnan(area.auc):
        return "none", ""
    return f"{area.auc:.1%}", f"{area.low:.1%} to {area.high:.1%}"


def study_summary(study: RewardStudy) -> dict[str, Any]:
    """As JSON values; an AUC that does not exist is null."""

    def numbers(area: Area) -> dict[str, float | None]:
        return {name: None if np.isnan(value) else value for name, value in vars(area).items()}

    return {
        **{name: getattr(study, name) for name in ("problems", "samples", "mixed")},
        "accuracy": vars(study.accuracy),
        "rewards": {
            each.reward: {"pooled": numbers(each.pooled), "within": numbers(each.within)} for each in study.separations
        },
    }
