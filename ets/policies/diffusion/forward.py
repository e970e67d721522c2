"""Forward passes of a masked-diffusion model over canvases: whole ones, and windows of them beside what is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.cache import Known, Recalling, Recording
from ets.policies.diffusion.canvas import Canvas, Ints, Memory
from ets.policies.memory import cache_bytes
from ets.types import Cost, InputError

BYTES_PER_LOGIT = 48
"""Of the float64 tensors that a denoising step makes, for each position and token of the vocabulary."""


class CanvasReader:
    """Computes the head's inputs at canvases' masked positions, and counts what it computes.

    Parameters
    ----------
    checkpoint : Checkpoint
    mask_id : int
    shift : int
        See `ets.models.Family`.
    cfg : float
        Classifier-free guidance; without a cache only.
    """

    def __init__(self, checkpoint: Checkpoint, mask_id: int, shift: int, cfg: float) -> None:
        self.checkpoint, self.mask_id, self.shift, self.cfg = checkpoint, mask_id, shift, cfg
        self.ledger = Cost()

    @property
    def passes(self) -> int:
        """Sequences that the model reads for one canvas: two with guidance."""
        return 2 if self.cfg else 1

    def read(self, canvases: Sequence[Canvas]) -> None:
        """Fill the memories of canvases that differ, are of one kind and have not been read: one forward pass."""
        (self._read_whole if canvases[0].origin is None else self._read_windows)(canvases)

    def logits(self, canvases: Sequence[Canvas]) -> torch.Tensor:
        """Guided logits `[U, n, V]` of canvases that have been read, at their n masked positions."""
        hidden = torch.stack([cast("torch.Tensor", canvas.memory.hidden) for canvas in canvases])
        return self.checkpoint.model.get_output_embeddings()(hidden)

    def bytes_to_read(self, canvas: Canvas) -> int:
        """Bytes that a canvas takes on its way through a layer, generously."""
        config = self.checkpoint.config
        width = 12 * config.hidden_size + 3 * config.intermediate_size
        known = 0 if canvas.origin is None else 4 * config.hidden_size * canvas.length
        return (canvas.columns * width * self.passes + known) * self._itemsize

    def bytes_of_logits(self, canvas: Canvas, copies: int) -> int:
        """Bytes of the logits at a canvas's masked positions, for so many rows that draw from them."""
        return copies * len(canvas.masked) * self.checkpoint.config.vocab_size * BYTES_PER_LOGIT

    def bytes_known(self, length: int) -> int:
        """Bytes of the keys and values of a sequence."""
        return cache_bytes(self.checkpoint.config, self._itemsize) * length

    @property
    def _itemsize(self) -> int:
        return self.checkpoint.model.dtype.itemsize

    def _read_whole(self, canvases: Sequence[Canvas]) -> None:
        """Whole canvases; padding is charged too.

        With guidance, un + (s + 1)(cond - un) is taken before the head, which is linear: half the vocabulary work.
        """
        sequences: list[tuple[Sequence[int], Ints]] = []
        unguided: dict[tuple[int, bytes], int] = {}  # where the sequence of a canvas without its prompt stands
        places, reads = [], []
        for canvas in canvases:
            before = len(sequences)
            places.append([before])
            sequences.append((canvas.prompt, canvas.tokens))
            if self.cfg:
                name = (len(canvas.prompt), canvas.tokens.tobytes())
                if name not in unguided:
                    unguided[name] = len(sequences)
                    sequences.append(((self.mask_id,) * len(canvas.prompt), canvas.tokens))
                places[-1].append(unguided[name])
            reads.append(len(sequences) - before)
        longest = max(canvas.length for canvas in canvases)
        recording = self._recording(canvases, longest)
        hidden = self._forward([np.concatenate(pair) for pair in sequences], longest, recording)
        if recording is not None:
            self._require_recorded(recording)
        for n, canvas in enumerate(canvases):
            at = torch.from_numpy(longest - len(canvas.tokens) + canvas.masked - self.shift)
            canvas.memory.hidden = self._guided(hidden[places[n]][:, at])
            canvas.memory.known = recording.known[n] if recording else None
            canvas.charge(reads[n] * longest, reads[n])

    def _recording(self, canvases: Sequence[Canvas], longest: int) -> Recording | None:
        """What keeps the keys and values of the canvases that have a window; None if none has."""
        windows: list[tuple[int, int, int] | None] = []
        for canvas in canvases:
            before = longest - len(canvas.tokens)
            first, last = self._window(canvas.window or (0, 0))
            windows.append((longest - canvas.length, before + first, before + last) if canvas.window else None)
        return Recording(windows) if any(windows) else None

    def _require_recorded(self, recording: Recording) -> None:
        """Raise `InputError` unless a refresh has recorded every layer once: a cache without records gives garbage.

        A transformers model that does not know `exchange` swallows it among its other keyword arguments.
        """
        layers = self.checkpoint.config.num_hidden_layers
        for known in recording.known:
            if known is not None and len(known.layers) != layers:
                raise InputError(
                    f"{type(self.checkpoint.model).__name__} recorded {len(known.layers)} of {layers} layers for the "
                    "cache; pass keys and values through `exchange` in every layer (docs/extending/model_family.md), "
                    "or leave cache out"
                )

    def _window(self, window: tuple[int, int]) -> tuple[int, int]:
        """Positions whose computation gives the logits of a window."""
        return window[0] - self.shift, window[1]

    def _guided(self, hidden: torch.Tensor) -> torch.Tensor:
        """`[n, width]` from `[1 or 2, n, width]`, with storage of its own: a slice would keep the other canvases'."""
        if len(hidden) == 1:
            return hidden[0].clone()
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return (wide[1] + (self.cfg + 1) * (wide[0] - wide[1])).to(hidden.dtype)

    def _forward(self, sequences: Sequence[Ints], longest: int, recording: Recording | None) -> torch.Tensor:
        """The head's inputs `[sequences, longest, width]`; shorter sequences are padded on the left."""
        ids = np.zeros((len(sequences), longest), np.int64)
        for n, sequence in enumerate(sequences):
            ids[n, longest - len(sequence) :] = sequence
        mask = self._mask([len(sequence) for sequence in sequences], longest)
        return self._through(ids, mask, **({} if recording is None else {"exchange": recording}))

    def _mask(self, lengths: Sequence[int], longest: int) -> torch.Tensor | None:
        """`[sequences, longest]`, 0 at the padding; None where there is none."""
        if min(lengths) == longest:
            return None
        return torch.from_numpy((np.arange(longest) >= longest - np.array(lengths)[:, None]).astype(np.int64))

    def _through(self, ids: Ints, mask: torch.Tensor | None, **options: object) -> torch.Tensor:
        device = self.checkpoint.model.device
        placed = None if mask is None else mask.to(device)
        hidden = self.checkpoint.model.base_model(torch.from_numpy(ids).to(device), placed, **options)
        self.ledger += Cost(forwards=1)
        return hidden.last_hidden_state

    def _read_windows(self, canvases: Sequence[Canvas]) -> None:
        """One forward pass over the windows of canvases that differ; what is not known any more is computed first."""
        self._know(canvases)
        longest, gen_length = max(canvas.length for canvas in canvases), len(canvases[0].tokens)
        first, last = self._window(cast("tuple[int, int]", canvases[0].window))
        starts = np.array([len(canvas.prompt) + first for canvas in canvases])
        ids = np.stack(
            [np.array((*c.prompt, *c.tokens))[s : s + last - first] for s, c in zip(starts, canvases, strict=True)]
        )
        positions = torch.from_numpy(starts[:, None] + np.arange(last - first)).to(self.checkpoint.model.device)
        recalling = Recalling([cast("Known", c.memory.known) for c in canvases], longest - gen_length + first)
        mask = self._mask([canvas.length for canvas in canvases], longest)
        hidden = self._through(ids, mask, position_ids=positions, exchange=recalling)
        for n, canvas in enumerate(canvases):
            canvas.charge(last - first, 1)
            canvas.memory.hidden = hidden[n, torch.from_numpy(canvas.masked - self.shift - first)].clone()

    def _know(self, canvases: Sequence[Canvas]) -> None:
        """Refresh what was dropped, canvas by canvas: from the canvas at the last refresh, so it is the same."""
        refreshed: dict[tuple[tuple[int, ...], bytes], Known | None] = {}
        for canvas in canvases:
            if canvas.memory.known is None and canvas.origin is not None:
                name = canvas.prompt, canvas.origin.tobytes()
                if name not in refreshed:
                    memory, nowhere = Memory(canvas.memory.owner), canvas.masked[:0]
                    origin = Canvas(canvas.prompt, canvas.origin, nowhere, memory, canvas.window)
                    self._read_whole([origin])
                    canvas.charge(origin.positions, origin.row_forwards)
                    refreshed[name] = memory.known
                canvas.memory.known = refreshed[name]
