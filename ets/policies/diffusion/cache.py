"""The cache of masked diffusion (Wu et al., Fast-dLLM, arXiv 2505.22618): most steps compute a window of the canvas.

A refresh is a forward pass over the whole canvas, which records the keys and values outside the window. A later step
computes the window alone, and its queries attend to the recorded keys and values too. The law of a step therefore
depends on two canvases, the present canvas and the canvas at the refresh, and differs from the law without a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

CachedLayers: TypeAlias = list[tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]]
"""Of one sequence, layer by layer: `((keys before, keys after), (values before, values after))` of the window.

Each is `[heads, length, head]`; the keys are rotated.
"""


@dataclass(frozen=True, eq=False)
class BlockPrefix:
    """Of a block-causal model: keys and values of the prompt and the finished blocks, a function of their tokens.

    A longer prefix shares the tensors of the shorter one.

    Parameters
    ----------
    parts : tuple of lists of tensors
        Parts of the sequence in order, each a tensor of keys and values `[2, heads, length, head]` for every layer.
    length : int
        Tokens of all parts.
    last : tensor, optional
        `[width]`, the input of the head at the last position, for a model with a shift.
    """

    parts: tuple[list[torch.Tensor], ...] = ()
    length: int = 0
    last: torch.Tensor | None = None

    def extended(self, part: list[torch.Tensor], last: torch.Tensor | None) -> BlockPrefix:
        return BlockPrefix((*self.parts, part), self.length + part[0].shape[2], last)


class Recording:
    """An `Exchange` that records keys and values at a refresh. Rows are cloned, so that no row keeps another alive.

    `windows` holds the first column of each row, the first column of its window, and the column after its window; None
    for a row that is not recorded.
    """

    def __init__(self, windows: Sequence[tuple[int, int, int] | None]) -> None:
        self.windows = windows
        self.cached: list[CachedLayers | None] = [None if window is None else [] for window in windows]

    def __call__(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for row, (window, cached) in enumerate(zip(self.windows, self.cached, strict=True)):
            if window is not None and cached is not None:
                begin, first, last = window
                k, v = ((of[row, :, begin:first].clone(), of[row, :, last:].clone()) for of in (keys, values))
                cached.append((k, v))
        return keys, values


class Recalling:
    """An `Exchange` that puts the keys and values of a window between the recorded keys and values of each row.

    `first` is the first column of the window. The columns before the first token of a row are padding.
    """

    def __init__(self, cached: Sequence[CachedLayers], first: int) -> None:
        self.cached, self.first = cached, first

    def __call__(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = zip(*(cached[layer] for cached in self.cached), strict=True)
        return self._between(keys, k), self._between(values, v)

    def _between(self, window: torch.Tensor, cached: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        rows, heads, columns, width = window.shape
        last = self.first + columns
        whole = window.new_zeros(rows, heads, last + cached[0][1].shape[1], width)  # padding must not be NaN
        whole[:, :, self.first : last] = window
        for row, (before, after) in enumerate(cached):
            whole[row, :, self.first - before.shape[1] : self.first] = before
            whole[row, :, last:] = after
        return whole
