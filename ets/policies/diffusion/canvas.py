"""The states of masked diffusion, the rows of a draw, and the canvases that rows share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ets.policies.diffusion.cache import BlockPrefix, CachedLayers
from ets.types import Certainty, Cost, Floats, InputError, Keys, Policy, Problem, State

Ints: TypeAlias = NDArray[np.int64]
Cached: TypeAlias = CachedLayers | BlockPrefix
"""Keys and values of the last refresh, or of the prompt and the finished blocks."""

PADDING = 1.125
"""A forward pass takes canvases of which the longest has at most this many times the tokens of the shortest."""


@dataclass(eq=False)
class CanvasMemory:
    """The tensors that a policy has computed for a canvas."""

    owner: Policy
    hidden: torch.Tensor | None = (
        None  # guided inputs of the head at the n positions that the next step draws [n, width]
    )
    cached: Cached | None = None


@dataclass(frozen=True, eq=False)
class CanvasState:
    """A canvas between two denoising steps.

    Tokens and path determine the canvas before every step, the canvas at the last refresh included, so a cache is a
    function of the state. Rows that start from a state share its memory, and so do the states of equal draws.

    Parameters
    ----------
    tokens : tuple of int
        The canvas `[gen_length]`; masked positions hold the mask id.
    path : tuple of int
        The denoising step that revealed each position; -1 for a masked position.
    step : int
        The number of the next denoising step.
    text : str
        Up to the first end token or stop string. A masked position before the last token shows as `·`.
    logp : float
        Natural-log probability of the path: of tokens and positions.
    step_logps : array
        `[steps, 2]`: the log-probability of the tokens that each denoising step revealed, and the position term of the
        step; 0 for a step that was left out.
    certainty : Certainty, optional
        If the policy records certainty.
    """

    problem: Problem
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    path: tuple[int, ...]
    memory: CanvasMemory = field(repr=False)
    step: int = 0
    text: str = ""
    logp: float = 0.0
    done: bool = False
    step_logps: Floats = field(default_factory=lambda: np.zeros((0, 2)), repr=False)
    certainty: Certainty | None = None

    @property
    def owner(self) -> Policy:
        """The policy that drew the state."""
        return self.memory.owner

    @property
    def final_tokens(self) -> tuple[int, ...]:
        """The tokens before the first masked position."""
        return self.tokens[: self.path.index(-1)] if -1 in self.path else self.tokens


class Owned(Protocol):
    """A state that only the policy that drew it can continue."""

    @property
    def owner(self) -> Policy: ...
    @property
    def done(self) -> bool: ...


S = TypeVar("S", bound=Owned)


def open_states(policy: Policy, states: Sequence[State], kind: type[S]) -> list[S]:
    """The states, if all are open states of a policy; another policy may have other weights or settings.

    Raises
    ------
    InputError
        For any other state.
    """
    found: list[Any] = [state for state in states if isinstance(state, kind) and state.owner is policy]
    if len(found) != len(states) or any(state.done for state in found):
        raise InputError("a state is of another policy or has ended; draw from open states of this policy")
    return found


def require_whole_canvas(problem: Problem, length: int) -> None:
    """Raise `InputError` for a problem whose max_length is not that of the canvases, which is part of the law."""
    if problem.max_length not in (None, length):
        raise InputError(
            f"max_length of {problem.called} is {problem.max_length}, and the canvas, which is part of a "
            f"diffusion policy's law, has {length} tokens; leave it out, or set the policy's max_length"
        )


def canvas_before(tokens: Ints, path: Ints, step: int | Ints, mask_id: int) -> Ints:
    """Canvases `[..., gen_length]` as they were before a denoising step."""
    return np.where((path >= 0) & (path < step), tokens, mask_id)


@dataclass(eq=False)
class CanvasRows:
    """R rows of a draw: arrays that the denoising steps change in place."""

    keys: Keys
    prompts: list[tuple[int, ...]]
    prompt_numbers: list[int]  # equal for equal prompts
    tokens: Ints  # [R, gen_length]
    path: Ints  # [R, gen_length]
    step: Ints  # [R]
    step_logps: Floats  # [R, steps, 2]: of tokens, of positions
    costs: Ints  # [R, 3]: positions, row-forwards, vocabulary positions
    cached: list[Cached | None]
    certainty: Floats  # [R, 3]: tokens drawn by this call, sums of entropy and self-certainty; else zeros

    @classmethod
    def of(cls, states: Sequence[CanvasState], keys: Keys, steps: int) -> CanvasRows:
        tokens, path = (np.array([getattr(state, name) for state in states]) for name in ("tokens", "path"))
        step = np.array([state.step for state in states])
        prompts, numbers = [state.prompt for state in states], dict[tuple[int, ...], int]()
        each = [numbers.setdefault(prompt, len(numbers)) for prompt in prompts]
        logps, costs = np.zeros((len(states), steps, 2)), np.zeros((len(states), 3), np.int64)
        for row, state in enumerate(states):
            logps[row, : len(state.step_logps)] = state.step_logps
        cached = [state.memory.cached for state in states]
        return cls(keys, prompts, each, tokens, path, step, logps, costs, cached, np.zeros((len(states), 3)))


@dataclass(eq=False)
class Canvas:
    """A canvas that the model reads once for all rows that share it."""

    prompt: tuple[int, ...]
    tokens: Ints  # [gen_length]
    masked: Ints  # the masked positions whose logits are needed [n]
    memory: CanvasMemory
    window: tuple[int, int] | None = None  # with a cache: the positions that are computed between refreshes
    origin: Ints | None = None  # the canvas at the last refresh, if the next step computes the window alone
    rows: list[int] = field(default_factory=list)
    positions: int = 0  # the cost of the canvas so far, which its first row pays
    row_forwards: int = 0

    def charge(self, positions: int, row_forwards: int) -> None:
        self.positions += positions
        self.row_forwards += row_forwards

    def cost(self, kind: str) -> Cost:
        """The cost of the canvas, with its positions as the given field of `Cost`."""
        counts = {kind: self.positions, "row_forwards": self.row_forwards, "vocabulary": len(self.masked)}
        return Cost(**counts)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def between(self) -> tuple[int, int] | None:
        """The window, if the next step computes the window alone."""
        return None if self.origin is None else self.window


def alike(canvases: Iterable[Canvas]) -> Iterator[list[Canvas]]:
    """Batches for a forward pass: whole canvases, or one window of each, of nearly the same length."""
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
    """Batches for the head: canvases with equally many masked positions."""
    batches: dict[int, list[Canvas]] = {}
    for canvas in canvases:
        batches.setdefault(len(canvas.masked), []).append(canvas)
    return list(batches.values())
