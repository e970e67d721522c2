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
from ets.step import require_positive
from ets.testing.masked_laws import (
    Bar,
    Canvas,
    CanvasSchedule,
    MaskedDiffusionOracle,
    MaskedPathOracle,
    Path,
    StepLaw,
    canvas_before,
    closed_form_step,
    parallel_bar,
    position_term,
    scores_of,
)
from ets.testing.tabular import pick_rows
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
        `low_confidence`, `largest`, `random`, `margin` or `entropy`: see `scores_of`.
    temperature : float
        Of the drawn tokens; scores are untempered.
    concentration : float
        The scale of the logits.
    levels : int, optional
        With it, logits are `concentration` times a whole number below `levels` instead of a standard normal, so
        that scores tie.
    seed : int
        Of the table.
    threshold, factor : float, optional
        Parallel decoding, for `low_confidence` and `largest`: see `parallel_bar`.
    refresh : int, optional
        A cache's stand-in, refreshed at each block's first step and then after every so many: in between, logits are
        the mean of those at the canvas and those at the canvas of the last refresh. None is the exact model.
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
    threshold: float | None = None
    factor: float | None = None
    refresh: int | None = None
    ledger: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature, concentration=self.concentration)
        if not (2 <= self.vocabulary <= 4 and self.gen_length <= 4):
            raise InputError(f"vocabulary {self.vocabulary}, gen_length {self.gen_length}: enumerable up to 4 and 4")
        self.schedule = CanvasSchedule(self.gen_length, self.block_length, self.steps, self.guide_steps)
        self.bar = parallel_bar(self.threshold, self.factor)
        self._table = cache(self._row)
        root = (self.mask,) * self.gen_length
        self._table("", root, root, 1)  # so that an unknown rule is named at once
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

    def _row(self, prompt: str | Canvas, canvas: Canvas, origin: Canvas, quota: int) -> _Step:
        revealed = len(canvas) - canvas.count(self.mask)
        logits = (self.logits(prompt, canvas) + self.logits(prompt, origin)) / 2
        weights = np.exp(logits / self.temperature)
        return _Step(
            weights / weights.sum(axis=-1, keepdims=True),
            scores_of(logits, self.remasking),
            [j for j in self.schedule.block(revealed) if canvas[j] == self.mask],
            quota,
            self.bar,
        )

    def last_refresh(self, step: int) -> int:
        """The step at which the whole canvas was read last: this one, without a cache."""
        return step - step % self.schedule.steps_per_block % self.refresh if self.refresh else step

    def token_law(self, problem: Problem, canvas: Canvas, path: Path | None = None) -> Floats:
        """What tokens are drawn from at a canvas `[L, V]`; without a path, by the exact model."""
        origin = canvas
        if path is not None:
            origin = canvas_before(canvas, path, self.last_refresh(self.schedule.step_at(path)), self.mask)
        return self._table(problem.prompt, canvas, origin, 1).p

    def step_law(
        self,
        problem: Problem,
        canvas: Canvas,
        of_step: Callable[..., StepLaw] = closed_form_step,
        path: Path | None = None,
    ) -> StepLaw:
        """The exact law of one denoising step, in closed form or as `of_step` computes it.

        Without a path it is that of the exact model.
        """
        if self.mask not in canvas:
            return {}
        if path is None:
            step = self.schedule.step(len(canvas) - canvas.count(self.mask))
            return of_step(*self._table(problem.prompt, canvas, canvas, self.schedule.quotas[step]))
        step = self.schedule.step_at(path)
        origin = canvas_before(canvas, path, self.last_refresh(step), self.mask)
        return of_step(*self._table(problem.prompt, canvas, origin, self.schedule.quotas[step]))

    def _log_probability(
        self, prompt: str | Canvas, before: Canvas, origin: Canvas, quota: int, after: Canvas
    ) -> float:
        p, scores, masked, quota, bar = self._table(prompt, before, origin, quota)
        revealed = {j: after[j] for j in masked if after[j] != self.mask}
        tokens = sum(math.log(p[j, v]) for j, v in revealed.items())
        return tokens + position_term(p, scores, masked, revealed, quota, bar)

    @cached_property
    def oracle(self) -> MaskedDiffusionOracle | MaskedPathOracle:
        """The exact laws, through the closed form: over canvases, where these tell all that a step depends on."""
        return self.oracle_by(closed_form_step)

    def oracle_by(self, of_step: Callable[..., StepLaw]) -> MaskedDiffusionOracle | MaskedPathOracle:
        """The exact laws, with each step's as `of_step` computes it."""
        if self.refresh or (self.bar and self.steps < self.gen_length):
            return MaskedPathOracle(
                lambda problem, canvas, path: self.step_law(problem, canvas, of_step, path), self.schedule, self.mask
            )
        return MaskedDiffusionOracle(
            lambda problem, canvas: self.step_law(problem, canvas, of_step), self.schedule, self.mask
        )

    def spelled(self, canvas: Canvas) -> str:
        """The text of a canvas: letters, and a dot for a mask that has letters after it."""
        return "".join("·" if token == self.mask else chr(97 + token) for token in canvas).rstrip("·")

    def start(self, problems: Sequence[Problem]) -> list[State]:
        root = (self.mask,) * self.gen_length
        return [self._state(problem, root, (-1,) * self.gen_length, 0.0) for problem in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, "rollout")

    def _draw(self, states: Sequence[Any], keys: Keys, kind: str) -> list[Draw]:
        starts = list({id(state): state for state in states}.values())
        if any(state.done for state in starts):
            raise InputError("a state has ended; draw from open states")
        numbers = {id(state): number for number, state in enumerate(starts)}
        start = np.array([numbers[id(state)] for state in states])
        rows = _Rows(starts, start, np.array([self.schedule.step_at(state.path) for state in starts])[start])
        revealed = (rows.paths >= 0).sum(axis=1)
        ends = np.full(len(states), self.gen_length)
        if kind == "candidate":
            ends = np.array([self.schedule.boundary(n) for n in range(self.gen_length)])[revealed]
        for step in range(self.steps):
            active = np.flatnonzero((rows.steps == step) & ((rows.paths >= 0).sum(axis=1) < ends))
            if len(active):
                self._denoise(rows, active, step, keys[active])
        draws = self._drawn(rows, kind)
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _denoise(self, rows: _Rows, active: Ints, step: int, keys: Keys) -> None:
        """One denoising step of the active rows, all at the same one."""
        paths, quota = rows.paths[active], self.schedule.quotas[step]
        origins = np.where((paths >= 0) & (paths < self.last_refresh(step)), rows.canvases[active], self.mask)
        places, context = _groups(rows.start[active], rows.canvases[active], origins)
        contexts = [
            (
                rows.starts[rows.start[active[n]]].problem.prompt,
                rows.canvas(active[n]),
                tuple(origins[n].tolist()),
                quota,
            )
            for n in places
        ]
        tables = [self._table(*distinct) for distinct in contexts]
        drawn = pick_rows(np.stack([t.p for t in tables])[context], self._uniforms(keys, step))
        winners = self._winners(tables, context, drawn, step, keys)
        rows.canvases[active] = np.where(winners, drawn, rows.canvases[active])
        rows.paths[active] = np.where(winners, step, paths)
        places, event = _groups(context, rows.canvases[active])
        logps = [self._step_logp(*contexts[context[n]], rows.canvas(active[n])) for n in places]
        rows.logps[active] += np.array(logps)[event]
        rows.forwards[active] += 1
        each = self.schedule.steps_per_block
        full = (rows.paths[active] >= 0).sum(axis=1) == (step // each + 1) * self.block_length
        rows.steps[active] = np.where(full, (step // each + 1) * each, step + 1)

    def _uniforms(self, keys: Keys, *fields: int) -> Floats:
        """`[R, L]`, one for each position."""
        return uniform(keys[:, None], *fields, np.arange(self.gen_length))

    def _winners(self, tables: Sequence[_Step], context: Ints, drawn: Ints, step: int, keys: Keys) -> NDArray[np.bool_]:
        """True `[R, L]` at the best draws among the masked positions of the active block."""
        if self.remasking == "random":
            scores = self._uniforms(keys, Purpose.POSITION, step)
        else:
            ranking = np.stack([t.scores for t in tables if t.scores is not None])
            scores = ranking[context[:, None], np.arange(self.gen_length), drawn]
        masked = np.array([np.isin(np.arange(self.gen_length), t.masked) for t in tables])[context]
        scores = np.where(masked, scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")
        ranks = np.argsort(order, axis=1, kind="stable")
        beyond = self.bar or (lambda m: math.inf)
        bars = [-math.inf if m <= self.schedule.quotas[step] else beyond(m) for m in range(1, self.gen_length + 1)]
        count = (np.take_along_axis(scores, order, axis=1) >= np.array(bars)).sum(axis=1)
        return masked & (ranks < count[:, None])

    def _drawn(self, rows: _Rows, kind: str) -> list[Draw]:
        """Only the draws are made row by row."""
        places, group = _groups(rows.start, rows.canvases, rows.paths)
        kinds = []
        for n in places:
            before, path = rows.starts[rows.start[n]], tuple(rows.paths[n].tolist())
            logp, forwards = float(rows.logps[n]), int(rows.forwards[n])
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
    bar: Bar | None


@dataclass
class _Rows:
    """Rows on their way `[R]`: the different states that they start from, which each row has, and its next step."""

    starts: Sequence[MaskedTabularState]
    start: Ints
    steps: Ints

    def __post_init__(self) -> None:
        self.canvases = np.array([state.tokens for state in self.starts])[self.start]
        self.paths = np.array([state.path for state in self.starts])[self.start]
        self.logps = np.zeros(len(self.start))
        self.forwards = np.zeros(len(self.start), np.int64)

    def canvas(self, row: int) -> Canvas:
        return tuple(self.canvases[row].tolist())


def _groups(*columns: Ints) -> tuple[Ints, Ints]:
    """Rows with equal entries: the first row of each group, and each row's group."""
    table = np.column_stack(columns)
    table = table - table.min(axis=0)
    codes = np.ravel_multi_index(tuple(table.T), tuple(table.max(axis=0) + 1))
    _, places, group = np.unique(codes, return_index=True, return_inverse=True)
    return places, group
