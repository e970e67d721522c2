"""A2D-Qwen3 (the dLLM project) as a transformers model: a Qwen3 decoder that was trained on to predict masks.

Every position attends to all others. Parameters and configuration fields have the names of Qwen3, and the logits at a
position are for the token at that position. Its smallest checkpoint has 0.6 billion parameters.
"""

from __future__ import annotations

from transformers import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model, Qwen3PreTrainedModel

from ets.models.bidirectional import BidirectionalDecoder, HeadedPredictor


class A2DQwen3Config(Qwen3Config):
    """The fields of Qwen3's configuration; the tokenizer has the mask token."""

    model_type = "a2d-qwen3"


class A2DQwen3Decoder(BidirectionalDecoder, Qwen3Model):
    """The decoder without the head."""


class A2DQwen3LMHeadModel(HeadedPredictor, Qwen3PreTrainedModel):
    """A2D-Qwen3 with its head, under the publishers' name."""

    config_class = A2DQwen3Config
    decoder_class = A2DQwen3Decoder
