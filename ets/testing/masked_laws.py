"""Exact laws of masked diffusion, by enumeration of the draws of a denoising step and of the paths of steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations, product
from typing import Any, TypeAlias

from ets.step import require_counts
from ets.testing.laws import Law
from ets.types import Floats, InputError, Problem

TokenCanvas: TypeAlias = tuple[int, ...]
"""All positions from left to right; masked positions hold the mask id."""
CanvasPath: TypeAlias = tuple[int, ...]
"""The denoising step that revealed each position, -1 where the position is masked."""
Bar: TypeAlias = Callable[[int], float]
"""Parallel decoding: the score that the m-th best draw must reach beyond the quota. It rises with m."""
StepLaw: TypeAlias = Mapping[tuple[tuple[int, ...], tuple[int, ...]], float]
"""Probabilities of a step's events: (revealed positions in ascending order, their tokens)."""


@dataclass(frozen=True)
class CanvasSchedule:
    """Blocks from left to right, with equally many denoising steps each.

    `steps`, of the whole canvas, is a multiple of the number of blocks and of `guide_steps`, at most `gen_length`.
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
        return self.steps * self.block_length // self.gen_length

    @property
    def quotas(self) -> list[int]:
        """Tokens that each step reveals: an even share of its block, the remainder first."""
        share, remainder = divmod(self.block_length, self.steps_per_block)
        return [share + (step % self.steps_per_block < remainder) for step in range(self.steps)]

    def step(self, revealed: int) -> int:
        """The step after the steps that revealed this many tokens."""
        return [0, *accumulate(self.quotas)].index(revealed)

    def step_at(self, path: CanvasPath) -> int:
        """The step after a path; a full block skips the rest of its steps."""
        revealed = sum(step >= 0 for step in path)
        return max(max(path) + 1, revealed // self.block_length * self.steps_per_block)

    def boundary(self, revealed: int) -> int:
        """The least number of revealed tokens at the next guide boundary."""
        each = self.steps // self.guide_steps
        ends = list(accumulate(self.quotas))[each - 1 :: each]
        return next((n for n in ends if n > revealed), self.gen_length)

    def block(self, revealed: int) -> range:
        """The positions of the leftmost block with masks."""
        first = revealed // self.block_length * self.block_length
        return range(first, first + self.block_length)


def enumerated_step(
    p: Floats, scores: Floats | None, masked: Sequence[int], quota: int, bar: Bar | None = None
) -> StepLaw:
    """The law of one denoising step, by enumeration of all draws of all masked positions.

    The step draws v_j ~ p_j for every masked position j, ranks the draws by their scores, equal scores by position, and
    reveals the best `quota` of them. Parallel decoding also reveals the draws that reach the bar.

    Parameters
    ----------
    p, scores : array
        `[L, V]`, the sampled law at each position and the scores of its draws; for a random order scores is None.
    masked : sequence of int
        The masked positions of the active block, ascending.
    quota : int
    bar : callable, optional
    """
    law: defaultdict[Any, float] = defaultdict(float)
    for tokens in product(range(p.shape[1]), repeat=len(masked)):
        drawn = dict(zip(masked, tokens, strict=True))
        if weight := math.prod(float(p[j, v]) for j, v in drawn.items()):
            for positions, share in _winners(scores, drawn, quota, bar):
                law[positions, tuple(drawn[j] for j in positions)] += weight * share
    return dict(law)


def _winners(
    scores: Floats | None, drawn: Mapping[int, int], quota: int, bar: Bar | None
) -> Iterator[tuple[tuple[int, ...], float]]:
    """(revealed positions, their probability given all draws)."""
    if scores is None:
        for positions in combinations(drawn, quota):
            yield positions, 1 / math.comb(len(drawn), quota)
        return
    order = sorted(drawn, key=lambda j: (-scores[j, drawn[j]], j))
    size = quota
    while bar and size < len(order) and scores[order[size], drawn[order[size]]] >= bar(size + 1):
        size += 1
    yield tuple(sorted(order[:size])), 1.0


@dataclass(frozen=True)
class MaskedPathOracle:
    """The exact laws of masked diffusion over paths. Outcomes are (canvas, path).

    Parameters
    ----------
    step_law : callable
        `(problem, canvas, path) -> StepLaw`; empty for a canvas without masks.
    schedule : CanvasSchedule
    mask : int
        The mask id.
    """

    step_law: Callable[[Problem, TokenCanvas, CanvasPath], StepLaw]
    schedule: CanvasSchedule
    mask: int
    _known: dict[Any, StepLaw] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def root(self) -> Any:
        return (self.mask,) * self.schedule.gen_length, (-1,) * self.schedule.gen_length

    @property
    def by_path(self) -> MaskedPathOracle:
        return self

    def outcome(self, state: Any) -> Any:
        return state.tokens, state.path

    def extend_law(self, problem: Problem, outcome: Any) -> Law:
        return self._until(problem, outcome, self.schedule.boundary(self._revealed(outcome)))

    def finish_law(self, problem: Problem, outcome: Any) -> Law:
        return self._until(problem, outcome, self.schedule.gen_length)

    def _until(self, problem: Problem, outcome: Any, end: int) -> Law:
        """The law of the chain of denoising steps from an outcome to at least `end` revealed tokens."""
        law: dict[Any, float] = {outcome: 1.0}
        while running := [node for node in law if self._revealed(node) < end]:
            for node in running:
                p = law.pop(node)
                for after, q in self._step(problem, node):
                    law[after] = law.get(after, 0.0) + p * q
        return law

    def _revealed(self, node: Any) -> int:
        return sum(step >= 0 for step in node[1])

    def _step(self, problem: Problem, node: Any) -> Iterator[tuple[Any, float]]:
        canvas, path = node
        for (positions, tokens), p in self._law(problem, *node).items():
            numbers = (self.schedule.step_at(path),) * len(positions)
            yield (placed(canvas, positions, tokens), placed(path, positions, numbers)), p

    def _law(self, problem: Problem, *node: Any) -> StepLaw:
        place = (problem.prompt, *node)
        if place not in self._known:
            self._known[place] = self.step_law(problem, *node)
        return self._known[place]


@dataclass(frozen=True)
class MaskedDiffusionOracle(MaskedPathOracle):
    """The exact laws over canvases, where `step_law(problem, canvas)` depends on the canvas only (no cache)."""

    step_law: Callable[[Problem, TokenCanvas], StepLaw]  # type: ignore[assignment]

    @property
    def root(self) -> TokenCanvas:
        return (self.mask,) * self.schedule.gen_length

    @property
    def by_path(self) -> MaskedPathOracle:
        """The same laws over paths."""
        return MaskedPathOracle(lambda problem, canvas, _: self._law(problem, canvas), self.schedule, self.mask)

    def outcome(self, state: Any) -> TokenCanvas:
        return state.tokens

    def _revealed(self, node: TokenCanvas) -> int:
        return len(node) - node.count(self.mask)

    def _step(self, problem: Problem, node: TokenCanvas) -> Iterator[tuple[TokenCanvas, float]]:
        return ((placed(node, *event), p) for event, p in self._law(problem, node).items())


def placed(canvas: TokenCanvas, positions: Sequence[int], values: Sequence[int]) -> TokenCanvas:
    """The canvas with new values at some positions."""
    new = dict(zip(positions, values, strict=True))
    return tuple(new.get(i, old) for i, old in enumerate(canvas))
