"""iLLaDA (Nie et al., arXiv 2606.25331) as a transformers model, compatible with the published checkpoints.

iLLaDA is a Llama decoder without the causal mask, with grouped key-value heads and a head that shares the embeddings.
Parameters and configuration fields have the names of Llama. The logits at a position are for the token at that
position. The configuration names no mask token: `<[MASK]>` of the tokenizer has the id 5.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel

from ets.models.bidirectional import BidirectionalDecoder, HeadedPredictor
from ets.models.configuration import require_fixed


class ILLaDAConfig(LlamaConfig):
    """The fields of Llama's configuration.

    Raises
    ------
    InputError
        For a variant of the architecture that no published checkpoint has.
    """

    model_type = "illada"

    vocab_size: int = 155136
    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 8192
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        require_fixed(self, "iLLaDA", {"layer_norm_eps": None})


class ILLaDAModel(BidirectionalDecoder, LlamaModel):
    """The decoder without the head."""


class ILLaDAForCausalLM(HeadedPredictor, LlamaPreTrainedModel):
    """iLLaDA with its head, under the publishers' name."""

    config_class = ILLaDAConfig
    decoder_class = ILLaDAModel
