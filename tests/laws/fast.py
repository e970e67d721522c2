"""Fast samplers on tables (a cache's stand-in, parallel decoding), and the weights of their paths at a level.

See `ets.policies.diffusion.levels` for the levels. Here the tables alone give the ratios and the targets, by
enumeration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any

from ets.path_weights import PathRatio
from ets.testing import enumerated_step
from ets.testing.masked_laws import CanvasPath, MaskedPathOracle, StepLaw, TokenCanvas
from ets.types import Cost, Floats, Problem
from tests.laws.masked import canvas_before, parallel_bar
from tests.laws.masked_tabular import StepArguments, TabularMaskedDiffusion

Event = tuple[tuple[int, ...], tuple[int, ...]]
"""The positions that a step revealed, and their tokens."""


@dataclass
class TabularFastDiffusion(TabularMaskedDiffusion):
    """Denoising steps that depend on the path.

    Parameters
    ----------
    threshold, factor : float, optional
        Parallel decoding, for `low_confidence` and `largest`: see `parallel_bar`.
    refresh : int, optional
        A cache's stand-in, refreshed at each block's first step and then after every `refresh` steps: in between,
        logits are the mean of the logits at the canvas and at the canvas of the last refresh.
    """

    threshold: float | None = None
    factor: float | None = None
    refresh: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fast_law = cache(lambda *place: enumerated_step(*self.fast_arguments(*place)))

    def fast_arguments(self, prompt: str | TokenCanvas, canvas: TokenCanvas, path: CanvasPath) -> StepArguments:
        """The arguments of `enumerated_step` at a canvas, after a path."""
        step, bar = self.schedule.step_at(path), parallel_bar(self.threshold, self.factor)
        return self._arguments(canvas, self.fast_logits(prompt, canvas, path), step, bar)

    def fast_logits(self, prompt: str | TokenCanvas, canvas: TokenCanvas, path: CanvasPath) -> Floats:
        """`[L, V]`, after a path."""
        step = self.schedule.step_at(path)
        refreshed = step - step % self.schedule.steps_per_block % self.refresh if self.refresh else step
        origin = canvas_before(canvas, path, refreshed, self.mask)
        return (self.logits(prompt, canvas) + self.logits(prompt, origin)) / 2

    def step_law(self, problem: Problem, canvas: TokenCanvas, path: CanvasPath | None = None) -> StepLaw:
        assert path is not None
        return self._fast_law(problem.prompt, canvas, path) if self.mask in canvas else {}

    @cached_property
    def oracle(self) -> MaskedPathOracle:
        """The exact laws, over paths."""
        return MaskedPathOracle(self.step_law, self.schedule, self.mask)


@dataclass(frozen=True)
class TabularWeigher:
    """Ratios of a fast tabular sampler's paths, at level "1" or "1F"."""

    exact: TabularMaskedDiffusion
    fast: TabularFastDiffusion
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
        known: dict[tuple[int, int], PathRatio] = {}
        rows = [(id(start), id(end)) for start, end in zip(starts, ends, strict=True)]
        for row, start, end in zip(rows, starts, ends, strict=True):
            if row not in known:
                path = (start.tokens, start.path), (end.tokens, end.path)
                known[row] = PathRatio(self.log_ratio(start.problem, *path), Cost())
        return [known[row] for row in rows]

    def log_ratio(
        self, problem: Problem, start: tuple[TokenCanvas, CanvasPath], end: tuple[TokenCanvas, CanvasPath]
    ) -> float:
        """The log-ratio of the path between two (canvas, path), a sum over its denoising steps."""
        total = 0.0
        for canvas, path, event in self._steps(start, end):
            if self.level == "1F":
                wanted = self.exact.step_law(problem, canvas, path).get(event, 0.0)
                drawn = self.fast.step_law(problem, canvas, path)[event]
            else:
                wanted = self._wanted_tokens(problem, canvas, event)
                p, *_ = self.fast.fast_arguments(problem.prompt, canvas, path)
                drawn = math.prod(p[i, v] for i, v in zip(*event, strict=True))
            total += math.log(wanted / drawn) if wanted > 0 else -math.inf
        return total

    def _steps(
        self, start: tuple[TokenCanvas, CanvasPath], end: tuple[TokenCanvas, CanvasPath]
    ) -> Iterator[tuple[TokenCanvas, CanvasPath, Event]]:
        tokens, path = end
        for step in sorted({n for before, n in zip(start[1], path, strict=True) if before < 0 <= n}):
            positions = tuple(i for i, n in enumerate(path) if n == step)
            earlier = tuple(n if 0 <= n < step else -1 for n in path)
            event = positions, tuple(tokens[i] for i in positions)
            yield canvas_before(tokens, path, step, self.fast.mask), earlier, event

    def _wanted_tokens(self, problem: Problem, canvas: TokenCanvas, event: Event) -> float:
        """The exact probability of a step's tokens at its canvas."""
        p, *_ = self.exact.step_arguments(problem.prompt, canvas)
        return math.prod(float(p[i, v]) for i, v in zip(*event, strict=True))

    def _target_law(self, problem: Problem, canvas: TokenCanvas, path: CanvasPath) -> StepLaw:
        """One step of the target: the fast sampler's positions with the exact model's tokens, or the exact step."""
        if self.level == "1F":
            return self.exact.step_law(problem, canvas, path)
        positions: dict[tuple[int, ...], float] = {}
        for (chosen, _), p in self.fast.step_law(problem, canvas, path).items():
            positions[chosen] = positions.get(chosen, 0.0) + p
        return {
            (chosen, tokens): share * self._wanted_tokens(problem, canvas, (chosen, tokens))
            for chosen, share in positions.items()
            for tokens in product(range(self.fast.vocabulary), repeat=len(chosen))
        }
