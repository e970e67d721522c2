"""Decoders of transformers without the causal mask: the networks of masked-diffusion families.

A published mask predictor is often a known decoder (Llama, Qwen2) in which every position attends to all others, under
the decoder's own tensor names. `BidirectionalDecoder` and `HeadedPredictor` make it from the decoder's class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from ets.models.cache_argument import as_argument

Exchange: TypeAlias = Callable[[int, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""`(layer, keys, values)` `[rows, heads, length, head]` with rotated keys, to the keys and values of the attention.

A cache stores its arguments and returns cached columns too.
"""


class _ExchangedCache:
    """An `Exchange` in the place of a cache: an attention layer calls `update` with its keys and values."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.exchange(layer, keys, values)


def positions_of(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Position ids that count a row's tokens from the first token after the padding."""
    if attention_mask is None:
        return torch.arange(input_ids.shape[1], device=input_ids.device)[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


class BidirectionalDecoder:
    """A mixin before the decoder class: `class Model(BidirectionalDecoder, LlamaModel)`.

    With an `exchange`, `input_ids` may be a part of the sequences: `position_ids` then hold the positions of the part,
    and `attention_mask` `[rows, columns]`, required for padded rows, covers the keys that the exchange returns.
    """

    if TYPE_CHECKING:  # transformers reads annotations of `config` from the classes
        config: Any
        embed_tokens: nn.Module
        layers: nn.ModuleList
        norm: nn.Module
        rotary_emb: nn.Module

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        exchange: Exchange | None = None,
        **options: Any,
    ) -> BaseModelOutput:
        hidden = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = positions_of(input_ids, attention_mask)
        mask = create_bidirectional_mask(self.config, hidden, attention_mask)
        turns = self.rotary_emb(hidden, position_ids)
        cache = None if exchange is None else _ExchangedCache(exchange)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_embeddings=turns,
                position_ids=position_ids,
                is_causal=False,
                **as_argument(cache, layer),
                **options,
            )
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


class MaskPredictor:
    """A mixin of models with a decoder `model` and a head, linear without a bias."""

    if TYPE_CHECKING:
        model: Any

        def get_output_embeddings(self) -> nn.Module: ...

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        logits_at: torch.Tensor | None = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """Logits `[rows, length, V]` at all positions.

        Parameters
        ----------
        input_ids : tensor
            `[rows, length]`, with mask tokens.
        attention_mask : tensor, optional
            `[rows, length]`, 0 at padding, which is on the left.
        position_ids : tensor, optional
            `[rows, length]`; by default counted from the first token after the padding.
        logits_at : tensor, optional
            Booleans `[rows, length]`: return logits `[N, V]` of these positions only, row by row.
        """
        hidden = self.model(input_ids, attention_mask, position_ids, **options).last_hidden_state
        if logits_at is not None:
            hidden = hidden[logits_at.to(hidden.device)]  # layers may be on different devices
        return MaskedLMOutput(logits=self.get_output_embeddings()(hidden))


class HeadedPredictor(MaskPredictor):
    """A mixin of models with the tensor names of transformers' causal models: `model` and `lm_head`.

    `decoder_class` is the class of `model`. A configuration with `tie_word_embeddings` shares the weights of the head
    and of the embeddings.
    """

    decoder_class: Any
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers reads it)

    if TYPE_CHECKING:

        def post_init(self) -> None: ...

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self.model = self.decoder_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
