"""A key-value cache with operations on rows: fork, drop, and share a prefix.

Rows are aligned on the right: a row with n tokens fills the last n columns, and a mask hides the columns to the left.
So rows of different lengths advance in one batch, and write to one column.

Rows with a common beginning store the beginning once: a `Prefix` refers to rows of another cache, which
`ets.policies.autoregressive.attention` reads once per group of rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

SHORTEST = 128
"""Columns of the shortest prefix that is shared; below, one fused attention over copies is faster."""


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
    """The cache of a batch of rows; row r has read `lengths[r]` tokens, the tokens of the prefix included.

    `attended` holds the layers whose attention can read a prefix. `grouped_sdpa` adds layers, and copies inherit them.
    """

    def __init__(self, layers: int, capacity: int, lengths: Sequence[int], prefix: Prefix | None = None) -> None:
        super().__init__(layers=[_RowLayer(capacity) for _ in range(layers)])
        self.lengths, self.prefix = list(lengths), prefix
        self.attended: frozenset[int] = frozenset()
        self._there: tuple[torch.Tensor, torch.Tensor | None] | None = None  # see `_on`

    @property
    def length(self) -> int:
        """Columns in use."""
        return int(self.layers[0].get_seq_length())

    @property
    def shares(self) -> bool:
        """Whether every layer can read a prefix."""
        return len(self.attended) == len(self.layers)

    @property
    def stored_lengths(self) -> list[int]:
        """Tokens of each row in the columns of this cache, without the prefix."""
        if self.prefix is None:
            return self.lengths
        return [n - begun for n, begun in zip(self.lengths, self.prefix.lengths, strict=True)]

    def segments(self, row: int) -> list[Segment]:
        """The columns of a row's tokens: in the prefix, if any, then in this cache."""
        last = Segment(self, row, self.length - self.stored_lengths[row], self.length)
        return [last] if self.prefix is None else [*self.prefix.cache.segments(self.prefix.rows[row]), last]

    def positions(self, queries: int, device: torch.device) -> torch.Tensor:
        """Positions `[rows, queries]` of the next tokens."""
        return self._on(device)[0][:, None] + torch.arange(queries, device=device)

    def mask(self, queries: int, device: torch.device) -> torch.Tensor | None:
        """`[rows, length + queries]`, 1 for visible columns; None without padding."""
        padding = self._on(device)[1]
        return None if padding is None else _mask(padding, self.length + queries)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Lengths and padding on the device; copied after rows have changed, since copies wait for the device."""
        if self._there is None:
            self._there = torch.tensor(self.lengths, device=device), _padding(self.stored_lengths, self.length, device)
        return self._there

    def advance(self, columns: int) -> None:
        """Add `columns` tokens to the length of every row."""
        self.lengths = [n + columns for n in self.lengths]
        if self._there is not None:
            self._there = self._there[0] + columns, self._there[1]

    def drop_last_column(self) -> None:
        """Forget the last token of every row."""
        self.lengths, self._there = [n - 1 for n in self.lengths], None
        for layer in self.layers:
            layer.length -= 1

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Keep only these rows; returns the new order of the rows.

        The last rows move into the gaps in place. For example, `keep([0, 2, 3])` of four rows returns `[0, 3, 2]`.
        """
        count, kept = len(rows), set(rows)
        gaps = [row for row in range(count) if row not in kept]
        movers = [row for row in rows if row >= count]
        order = list(range(count))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        self.lengths, self._there = [self.lengths[row] for row in order], None
        if self.prefix is not None:
            begun = [self.prefix.rows[row] for row in order]
            self.prefix = Prefix.of(self.prefix.cache, begun) if begun else None
        if gaps:
            for layer in self.layers:
                assert layer.keys is not None and layer.values is not None
                layer.keys[gaps] = layer.keys[movers]
                layer.values[gaps] = layer.values[movers]
        return order


class Segment(NamedTuple):
    """Columns `begin` to `end` of a row."""

    cache: RowCache
    row: int
    begin: int
    end: int

    @property
    def columns(self) -> int:
        return self.end - self.begin


class Prefix:
    """Rows of another cache that hold the beginning of groups of rows, stored and read once per group.

    Parameters
    ----------
    cache : RowCache
        A cache without a prefix.
    rows : sequence of int
        For each of R rows, the row of `cache` with the beginning; rows with equal entries form a group.

    Attributes
    ----------
    groups, places : Tensor
        `[R]`: the row's group, and the row's place in the group.
    most : int
        Rows of the largest group.
    mask : Tensor or None
        `[groups, 1, 1, columns]`, true for visible columns; None without padding.
    """

    def __init__(self, cache: RowCache, rows: Sequence[int]) -> None:
        keys = cache.layers[0].keys
        assert keys is not None
        self.cache, self.rows, self.lengths = cache, list(rows), [cache.lengths[row] for row in rows]
        self._span = slice(min(rows), max(rows) + 1)
        seen: dict[int, int] = defaultdict(int)
        places = []
        for row in rows:
            places.append(seen[row])
            seen[row] += 1
        self.most = max(seen.values())
        self.groups = torch.tensor(rows, device=keys.device) - min(rows)
        self.places = torch.tensor(places, device=keys.device)
        padding = _padding(cache.lengths[self._span], cache.length, keys.device)
        self.mask = None if padding is None else _mask(padding, cache.length).bool()[:, None, None]

    @classmethod
    def of(cls, cache: RowCache, rows: Sequence[int]) -> Prefix:
        """As the constructor; copies the used rows if half of the rows of the span, or more, are unused."""
        live = sorted(set(rows))
        if 2 * len(live) > live[-1] + 1 - live[0]:
            return cls(cache, rows)
        return cls(_gather([cache.segments(row) for row in live], room=0), [live.index(row) for row in rows])

    def keys_and_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[groups, heads, columns, width]`."""
        kept = self.cache.layers[layer]
        assert kept.keys is not None and kept.values is not None
        return kept.keys[self._span, :, : self.cache.length], kept.values[self._span, :, : self.cache.length]


@dataclass(eq=False)
class RowMemory:
    """The work behind a state: a row of a cache, and the logits `[V]` of the next token.

    The memory of a start state is empty until the first draw; all rows of the state share the memory.
    """

    cache: RowCache | None = None
    row: int = 0
    logits: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return 0 if self.cache is None else self.cache.lengths[self.row]

    def segments(self) -> list[Segment]:
        assert self.cache is not None
        return self.cache.segments(self.row)


def compact(memories: Sequence[RowMemory]) -> None:
    """Copy the rows of these memories out of caches with further rows, so that the caches can be freed.

    For example, after a guide step one candidate's row remains of a cache of M rows. Several rows keep a shared prefix.
    """
    by_cache: dict[RowCache, list[RowMemory]] = defaultdict(list)
    for memory in set(memories):
        if memory.cache is not None:
            by_cache[memory.cache].append(memory)
    for cache, used in by_cache.items():
        if len(used) < len(cache.lengths):
            smaller = share(used, room=0)
            for row, memory in enumerate(used):
                assert memory.logits is not None
                memory.cache, memory.row, memory.logits = smaller, row, memory.logits.clone()


def fork(memories: Sequence[RowMemory], room: int) -> RowCache:
    """A cache with a copy of each memory's row, and room for more columns."""
    return _gather([memory.segments() for memory in memories], room)


def share(memories: Sequence[RowMemory], room: int) -> RowCache:
    """As `fork`, with the beginnings of `in_common` as a shared prefix instead of copies.

    Beginnings in several caches are first copied to one cache, each once.
    """
    segments, common = [memory.segments() for memory in memories], in_common(memories)
    if not common:
        return _gather(segments, room)
    rests = [row[len(begin) :] for row, begin in zip(segments, common, strict=True)]
    cache, rows = common[0][0].cache, [begin[0].row for begin in common]
    if len({begin[0].cache for begin in common}) > 1:
        distinct = list(dict.fromkeys(common))
        cache, rows = _gather(distinct, room=0), [distinct.index(begin) for begin in common]
    return _gather(rests, room, Prefix.of(cache, rows))


def in_common(memories: Sequence[RowMemory]) -> list[tuple[Segment, ...]]:
    """The beginning of each memory's row, if at least two rows, on average, share one of `SHORTEST` columns or more.

    If all rows begin in one cache, a beginning is a row of that cache; otherwise a beginning is a whole memory. The
    list is empty if sharing does not pay, or if a layer cannot read a prefix.
    """
    segments = [tuple(memory.segments()) for memory in memories]
    if not segments[0][0].cache.shares:
        return []
    if len({begin.cache for begin, *_ in segments}) == 1:
        segments = [row[:1] for row in segments]
    columns = sum(part.columns for row in segments for part in row) / len(segments)
    pays = columns >= SHORTEST and 2 * len(set(segments)) <= len(segments)
    return segments if pays else []


def columns_each(memories: Sequence[RowMemory], room: int) -> float:
    """Columns of a row in `share`, with an equal part of the prefixes."""
    common = in_common(memories) or [()] * len(memories)
    begun = [sum(part.columns for part in begin) for begin in common]
    rest = max(memory.length - columns for memory, columns in zip(memories, begun, strict=True))
    return max(begun) * len(set(common)) / len(memories) + rest + room


def _gather(rows: Sequence[Sequence[Segment]], room: int, prefix: Prefix | None = None) -> RowCache:
    """A cache with rows copied from segments, aligned on the right, with room for more columns."""
    lengths = [sum(part.columns for part in row) for row in rows]
    longest, copies = max(lengths), list(_copies(rows, max(lengths)))
    source = rows[0][0].cache if prefix is None else prefix.cache
    total = lengths if prefix is None else [n + begun for n, begun in zip(lengths, prefix.lengths, strict=True)]
    gathered = RowCache(len(source), longest + room, total, prefix)
    gathered.attended = source.attended
    for number, layer in enumerate(gathered.layers):
        for name in ("keys", "values"):
            sample = getattr(source.layers[number], name)
            tensor = sample.new_empty(len(rows), sample.shape[1], longest + room, sample.shape[3])
            if min(lengths) < longest:
                tensor[:, :, :longest] = 0  # masked columns must be finite
            for first, count, end, part in copies:
                copied = getattr(part.cache.layers[number], name)[part.row, :, part.begin : part.end]
                tensor[first : first + count, :, end - part.columns : end] = copied
            setattr(layer, name, tensor)
        layer.is_initialized, layer.length = True, longest
    return gathered


def _copies(rows: Sequence[Sequence[Segment]], longest: int) -> Iterator[tuple[int, int, int, Segment]]:
    """The copies of `_gather`: first row, rows, end column, segment. One copy serves neighbours with equal segments."""
    placed: dict[tuple[int, Segment], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        end = longest
        for part in reversed(row):
            placed[end, part].append(number)
            end -= part.columns
    for (end, part), numbers in placed.items():
        for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0]):
            first, *others = [number for _, number in run]
            yield first, 1 + len(others), end, part


def _padding(lengths: Sequence[int], length: int, device: torch.device) -> torch.Tensor | None:
    """Columns `[rows]` before each row's first token; None without padding."""
    return None if min(lengths) == length else torch.tensor([length - n for n in lengths], device=device)


def _mask(padding: torch.Tensor, columns: int) -> torch.Tensor:
    """`[rows, columns]`, 1 from the first token on."""
    return (torch.arange(columns, device=padding.device) >= padding[:, None]).long()
