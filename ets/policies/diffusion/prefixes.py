"""Keys and values of the tokens before a canvas, computed once for all rows that share them.

A prefix is a prompt, or a finished canvas after another prefix. For example, two rows that share their first canvas and
differ in the second refer to three prefixes: the prompt, the first canvas, and one second canvas each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

KeysValues: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Keys and values `[heads, columns, width]` of one layer."""


@dataclass(eq=False)
class CanvasPrefix:
    """A prompt, or a canvas after another prefix.

    Parameters
    ----------
    tokens : tuple of int
        The tokens of this part alone.
    before : CanvasPrefix, optional
    layers : list of KeysValues, optional
        Of this part alone, by layer; None until the encoder has read the part. A sliding layer keeps its window.
    """

    tokens: tuple[int, ...]
    before: CanvasPrefix | None = None
    layers: list[KeysValues] | None = None
    _following: WeakValueDictionary[tuple[int, ...], CanvasPrefix] = field(
        default_factory=WeakValueDictionary, repr=False
    )

    def followed_by(self, tokens: tuple[int, ...]) -> CanvasPrefix:
        """This prefix and a canvas after it: the same object for all rows, as long as a row refers to it."""
        found = self._following.get(tokens)
        if found is None:
            self._following[tokens] = found = CanvasPrefix(tokens, self)
        return found

    def parts(self) -> list[CanvasPrefix]:
        """All parts, from the prompt to this one."""
        return [*(self.before.parts() if self.before else ()), self]

    @property
    def length(self) -> int:
        """Tokens of all parts."""
        return sum(len(part.tokens) for part in self.parts())


class _PrefixLayer(CacheLayerMixin):
    """One layer of the prefixes of R rows. The decoder reads `keys` and `values`, the encoder appends by `update`."""

    def __init__(self, number: int, window: int | None, depths: Sequence[Sequence[CanvasPrefix]], length: int) -> None:
        self.number, self.window, self.depths, self.length = number, window, depths, length
        self.is_sliding, self.is_initialized = window is not None, True
        self.new: KeysValues | None = None

    @property
    def keys(self) -> torch.Tensor:
        return self._joined(0)

    @property
    def values(self) -> torch.Tensor:
        return self._joined(1)

    def _joined(self, which: int) -> torch.Tensor:
        """Keys or values `[R, heads, columns, width]`, joined for this forward pass alone."""
        columns = []
        for parts in self.depths:
            tensors = [part.layers[self.number][which] for part in parts if part.layers is not None]
            alike = all(tensor is tensors[0] for tensor in tensors)
            columns.append(tensors[0].expand(len(tensors), -1, -1, -1) if alike else torch.stack(tensors))
        return self.kept(columns[0] if len(columns) == 1 else torch.cat(columns, -2))

    def kept(self, columns: torch.Tensor) -> torch.Tensor:
        """The columns that later tokens attend to: those of the window, or all."""
        return columns if self.window is None else columns[..., 1 - self.window :, :]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.new = key_states, value_states
        if not self.depths:
            return self.new
        return torch.cat((self.keys, key_states), -2), torch.cat((self.values, value_states), -2)

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the tensors belong to the prefixes."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        seen = self.length if self.window is None else min(self.length, self.window - 1)
        return seen + query_length, self.length - seen

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class PrefixCache(Cache):
    """The cache of R rows whose prefixes have equally many parts of equal lengths; all None before a prompt.

    `windows` holds the window of each sliding layer, and None for a layer that attends to everything.
    """

    def __init__(self, windows: Sequence[int | None], prefixes: Sequence[CanvasPrefix | None]) -> None:
        present = [prefix for prefix in prefixes if prefix is not None]
        depths = list(zip(*(prefix.parts() for prefix in present), strict=True))
        length = present[0].length if present else 0
        super().__init__(layers=[_PrefixLayer(n, window, depths, length) for n, window in enumerate(windows)])

    def new_layers(self, row: int) -> list[KeysValues]:
        """The keys and values that the encoder appended for a row, as clones: a slice would keep the other rows."""
        return [tuple(layer.kept(each[row]).clone() for each in layer.new) for layer in self.layers]


def windows_of(config: Any) -> list[int | None]:
    """The windows of a model's layers; None where a layer attends to everything."""
    layers = DynamicCache(config=config).layers
    return [layer.sliding_window if layer.is_sliding else None for layer in layers]


def unread(prefixes: Sequence[CanvasPrefix]) -> Iterator[list[CanvasPrefix]]:
    """Batches of different prefixes that the encoder has not read, of equal lengths."""
    batches: dict[tuple[int, int], dict[int, CanvasPrefix]] = {}
    for prefix in prefixes:
        if prefix.layers is None:
            batches.setdefault((len(prefix.tokens), prefix.length), {})[id(prefix)] = prefix
    yield from (list(batch.values()) for batch in batches.values())
