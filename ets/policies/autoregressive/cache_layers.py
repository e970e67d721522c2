"""The layers of a `RowCache`: keys and values per token, recurrent states per row, or both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
    get_layer_types_and_kwargs,
)

from ets.types import InputError

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention", "indexed_attention")
RECURRENT = ("linear_attention", "conv", "moe", "mlp")
"""Layers without keys; those of a feed-forward network have no states either."""
BOTH = ("hybrid", "hybrid_sliding")
EMPTY = "dummy"
"""A layer without a cache: a feed-forward network, or a layer that reads the keys of another."""


class Kind(NamedTuple):
    """What a layer keeps for each row: keys and values per token, recurrent states, keys of an indexer per token."""

    attention: bool
    states: int = 0
    indexed: bool = False


def layer_kinds(config: Any) -> list[Kind]:
    """The kinds of a model's layers, which are those of transformers' cache.

    Raises
    ------
    InputError
        For layers whose cache cannot be forked by rows.
    """
    kinds = []
    for name, options in zip(*get_layer_types_and_kwargs(config), strict=True):
        if name not in (*ATTENTION, *RECURRENT, *BOTH, EMPTY):
            raise InputError(f"layers of the type {name} cannot be forked by rows; choose another model")
        states = 0 if name in (*ATTENTION, EMPTY) else options.get("number_of_states", 1)
        kinds.append(Kind(name in ATTENTION or name in BOTH, states, name == "indexed_attention"))
    return kinds


class RowLayer(CacheLayerMixin):
    """Keys and values `[rows, heads, capacity, width]` of one layer, `length` columns of them in use."""

    is_sliding = False
    columns: tuple[str, ...] = ("keys", "values")
    """The tensors with a column per token."""

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

    def use(self, length: int) -> None:
        """Set the number of columns in use."""
        self.length = length

    def kept(self) -> list[torch.Tensor]:
        """The tensors with a column per token; none before the first token."""
        return [tensor for tensor in (getattr(self, name) for name in self.columns) if tensor is not None]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self.capacity


class IndexedLayer(RowLayer):
    """Attention to the tokens that an indexer selects, whose keys `[rows, 1, capacity, width]` are kept too.

    `positions` refers to the method of the cache that computes the positions `[3, rows, columns]` of the tokens read.
    """

    columns = ("keys", "values", "indexer")

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.indexer: torch.Tensor | None = None
        self.indexed = 0
        self.positions: Callable[[], Callable[[], torch.Tensor | None] | None] = lambda: None

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Append keys `[rows, columns, width]`; returns all of them. A layer calls this before or after `update`."""
        rows, new, width = indexer_key_states.shape
        if self.indexer is None:
            self.indexer = indexer_key_states.new_empty(rows, 1, self.capacity, width)
        begin, self.indexed = self.indexed, self.indexed + new
        self.indexer[:rows, 0, begin : self.indexed] = indexer_key_states
        return self.indexer[:rows, 0, : self.indexed]

    def use(self, length: int) -> None:
        self.length = self.indexed = length

    @property
    def indexer_position_ids(self) -> torch.Tensor | None:
        """The positions, where models of the family Qwen4 look for them since transformers 5.24."""
        positions = self.positions()
        return None if positions is None else positions()

    @indexer_position_ids.setter
    def indexer_position_ids(self, found: torch.Tensor) -> None:
        """Do nothing: the cache computes the positions that a model stores here."""


class StateLayer(LinearAttentionLayer):
    """The convolution and recurrent states `[rows, ...]` of one layer."""

    def __init__(self, states: int) -> None:
        LinearAttentionCacheLayerMixin.__init__(self, number_of_states=states)

    def take_states(self, sources: Sequence[StateLayer], places: Sequence[tuple[int, int]]) -> None:
        """Become copies: row r is row `places[r][1]` of source `places[r][0]`."""
        for name in ("conv", "recurrent"):
            for index in range(self.number_of_states):
                tensors = [getattr(source, f"{name}_states")[index] for source in sources]
                if tensors[0] is None:
                    continue
                rows = [tensors[source][row] for source, row in places]
                getattr(self, f"{name}_states")[index] = torch.stack(rows)
                getattr(self, f"is_{name}_states_initialized")[index] = True
        for name in ("has_previous_state", "conv_kernel_size", "dtype", "device"):
            setattr(self, name, copy(getattr(sources[0], name)))

    def keep(self, order: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        for states in (self.conv_states, self.recurrent_states):
            for index, tensor in states.items():
                if tensor is not None:
                    states[index] = tensor[list(order)]

    @property
    def bytes_per_row(self) -> int:
        kept = [*self.conv_states.values(), *self.recurrent_states.values()]
        return sum(tensor[0].nbytes for tensor in kept if tensor is not None)


class RowStateLayer(StateLayer, RowLayer):
    """A layer with attention and with states."""

    def __init__(self, capacity: int, states: int) -> None:
        RowLayer.__init__(self, capacity)
        StateLayer.__init__(self, states)

    def lazy_initialization(self, *tensors: Any, **states: Any) -> None:
        """Attention gives keys and values by position, a recurrent layer its states by name."""
        if tensors:
            RowLayer.lazy_initialization(self, *tensors)
        else:
            StateLayer.lazy_initialization(self, **states)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        RowLayer.reorder_cache(self, beam_idx)
        StateLayer.reorder_cache(self, beam_idx)


def layer_of(kind: Kind, capacity: int) -> Any:
    """An empty layer of this kind, with room for `capacity` tokens in each row."""
    if not kind.attention:
        return StateLayer(kind.states)
    if kind.indexed:
        return IndexedLayer(capacity)
    return RowStateLayer(capacity, kind.states) if kind.states else RowLayer(capacity)
