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
    """What a law test found: p-values of the G-test and of the total-variation test, each at half the level."""

    p_g: float
    p_tv: float
    level: float
    impossible: frozenset[Hashable]

    @property
    def passed(self) -> bool:
        return not self.impossible and min(self.p_g, self.p_tv) >= self.level / 2


def judge_law(outcomes: Iterable[Hashable], law: Law, *, level: float = 1e-4, seed: int = 0) -> Verdict:
    """Whether drawn outcomes follow an exact law.

    Two statistics, each at half the level: G sees one wrong cell, total variation sees a fault spread over
    many. Cells with an expectation below 5 are pooled. Their distributions under the law are simulated, so
    the level is exact at any number of draws; p-values above 0.05 are rough.

    Raises
    ------
    InputError
        If the law does not add up to 1 within 1e-6: a factor in it would cancel, unseen.
    """
    total = math.fsum(law.values())
    if not abs(total - 1) <= 1e-6:
        raise InputError(f"a law adds up to {total:.9g}; list every outcome, with probabilities that add up to 1")
    counts = Counter(outcomes)
    draws = counts.total()
    cells = sorted(law, key=lambda outcome: law[outcome], reverse=True)
    rare = [outcome for outcome in cells if law[outcome] * draws < 5]
    kept = cells[: len(cells) - len(rare)]
    observed = [counts[outcome] for outcome in kept]
    expected = [law[outcome] * draws for outcome in kept]
    if rare:
        observed.append(sum(counts[outcome] for outcome in rare))
        expected.append(sum(law[outcome] for outcome in rare) * draws)
    p_g, p_tv = _p_values(np.array(observed), np.array(expected), level, seed)
    return Verdict(p_g, p_tv, level, frozenset(outcome for outcome in counts if law.get(outcome, 0.0) <= 0))


def _statistics(counts: Floats, expected: Floats) -> tuple[Floats, Floats]:
    """G and total variation (in draws) of counts `[..., cells]`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        g = 2 * np.sum(np.where(counts > 0, counts * np.log(counts / expected), 0.0), axis=-1)
    return g, 0.5 * np.sum(np.abs(counts - expected), axis=-1)


def _p_values(observed: Floats, expected: Floats, level: float, seed: int) -> tuple[float, float]:
    """Of both statistics. Only the long simulation can fail a sampler; most need no more than the short one."""
    rng = np.random.default_rng(seed)
    short = _simulated_p_values(observed, expected, 1000, rng)
    return short if min(short) > 0.05 else _simulated_p_values(observed, expected, int(8 / level), rng)


def _simulated_p_values(
    observed: Floats, expected: Floats, simulations: int, rng: np.random.Generator
) -> tuple[float, float]:
    seen, above = _statistics(observed.astype(float), expected), np.zeros(2)
    for begin in range(0, simulations, 10_000):
        size = min(10_000, simulations - begin)
        null = rng.multinomial(int(observed.sum()), expected / expected.sum(), size=size).astype(float)
        above += [np.sum(s >= o - 1e-9) for s, o in zip(_statistics(null, expected), seen, strict=True)]
    p_g, p_tv = ((1 + above) / (1 + simulations)).tolist()
    return p_g, p_tv


def check_law(outcomes: Iterable[Hashable], law: Law, *, level: float = 1e-4, what: str = "the draws") -> None:
    """Whether drawn outcomes follow an exact law, as `judge_law` finds.

    Raises
    ------
    AssertionError
        If they do not.
    InputError
        If the law does not add up to 1.
    """
    verdict = judge_law(outcomes, law, level=level)
    assert verdict.passed, f"{what} do not follow the exact law: {verdict}"
