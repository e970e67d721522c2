"""A masked-diffusion policy given by a table, small enough for the enumeration of all its laws."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ets.randomness import uniform
from ets.step import require_positive
from ets.testing.masked_laws import (
    Bar,
    CanvasPath,
    CanvasSchedule,
    MaskedDiffusionOracle,
    MaskedPathOracle,
    StepLaw,
    TokenCanvas,
    enumerated_step,
    placed,
)
from ets.testing.tabular import pick_rows, total_cost
from ets.types import Cost, Draw, Floats, InputError, Keys, Problem, State, Text
from tests.laws.masked import scores_of

Rows: TypeAlias = NDArray[np.int64]
StepArguments: TypeAlias = tuple[Floats, Floats | None, list[int], int, Bar | None]
"""The arguments of `enumerated_step`."""


@dataclass(frozen=True, eq=False)
class MaskedTabularState:
    problem: Problem
    tokens: TokenCanvas
    path: CanvasPath
    text: str
    logp: float
    done: bool


@dataclass
class TabularMaskedDiffusion:
    """A masked-diffusion model given by a random table of token logits `[L, V]`, one per (prompt, canvas).

    Parameters
    ----------
    vocabulary : int
        Tokens without the mask: 2 to 4. The mask's id is `vocabulary`.
    gen_length, block_length, steps, guide_steps : int
        See `CanvasSchedule`; `gen_length` is at most 4.
    remasking : str
        `low_confidence`, `largest`, `random`, `margin` or `entropy`: see `scores_of`.
    temperature : float
        Divides the logits of the drawn tokens; scores are untempered.
    concentration : float
        The scale of the logits.
    levels : int, optional
        Logits are `concentration` times a whole number below `levels` instead of a standard normal, so that scores tie.
    seed : int
        Of the table.
    """

    vocabulary: int = 2
    gen_length: int = 3
    block_length: int = 3
    steps: int = 3
    guide_steps: int = 3
    remasking: str = "low_confidence"
    temperature: float = 1.0
    concentration: float = 1.0
    levels: int | None = None
    seed: int = 0
    ledger: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature, concentration=self.concentration)
        if not (2 <= self.vocabulary <= 4 and self.gen_length <= 4):
            raise InputError(f"vocabulary {self.vocabulary}, gen_length {self.gen_length}: enumerable up to 4 and 4")
        self.schedule = CanvasSchedule(self.gen_length, self.block_length, self.steps, self.guide_steps)
        scores_of(np.zeros((1, 2)), self.remasking)  # refuses an unknown rule
        self.logits = cache(self._logits)
        self._step_law = cache(lambda *place: enumerated_step(*self.step_arguments(*place)))
        self._states: dict[tuple[str, TokenCanvas, CanvasPath], MaskedTabularState] = {}

    @property
    def mask(self) -> int:
        return self.vocabulary

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least tokens of an open text at each guide boundary, and the most of a complete text."""
        bounds = [0]
        while bounds[-1] < self.gen_length:
            bounds.append(self.schedule.boundary(bounds[-1]))
        return tuple(bounds)

    @property
    def deterministic(self) -> bool:
        return False

    def _logits(self, prompt: str | TokenCanvas, canvas: TokenCanvas) -> Floats:
        name = prompt.encode() if isinstance(prompt, str) else prompt
        rng = np.random.default_rng([self.seed, len(name), *name, 10**6, *canvas])
        shape = (self.gen_length, self.vocabulary)
        drawn = rng.integers(self.levels, size=shape).astype(float) if self.levels else rng.standard_normal(shape)
        return self.concentration * drawn

    def step_arguments(self, prompt: str | TokenCanvas, canvas: TokenCanvas) -> StepArguments:
        """The arguments of `enumerated_step` at a canvas with masks."""
        revealed = self.gen_length - canvas.count(self.mask)
        return self._arguments(canvas, self.logits(prompt, canvas), self.schedule.step(revealed))

    def _arguments(self, canvas: TokenCanvas, logits: Floats, step: int, bar: Bar | None = None) -> StepArguments:
        weights = np.exp(logits / self.temperature)
        block = self.schedule.block(self.gen_length - canvas.count(self.mask))
        masked = [j for j in block if canvas[j] == self.mask]
        p = weights / weights.sum(axis=-1, keepdims=True)
        return p, scores_of(logits, self.remasking), masked, min(self.schedule.quotas[step], len(masked)), bar

    def step_law(self, problem: Problem, canvas: TokenCanvas, path: CanvasPath | None = None) -> StepLaw:
        """The exact law of the denoising step at a canvas, whatever the path; empty for a canvas without masks."""
        return self._step_law(problem.prompt, canvas) if self.mask in canvas else {}

    @cached_property
    def oracle(self) -> MaskedPathOracle:
        """The exact laws, over canvases."""
        return MaskedDiffusionOracle(self.step_law, self.schedule, self.mask)

    def spelled(self, canvas: TokenCanvas) -> str:
        """The text of a canvas: letters, and a dot for a mask before letters."""
        return "".join("·" if token == self.mask else chr(97 + token) for token in canvas).rstrip("·")

    def start(self, problems: Sequence[Problem]) -> list[State]:
        root = (self.mask,) * self.gen_length
        return [self._state(problem, root, (-1,) * self.gen_length, 0.0) for problem in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, "rollout")

    def _draw(self, states: Sequence[Any], keys: Keys, kind: str) -> list[Draw]:
        if any(state.done for state in states):
            raise InputError("a state has ended; draw from open states")
        rows = defaultdict(list)
        for row, state in enumerate(states):
            rows[state].append(row)
        draws: list[Any] = [None] * len(states)
        for start, numbers in rows.items():
            first = self._revealed(start)
            stop = self.schedule.boundary(first) if kind == "candidate" else self.gen_length
            for end, forwards, group in self._denoised(start, np.array(numbers), keys, stop):
                generated, positions = self._revealed(end) - first, {kind: forwards * self.gen_length}
                cost = Cost(generated=generated, row_forwards=forwards, **positions)
                for row in group.tolist():
                    text = Text(end.tokens, end.text, end.logp, end.done)
                    draws[row] = Draw(end, text, end.logp - start.logp, cost)
        self.ledger += total_cost(draws)
        return draws

    def _denoised(
        self, start: MaskedTabularState, rows: Rows, keys: Keys, stop: int
    ) -> Iterator[tuple[MaskedTabularState, int, Rows]]:
        """(state with `stop` revealed tokens at least, denoising steps, rows); rows with equal events stay together."""
        running = [(start, 0, rows)]
        while running:
            here, forwards, group = running.pop()
            if self._revealed(here) >= stop:
                yield here, forwards, group
                continue
            step, law = self.schedule.step_at(here.path), self.step_law(here.problem, here.tokens, here.path)
            picked = pick_rows(np.array(list(law.values())), uniform(keys[group], step))
            for number, ((positions, tokens), p) in enumerate(law.items()):
                if len(chosen := group[picked == number]):
                    canvas = placed(here.tokens, positions, tokens)
                    path = placed(here.path, positions, (step,) * len(positions))
                    after = self._state(here.problem, canvas, path, here.logp + math.log(p))
                    running.append((after, forwards + 1, chosen))

    def _revealed(self, state: MaskedTabularState) -> int:
        return self.gen_length - state.tokens.count(self.mask)

    def _state(self, problem: Problem, canvas: TokenCanvas, path: CanvasPath, logp: float) -> MaskedTabularState:
        place = (problem.id, canvas, path)
        if place not in self._states:
            text, done = self.spelled(canvas), self.mask not in canvas
            self._states[place] = MaskedTabularState(problem, canvas, path, text, logp, done)
        return self._states[place]
