"""Canvases on their way: the states of masked diffusion, the rows of a draw, and what rows share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ets.policies.diffusion.cache import Known
from ets.types import Certainty, Floats, Keys, Policy, Problem

Ints: TypeAlias = NDArray[np.int64]

PADDING = 1.125
"""Rows go through the model together if the longest has at most this many times the tokens of the shortest."""


@dataclass(eq=False)
class Memory:
    """What its owner has computed for a canvas.

    Parameters
    ----------
    owner : Policy
    hidden : tensor, optional
        The head's guided inputs `[n, width]` at the canvas's masked positions.
    known : Known, optional
        With a cache: keys and values of the last refresh.
    """

    owner: Policy
    hidden: torch.Tensor | None = None
    known: Known | None = None


@dataclass(frozen=True, eq=False)
class CanvasState:
    """A canvas on its way.

    Parameters
    ----------
    problem : Problem
    prompt : tuple of int
    tokens : tuple of int
        The canvas `[gen_length]`: the mask id where nothing has been revealed.
    path : tuple of int
        The denoising step that revealed each position; -1 where none has. With the tokens it tells the canvas before
        every step, and so that of the last refresh: what a cache holds is a function of the state.
    memory : Memory
        Shared by the rows that share this state, and by the states of equal draws.
    step : int
        The number of the next denoising step.
    text : str
        Up to the first end token or stop string; a masked position before the last token shows as `·`.
    logp : float
        Natural-log probability of the path: of tokens and positions.
    done : bool
    step_logps : array
        `[steps, 2]`: of each denoising step, the log-probability of the tokens that it revealed, as drawn, and its
        position term; 0 for a step that was not made.
    certainty : Certainty, optional
        Where it is recorded.
    """

    problem: Problem
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    path: tuple[int, ...]
    memory: Memory = field(repr=False)
    step: int = 0
    text: str = ""
    logp: float = 0.0
    done: bool = False
    step_logps: Floats = field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    certainty: Certainty | None = None

    @property
    def revealed(self) -> int:
        return sum(step >= 0 for step in self.path)


def canvas_before(tokens: Ints, path: Ints, step: int | Ints, mask_id: int) -> Ints:
    """Canvases `[..., gen_length]` as they were before a denoising step."""
    return np.where((path >= 0) & (path < step), tokens, mask_id)


@dataclass(eq=False)
class Rows:
    """R rows under way: arrays that the denoising steps change in place."""

    keys: Keys
    prompts: list[tuple[int, ...]]
    prompt_numbers: list[int]  # equal for equal prompts
    tokens: Ints  # [R, gen_length]
    path: Ints  # [R, gen_length]
    step: Ints  # [R]
    step_logps: Floats  # [R, steps, 2]: of tokens, of positions
    costs: Ints  # [R, 3]: positions, row-forwards, vocabulary positions
    known: list[Known | None]  # of the last refresh
    certainty: Floats  # [R, 3]: tokens drawn now, sums of entropy and self-certainty; zeros where not recorded

    @classmethod
    def of(cls, states: Sequence[CanvasState], keys: Keys, steps: int) -> Rows:
        tokens, path = (np.array([getattr(state, name) for state in states]) for name in ("tokens", "path"))
        step = np.array([state.step for state in states])
        prompts, numbers = [state.prompt for state in states], dict[tuple[int, ...], int]()
        each = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
        logps, costs = np.zeros((len(states), steps, 2)), np.zeros((len(states), 3), np.int64)
        for row, state in enumerate(states):
            logps[row, : len(state.step_logps)] = state.step_logps
        known = [state.memory.known for state in states]
        return cls(keys, prompts, each, tokens, path, step, logps, costs, known, np.zeros((len(states), 3)))


@dataclass(eq=False)
class Canvas:
    """What some rows share: a prompt and a canvas, and the positions that are read.

    Parameters
    ----------
    prompt : tuple of int
    tokens : array
        `[gen_length]`.
    masked : array
        The positions that are read: of a draw, the masked ones of the active block.
    memory : Memory
    window : (int, int), optional
        With a cache: the positions that are computed between refreshes.
    origin : array, optional
        The canvas at the last refresh, where that is past: then only the window is computed.
    rows : list of int
    positions, row_forwards : int
        What has been computed for it, to be charged to the first of its rows.
    """

    prompt: tuple[int, ...]
    tokens: Ints
    masked: Ints
    memory: Memory
    window: tuple[int, int] | None = None
    origin: Ints | None = None
    rows: list[int] = field(default_factory=list)
    positions: int = 0
    row_forwards: int = 0

    def charge(self, positions: int, row_forwards: int) -> None:
        self.positions += positions
        self.row_forwards += row_forwards

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def columns(self) -> int:
        """How many positions a forward pass computes, without guidance."""
        return self.length if self.between is None else self.between[1] - self.between[0]

    @property
    def between(self) -> tuple[int, int] | None:
        """The window, where it alone is computed."""
        return None if self.origin is None else self.window


def alike(canvases: Iterable[Canvas]) -> Iterator[list[Canvas]]:
    """Batches for a forward pass: whole canvases, or one window of them, and of nearly the same length."""
    batch: list[Canvas] = []
    for canvas in sorted(canvases, key=lambda canvas: (canvas.between or (-1, -1), canvas.length)):
        shortest = batch[0] if batch else canvas
        if canvas.between != shortest.between or canvas.length > PADDING * shortest.length:
            yield batch
            batch = []
        batch.append(canvas)
    if batch:
        yield batch


def equally_masked(canvases: Iterable[Canvas]) -> list[list[Canvas]]:
    """Batches of canvases of which equally many positions are read."""
    batches: dict[int, list[Canvas]] = {}
    for canvas in canvases:
        batches.setdefault(len(canvas.masked), []).append(canvas)
    return list(batches.values())
