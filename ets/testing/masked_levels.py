"""Levels of weights between two tabular masked-diffusion samplers: their ratios, and their targets by enumeration.

See `ets.policies.diffusion.levels` for what the levels are; here they are computed from the tables alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ets.path_weights import PathRatio
from ets.testing.masked_laws import Canvas, MaskedPathOracle, Path, StepLaw, canvas_before
from ets.testing.masked_tabular import TabularMaskedDiffusion
from ets.types import Cost, Problem

Event = tuple[tuple[int, ...], tuple[int, ...]]
"""The positions that a step revealed, and their tokens."""


@dataclass(frozen=True)
class TabularWeigher:
    """Ratios of a fast tabular sampler's paths, at level "1" or "1F"."""

    exact: TabularMaskedDiffusion
    fast: TabularMaskedDiffusion
    level: str

    @property
    def target(self) -> str:
        return f"level {self.level}"

    @property
    def ledger(self) -> Cost:
        return Cost()

    @property
    def oracle(self) -> MaskedPathOracle:
        """The exact laws of the target, over paths."""
        return MaskedPathOracle(self._target_law, self.fast.schedule, self.fast.mask)

    def ratios(self, starts: Sequence[Any], ends: Sequence[Any]) -> list[PathRatio]:
        known = {
            (id(start), id(end)): self.log_ratio(start.problem, (start.tokens, start.path), (end.tokens, end.path))
            for start, end in zip(starts, ends, strict=True)
        }
        return [PathRatio(known[id(start), id(end)], Cost()) for start, end in zip(starts, ends, strict=True)]

    def log_ratio(self, problem: Problem, start: tuple[Canvas, Path], end: tuple[Canvas, Path]) -> float:
        """Of the path from one (canvas, path) to a later one: of each step, the two sides' laws of what it did."""
        total = 0.0
        for canvas, path, event in self._steps(start, end):
            if self.level == "1F":
                wanted, drawn = (
                    self.exact.step_law(problem, canvas).get(event, 0.0),
                    self.fast.step_law(problem, canvas, path=path)[event],
                )
            else:
                wanted = self._wanted_tokens(problem, canvas, event)
                drawn = math.prod(self.fast.token_law(problem, canvas, path)[i, v] for i, v in zip(*event, strict=True))
            total += math.log(wanted / drawn) if wanted > 0 else -math.inf
        return total

    def _steps(self, start: tuple[Canvas, Path], end: tuple[Canvas, Path]) -> Iterator[tuple[Canvas, Path, Event]]:
        tokens, path = end
        for step in sorted({n for before, n in zip(start[1], path, strict=True) if before < 0 <= n}):
            positions = tuple(i for i, n in enumerate(path) if n == step)
            earlier = tuple(n if 0 <= n < step else -1 for n in path)
            event = positions, tuple(tokens[i] for i in positions)
            yield canvas_before(tokens, path, step, self.fast.mask), earlier, event

    def _wanted_tokens(self, problem: Problem, canvas: Canvas, event: Event) -> float:
        """The exact probability of a step's tokens at its canvas."""
        law = self.exact.token_law(problem, canvas)
        return math.prod(float(law[i, v]) for i, v in zip(*event, strict=True))

    def _target_law(self, problem: Problem, canvas: Canvas, path: Path) -> StepLaw:
        """One step of the target: the fast sampler's positions with the exact model's tokens, or the exact step."""
        if self.level == "1F":
            return self.exact.step_law(problem, canvas)
        positions: dict[tuple[int, ...], float] = {}
        for (chosen, _), p in self.fast.step_law(problem, canvas, path=path).items():
            positions[chosen] = positions.get(chosen, 0.0) + p
        return {
            (chosen, tokens): share * self._wanted_tokens(problem, canvas, (chosen, tokens))
            for chosen, share in positions.items()
            for tokens in product(range(self.fast.vocabulary), repeat=len(chosen))
        }
