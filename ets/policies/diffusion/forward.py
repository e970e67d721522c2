"""Forward passes of a masked-diffusion model over whole canvases, or over windows that attend to a cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar, cast

import numpy as np
import torch

from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.cache import CachedLayers, Recalling, Recording
from ets.policies.diffusion.canvas import Canvas, CanvasMemory, Ints, alike, equally_masked
from ets.policies.memory import MemoryLimit, cache_bytes, weights_device
from ets.types import Cost, InputError

T = TypeVar("T")
BYTES_PER_LOGIT = 48
"""Bytes of the float64 tensors of a denoising step, for each position and token of the vocabulary."""

LOGITS_TOGETHER = 2**25
"""Logits that the head computes at once. On a CPU, fewer positions of a large vocabulary would take longer each."""


class CanvasReader:
    """Computes the inputs of the head at the masked positions of canvases, and counts forward passes.

    `shift` is explained in `ets.models.Family`, `memory_gib` and `one_by_one` in `ets.policies.memory.MemoryLimit`.
    Guidance (`cfg`) excludes a cache. The logits of the tokens `never` are -∞.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        mask_id: int,
        shift: int,
        cfg: float,
        memory_gib: float | None = None,
        one_by_one: bool = False,
        never: tuple[int, ...] = (),
    ) -> None:
        self.checkpoint, self.mask_id, self.shift, self.cfg, self.never = checkpoint, mask_id, shift, cfg, never
        self.memory_limit = MemoryLimit(memory_gib, lambda: weights_device(checkpoint.model), one_by_one)
        self.ledger = Cost()

    def read_all(self, canvases: Iterable[Canvas], work: Callable[[Sequence[Canvas]], None] | None = None) -> None:
        """Call `work`, by default `read`, with batches of canvases that fit into memory."""
        for batch in alike(canvases):
            self.memory_limit.in_chunks(batch, max(map(self._bytes_to_read, batch)), work or self.read)

    def read(self, canvases: Sequence[Canvas]) -> None:
        """Fill `memory.hidden` of different canvases of one batch, by one forward pass."""
        (self._read_whole if canvases[0].origin is None else self._read_windows)(canvases)

    def with_logits(
        self, canvases: Iterable[Canvas], work: Callable[[Sequence[Canvas]], T], copies: int | None = None
    ) -> Iterator[tuple[list[Canvas], list[T]]]:
        """Batches of canvases that have been read, and the results of `work` for the chunks of each batch.

        A batch has `LOGITS_TOGETHER` logits at most, unless it is one canvas. A chunk fits into memory with `copies`
        rows of logits per canvas, by default the number of rows of the canvas.
        """
        for equal in equally_masked(canvases):
            size = max(1, LOGITS_TOGETHER // (len(equal[0].masked) * self.checkpoint.config.vocab_size))
            for batch in (equal[first : first + size] for first in range(0, len(equal), size)):
                most = copies or max(len(canvas.rows) for canvas in batch)
                yield batch, self.memory_limit.in_chunks(batch, self.bytes_of_logits(batch[0], most), work)

    def logits(self, canvases: Sequence[Canvas]) -> torch.Tensor:
        """Guided logits `[U, n, V]` of U canvases that have been read, at their n masked positions."""
        hidden = torch.stack([cast("torch.Tensor", canvas.memory.hidden) for canvas in canvases])
        logits = self.checkpoint.model.get_output_embeddings()(hidden)
        for token in self.never:
            logits[..., token] = -math.inf
        return logits

    def bytes_of_logits(self, canvas: Canvas, rows: int) -> int:
        """Bytes of the logits at the masked positions of a canvas, for the rows that draw from them."""
        return rows * len(canvas.masked) * self.checkpoint.config.vocab_size * BYTES_PER_LOGIT

    def bytes_cached(self, length: int) -> int:
        """Bytes of the keys and values of a sequence."""
        return cache_bytes(self.checkpoint.config, self.checkpoint.model.dtype.itemsize) * length

    @property
    def _width(self) -> int:
        """An upper bound on the numbers of a column in one layer: a gated network keeps four of its widths at once."""
        return 12 * self.checkpoint.config.hidden_size + 4 * self.checkpoint.config.intermediate_size

    def _bytes_to_read(self, canvas: Canvas) -> int:
        """An upper bound on the bytes of a canvas in one layer."""
        config, window = self.checkpoint.config, canvas.between
        width = self._width * (2 if self.cfg else 1)
        columns = canvas.length if window is None else window[1] - window[0]
        cached = 0 if window is None else 4 * config.hidden_size * canvas.length
        return (columns * width + cached) * self.checkpoint.model.dtype.itemsize

    def _read_whole(self, canvases: Sequence[Canvas]) -> None:
        """Read whole canvases. Padding is charged too.

        Guidance un + (s + 1)(cond - un) combines the inputs of the head, which is linear: half the vocabulary work.
        """
        sequences: list[Ints] = []
        unguided: dict[tuple[int, bytes], int] = {}  # rows of the canvases whose prompt is masked
        places, reads = [], []
        for canvas in canvases:
            before = len(sequences)
            places.append([before])
            sequences.append(np.concatenate((canvas.prompt, canvas.tokens)))
            if self.cfg:
                name = (len(canvas.prompt), canvas.tokens.tobytes())
                if name not in unguided:
                    unguided[name] = len(sequences)
                    sequences.append(np.concatenate(([self.mask_id] * len(canvas.prompt), canvas.tokens)))
                places[-1].append(unguided[name])
            reads.append(len(sequences) - before)
        longest = max(canvas.length for canvas in canvases)
        ids = np.zeros((len(sequences), longest), np.int64)
        for n, sequence in enumerate(sequences):
            ids[n, longest - len(sequence) :] = sequence
        recording = self._recording(canvases, longest)
        options = {} if recording is None else {"exchange": recording}
        hidden = self._forward(ids, [len(sequence) for sequence in sequences], longest, **options)
        if recording is not None:
            self._require_recorded(recording)
        for n, canvas in enumerate(canvases):
            at = torch.from_numpy(longest - len(canvas.tokens) + canvas.masked - self.shift)
            canvas.memory.hidden = self._guided(hidden[places[n]][:, at])
            canvas.memory.cached = recording.cached[n] if recording else None
            canvas.charge(reads[n] * longest, reads[n])

    def _recording(self, canvases: Sequence[Canvas], longest: int) -> Recording | None:
        """Records the keys and values of the canvases that have a window; None if no canvas has a window."""
        windows: list[tuple[int, int, int] | None] = []
        for canvas in canvases:
            before, window = longest - len(canvas.tokens), canvas.window
            windows.append(window and (longest - canvas.length, before + window[0] - self.shift, before + window[1]))
        return Recording(windows) if any(windows) else None

    def _require_recorded(self, recording: Recording) -> None:
        """Raise `InputError` unless a refresh has recorded every layer once: a cache without records gives garbage.

        A transformers model whose forward does not name `exchange` swallows it among other keyword arguments.
        """
        layers = self.checkpoint.config.num_hidden_layers
        for cached in recording.cached:
            if cached is not None and len(cached) != layers:
                raise InputError(
                    f"{type(self.checkpoint.model).__name__} recorded {len(cached)} of {layers} layers for the "
                    "cache; pass keys and values through `exchange` in every layer (docs/extending/model_family.md), "
                    "or leave cache out"
                )

    def _guided(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[n, width]` from `[1 or 2, n, width]`, as a clone: a slice would keep the other canvases in memory."""
        if len(hidden) == 1:
            return hidden[0].clone()
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return (wide[1] + (self.cfg + 1) * (wide[0] - wide[1])).to(hidden.dtype)

    def _forward(self, ids: Ints, lengths: Sequence[int], longest: int, **options: object) -> torch.Tensor:
        """The inputs of the head `[rows, columns, width]`. Sequences are padded on the left to the longest."""
        device, mask = weights_device(self.checkpoint.model), None
        if min(lengths) < longest:
            attended = np.arange(longest) >= longest - np.array(lengths)[:, None]
            mask = torch.from_numpy(attended.astype(np.int64)).to(device)
        output = self.checkpoint.model.base_model(torch.from_numpy(ids).to(device), mask, **options)
        self.ledger += Cost(forwards=1)
        return output.last_hidden_state

    def _read_windows(self, canvases: Sequence[Canvas]) -> None:
        """Read the windows of canvases. Canvases without cached keys and values are refreshed first."""
        self._refresh(canvases)
        longest = max(canvas.length for canvas in canvases)
        first, last = cast("tuple[int, int]", canvases[0].window)
        first -= self.shift
        starts = np.array([len(canvas.prompt) + first for canvas in canvases])
        columns = starts[:, None] + np.arange(last - first)
        ids = np.stack([np.array((*c.prompt, *c.tokens))[at] for c, at in zip(canvases, columns, strict=True)])
        positions = torch.from_numpy(columns).to(weights_device(self.checkpoint.model))
        cached = [cast("CachedLayers", canvas.memory.cached) for canvas in canvases]
        recalling = Recalling(cached)
        lengths = [canvas.length for canvas in canvases]
        hidden = self._forward(ids, lengths, longest, position_ids=positions, exchange=recalling)
        for n, canvas in enumerate(canvases):
            canvas.charge(last - first, 1)
            canvas.memory.hidden = hidden[n, torch.from_numpy(canvas.masked - self.shift - first)].clone()

    def _refresh(self, canvases: Sequence[Canvas]) -> None:
        """Compute dropped caches again, each from the canvas at its last refresh: the cache is the same."""
        refreshed: dict[tuple[tuple[int, ...], bytes], CachedLayers | None] = {}
        for canvas in canvases:
            if canvas.memory.cached is None and canvas.origin is not None:
                name = canvas.prompt, canvas.origin.tobytes()
                if name not in refreshed:
                    memory, nowhere = CanvasMemory(canvas.memory.owner), canvas.masked[:0]
                    origin = Canvas(canvas.prompt, canvas.origin, nowhere, memory, canvas.window)
                    self._read_whole([origin])
                    canvas.charge(origin.positions, origin.row_forwards)
                    refreshed[name] = cast("CachedLayers | None", memory.cached)
                canvas.memory.cached = refreshed[name]
