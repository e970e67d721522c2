"""iLLaDA (Nie et al., arXiv 2606.25331) as a transformers model, compatible with the published checkpoints.

iLLaDA is a Llama decoder without the causal mask, with grouped key-value heads and a head that shares the embeddings.
Parameters and configuration fields have the names of Llama. The logits at a position are for the token at that
position. The configuration names no mask token: `<[MASK]>` of the tokenizer has the id 5.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel, LlamaPreTrainedModel

from ets.models.bidirectional import TIED, BidirectionalDecoder, MaskPredictor
from ets.types import InputError


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
        if (eps := getattr(self, "layer_norm_eps", None)) is not None:
            raise InputError(f"this iLLaDA configuration has layer_norm_eps {eps!r}; only None is supported")


class ILLaDAModel(BidirectionalDecoder, LlamaModel):
    """The decoder without the head."""


class ILLaDAForCausalLM(MaskPredictor, LlamaPreTrainedModel):
    """iLLaDA with its head, under the publishers' name."""

    config_class = ILLaDAConfig
    _tied_weights_keys = TIED

    def __init__(self, config: ILLaDAConfig) -> None:
        super().__init__(config)
        self.model = ILLaDAModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
