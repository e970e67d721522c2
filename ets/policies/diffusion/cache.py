"""A cache for masked diffusion (Wu et al., Fast-dLLM, arXiv 2505.22618): only a window of the canvas is computed anew.

A forward pass over the whole canvas, a refresh, keeps the keys and values outside the window; later steps compute the
window alone and look at what is known beside it. What is known belongs to the canvas at the refresh, so the law of a
step depends on both canvases: it is another law than the exact one, and a law of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class Known:
    """Keys and values of one sequence outside its window, layer by layer.

    Parameters
    ----------
    layers : list
        `((keys before, keys after), (values before, values after))`, each `[heads, length, head]`, keys turned.
    """

    layers: list[tuple[tuple[torch.Tensor, torch.Tensor], ...]] = field(default_factory=list)


class Recording:
    """An `Exchange` that keeps what a refresh computes, for each row apart so that no row keeps another's alive.

    Parameters
    ----------
    windows : sequence of (int, int, int) or None
        Of each row: its first column, the first of the window, and the one after the window's last. None for a row of
        which nothing is kept.
    """

    def __init__(self, windows: Sequence[tuple[int, int, int] | None]) -> None:
        self.windows = windows
        self.known = [window and Known() for window in windows]

    def __call__(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for row, (window, known) in enumerate(zip(self.windows, self.known, strict=True)):
            if window and known:
                begin, first, last = window
                kept = tuple((of[row, :, begin:first].clone(), of[row, :, last:].clone()) for of in (keys, values))
                known.layers.append(kept)
        return keys, values


class Recalling:
    """An `Exchange` that puts a window's keys and values between those that are known.

    Parameters
    ----------
    known : sequence of Known
        Of each row.
    first : int
        The window's first column; columns before a row's first are padding.
    """

    def __init__(self, known: Sequence[Known], first: int) -> None:
        self.known, self.first = known, first

    def __call__(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept = [known.layers[layer] for known in self.known]
        return self._between(keys, [k for k, _ in kept]), self._between(values, [v for _, v in kept])

    def _between(self, window: torch.Tensor, kept: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        rows, heads, columns, width = window.shape
        last = self.first + columns
        whole = window.new_zeros(rows, heads, last + kept[0][1].shape[1], width)  # padding must not be NaN
        whole[:, :, self.first : last] = window
        for row, (before, after) in enumerate(kept):
            whole[row, :, self.first - before.shape[1] : self.first] = before
            whole[row, :, last:] = after
        return whole
