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
from torch.nn.functional import pad

CachedLayers: TypeAlias = list[torch.Tensor]
"""Of one sequence, for each layer: keys and values `[2, heads, length, head]` outside the window; keys are rotated."""


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
        both = torch.stack((keys, values))
        for row, (window, cached) in enumerate(zip(self.windows, self.cached, strict=True)):
            if window is not None and cached is not None:
                begin, first, last = window
                cached.append(torch.cat((both[:, row, :, begin:first], both[:, row, :, last:]), 2))
        return keys, values


class Recalling:
    """An `Exchange` that puts the recorded keys and values of each row before those of its window.

    The order of keys does not matter to attention, which adds over them. For example, the keys of a row with 5 cached
    columns, in a batch whose longest row has 7, are 2 columns of padding, the 5 columns, and the window.
    """

    def __init__(self, cached: Sequence[CachedLayers]) -> None:
        self.cached = cached
        self.longest = max(layers[0].shape[2] for layers in cached)

    def __call__(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outside = stacked([layers[layer] for layers in self.cached], self.longest)
        return torch.cat((outside[0], keys), 2), torch.cat((outside[1], values), 2)


def stacked(rows: Sequence[torch.Tensor], longest: int) -> torch.Tensor:
    """Keys and values `[2, R, heads, longest, head]` of R rows, each `[2, heads, length, head]`.

    Shorter rows begin with zeros: attention ignores padding unless it is NaN.
    """
    return torch.stack(
        [pad(row, (0, 0, longest - row.shape[2], 0)) if row.shape[2] < longest else row for row in rows], 1
    )
