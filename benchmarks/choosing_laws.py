"""What M, K, I and λ do to the sampler's law, exactly: on random tables of three tokens, for texts of up to six.

A sampler's law at finite M and K is known (`tests.laws.kernel`), so nothing here is sampled. Each number is a mean
over some tables.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from work_formulas import TokenWork

from ets.testing import Law, TabularPolicy, optimal_law, total_variation
from ets.types import Problem
from tests.laws.kernel import kernel_law

PROBLEM, LENGTH = Problem("p", (1,)), 6
LAMS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
COMPARED = (0.05, 0.5)
"""Small and large for these rewards: where M, K and I are compared."""
CANDIDATES, GUIDE_STEPS = 8, 3
"""Of the sampler that is compared with p* at each λ."""
PAIRS = ((32, 1), (16, 2), (8, 4), (4, 8), (2, 16))
"""M and K at the same number of rollouts."""
SHARED, ROLLOUTS = 768, (1, 2, 3, 4, 8)
"""K at the same number of generated tokens."""
BUDGETS = (48, 96, 192, 384, 768)
"""Generated tokens, at most."""
STEPS = (1, 2, 3, 6)
Reward = Callable[[tuple[int, ...]], float]


def graded(tokens: tuple[int, ...]) -> float:
    """The share of the longest text that is an a: earned bit by bit."""
    return TabularPolicy.spelled(tokens).count("a") / LENGTH


def passing(tokens: tuple[int, ...]) -> float:
    """1 for at least four a's, else 0: seen at the end alone."""
    return float(TabularPolicy.spelled(tokens).count("a") >= 4)


REWARDS: dict[str, Reward] = {"graded": graded, "pass": passing}


@dataclass(frozen=True)
class Tilt:
    """At one λ: what p* is worth, how far it is from p_ref, and what a sampler makes of it.

    Parameters
    ----------
    lam : float
    plain, reward, sampled : float
        Mean reward of p_ref, of p*, and of the sampler.
    kl : float
        KL(p* || p_ref), in nats.
    moved, distance : float
        Total variation of p* to p_ref, and of the sampler to p*.
    """

    lam: float
    plain: float
    reward: float
    kl: float
    moved: float
    sampled: float
    distance: float


@dataclass(frozen=True)
class Size:
    """At one M, K and I: the tokens that this generates at most, and the total variation to p*."""

    lam: float
    candidates: int
    rollouts: int
    guide_steps: int
    tokens: int
    distance: float


def tokens(candidates: int, rollouts: int, guide_steps: int) -> int:
    """Generated at most, by formula."""
    work = TokenWork(LENGTH // guide_steps, LENGTH).steps(1, candidates, rollouts, [LENGTH])
    return round(sum(step.generated for step in work))


def figures(tables: int) -> dict[str, object]:
    """All numbers, by reward and question; of so many tables."""
    return {name: _of_reward(reward, tables) for name, reward in REWARDS.items()}


def _of_reward(reward: Reward, tables: int) -> dict[str, object]:
    return {
        "spread": _mean(_spread(reward, seed) for seed in range(tables)),
        "lam": [asdict(_tilt(reward, lam, tables)) for lam in LAMS],
        "best": _mean(_best_of(reward, CANDIDATES, seed) for seed in range(tables)),
        "limit": _mean(
            _mean_reward(_laws(reward, LAMS[0], CANDIDATES, 1, 1, seed)[2], reward) for seed in range(tables)
        ),
        "pairs": [asdict(_size(reward, lam, *pair, GUIDE_STEPS, tables)) for lam in COMPARED for pair in PAIRS],
        "shared": [asdict(_shared(reward, lam, rollouts, tables)) for lam in COMPARED for rollouts in ROLLOUTS],
        "steps": [asdict(size) for lam in COMPARED for size in _by_steps(reward, lam, tables)],
    }


def _shared(reward: Reward, lam: float, rollouts: int, tables: int) -> Size:
    """As many candidates as the tokens pay for."""
    candidates = round(SHARED / tokens(1, rollouts, GUIDE_STEPS))
    return _size(reward, lam, candidates, rollouts, GUIDE_STEPS, tables)


def _by_steps(reward: Reward, lam: float, tables: int) -> list[Size]:
    """As many candidates as each budget pays for, two at least, with one rollout each."""
    found = []
    for steps in STEPS:
        affordable = [round(budget / tokens(1, 1, steps)) for budget in BUDGETS]
        found += [_size(reward, lam, number, 1, steps, tables) for number in affordable if number >= 2]
    return found


def _size(reward: Reward, lam: float, candidates: int, rollouts: int, guide_steps: int, tables: int) -> Size:
    laws = (_laws(reward, lam, candidates, rollouts, guide_steps, seed) for seed in range(tables))
    distance = _mean(total_variation(sampled, optimal) for _, optimal, sampled in laws)
    return Size(lam, candidates, rollouts, guide_steps, tokens(candidates, rollouts, guide_steps), distance)


def _tilt(reward: Reward, lam: float, tables: int) -> Tilt:
    rows = []
    for seed in range(tables):
        reference, optimal, sampled = _laws(reward, lam, CANDIDATES, 1, GUIDE_STEPS, seed)
        kl = sum(p * np.log(p / reference[text]) for text, p in optimal.items())
        worth = [_mean_reward(law, reward) for law in (reference, optimal, sampled)]
        far = total_variation(optimal, reference), total_variation(sampled, optimal)
        rows.append((*worth[:2], kl, far[0], worth[2], far[1]))
    return Tilt(lam, *np.mean(rows, axis=0).tolist())


def _laws(
    reward: Reward, lam: float, candidates: int, rollouts: int, guide_steps: int, seed: int
) -> tuple[Law, Law, Law]:
    """p_ref, p* and the sampler's law."""
    oracle = TabularPolicy(3, LENGTH // guide_steps, LENGTH, seed=seed).oracle
    reference = oracle.finish_law(PROBLEM, ())
    sampled = kernel_law(oracle, PROBLEM, reward, lam=lam, candidates=candidates, rollouts=rollouts)
    return reference, optimal_law(reference, reward, lam), sampled


def _best_of(reward: Reward, number: int, seed: int) -> float:
    """The mean of the largest reward among so many plain samples."""
    reference = _reference(seed)
    values = sorted({reward(text) for text in reference})
    below = [sum(p for text, p in reference.items() if reward(text) <= value) ** number for value in values]
    return float(np.dot(values, np.diff([0.0, *below])))


def _spread(reward: Reward, seed: int) -> float:
    """The standard deviation of a plain sample's reward."""
    reference = _reference(seed)
    mean = _mean_reward(reference, reward)
    return _mean_reward(reference, lambda text: (reward(text) - mean) ** 2) ** 0.5


def _reference(seed: int) -> Law:
    return TabularPolicy(3, LENGTH, LENGTH, seed=seed).oracle.finish_law(PROBLEM, ())


def _mean_reward(law: Law, reward: Reward) -> float:
    return sum(p * reward(text) for text, p in law.items())


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
