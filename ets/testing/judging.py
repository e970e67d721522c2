"""Whether drawn outcomes follow an exact law, at a stated level."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from ets.testing.laws import Law
from ets.types import Floats, InputError


@dataclass(frozen=True)
class Verdict:
    """p-values of the G-test and of the total-variation test, and the drawn outcomes of probability 0."""

    p_g: float
    p_tv: float
    level: float
    impossible: frozenset[Hashable]

    @property
    def passed(self) -> bool:
        return not self.impossible and min(self.p_g, self.p_tv) >= self.level / 2


def judge_law(outcomes: Iterable[Hashable], law: Law, *, level: float = 1e-4, seed: int = 0) -> Verdict:
    """Whether drawn outcomes follow an exact law, by two statistics, each at half of `level`.

    G detects one wrong cell, total variation a fault spread over many cells. Cells with an expectation below 5 are
    pooled. The statistics are simulated under the law, so the level is exact at any number of draws; p-values above
    0.05 are rough.

    Raises
    ------
    InputError
        If the law does not add up to 1 within 1e-6.
    """
    total = math.fsum(law.values())
    if not abs(total - 1) <= 1e-6:
        raise InputError(f"a law adds up to {total:.9g}; list every outcome, with probabilities that add up to 1")
    counts = Counter(outcomes)
    draws = counts.total()
    kept = [outcome for outcome in sorted(law, key=lambda x: law[x], reverse=True) if law[outcome] * draws >= 5]
    observed, expected = [counts[outcome] for outcome in kept], [law[outcome] * draws for outcome in kept]
    if rare := set(law).difference(kept):
        observed.append(sum(counts[outcome] for outcome in rare))
        expected.append(math.fsum(law[outcome] for outcome in rare) * draws)
    rng, cells = np.random.default_rng(seed), (np.array(observed), np.array(expected))
    p_g, p_tv = _p_values(*cells, 1000, rng)
    if min(p_g, p_tv) <= 0.05:  # only a long simulation can fail a sampler
        p_g, p_tv = _p_values(*cells, int(8 / level), rng)
    return Verdict(p_g, p_tv, level, frozenset(outcome for outcome in counts if law.get(outcome, 0.0) <= 0))


def _statistics(counts: Floats, expected: Floats) -> tuple[Floats, Floats]:
    """G and total variation (in draws) of counts `[..., cells]`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        g = 2 * np.sum(np.where(counts > 0, counts * np.log(counts / expected), 0.0), axis=-1)
    return g, 0.5 * np.sum(np.abs(counts - expected), axis=-1)


def _p_values(observed: Floats, expected: Floats, simulations: int, rng: np.random.Generator) -> tuple[float, float]:
    """p-values of both statistics, simulated under the law."""
    seen, above = _statistics(observed.astype(float), expected), np.zeros(2)
    for begin in range(0, simulations, 10_000):
        size = min(10_000, simulations - begin)
        null = rng.multinomial(int(observed.sum()), expected / expected.sum(), size=size).astype(float)
        above += [np.sum(s >= o - 1e-9) for s, o in zip(_statistics(null, expected), seen, strict=True)]
    p_g, p_tv = ((1 + above) / (1 + simulations)).tolist()
    return p_g, p_tv


def check_law(outcomes: Iterable[Hashable], law: Law, *, level: float = 1e-4, what: str = "the draws") -> None:
    """Raise AssertionError unless drawn outcomes follow an exact law: see `judge_law`."""
    verdict = judge_law(outcomes, law, level=level)
    assert verdict.passed, f"{what} do not follow the exact law: {verdict}"
