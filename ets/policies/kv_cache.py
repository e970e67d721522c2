"""A key-value cache whose rows can be forked, and dropped at once when they end.

Rows are aligned on the right: a row with n tokens fills the n columns before the common end, and whatever
stands left of them is masked. So rows of different lengths advance in one batch, and write in one column.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class _RowLayer(CacheLayerMixin):
    """Keys and values `[rows, heads, capacity, width]` of one layer, `length` columns of them in use."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.keys = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows, begin, end = key_states.shape[0], self.length, self.length + key_states.shape[-2]
        self.keys[:rows, :, begin:end] = key_states
        self.values[:rows, :, begin:end] = value_states
        self.length = end
        return self.keys[:rows, :, :end], self.values[:rows, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class RowCache(Cache):
    """The cache of a batch of rows; `lengths[r]` tokens of row r are in it."""

    def __init__(self, layers: int, capacity: int, lengths: Sequence[int]) -> None:
        super().__init__(layers=[_RowLayer(capacity) for _ in range(layers)])
        self.lengths = list(lengths)

    @property
    def length(self) -> int:
        """Columns in use."""
        return int(self.layers[0].get_seq_length())

    def mask(self, queries: int, device: torch.device) -> torch.Tensor | None:
        """`[rows, length + queries]`, 1 where a row may look; None where no row has padding."""
        if min(self.lengths) == self.length:
            return None
        padding = torch.tensor([self.length - n for n in self.lengths], device=device)
        return (torch.arange(self.length + queries, device=device) >= padding[:, None]).long()

    def advance(self, columns: int) -> None:
        """Note that every row has read `columns` more tokens."""
        self.lengths = [n + columns for n in self.lengths]

    def drop_last_column(self) -> None:
        """Forget the last token of every row."""
        self.lengths = [n - 1 for n in self.lengths]
        for layer in self.layers:
            layer.length -= 1

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drop all but these rows; returns the order in which they now stand.

        The last rows are moved into the gaps, so as many rows are copied as were dropped, in place.
        """
        count, kept = len(rows), set(rows)
        gaps = [row for row in range(count) if row not in kept]
        movers = [row for row in rows if row >= count]
        order = list(range(count))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        self.lengths = [self.lengths[row] for row in order]
        if gaps:
            for layer in self.layers:
                assert layer.keys is not None and layer.values is not None
                layer.keys[gaps] = layer.keys[movers]
                layer.values[gaps] = layer.values[movers]
        return order


@dataclass(eq=False)
class Memory:
    """Where a state's work is kept: a row of a cache, and the logits `[V]` of its next token.

    A start state's is filled when it is first needed; all who share the state share it.
    """

    cache: RowCache | None = None
    row: int = 0
    logits: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return 0 if self.cache is None else self.cache.lengths[self.row]


def compact(memories: Sequence[Memory]) -> None:
    """Move these memories out of caches of which they use but a few rows, so that the rest can be freed.

    After a guide step, one candidate's memory is all that is needed of a cache of M.
    """
    by_cache: dict[RowCache, list[Memory]] = defaultdict(list)
    for memory in set(memories):
        if memory.cache is not None:
            by_cache[memory.cache].append(memory)
    for cache, own in by_cache.items():
        if len(own) < len(cache.lengths):
            smaller = fork(own, room=0)
            for row, memory in enumerate(own):
                assert memory.logits is not None
                memory.cache, memory.row, memory.logits = smaller, row, memory.logits.clone()


def fork(memories: Sequence[Memory], room: int) -> RowCache:
    """A cache with one row per memory, with room for more columns; the memories stay as they are."""
    lengths = [memory.length for memory in memories]
    longest = max(lengths)
    sources: dict[RowCache, list[tuple[int, int]]] = defaultdict(list)
    for row, memory in enumerate(memories):
        assert memory.cache is not None
        sources[memory.cache].append((row, memory.row))
    forked = RowCache(len(next(iter(sources)).layers), longest + room, lengths)
    for number, layer in enumerate(forked.layers):
        for name in ("keys", "values"):
            parts = [(getattr(cache.layers[number], name), cache.length, pairs) for cache, pairs in sources.items()]
            setattr(layer, name, _gather(parts, lengths, longest, room))
        layer.is_initialized, layer.length = True, longest
    return forked


def _gather(
    parts: Sequence[tuple[torch.Tensor, int, Sequence[tuple[int, int]]]],
    lengths: Sequence[int],
    longest: int,
    room: int,
) -> torch.Tensor:
    """Copy rows from several tensors `[rows, heads, capacity, width]` into one, aligned on the right."""
    sample = parts[0][0]
    gathered = sample.new_empty(len(lengths), sample.shape[1], longest + room, sample.shape[3])
    if min(lengths) < longest:
        gathered[:, :, :longest] = 0  # what is masked must still be finite
    for tensor, end, pairs in parts:
        width = max(lengths[to] for to, _ in pairs)
        for to, of, count in _runs(pairs):
            gathered[to : to + count, :, longest - width : longest] = tensor[of, :, end - width : end]
    return gathered


def _runs(pairs: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Where neighbouring rows have one source: the first of them, the source, and how many they are."""
    for (of, _), run in groupby(enumerate(pairs), key=lambda item: (item[1][1], item[1][0] - item[0])):
        first, *others = [to for _, (to, _) in run]
        yield first, of, 1 + len(others)
