"""Exact laws of masked diffusion: one denoising step in closed form and by enumeration, and paths of them.

A step at a canvas draws v_j ~ p_j for every masked position of the active block, ranks the draws by a score, and
reveals the best `quota` of them, and more where decoding is parallel; ties go to the lower position. Nothing here uses
a policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations, permutations, product
from typing import Any, TypeAlias

import numpy as np

from ets.step import require_counts
from ets.testing.laws import Law
from ets.types import Floats, InputError, Problem

Canvas: TypeAlias = tuple[int, ...]
"""All positions from left to right, the mask id where nothing has been revealed."""
Path: TypeAlias = tuple[int, ...]
"""The denoising step at which each position was revealed, -1 where it is masked."""
Bar: TypeAlias = Callable[[int], float]
"""Parallel decoding: what the m-th best score must reach to be revealed beyond the quota; it rises with m."""
StepLaw: TypeAlias = Mapping[tuple[tuple[int, ...], tuple[int, ...]], float]
"""Probabilities of what one step reveals: by (positions in ascending order, their tokens)."""


@dataclass(frozen=True)
class CanvasSchedule:
    """Which denoising step comes at a canvas: blocks from left to right, in equally many steps each.

    Parameters
    ----------
    gen_length, block_length : int
    steps : int
        Denoising steps in all: a multiple of the blocks, at most `gen_length`.
    guide_steps : int
        A divisor of `steps`.
    """

    gen_length: int
    block_length: int
    steps: int
    guide_steps: int

    def __post_init__(self) -> None:
        require_counts(**vars(self))
        blocks, rest = divmod(self.gen_length, self.block_length)
        if rest or self.steps % blocks or self.steps > self.gen_length or self.steps % self.guide_steps:
            raise InputError(f"the numbers of {self} do not fit each other; each must divide into even parts")

    @property
    def steps_per_block(self) -> int:
        return self.steps // (self.gen_length // self.block_length)

    @property
    def quotas(self) -> list[int]:
        """Tokens that each step reveals: an even share of its block, the remainder first."""
        blocks = self.gen_length // self.block_length
        share, remainder = divmod(self.block_length, self.steps_per_block)
        return [share + (step < remainder) for step in range(self.steps_per_block)] * blocks

    def step(self, revealed: int) -> int:
        """The step that comes when so many tokens have been revealed."""
        return [0, *accumulate(self.quotas)].index(revealed)

    def step_at(self, path: Path) -> int:
        """The step that comes after a path: a block that is full leaves out the rest of its steps."""
        full_blocks = sum(step >= 0 for step in path) // self.block_length
        return max(max(path) + 1, full_blocks * self.steps_per_block)

    def boundary(self, revealed: int) -> int:
        """How many tokens are revealed, at least, at the next guide boundary."""
        each = self.steps // self.guide_steps
        return next(n for n in list(accumulate(self.quotas))[each - 1 :: each] if n > revealed)

    def block(self, revealed: int) -> range:
        """The positions of the active block: the leftmost with masks."""
        first = revealed // self.block_length * self.block_length
        return range(first, first + self.block_length)


def scores_of(logits: Floats, remasking: str) -> Floats | None:
    """How a rule ranks a draw v at a position, of the untempered softmax q: `[L, V]`; None for a random order.

    `low_confidence` log q(v), `largest` the largest of them, `margin` the two largest q, subtracted, and `entropy`
    Σ q log q, the last three whatever was drawn. Rounded to 12 digits, so that what is equal in mathematics ties
    whatever the order of summation.
    """
    log_q = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    match remasking:
        case "low_confidence":
            scores = log_q
        case "largest":
            scores = log_q.max(axis=-1, keepdims=True)
        case "margin":
            ranked = np.sort(np.exp(log_q), axis=-1)
            scores = ranked[:, -1:] - ranked[:, -2:-1]
        case "entropy":
            scores = (np.exp(log_q) * log_q).sum(axis=-1, keepdims=True)
        case "random":
            return None
        case _:
            raise InputError(
                f"unknown remasking {remasking!r}; choose low_confidence, largest, random, margin or entropy"
            )
    return np.broadcast_to(np.round(scores, 12), logits.shape)


def parallel_bar(threshold: float | None = None, factor: float | None = None) -> Bar | None:
    """The bars of a threshold, log τ, or of the factor rule, log(1 - f / (m + 1)), for scores log q; else None."""
    if threshold is not None:
        return lambda m: round(math.log(threshold), 12)
    if factor is not None:
        return lambda m: round(math.log(1 - factor / (m + 1)), 12) if factor < m + 1 else -math.inf
    return None


def position_term(
    p: Floats,
    scores: Floats | None,
    masked: Sequence[int],
    revealed: Mapping[int, int],
    quota: int | None = None,
    bar: Bar | None = None,
) -> float:
    """The log-probability that just the positions S of `revealed` win, given their tokens.

    Σ over the other masked positions j of log F_j, the probability that the draw at j loses: it scores below the
    lowest of S, or as high as it, after the last of S that does; and below the bar that it would have to reach. It is
    0 or -inf where scores do not depend on the draw, and -log C(n, k) for a random order.

    Parameters
    ----------
    p, scores : array
        `[L, V]`, the sampled law at each position and the scores of its draws.
    masked : sequence of int
        The masked positions of the active block.
    revealed : mapping
        Tokens by position.
    quota, bar : int, callable, optional
        Where decoding is parallel.
    """
    if scores is None:
        return -math.log(math.comb(len(masked), len(revealed)))
    ranked = sorted((scores[i, v] for i, v in revealed.items()), reverse=True)
    if bar and any(score < bar(m) for m, score in enumerate(ranked, start=1) if m > (quota or 1)):
        return -math.inf
    lowest = ranked[-1]
    last = max(i for i, v in revealed.items() if scores[i, v] == lowest)
    missed = bar(len(revealed) + 1) if bar else math.inf
    total = 0.0
    for j in masked:
        if j not in revealed:
            loses = [score < missed and (score < lowest or (score == lowest and j > last)) for score in scores[j]]
            lost = float(p[j][loses].sum())
            total += math.log(lost) if lost > 0 else -math.inf
    return total


def closed_form_step(
    p: Floats, scores: Floats | None, masked: Sequence[int], quota: int, bar: Bar | None = None
) -> StepLaw:
    """The law of one step: Π p_i(v_i) over what is revealed, times the position term (arguments: there)."""
    law, quota = {}, min(quota, len(masked))
    for size in range(quota, (len(masked) if bar else quota) + 1):
        for positions, tokens in product(combinations(masked, size), product(range(p.shape[1]), repeat=size)):
            if drawn := math.prod(p[positions, tokens].tolist()):
                revealed = dict(zip(positions, tokens, strict=True))
                if (term := position_term(p, scores, masked, revealed, quota, bar)) > -math.inf:
                    law[positions, tokens] = drawn * math.exp(term)
    return law


def enumerated_step(
    p: Floats, scores: Floats | None, masked: Sequence[int], quota: int, bar: Bar | None = None
) -> StepLaw:
    """The same law by brute force: every draw of all masked positions, ranked as the rule says."""
    law: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
    for tokens in product(range(p.shape[1]), repeat=len(masked)):
        drawn = dict(zip(masked, tokens, strict=True))
        weight = math.prod(float(p[j, v]) for j, v in drawn.items())
        for order, share in _orders(scores, drawn):
            size = quota
            while bar and scores is not None and size < len(order):
                if scores[order[size], drawn[order[size]]] < bar(size + 1):
                    break
                size += 1
            positions = tuple(sorted(order[:size]))
            event = positions, tuple(drawn[j] for j in positions)
            law[event] = law.get(event, 0.0) + weight * share
    return {event: probability for event, probability in law.items() if probability > 0}


def _orders(scores: Floats | None, drawn: Mapping[int, int]) -> Iterator[tuple[Sequence[int], float]]:
    """The orders in which a rule may rank the draws, best first, with their probabilities."""
    if scores is None:
        for order in permutations(drawn):
            yield order, 1 / math.factorial(len(drawn))
    else:
        yield sorted(drawn, key=lambda j: (-scores[j, drawn[j]], j)), 1.0


@dataclass(frozen=True)
class MaskedDiffusionOracle:
    """The exact laws of masked diffusion, by dynamic programming over canvases. Outcomes are canvases.

    Parameters
    ----------
    step_law : callable
        `(problem, canvas) -> StepLaw`; empty for a canvas that has ended. Asked once per (prompt, canvas).
    schedule : CanvasSchedule
    mask : int
        The mask id.
    """

    step_law: Callable[[Problem, Canvas], StepLaw]
    schedule: CanvasSchedule
    mask: int
    _known: dict[Any, StepLaw] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def root(self) -> Canvas:
        return (self.mask,) * self.schedule.gen_length

    @property
    def by_path(self) -> MaskedPathOracle:
        """The same laws over paths."""
        return MaskedPathOracle(lambda problem, canvas, _: self._step_law(problem, canvas), self.schedule, self.mask)

    def outcome(self, state: Any) -> Canvas:
        return state.tokens

    def extend_law(self, problem: Problem, outcome: Canvas) -> Law:
        """One guide step from a canvas."""
        return self._until(problem, outcome, _boundary(self.schedule, self._revealed(outcome)))

    def finish_law(self, problem: Problem, outcome: Canvas) -> Law:
        """From a canvas to the end."""
        return self._until(problem, outcome, self.schedule.gen_length)

    def _revealed(self, canvas: Canvas) -> int:
        return len(canvas) - canvas.count(self.mask)

    def _until(self, problem: Problem, outcome: Canvas, end: int) -> Law:
        return _after(
            lambda canvas: {_placed(canvas, *event): p for event, p in self._step_law(problem, canvas).items()},
            outcome,
            lambda canvas: self._revealed(canvas) >= end,
        )

    def _step_law(self, problem: Problem, canvas: Canvas) -> StepLaw:
        place = (problem.prompt, canvas)
        if place not in self._known:
            self._known[place] = self.step_law(problem, canvas)
        return self._known[place]


@dataclass(frozen=True)
class MaskedPathOracle:
    """The exact laws of masked diffusion over whole paths. Outcomes are (canvas, path).

    With a cache, or where a quota above 1 is a least number, a step depends on more than the canvas: these are then the
    only laws.

    Parameters
    ----------
    step_law : callable
        `(problem, canvas, path) -> StepLaw`. Asked once per (prompt, canvas, path).
    schedule : CanvasSchedule
    mask : int
    """

    step_law: Callable[[Problem, Canvas, Path], StepLaw]
    schedule: CanvasSchedule
    mask: int
    _known: dict[Any, StepLaw] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def root(self) -> tuple[Canvas, Path]:
        length = self.schedule.gen_length
        return (self.mask,) * length, (-1,) * length

    @property
    def by_path(self) -> MaskedPathOracle:
        return self

    def outcome(self, state: Any) -> tuple[Canvas, Path]:
        return state.tokens, state.path

    def extend_law(self, problem: Problem, outcome: tuple[Canvas, Path]) -> Law:
        return self._until(problem, outcome, _boundary(self.schedule, _revealed(outcome)))

    def finish_law(self, problem: Problem, outcome: tuple[Canvas, Path]) -> Law:
        return self._until(problem, outcome, self.schedule.gen_length)

    def _until(self, problem: Problem, outcome: tuple[Canvas, Path], end: int) -> Law:
        return _after(lambda node: self._step(problem, *node), outcome, lambda node: _revealed(node) >= end)

    def _step(self, problem: Problem, canvas: Canvas, path: Path) -> Law:
        place, law = (problem.prompt, canvas, path), {}
        if place not in self._known:
            self._known[place] = self.step_law(problem, canvas, path)
        for (positions, tokens), p in self._known[place].items():
            numbers = (self.schedule.step_at(path),) * len(positions)
            law[_placed(canvas, positions, tokens), _placed(path, positions, numbers)] = p
        return law


def _revealed(node: tuple[Canvas, Path]) -> int:
    return sum(step >= 0 for step in node[1])


def _boundary(schedule: CanvasSchedule, revealed: int) -> int:
    return schedule.boundary(revealed) if revealed < schedule.gen_length else revealed


def canvas_before(canvas: Canvas, path: Path, step: int, mask: int) -> Canvas:
    """A canvas as it was before a step of its path."""
    return tuple(token if 0 <= at < step else mask for token, at in zip(canvas, path, strict=True))


def _placed(canvas: Canvas, positions: Sequence[int], values: Sequence[int]) -> Canvas:
    new = dict(zip(positions, values, strict=True))
    return tuple(new.get(i, old) for i, old in enumerate(canvas))


def _after(step: Callable[[Any], Law], node: Any, ended: Callable[[Any], bool]) -> Law:
    """The law of a Markov chain that begins at a node, where it has ended."""
    law: dict[Any, float] = {node: 1.0}
    while under_way := [node for node in law if not ended(node)]:
        for here in under_way:
            p = law.pop(here)
            for there, q in step(here).items():
                law[there] = law.get(there, 0.0) + p * q
    return law
