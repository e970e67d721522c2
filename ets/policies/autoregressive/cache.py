"""A cache of keys, values and recurrent states with operations on rows: fork, drop, and share a prefix.

Rows are aligned on the right: a row with n tokens fills the last n columns, and a mask hides the columns to the left.
So rows of different lengths advance in one batch, and write to one column. A recurrent layer, such as linear attention
or a state-space layer, has no columns: its states are one tensor per row, which a fork copies.

Rows with a common beginning store its keys and values once: a `Prefix` refers to rows of another cache, which
`ets.policies.autoregressive.attention` reads once per group of rows. For example, a rollout may have two prefixes: the
row of its prompt, which all rollouts of the problem share, and the row of its candidate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakMethod

import torch
from transformers.cache_utils import Cache

from ets.policies.autoregressive.cache_layers import IndexedLayer, Kind, RowLayer, StateLayer, layer_of

SAVED = {"cpu": 2**10, "cuda": 2**16}
"""Columns that a prefix must save, by the kind of device, since each layer launches seven kernels more.

The number for a GPU is an estimate: the host needs about 1 ms for 250 kernels, a GPU for reading 2**16 columns.
"""


class RowCache(Cache):
    """The cache of a batch of rows; row r has read `lengths[r]` tokens, the tokens of the prefix included.

    `attended` holds the layers whose attention can read a prefix. `grouped_sdpa` adds layers, and copies inherit them.
    `grows` is whether no other cache has written to the columns after the ones in use; see `_appended`. `with_keys` and
    `with_states` are the layers with attention, and the recurrent layers.
    """

    def __init__(
        self, kinds: Sequence[Kind], capacity: int, lengths: Sequence[int], prefixes: Sequence[Prefix] = ()
    ) -> None:
        super().__init__(layers=[layer_of(kind, capacity) for kind in kinds])
        self.kinds, self.capacity, self.lengths, self.prefixes = kinds, capacity, list(lengths), tuple(prefixes)
        self.attended: frozenset[int] = frozenset()
        self.grows = True
        self.with_keys = [layer for layer in self.layers if isinstance(layer, RowLayer)]
        self.with_states = [layer for layer in self.layers if isinstance(layer, StateLayer)]
        for layer in self.layers:
            if isinstance(layer, IndexedLayer):
                layer.positions = WeakMethod(self.positions_read)  # a reference would keep the cache in memory
        self._there: tuple[torch.Tensor, torch.Tensor | None] | None = None  # see `_on`

    @property
    def length(self) -> int:
        """Columns in use; a cache of states alone has as many as its longest row has tokens."""
        return self.with_keys[0].length if self.with_keys else max(self.lengths, default=0)

    @property
    def device(self) -> str:
        """The kind of device of the first keys."""
        keys = self.with_keys[0].keys
        assert keys is not None
        return keys.device.type

    @property
    def shares(self) -> bool:
        """Whether every layer with attention can read a prefix."""
        return 0 < len(self.attended) == len(self.with_keys)

    def bytes_of_a_row(self) -> tuple[int, int]:
        """Bytes of a column of a row, and of the row's states; the layers have read a token."""
        kept = [tensor for layer in self.with_keys for tensor in layer.kept()]
        return sum(tensor[0, :, :1].nbytes for tensor in kept), sum(layer.bytes_per_row for layer in self.with_states)

    @property
    def stored_lengths(self) -> list[int]:
        """Tokens of each row in the columns of this cache, without the prefixes."""
        return [self.stored(row).columns for row in range(len(self.lengths))]

    def stored(self, row: int) -> Segment:
        """The columns of a row's tokens in this cache."""
        begun = sum(prefix.lengths[row] for prefix in self.prefixes)
        return Segment(self, row, self.length + begun - self.lengths[row], self.length)

    def segments(self, row: int) -> list[Segment]:
        """The columns of a row's tokens: in each prefix, then in this cache."""
        return [*(prefix.cache.stored(prefix.rows[row]) for prefix in self.prefixes), self.stored(row)]

    def positions(self, queries: int, device: torch.device) -> torch.Tensor:
        """Positions `[rows, queries]` of the next tokens."""
        return self._on(device)[0][:, None] + torch.arange(queries, device=device)

    def mask(self, queries: int, device: torch.device) -> torch.Tensor | None:
        """`[rows, length + queries]`, 1 for visible columns; None without padding."""
        padding = self._on(device)[1]
        return None if padding is None else _mask(padding, self.length + queries)

    def token_mask(self, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
        """`additive_mask` of the next token of every row; None without padding."""
        padding = self._on(device)[1]
        return None if padding is None else additive_mask(padding, self.length + 1, dtype)

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Lengths and padding on the device; copied after rows have changed, since copies wait for the device."""
        if self._there is None:
            self._there = torch.tensor(self.lengths, device=device), _padding(self.stored_lengths, self.length, device)
        return self._there

    def positions_read(self) -> torch.Tensor | None:
        """Positions `[3, rows, columns]` of the tokens read so far; None before the first token."""
        keys = self.with_keys[0].keys
        if keys is None:
            return None
        begin = torch.tensor([self.length - n for n in self.lengths], device=keys.device)
        found = (torch.arange(self.length, device=keys.device) - begin[:, None]).clamp(min=0)
        return found.expand(3, *found.shape)

    @property
    def position_ids(self) -> torch.Tensor:
        """As `IndexedLayer.indexer_position_ids`, where models of the family Qwen4 looked before transformers 5.24."""
        found = self.positions_read()
        if found is None:
            raise AttributeError("nothing has been read")  # such a model asks with hasattr
        return found

    @position_ids.setter
    def position_ids(self, found: torch.Tensor) -> None:
        """Do nothing: the property computes the positions that a model stores here."""

    def advance(self, columns: int) -> None:
        """Add `columns` tokens to the length of every row."""
        self.lengths = [n + columns for n in self.lengths]
        if self._there is not None:
            self._there = self._there[0] + columns, self._there[1]

    def drop_last_column(self) -> None:
        """Forget the last token of every row; a recurrent state cannot forget a token."""
        assert not self.with_states
        self.lengths, self._there = [n - 1 for n in self.lengths], None
        for layer in self.with_keys:
            layer.use(layer.length - 1)

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
        begun = [(prefix.cache, [prefix.rows[row] for row in order]) for prefix in self.prefixes if order]
        self.prefixes = tuple(Prefix.of(*pair) for pair in begun)
        for tensor in (tensor for layer in self.with_keys if gaps for tensor in layer.kept()):
            tensor[gaps] = tensor[movers]
        for states in self.with_states:
            states.keep(order)
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
    """Rows of another cache that hold a part of the texts of groups of rows, stored and read once per group.

    Parameters
    ----------
    cache : RowCache
        Prefixes that this cache has itself do not count.
    rows : sequence of int
        For each of R rows, the row of `cache` with the part; rows with equal entries form a group.

    Attributes
    ----------
    lengths : list of int
        Tokens of each row in the prefix.
    groups, places : Tensor
        `[R]`: the row's group, and the row's place in the group.
    most : int
        Rows of the largest group.
    members : tuple of Tensor
        The index of queries `[R, heads, ...]` that gives `[groups, heads, most, ...]`: the rows of each group, and
        row 0 in the places that a smaller group leaves.
    regular : bool
        Whether the rows stand in the order of the groups, and all groups have `most` rows.
    mask : Tensor or None
        `[groups, 1, 1, columns]`, added to scores; None without padding.
    """

    def __init__(self, cache: RowCache, rows: Sequence[int]) -> None:
        keys = cache.with_keys[0].keys
        assert keys is not None
        stored = cache.stored_lengths
        self.cache, self.rows, self.lengths = cache, list(rows), [stored[row] for row in rows]
        self._span = slice(min(rows), max(rows) + 1)
        seen: dict[int, list[int]] = defaultdict(list)
        places = []
        for number, row in enumerate(rows):
            places.append(len(seen[row]))
            seen[row].append(number)
        self.most = max(map(len, seen.values()))
        members = [[*seen[row], *[0] * (self.most - len(seen[row]))] for row in range(min(rows), max(rows) + 1)]
        self.regular = [row for group in members for row in group] == list(range(len(rows)))
        heads = torch.arange(keys.shape[1], device=keys.device)[:, None]
        self.members = torch.tensor(members, device=keys.device)[:, None], heads
        self.groups = torch.tensor(rows, device=keys.device) - min(rows)
        self.places = torch.tensor(places, device=keys.device)
        padding = _padding(stored[self._span], cache.length, keys.device)
        self.mask = None if padding is None else additive_mask(padding, cache.length, keys.dtype)

    @classmethod
    def of(cls, cache: RowCache, rows: Sequence[int]) -> Prefix:
        """As the constructor; copies the used rows if half of the rows of the span, or more, are unused."""
        live = sorted(set(rows))
        if 2 * len(live) > live[-1] + 1 - live[0]:
            return cls(cache, rows)
        return cls(_gather([[cache.stored(row)] for row in live], room=0), _places(rows, live))

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


def compact(memories: Sequence[RowMemory], room: int = 0) -> None:
    """Move the rows of these memories out of caches with further rows, so that the caches can be freed.

    For example, after a guide step one candidate's row remains of a cache of M rows. Its columns are appended to the
    row of its prompt, where they fit. Elsewhere whole rows are copied, with room for as many columns again, `room` at
    most. Several rows keep shared prefixes.
    """
    by_cache: dict[RowCache, list[RowMemory]] = defaultdict(list)
    for memory in dict.fromkeys(memories):
        if memory.cache is not None:
            by_cache[memory.cache].append(memory)
    for cache, used in by_cache.items():
        if len(used) < len(cache.lengths):
            smaller, rows = _appended(cache, [memory.row for memory in used]) or _copied(used, room)
            for row, memory in zip(rows, used, strict=True):
                assert memory.logits is not None
                memory.cache, memory.row, memory.logits = smaller, row, memory.logits.clone()


def _appended(cache: RowCache, rows: Sequence[int]) -> tuple[RowCache, list[int]] | None:
    """A cache over the memory of the prefix, with the columns of these rows after it, and their rows there.

    The cache of the prefix stays as it is. None for rows with several prefixes or without any, for two rows with one
    prefix, for a row with padding, where the prefix has no room, and where half of its rows, or more, would be unused.
    """
    if len(cache.prefixes) != 1:
        return None
    base, begun, columns = cache.prefixes[0].cache, [cache.prefixes[0].rows[row] for row in rows], cache.length
    padded = any(cache.stored(row).columns < columns for row in rows)
    spread = len(set(begun)) == len(rows) and 2 * len(rows) > len(base.lengths)
    if padded or not spread or base.prefixes or not base.grows or base.capacity < base.length + columns:
        return None
    grown = RowCache(base.kinds, base.capacity, [n + columns for n in base.lengths])
    grown.attended, source = base.attended, dict(zip(begun, rows, strict=True))
    for layer, before, last in zip(grown.layers, base.layers, cache.layers, strict=True):
        if isinstance(layer, StateLayer):
            layer.take_states([last], [(0, source.get(row, rows[0])) for row in range(len(base.lengths))])
        if not isinstance(layer, RowLayer):
            continue
        for name in layer.columns:
            tensor = getattr(before, name)
            if columns:
                tensor[begun, :, base.length : base.length + columns] = getattr(last, name)[list(rows), :, :columns]
            setattr(layer, name, tensor)
        layer.is_initialized = True
        layer.use(base.length + columns)
    base.grows = False
    return grown, begun


def _copied(memories: Sequence[RowMemory], room: int) -> tuple[RowCache, list[int]]:
    """A cache with the rows of these memories, and their rows there; whole rows, which can share, have room."""
    assert memories[0].cache is not None
    whole = memories[0].cache.shares and not in_common(memories)
    spare = min(room, max(memory.length for memory in memories)) if whole else 0
    return share(memories, spare), list(range(len(memories)))


def fork(memories: Sequence[RowMemory], room: int) -> RowCache:
    """A cache with a copy of each memory's row, and room for more columns."""
    return _gather([memory.segments() for memory in memories], room, owners=memories)


def share(memories: Sequence[RowMemory], room: int, saved: int | None = None) -> RowCache:
    """As `fork`, with the parts of `in_common` as shared prefixes instead of copies.

    Parts in several caches are copied to one cache, each once. Where no prefix precedes, the parts are whole rows, and
    their memories move to this cache.
    """
    common = in_common(memories, saved)
    rests, prefixes = _after(memories, common), list[Prefix]()
    for parts in common:
        caches, rows = {part[0].cache for part in parts}, [part[0].row for part in parts]
        if len(caches) > 1:
            owners = dict(zip(parts, memories, strict=True))
            distinct, spare = list(owners), max(cache.capacity - cache.length for cache in caches)
            rows = _places(parts, distinct)
            if prefixes or any(rests):
                caches = {_gather(distinct, room=0)}
            else:  # the old caches can be freed
                caches = {joint := _gather(distinct, spare, owners=list(owners.values()))}
                for memory, row in zip(memories, rows, strict=True):
                    memory.cache, memory.row = joint, row
        prefixes.append(Prefix.of(caches.pop(), rows))
    return _gather(rests, room, prefixes, memories)


Parts: TypeAlias = list[tuple[Segment, ...]]
"""Some columns of each row, in the order of its tokens."""


def in_common(memories: Sequence[RowMemory], saved: int | None = None) -> list[Parts]:
    """The parts at the beginnings of the rows that sharing stores once, in the order of the tokens.

    Sharing pays if at least two rows, on average, have the same part, and if `saved` columns need not be read again, by
    default `SAVED`. A part is the next segment of each row. Where that does not pay and the segments are in several
    caches, a part is all that is left of each row. The list is empty if a layer cannot read a prefix.
    """
    common: list[Parts] = []
    cache = memories[0].cache
    if cache is None or not cache.shares:
        return common
    least = max(1, SAVED.get(cache.device, SAVED["cuda"]) if saved is None else saved)

    def pays(parts: Parts) -> bool:
        distinct = set(parts)
        return 2 * len(distinct) <= len(parts) and _columns(parts) - _columns(distinct) >= least

    while all(left := _after(memories, common)):
        begins = [row[:1] for row in left]
        if pays(begins):
            common.append(begins)
        elif len({begin.cache for (begin,) in begins}) > 1 and pays(left):
            common.append(left)
        else:
            break
    return common


def _after(memories: Sequence[RowMemory], common: Sequence[Parts]) -> Parts:
    """The segments of each row after the parts in common."""
    begun = [sum(len(parts[row]) for parts in common) for row in range(len(memories))]
    return [tuple(memory.segments()[at:]) for memory, at in zip(memories, begun, strict=True)]


def _places(values: Iterable[Any], distinct: Iterable[Any]) -> list[int]:
    """The place of each value among distinct ones."""
    places = {value: place for place, value in enumerate(distinct)}
    return [places[value] for value in values]


def _columns(rows: Iterable[Sequence[Segment]]) -> int:
    return sum(segment.columns for row in rows for segment in row)


def columns_each(memories: Sequence[RowMemory], room: int) -> float:
    """Columns of a row in `share`, with an equal part of the prefixes."""
    common = in_common(memories)
    # A prefix has as many columns in every row, with padding where its part is shorter.
    stored = sum(max(_columns([part]) for part in parts) * len(set(parts)) for parts in common)
    return stored / len(memories) + max(_columns([rest]) for rest in _after(memories, common)) + room


def _gather(
    rows: Sequence[Sequence[Segment]],
    room: int,
    prefixes: Sequence[Prefix] = (),
    owners: Sequence[RowMemory] = (),
) -> RowCache:
    """A cache with rows copied from segments, aligned on the right, with room for more columns.

    The states are those of the `owners`; a prefix, which is read and never continued, has none.
    """
    lengths = [_columns([row]) for row in rows]
    longest, copies = max(lengths), _copies(rows, max(lengths))
    source = prefixes[0].cache if prefixes else rows[0][0].cache
    total = [sum(each) for each in zip(lengths, *(prefix.lengths for prefix in prefixes), strict=True)]
    gathered = RowCache(source.kinds, longest + room, total, prefixes)
    gathered.attended = source.attended
    places, caches = _states_of(owners)
    for number, layer in enumerate(gathered.layers):
        if places and isinstance(layer, StateLayer):
            layer.take_states([cache.layers[number] for cache in caches], places)
        if not isinstance(layer, RowLayer) or source.layers[number].keys is None:
            continue
        for name in layer.columns:
            sample = getattr(source.layers[number], name)
            tensor = sample.new_empty(len(rows), sample.shape[1], longest + room, sample.shape[3])
            if min(lengths) < longest:
                tensor[:, :, :longest] = 0  # masked columns must be finite
            for copy in copies:
                kept = getattr(copy.cache.layers[number], name)
                tensor[copy.to, :, copy.end - copy.columns : copy.end] = kept[
                    copy.rows, :, copy.stop - copy.columns : copy.stop
                ]
            setattr(layer, name, tensor)
        layer.is_initialized = True
        layer.use(longest)
    return gathered


def _states_of(owners: Sequence[RowMemory]) -> tuple[list[tuple[int, int]], list[RowCache]]:
    """The place of each memory's states, as the number of a cache and a row, and the caches."""
    caches = list(dict.fromkeys(memory.cache for memory in owners))
    return [(caches.index(memory.cache), memory.row) for memory in owners], [c for c in caches if c is not None]


class _Copy(NamedTuple):
    """`columns` columns of some rows of a cache up to `stop`, and the rows and the end of their place."""

    cache: RowCache
    rows: slice | list[int]
    stop: int
    columns: int
    to: slice | list[int]
    end: int


def _copies(rows: Sequence[Sequence[Segment]], longest: int) -> list[_Copy]:
    """The copies of `_gather`: one for the rows whose segments end in one column, of the place and of the cache.

    A copy has the columns of its longest segment, so that it may reach into the columns before a shorter one. These are
    padding, or a later copy writes them: the last segments of all rows are copied first.
    """
    placed: dict[tuple[int, int, RowCache, int], list[tuple[int, Segment]]] = defaultdict(list)
    for number, row in enumerate(rows):
        end = longest
        for turn, part in enumerate(reversed(row)):
            placed[turn, end, part.cache, part.end].append((number, part))
            end -= part.columns
    found = []
    for (_, end, cache, stop), parts in sorted(placed.items(), key=lambda item: item[0][0]):
        columns = max(part.columns for _, part in parts)
        source, to = _as_slice([part.row for _, part in parts]), _as_slice([number for number, _ in parts])
        found.append(_Copy(cache, source, stop, columns, to, end))
    return found


def _as_slice(rows: list[int]) -> slice | list[int]:
    """Rows as a slice, which makes no copy by itself: neighbours, or a single row for equal entries."""
    if all(row == rows[0] for row in rows):
        return slice(rows[0], rows[0] + 1)
    return slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else rows


def _padding(lengths: Sequence[int], length: int, device: torch.device) -> torch.Tensor | None:
    """Columns `[rows]` before each row's first token; None without padding."""
    return None if min(lengths) == length else torch.tensor([length - n for n in lengths], device=device)


def _mask(padding: torch.Tensor, columns: int) -> torch.Tensor:
    """`[rows, columns]`, 1 from the first token on."""
    return (torch.arange(columns, device=padding.device) >= padding[:, None]).long()


def additive_mask(padding: torch.Tensor, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """`[rows, 1, 1, columns]`, -inf before each row's first token and 0 from there on.

    The rows begin 16 numbers or a multiple of it apart, as kernels on a GPU require.
    """
    hidden = torch.arange(columns + -columns % 16, device=padding.device) < padding[:, None]
    mask = torch.zeros(hidden.shape, dtype=dtype, device=padding.device).masked_fill_(hidden, -torch.inf)
    return mask[:, None, None, :columns]
