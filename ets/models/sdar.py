"""SDAR (Cheng et al., arXiv 2510.06303) as a transformers model, compatible with the published checkpoints.

SDAR is Qwen3, dense or a mixture of experts, with block-causal attention, so the classes of transformers do the work:
parameters and configuration fields have the same names. The logits at a position are for the token at that position.
The reader of `ets.policies.diffusion.blocks` gives the mask of every forward pass; without a mask the model is causal.

The published sampler differs from this project's in four points. It fills the last block of the sequence to its end,
while the canvas ends at `gen_length`. It may draw the mask token. Its confidences are those of the tempered and
truncated distribution, and it offers top_k and top_p. Its strategies are the rules `low_confidence` (static; with
`threshold`: dynamic) and `sequential`; there is no rule for `entropy_bounded`.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)


class SDARConfig(Qwen3Config):
    """Qwen3's configuration with the block length of training and the mask token `<|MASK|>`."""

    model_type = "sdar"

    block_size: int = 4
    mask_token_id: int = 151669

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("attn_implementation", None)  # published for training: flex_attention
        super().__post_init__(**kwargs)


class SDARForCausalLM(Qwen3ForCausalLM):
    """SDAR with its head, under the publishers' name."""

    config_class = SDARConfig


class SDARMoeConfig(Qwen3MoeConfig):
    """The configuration of Qwen3's mixture of experts with the fields of `SDARConfig`."""

    model_type = "sdar_moe"

    block_size: int = 4
    mask_token_id: int = 151669

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("attn_implementation", None)
        super().__post_init__(**kwargs)


class SDARMoeForCausalLM(Qwen3MoeForCausalLM):
    """SDAR's mixture of experts with its head, under the publishers' name."""

    config_class = SDARMoeConfig


register_checkpoint_conversion_mapping(  # one tensor for all experts
    SDARMoeConfig.model_type, get_checkpoint_conversion_mapping("qwen3_moe"), overwrite=True
)
