"""A key-value cache whose rows can be forked, and dropped at once when they end.

Rows are aligned on the right: a row with n tokens fills the n columns before the common end, and whatever
stands left of them is masked. So rows of different lengths advance in one batch, and write in one column.

What several rows begin with need not stand in each of them: a `Prefix` names the rows of another cache that they go on
from, which `ets.policies.autoregressive.attention` reads once for all of them.
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
"""Columns in common from which reading them once pays; below, one fused attention over copies is faster."""


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
    """The cache of a batch of rows; row r has read `lengths[r]` tokens, those of its prefix among them.

    `attended` holds the layers whose attention could read a prefix: when it was given this cache, or the one that this
    was made from.
    """

    def __init__(self, layers: int, capacity: int, lengths: Sequence[int], prefix: Prefix | None = None) -> None:
        super().__init__(layers=[_RowLayer(capacity) for _ in range(layers)])
        self.lengths, self.prefix = list(lengths), prefix
        self.attended: frozenset[int] = frozenset()
        self._there: tuple[torch.Tensor, torch.Tensor | None] | None = None  # lengths and padding, on the device

    @property
    def length(self) -> int:
        """Columns in use."""
        return int(self.layers[0].get_seq_length())

    @property
    def shares(self) -> bool:
        """Whether every layer can read a prefix."""
        return len(self.attended) == len(self.layers)

    @property
    def own_lengths(self) -> list[int]:
        """Tokens of each row that stand in these columns, not in the prefix."""
        if self.prefix is None:
            return self.lengths
        return [n - begun for n, begun in zip(self.lengths, self.prefix.lengths, strict=True)]

    def segments(self, row: int) -> list[Segment]:
        """Where the tokens of a row stand: in its prefix, if it has one, then in its own columns."""
        own = Segment(self, row, self.length - self.own_lengths[row], self.length)
        return [own] if self.prefix is None else [*self.prefix.cache.segments(self.prefix.rows[row]), own]

    def positions(self, queries: int, device: torch.device) -> torch.Tensor:
        """`[rows, queries]` of the tokens that the rows read next."""
        return self._on(device)[0][:, None] + torch.arange(queries, device=device)

    def mask(self, queries: int, device: torch.device) -> torch.Tensor | None:
        """`[rows, length + queries]`, 1 where a row may look; None where no row has padding."""
        padding = self._on(device)[1]
        return None if padding is None else _mask(padding, self.length + queries)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Brought to the device when rows have changed, not with every token: another device is waited for."""
        if self._there is None:
            self._there = torch.tensor(self.lengths, device=device), _padding(self.own_lengths, self.length, device)
        return self._there

    def advance(self, columns: int) -> None:
        """Note that every row has read `columns` more tokens."""
        self.lengths = [n + columns for n in self.lengths]
        if self._there is not None:
            self._there = self._there[0] + columns, self._there[1]

    def drop_last_column(self) -> None:
        """Forget the last token of every row."""
        self.lengths, self._there = [n - 1 for n in self.lengths], None
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
    """What groups of rows go on from: rows of another cache, each stored and read once for its group.

    Parameters
    ----------
    cache : RowCache
        Without a prefix of its own.
    rows : sequence of int
        For each of R rows the one of `cache` that it goes on from.

    Attributes
    ----------
    groups, places : Tensor
        `[R]`: which group a row belongs to, and which of its rows it is.
    most : int
        Rows of the largest group.
    mask : Tensor or None
        `[groups, 1, 1, columns]`, true where a group may look; None where it may look everywhere.
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
        """As the constructor, of a smaller copy where half of the cache's rows or more would be read for nobody."""
        live = sorted(set(rows))
        if 2 * len(live) > live[-1] + 1 - live[0]:
            return cls(cache, rows)
        return cls(_gather([cache.segments(row) for row in live], room=0), [live.index(row) for row in rows])

    def keys_and_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`[groups, heads, columns, width]`, each."""
        kept = self.cache.layers[layer]
        assert kept.keys is not None and kept.values is not None
        return kept.keys[self._span, :, : self.cache.length], kept.values[self._span, :, : self.cache.length]


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

    def segments(self) -> list[Segment]:
        """Where its tokens stand."""
        assert self.cache is not None
        return self.cache.segments(self.row)


def compact(memories: Sequence[Memory]) -> None:
    """Move these memories out of caches of which they use but a few rows, so that the rest can be freed.

    After a guide step, one candidate's memory is all that is needed of a cache of M. Where more go on, they share on.
    """
    by_cache: dict[RowCache, list[Memory]] = defaultdict(list)
    for memory in set(memories):
        if memory.cache is not None:
            by_cache[memory.cache].append(memory)
    for cache, own in by_cache.items():
        if len(own) < len(cache.lengths):
            smaller = share(own, room=0)
            for row, memory in enumerate(own):
                assert memory.logits is not None
                memory.cache, memory.row, memory.logits = smaller, row, memory.logits.clone()


def fork(memories: Sequence[Memory], room: int) -> RowCache:
    """A cache with one row per memory, with room for more columns; the memories stay as they are."""
    return _gather([memory.segments() for memory in memories], room)


def share(memories: Sequence[Memory], room: int) -> RowCache:
    """As `fork`, but what rows have in common at their beginning, if `in_common` finds it, is not copied for each.

    Where they begin in several caches, one copy of each beginning is made, so that all stand in one.
    """
    segments, common = [memory.segments() for memory in memories], in_common(memories)
    if not common:
        return _gather(segments, room)
    rests = [own[len(begin) :] for own, begin in zip(segments, common, strict=True)]
    cache, rows = common[0][0].cache, [begin[0].row for begin in common]
    if len({begin[0].cache for begin in common}) > 1:
        distinct = list(dict.fromkeys(common))
        cache, rows = _gather(distinct, room=0), [distinct.index(begin) for begin in common]
    return _gather(rests, room, Prefix.of(cache, rows))


def in_common(memories: Sequence[Memory]) -> list[tuple[Segment, ...]]:
    """What each of these rows begins with, where at least two, on average, begin alike with `SHORTEST` columns or more.

    Where all begin in one cache, that is a row of it; where not, all that a memory holds. Empty where sharing that
    would not pay, or the network could not read it.
    """
    segments = [tuple(memory.segments()) for memory in memories]
    if not segments[0][0].cache.shares:
        return []
    if len({begin.cache for begin, *_ in segments}) == 1:
        segments = [own[:1] for own in segments]
    columns = sum(part.columns for own in segments for part in own) / len(segments)
    pays = columns >= SHORTEST and 2 * len(set(segments)) <= len(segments)
    return segments if pays else []


def columns_each(memories: Sequence[Memory], room: int) -> float:
    """Columns that a row takes in `share`, its part of what is in common included."""
    common = in_common(memories) or [()] * len(memories)
    begun = [sum(part.columns for part in begin) for begin in common]
    own = max(memory.length - columns for memory, columns in zip(memories, begun, strict=True))
    return max(begun) * len(set(common)) / len(memories) + own + room


def _gather(rows: Sequence[Sequence[Segment]], room: int, prefix: Prefix | None = None) -> RowCache:
    """A cache whose rows are copied together from segments, aligned on the right, with room for more columns."""
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
                tensor[:, :, :longest] = 0  # what is masked must still be finite
            for first, count, end, part in copies:
                copied = getattr(part.cache.layers[number], name)[part.row, :, part.begin : part.end]
                tensor[first : first + count, :, end - part.columns : end] = copied
            setattr(layer, name, tensor)
        layer.is_initialized, layer.length = True, longest
    return gathered


def _copies(rows: Sequence[Sequence[Segment]], longest: int) -> Iterator[tuple[int, int, int, Segment]]:
    """What goes where: first row, rows, end column, segment. Neighbours that begin alike take one copy."""
    placed: dict[tuple[int, Segment], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        end = longest
        for part in reversed(row):
            placed[end, part].append(number)
            end -= part.columns
    for (end, part), own in placed.items():
        for _, run in groupby(enumerate(own), key=lambda item: item[1] - item[0]):
            first, *others = [number for _, number in run]
            yield first, 1 + len(others), end, part


def _padding(lengths: Sequence[int], length: int, device: torch.device) -> torch.Tensor | None:
    """Columns `[rows]` before each row's first token; None where no row has any."""
    return None if min(lengths) == length else torch.tensor([length - n for n in lengths], device=device)


def _mask(padding: torch.Tensor, columns: int) -> torch.Tensor:
    """`[rows, columns]`, 1 from the first token on."""
    return (torch.arange(columns, device=padding.device) >= padding[:, None]).long()
