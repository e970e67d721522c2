"""Block-causal diffusion: blocks aligned to absolute positions, and forward passes over one block at a time.

A position of prompt + canvas attends to its block and to the blocks before it. Block b covers the positions
`[b · L, (b + 1) · L)` of prompt + canvas for the block length L, as in the published samplers. With L = 4 and a prompt
of 6 tokens, the first block of the canvas is the positions 6 and 7 of the sequence, and the second block the positions
8 to 11. The last block ends with the canvas.

Keys and values of a finished block never change. So a denoising step computes the columns of its block alone, and the
first step of a block also computes the finished block before it, whose last forward pass saw a mask. The prompt's whole
blocks are computed once.

Shape letters: U different canvases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ets.models import Family
from ets.models.cache_argument import as_argument
from ets.policies.autoregressive.attention import NAME
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.cache import BlockPrefix, stacked
from ets.policies.diffusion.canvas import PADDING, Canvas
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.forward import CanvasReader
from ets.policies.memory import weights_device
from ets.types import Cost, InputError


@dataclass(frozen=True)
class AlignedSchedule(Schedule):
    """A schedule whose blocks are aligned to absolute positions, so that the first and the last may be shorter.

    A guide step ends as in `Schedule`: when at least as many positions are revealed as the quotas of its steps add up
    to. A short block needs fewer steps than its share. A canvas of whole blocks has one block more if the prompt ends
    inside a block.

    Parameters
    ----------
    sub_block : int
        As in `ets.models.Family`.

    Raises
    ------
    InputError
        For fewer denoising steps than tokens where a block has sub-blocks.
    """

    sub_block: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sub_block and self.steps != self.gen_length:
            raise InputError(
                f"steps {self.steps} are fewer than the {self.gen_length} tokens of gen_length, but a model with "
                "sub-blocks has no quotas; leave steps out, and set threshold to reveal more tokens per step"
            )

    @classmethod
    def of_family(cls, plan: Schedule, family: Family) -> AlignedSchedule:
        shared = {field.name: getattr(plan, field.name) for field in fields(Schedule)}  # vars has cached properties
        return cls(**shared, sub_block=family.sub_block)

    @property
    def most_steps(self) -> int:
        return self.steps + self.steps_per_block

    def block_of(self, step: int, prompt_length: int = 0) -> tuple[int, int]:
        first, last = (end - prompt_length % self.block_length for end in super().block_of(step))
        return min(max(first, 0), self.gen_length), min(last, self.gen_length)

    def masked_at(
        self, step: int, tokens: NDArray[np.int64], mask_id: int, prompt_length: int = 0
    ) -> NDArray[np.int64]:
        """The masked positions `[n]` of the block, or of its first sub-block with masks."""
        masked = super().masked_at(step, tokens, mask_id, prompt_length)
        if not (self.sub_block and masked.size):
            return masked
        places = (masked + prompt_length) % self.block_length
        parts = np.where(places == 0, -1, places // self.sub_block)
        return masked[parts == parts[0]]


class _BlockKeys:
    """The part of transformers' cache interface that attention layers use, for a pass over fresh columns.

    `update` returns the keys and values of each row's prefix, padded on the left, and of the fresh columns after it.
    """

    def __init__(self, prefixes: Sequence[BlockPrefix], longest: int) -> None:
        self.prefixes, self.longest = prefixes, longest
        self.fresh: list[torch.Tensor] = []  # of each layer [2, U, heads, columns, head]

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        fresh = torch.stack((keys, values))
        self.fresh.append(fresh)
        distinct = {id(prefix): prefix for prefix in self.prefixes}
        joined = {}
        for name, prefix in distinct.items():
            parts = [part[layer_idx] for part in prefix.parts] or [fresh[:, 0, :, :0]]
            joined[name] = parts[0] if len(parts) == 1 else torch.cat(parts, 2)
        whole = torch.cat((stacked([joined[id(prefix)] for prefix in self.prefixes], self.longest), fresh), 3)
        return whole[0], whole[1]


class BlockReader(CanvasReader):
    """Computes the inputs of the head at the masked positions of canvases of a block-causal model.

    `Canvas.memory.cached` holds the `BlockPrefix` before the active block. The reader continues a shorter prefix, or
    begins with the prompt.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        mask_id: int,
        shift: int,
        block_length: int,
        memory_gib: float | None = None,
        one_by_one: bool = False,
        never: tuple[int, ...] = (),
    ) -> None:
        super().__init__(checkpoint, mask_id, shift, 0.0, memory_gib, one_by_one, never)
        self.block_length = block_length

    def read_all(self, canvases: Iterable[Canvas], work: Callable[[Sequence[Canvas]], None] | None = None) -> None:
        """Call `work`, by default `read`, with batches that fit into memory; no block is encoded for two canvases."""
        known: dict[Any, BlockPrefix] = {}
        waiting = sorted(canvases, key=self._start)
        while waiting:
            now, waiting = self._without_shared_blocks(waiting, known)
            for batch in self._batches(now):
                self.memory_limit.in_chunks(batch, max(map(self._bytes_to_read, batch)), work or self.read)
            for canvas in now:
                known[self._name(canvas, self._start(canvas))] = self._prefix(canvas)

    def read(self, canvases: Sequence[Canvas]) -> None:
        """Fill `memory.hidden` and `memory.cached` of canvases, by one forward pass over their fresh columns."""
        if fresh := [canvas for canvas in canvases if self._columns(canvas)]:
            self._read_columns(fresh)
        for canvas in canvases:
            if canvas.memory.hidden is None:  # the first position of a block, with a shift
                canvas.memory.hidden = torch.stack([self._prefix(canvas).last])  # type: ignore[list-item]

    def _prefix(self, canvas: Canvas) -> BlockPrefix:
        return canvas.memory.cached if isinstance(canvas.memory.cached, BlockPrefix) else BlockPrefix()

    def _start(self, canvas: Canvas) -> int:
        """The absolute position at which the active block begins."""
        place = len(canvas.prompt) + int(canvas.masked[0])
        return place - place % self.block_length

    def _stop(self, canvas: Canvas) -> int:
        """The absolute position after the columns of the step.

        The active block has no columns where the logits of its first position stand at the block before.
        """
        start = self._start(canvas)
        if self.shift and len(canvas.prompt) + canvas.masked[0] == start:
            return start
        return min(start + self.block_length, canvas.length)

    def _columns(self, canvas: Canvas) -> int:
        return self._stop(canvas) - self._prefix(canvas).length

    def _name(self, canvas: Canvas, end: int) -> Any:
        """The tokens before an absolute position."""
        return canvas.prompt, end, canvas.tokens[: max(0, end - len(canvas.prompt))].tobytes()

    def _without_shared_blocks(
        self, waiting: Sequence[Canvas], known: dict[Any, BlockPrefix]
    ) -> tuple[list[Canvas], list[Canvas]]:
        """The canvases to read at once, and those that wait for a block that one of the first encodes."""
        now, later, taken = list[Canvas](), list[Canvas](), set[Any]()
        for canvas in waiting:
            whole = len(canvas.prompt) - len(canvas.prompt) % self.block_length  # encoded as one part
            ends = range(self._start(canvas), max(whole, 1) - 1, -self.block_length)
            found = [prefix for end in ends if known and (prefix := known.get(self._name(canvas, end)))]
            canvas.memory.cached = max([self._prefix(canvas), *found], key=lambda prefix: prefix.length)
            names = [self._name(canvas, end) for end in reversed(ends) if end > canvas.memory.cached.length]
            if names and names[0] in taken:
                later.append(canvas)
            else:
                taken.update(names)
                now.append(canvas)
        return now, later

    def _batches(self, canvases: Iterable[Canvas]) -> Iterator[list[Canvas]]:
        """Batches of nearly equally many fresh columns; padding is computed, while a shorter prefix costs nothing."""
        batch: list[Canvas] = []
        for canvas in sorted(canvases, key=lambda canvas: (self._columns(canvas), canvas.length)):
            if batch and self._columns(canvas) > PADDING * self._columns(batch[0]):
                yield batch
                batch = []
            batch.append(canvas)
        if batch:
            yield batch

    def _bytes_to_read(self, canvas: Canvas) -> int:
        """An upper bound on the bytes of a canvas: in one layer, and the fresh keys and values of all layers."""
        config, columns = self.checkpoint.config, self._columns(canvas)
        here = columns * self._width + 6 * config.hidden_size * canvas.length
        return here * self.checkpoint.model.dtype.itemsize + self.bytes_cached(columns) + columns * canvas.length

    def _read_columns(self, canvases: Sequence[Canvas]) -> None:
        """Compute the columns from the end of each prefix to the end of the active block. Padding is charged too."""
        prefixes = [self._prefix(canvas) for canvas in canvases]
        longest, most = max(prefix.length for prefix in prefixes), max(map(self._columns, canvases))
        ids, places = np.zeros((len(canvases), most), np.int64), np.full((len(canvases), longest + most), -1, np.int64)
        for n, (canvas, prefix) in enumerate(zip(canvases, prefixes, strict=True)):
            stop, columns = self._stop(canvas), self._columns(canvas)
            ids[n, most - columns :] = np.concatenate((canvas.prompt, canvas.tokens))[prefix.length : stop]
            places[n, longest - prefix.length : longest] = np.arange(prefix.length)
            places[n, longest + most - columns :] = np.arange(prefix.length, stop)
        keys, own = _BlockKeys(prefixes, longest), places[:, longest:]
        device = weights_device(self.checkpoint.model)
        decoder = self.checkpoint.model.base_model
        hidden = decoder(
            torch.from_numpy(ids).to(device),
            self._as_implemented(torch.from_numpy(self._mask(places, own)).to(device)),
            position_ids=torch.from_numpy(own.clip(0)).to(device),
            **as_argument(keys, decoder),
        ).last_hidden_state
        self.ledger += Cost(forwards=1)
        self._require_all_layers(keys)
        for n, canvas in enumerate(canvases):
            self._keep(canvas, keys.fresh, hidden[n], n)
            canvas.charge(most, 1)

    def _mask(self, places: NDArray[np.int64], own: NDArray[np.int64]) -> NDArray[np.bool_]:
        """`[U, 1, columns, keys]`, block-causal, from absolute positions; -1 at padding.

        The queries of padding attend to all keys, because an average over no key is NaN.
        """
        block, of = places // self.block_length, own // self.block_length
        seen = (places >= 0)[:, None] & (block[:, None] <= of[..., None])
        return (seen | (own < 0)[..., None])[:, None]

    def _as_implemented(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask of booleans as the model's implementation of attention takes it: eager attention adds a mask.

        Raises
        ------
        InputError
            For an implementation that takes no such mask.
        """
        model = self.checkpoint.model
        implementation = model.config._attn_implementation
        if implementation == "eager":
            return torch.zeros_like(mask, dtype=model.dtype).masked_fill_(~mask, torch.finfo(model.dtype).min)
        if implementation not in ("sdpa", NAME):
            raise InputError(
                f"{self.checkpoint.name!r} has the attention {implementation!r}, which takes no block-causal mask; "
                'load it with attn_implementation="sdpa"'
            )
        return mask

    def _keep(self, canvas: Canvas, fresh: Sequence[torch.Tensor], hidden: torch.Tensor, row: int) -> None:
        """Store clones of the prefix's new columns and of the inputs of the head: a slice would keep other rows."""
        prefix, start, stop = self._prefix(canvas), self._start(canvas), self._stop(canvas)
        end = start - stop + len(hidden)  # the column after the finished blocks
        at = canvas.masked + len(canvas.prompt) - self.shift - stop + len(hidden)
        if stop > start:
            canvas.memory.hidden = hidden[torch.from_numpy(at)].clone()
        if start > prefix.length:
            columns = slice(end - (start - prefix.length), end)
            last = hidden[end - 1].clone() if self.shift else None
            canvas.memory.cached = prefix.extended([layer[:, row, :, columns].clone() for layer in fresh], last)

    def _require_all_layers(self, keys: _BlockKeys) -> None:
        """Raise `InputError` unless every layer has recorded its keys and values once."""
        layers = self.checkpoint.config.num_hidden_layers
        if len(keys.fresh) != layers:
            raise InputError(
                f"{type(self.checkpoint.model).__name__} recorded {len(keys.fresh)} of {layers} layers; pass keys and "
                "values through `past_key_values.update` in every layer (docs/extending/model_family.md)"
            )
