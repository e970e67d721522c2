"""Dream (Ye et al., arXiv 2508.15487) as a transformers model, compatible with the published checkpoints.

Dream is a Qwen2 decoder without the causal mask; DiffuCoder and Dream-Coder have the same architecture. Parameters and
configuration fields have the names of Qwen2. The logits for a token stand one position to its left, as in the
autoregressive model whose weights Dream began with. The publishers' tokenizer is Qwen2's under another name.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen2Config, Qwen2Tokenizer
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model, Qwen2PreTrainedModel

from ets.models.bidirectional import BidirectionalDecoder, HeadedPredictor
from ets.models.configuration import require_fixed


class DreamConfig(Qwen2Config):
    """The fields of Qwen2's configuration, and the mask token's id.

    Raises
    ------
    InputError
        For a variant of the architecture that no published checkpoint has.
    """

    model_type = "Dream"

    mask_token_id: int = 151666

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        require_fixed(self, "Dream", {"use_sliding_window": False, "use_mrope": False})


class DreamDecoder(BidirectionalDecoder, Qwen2Model):
    """The decoder without the head."""


class DreamModel(HeadedPredictor, Qwen2PreTrainedModel):
    """Dream with its head, under the publishers' name."""

    config_class = DreamConfig
    decoder_class = DreamDecoder


class DreamTokenizer(Qwen2Tokenizer):
    """Qwen2's tokenizer under the name in the published tokenizer configuration."""
