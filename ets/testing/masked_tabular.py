"""A masked-diffusion policy given by a table, so small that everything about it can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ets.randomness import Purpose, uniform
from ets.testing.masked_laws import (
    Canvas,
    CanvasSchedule,
    MaskedDiffusionOracle,
    Path,
    StepLaw,
    closed_form_step,
    position_term,
    scores_of,
)
from ets.testing.tabular import pick_rows
from ets.transition import require_positive
from ets.types import Cost, Draw, Floats, InputError, Keys, Problem, State, Text

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class MaskedTabularState:
    problem: Problem
    tokens: Canvas
    path: Path
    text: str
    logp: float
    done: bool


@dataclass
class TabularMaskedDiffusion:
    """A masked-diffusion model given by a random table of token logits `[L, V]`, one per (prompt, canvas).

    It samples as the definition says, token by token; the probabilities that it records are the closed form's.

    Parameters
    ----------
    vocabulary : int
        Tokens: 2 to 4. The mask's id is `vocabulary`; it is never drawn.
    gen_length, block_length, steps, guide_steps : int
        See `CanvasSchedule`; `gen_length` is at most 4.
    remasking : str
        `low_confidence`, `random`, `margin` or `entropy`: see `scores_of`.
    temperature : float
        Of the drawn tokens; scores are untempered.
    concentration : float
        The scale of the logits.
    levels : int, optional
        With it, logits are `concentration` times a whole number below `levels` instead of a standard normal, so
        that scores tie.
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
        self._table = cache(self._row)
        self._table("", (self.mask,) * self.gen_length)  # so that an unknown rule is named at once
        self._step_logp = cache(self._log_probability)
        self._states: dict[tuple[str, Canvas, Path], MaskedTabularState] = {}

    @property
    def mask(self) -> int:
        return self.vocabulary

    @property
    def deterministic(self) -> bool:
        return False

    def logits(self, prompt: str | Canvas, canvas: Canvas) -> Floats:
        """`[L, V]`, whatever the rule and the temperature."""
        name = prompt.encode() if isinstance(prompt, str) else prompt
        rng = np.random.default_rng([self.seed, len(name), *name, 10**6, *canvas])
        shape = (self.gen_length, self.vocabulary)
        drawn = rng.integers(self.levels, size=shape).astype(float) if self.levels else rng.standard_normal(shape)
        return self.concentration * drawn

    def _row(self, prompt: str | Canvas, canvas: Canvas) -> _Step:
        revealed = len(canvas) - canvas.count(self.mask)
        logits = self.logits(prompt, canvas)
        weights = np.exp(logits / self.temperature)
        return _Step(
            weights / weights.sum(axis=-1, keepdims=True),
            scores_of(logits, self.remasking),
            [j for j in self.schedule.block(revealed) if canvas[j] == self.mask],
            self.schedule.quotas[self.schedule.step(revealed)],
        )

    def step_law(self, problem: Problem, canvas: Canvas, of_step: Callable[..., StepLaw] = closed_form_step) -> StepLaw:
        """The exact law of one denoising step, in closed form or as `of_step` computes it."""
        return of_step(*self._table(problem.prompt, canvas)) if self.mask in canvas else {}

    def _log_probability(self, prompt: str | Canvas, before: Canvas, after: Canvas) -> float:
        p, scores, masked, _ = self._table(prompt, before)
        revealed = {j: after[j] for j in masked if after[j] != self.mask}
        tokens = sum(math.log(p[j, v]) for j, v in revealed.items())
        return tokens + position_term(p, scores, masked, revealed)

    @cached_property
    def oracle(self) -> MaskedDiffusionOracle:
        """The exact laws, through the closed form."""
        return MaskedDiffusionOracle(self.step_law, self.schedule, self.mask)

    def spelled(self, canvas: Canvas) -> str:
        """The text of a canvas: letters, and a dot for a mask that has letters after it."""
        return "".join("·" if token == self.mask else chr(97 + token) for token in canvas).rstrip("·")

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [self._state(problem, self.oracle.root, (-1,) * self.gen_length, 0.0) for problem in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, "rollout")

    def _draw(self, states: Sequence[Any], keys: Keys, kind: str) -> list[Draw]:
        starts = list({id(state): state for state in states}.values())
        if any(state.done for state in starts):
            raise InputError("a state has ended; draw from open states")
        numbers = {id(state): number for number, state in enumerate(starts)}
        rows = _Rows(starts, np.array([numbers[id(state)] for state in states]))
        first = np.array([self.oracle.step_index(state.tokens) for state in starts])
        last = first + [self.oracle.steps_ahead(state.tokens) for state in starts]
        if kind == "rollout":
            last[:] = self.steps
        for step in range(int(first.min()), int(last.max())):
            active = np.flatnonzero(((first <= step) & (step < last))[rows.start])
            if len(active):
                self._denoise(rows, active, step, keys[active])
        steps = int((last - first)[rows.start].sum())
        generated = int((rows.paths >= first[rows.start][:, None]).sum())
        self.ledger += Cost(generated=generated, row_forwards=steps, **{kind: steps * self.gen_length})
        return self._drawn(rows, last - first, kind)

    def _denoise(self, rows: _Rows, active: Ints, step: int, keys: Keys) -> None:
        """One denoising step of the active rows, all at the same one."""
        places, context = _groups(rows.start[active], rows.canvases[active])
        contexts = [(rows.starts[rows.start[n]].problem.prompt, rows.canvas(n)) for n in active[places]]
        tables = [self._table(*distinct) for distinct in contexts]
        drawn = pick_rows(np.stack([t.p for t in tables])[context], self._uniforms(keys, step))
        winners = self._winners(tables, context, drawn, step, keys)
        rows.canvases[active[:, None], winners] = np.take_along_axis(drawn, winners, axis=1)
        rows.paths[active[:, None], winners] = step
        places, event = _groups(context, rows.canvases[active])
        logps = [self._step_logp(*contexts[context[n]], rows.canvas(active[n])) for n in places]
        rows.logps[active] += np.array(logps)[event]

    def _uniforms(self, keys: Keys, *fields: int) -> Floats:
        """`[R, L]`, one for each position."""
        return uniform(keys[:, None], *fields, np.arange(self.gen_length))

    def _winners(self, tables: Sequence[_Step], context: Ints, drawn: Ints, step: int, keys: Keys) -> Ints:
        """The positions `[R, quota]` of the best draws among the masked ones of the active block."""
        if self.remasking == "random":
            scores = self._uniforms(keys, Purpose.POSITION, step)
        else:
            ranking = np.stack([t.scores for t in tables if t.scores is not None])
            scores = ranking[context[:, None], np.arange(self.gen_length), drawn]
        masked = np.array([np.isin(np.arange(self.gen_length), t.masked) for t in tables])
        order = np.argsort(np.where(masked[context], -scores, np.inf), axis=1, kind="stable")
        return order[:, : self.schedule.quotas[step]]

    def _drawn(self, rows: _Rows, steps: Ints, kind: str) -> list[Draw]:
        """Only the draws are made row by row."""
        places, group = _groups(rows.start, rows.canvases, rows.paths)
        kinds = []
        for n in places:
            before, path = rows.starts[rows.start[n]], tuple(rows.paths[n].tolist())
            logp, forwards = float(rows.logps[n]), int(steps[rows.start[n]])
            state = self._state(before.problem, rows.canvas(n), path, before.logp + logp)
            generated = before.tokens.count(self.mask) - state.tokens.count(self.mask)
            cost = Cost(generated=generated, row_forwards=forwards, **{kind: forwards * self.gen_length})
            kinds.append((state, (state.tokens, state.text, before.logp + logp, state.done), logp, cost))
        return [Draw(state, Text(*text), logp, cost) for state, text, logp, cost in (kinds[g] for g in group.tolist())]

    def _state(self, problem: Problem, canvas: Canvas, path: Path, logp: float) -> MaskedTabularState:
        place = (problem.id, canvas, path)
        if place not in self._states:
            text, done = self.spelled(canvas), self.mask not in canvas
            self._states[place] = MaskedTabularState(problem, canvas, path, text, logp, done)
        return self._states[place]


class _Step(NamedTuple):
    """What decides a denoising step: the arguments of `closed_form_step`."""

    p: Floats
    scores: Floats | None
    masked: Sequence[int]
    quota: int


@dataclass
class _Rows:
    """Rows on their way `[R]`: the different states that they start from, and which of them each row has."""

    starts: Sequence[MaskedTabularState]
    start: Ints

    def __post_init__(self) -> None:
        self.canvases = np.array([state.tokens for state in self.starts])[self.start]
        self.paths = np.array([state.path for state in self.starts])[self.start]
        self.logps = np.zeros(len(self.start))

    def canvas(self, row: int) -> Canvas:
        return tuple(self.canvases[row].tolist())


def _groups(*columns: Ints) -> tuple[Ints, Ints]:
    """Rows with equal entries: the first row of each group, and each row's group."""
    table = np.column_stack(columns)
    table = table - table.min(axis=0)
    codes = np.ravel_multi_index(tuple(table.T), tuple(table.max(axis=0) + 1))
    _, places, group = np.unique(codes, return_index=True, return_inverse=True)
    return places, group
