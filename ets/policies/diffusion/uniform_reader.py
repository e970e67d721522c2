"""Forward passes of DiffusionGemma: the encoder reads prefixes, the decoder gives the logits of canvases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch

from ets.models.cache_argument import as_argument
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.prefixes import CanvasPrefix, PrefixCache, windows_of
from ets.policies.memory import MemoryLimit, weights_device
from ets.types import Cost

BYTES_PER_LOGIT = 48
"""Bytes of the tensors of a denoising step, for each position and token of the vocabulary."""


class UniformReader:
    """Runs the encoder and the decoder on batches that fit into memory, and counts forward passes."""

    def __init__(self, checkpoint: Checkpoint, memory_gib: float | None = None, one_by_one: bool = False) -> None:
        self.checkpoint = checkpoint
        self.memory_limit = MemoryLimit(memory_gib, lambda: weights_device(checkpoint.model), one_by_one)
        self.ledger = Cost()

    @cached_property
    def _windows(self) -> list[int | None]:
        return windows_of(self.checkpoint.config.get_text_config())

    def bytes_cached(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens, if no layer drops those outside of its window."""
        config = self.checkpoint.config.get_text_config()
        layers = [config.per_layer_config[number] for number in range(config.num_hidden_layers)]
        numbers = sum(2 * layer.num_key_value_heads * layer.head_dim for layer in layers)
        return tokens * numbers * int(self.checkpoint.model.dtype.itemsize)

    def bytes_of_logits(self, positions: int) -> int:
        """Bytes of a denoising step of so many positions."""
        return positions * self.checkpoint.config.get_text_config().vocab_size * BYTES_PER_LOGIT

    def read(self, prefixes: Sequence[CanvasPrefix]) -> None:
        """Fill `layers` of different prefixes of equal lengths, by one pass of the encoder."""
        ids = torch.tensor([prefix.tokens for prefix in prefixes], device=weights_device(self.checkpoint.model))
        cache = PrefixCache(self._windows, [prefix.before for prefix in prefixes])
        encoder = self.checkpoint.model.base_model.encoder
        encoder(input_ids=ids, position_ids=self._positions(cache, ids), **as_argument(cache, encoder))
        for row, prefix in enumerate(prefixes):
            prefix.layers = cache.new_layers(row)
        self.ledger += Cost(forwards=1)

    def logits(
        self, prefixes: Sequence[CanvasPrefix], canvases: torch.Tensor, signals: Sequence[torch.Tensor | None]
    ) -> torch.Tensor:
        """Logits `[U, C, V]` of canvases `[U, C]`, by one pass of the decoder.

        Parameters
        ----------
        prefixes : sequence of CanvasPrefix
            `[U]`, of equal lengths.
        canvases : tensor
        signals : sequence of tensor
            `[U]`, the self-conditioning `[C, width]` of each canvas; None at its first denoising step.
        """
        model = self.checkpoint.model
        cache, canvases = PrefixCache(self._windows, prefixes), canvases.to(weights_device(model))
        with self._conditioned(signals):
            output = model(
                decoder_input_ids=canvases,
                decoder_position_ids=self._positions(cache, canvases),
                **as_argument(cache, model),
            )
        self.ledger += Cost(forwards=1)
        logits: torch.Tensor = output.logits
        return logits

    def signal(self, logits: torch.Tensor) -> torch.Tensor:
        """The self-conditioning `[U, C, width]` of the next step: mean embeddings under tempered logits `[U, C, V]`.

        The decoder would compute the same from the logits. The embeddings take the space of `width` instead of V
        numbers per position in a state.
        """
        embedding = self.checkpoint.model.base_model.decoder.embed_tokens
        dtype = embedding.weight.dtype
        weights = logits.to(embedding.weight.device, dtype).softmax(-1, dtype=torch.float32).to(dtype)
        return (weights @ embedding.weight) * embedding.embed_scale.to(dtype)

    @contextmanager
    def _conditioned(self, signals: Sequence[torch.Tensor | None]) -> Iterator[None]:
        """Within the context, the decoder's self-conditioning gets the signals; zeros for None."""

        def conditioned(module: Any, inputs: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
            embedded, zeros = inputs
            rows = [zeros[n] if signal is None else signal for n, signal in enumerate(signals)]
            return embedded, torch.stack(rows)

        if all(signal is None for signal in signals):
            yield
            return
        handle = self.checkpoint.model.base_model.decoder.self_conditioning.register_forward_pre_hook(conditioned)
        try:
            yield
        finally:
            handle.remove()

    @staticmethod
    def _positions(cache: PrefixCache, ids: torch.Tensor) -> torch.Tensor:
        begin = cache.get_seq_length()
        return torch.arange(begin, begin + ids.shape[1], device=ids.device)[None]
