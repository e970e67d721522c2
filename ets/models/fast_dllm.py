"""Fast-dLLM v2 (Wu et al., arXiv 2509.26328) as a transformers model, compatible with the published checkpoints.

Fast-dLLM v2 is Qwen2.5 with block-causal attention, so the classes of transformers do the work: parameters and
configuration fields have the same names. The logits for the token at a position stand at the position before it. The
reader of `ets.policies.diffusion.blocks` gives the mask of every forward pass; without a mask the model is causal.

The published sampler takes the most probable first token of each block, at any temperature; here the token is drawn at
the temperature, as all others. It fills the last block of the sequence to its end, while the canvas ends at
`gen_length`. Its confidences are those of the tempered distribution truncated by top_p, which is not available. Its
cache within a block changes the law and is not available.
"""

from __future__ import annotations

from transformers import Qwen2Config, Qwen2ForCausalLM


class FastDLLMConfig(Qwen2Config):
    """Qwen2's configuration with the block length of training and the mask token `|<MASK>|`."""

    model_type = "Fast_dLLM_Qwen"

    bd_size: int = 32
    mask_token_id: int = 151665


class FastDLLMForCausalLM(Qwen2ForCausalLM):
    """Fast-dLLM v2 with its head."""

    config_class = FastDLLMConfig
