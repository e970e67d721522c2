"""SDAR (Cheng et al., arXiv 2510.06303) as a transformers model, compatible with the published checkpoints.

SDAR is Qwen3 with block-causal attention, so the classes of transformers do the work: parameters and configuration
fields have the same names. The logits at a position are for the token at that position. The reader of
`ets.policies.diffusion.blocks` gives the mask of every forward pass; without a mask the model is causal, as Qwen3 is.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen3Config, Qwen3ForCausalLM


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
