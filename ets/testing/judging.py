"""Whether drawn outcomes follow an exact law, at a stated level."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from ets.testing.laws import Law
from ets.types import Floats


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
    the p-values are exact at any number of draws.
    """
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
    p_g, p_tv = _p_values(np.array(observed), np.array(expected), int(8 / level), seed)
    return Verdict(p_g, p_tv, level, frozenset(outcome for outcome in counts if law.get(outcome, 0.0) <= 0))


def _statistics(counts: Floats, expected: Floats) -> tuple[Floats, Floats]:
    """G and total variation (in draws) of counts `[..., cells]`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        g = 2 * np.sum(np.where(counts > 0, counts * np.log(counts / expected), 0.0), axis=-1)
    return g, 0.5 * np.sum(np.abs(counts - expected), axis=-1)


def _p_values(observed: Floats, expected: Floats, simulations: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    null = rng.multinomial(int(observed.sum()), expected / expected.sum(), size=simulations).astype(float)
    pairs = zip(_statistics(observed.astype(float), expected), _statistics(null, expected), strict=True)
    p_g, p_tv = ((1 + np.sum(simulated >= seen - 1e-9)) / (1 + simulations) for seen, simulated in pairs)
    return float(p_g), float(p_tv)


def check_law(outcomes: Iterable[Hashable], law: Law, *, level: float = 1e-4, what: str = "the draws") -> None:
    """Raise AssertionError if drawn outcomes do not follow an exact law (see `judge_law`)."""
    verdict = judge_law(outcomes, law, level=level)
    assert verdict.passed, f"{what} do not follow the exact law: {verdict}"
