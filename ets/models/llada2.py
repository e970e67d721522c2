"""LLaDA2.x (Bie et al., arXiv 2512.15745) as a transformers model, compatible with the published checkpoints.

LLaDA2 is a mixture of experts with block-causal attention. Its layers have the equations of GLM-4 MoE: sigmoid routing
with a bias per expert and a limit on groups, shared experts, first dense layers, norms of queries and keys, and partial
rotary positions. So the classes of transformers do the work, and `CONVERSIONS` renames the published tensors and splits
the fused queries, keys and values. The logits at a position are for the token at that position. The reader of
`ets.policies.diffusion.blocks` gives the mask of every forward pass; without a mask the model is causal.

The published sampler fills the last block of the sequence to its end, while the canvas ends at `gen_length`; it may
draw the mask token, and offers top_k and top_p. It stops after a block with an end token, as `stop_at_end` does. The
token editing of LLaDA2.1, which changes revealed tokens, is not available.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Glm4MoeForCausalLM, PreTrainedConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from ets.models.configuration import require_fixed

# Fields of the publishers' configuration, with the value of every published checkpoint.
_FIXED = {"use_bias": False, "norm_head": False, "score_function": "sigmoid", "hidden_act": "silu"}


class LLaDA2MoeConfig(PreTrainedConfig):
    """The publishers' configuration fields, also under the names that GLM-4 MoE has in transformers.

    Raises
    ------
    InputError
        For a variant of the architecture that no published checkpoint has.
    """

    model_type = "llada2_moe"
    attribute_map = {  # noqa: RUF012 (transformers reads it from the class)
        "num_local_experts": "num_experts",
        "n_shared_experts": "num_shared_experts",
        "attention_bias": "use_qkv_bias",
    }

    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int | None = 128
    hidden_act: str = "silu"
    use_qkv_bias: bool = False
    use_qk_norm: bool = True
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    max_position_embeddings: int = 32768
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: float = 0.5
    num_experts: int = 256
    num_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int = 8
    topk_group: int = 4
    routed_scaling_factor: float = 2.5
    moe_intermediate_size: int = 512
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = False
    use_cache: bool = True
    mask_token_id: int = 156895
    eos_token_id: int | list[int] | None = 156892
    pad_token_id: int | None = 156892
    bos_token_id: int | None = None
    num_nextn_predict_layers: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.norm_topk_prob = self.num_experts_per_tok > 1  # the publishers' code normalises several experts alone
        require_fixed(self, "LLaDA2", _FIXED)


class LLaDA2MoeModelLM(Glm4MoeForCausalLM):
    """LLaDA2 with its head, under the publishers' name."""

    config_class = LLaDA2MoeConfig
    _keys_to_ignore_on_load_unexpected: list[str] = []  # noqa: RUF012 (GLM's layers of multi-token prediction)


class _SplitHeads(ConversionOps):
    """Splits the fused projection `[heads + 2 · groups, ...]` into those of queries, keys and values."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **options: Any
    ) -> dict[str, Any]:
        (fused,) = input_dict.values()
        fused = fused[0] if isinstance(fused, list) else fused
        config = options["config"]
        sizes = [config.num_attention_heads, *[config.num_key_value_heads] * 2]
        parts = fused.split([heads * config.head_dim for heads in sizes])
        return {name: part.contiguous() for name, part in zip(target_patterns, parts, strict=True)}

    @property
    def reverse_op(self) -> ConversionOps:
        return _JoinHeads()


class _JoinHeads(ConversionOps):
    """The reverse of `_SplitHeads`, for saving."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **options: Any
    ) -> dict[str, Any]:
        found = (input_dict[name] for name in source_patterns)
        return {target_patterns[0]: torch.cat([part[0] if isinstance(part, list) else part for part in found])}

    @property
    def reverse_op(self) -> ConversionOps:
        return _SplitHeads()


CONVERSIONS = [
    WeightRenaming("model.word_embeddings", "model.embed_tokens"),
    WeightRenaming("attention.query_layernorm", "self_attn.q_norm"),
    WeightRenaming("attention.key_layernorm", "self_attn.k_norm"),
    WeightRenaming("attention.dense", "self_attn.o_proj"),
    WeightRenaming("mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"),
    WeightConverter(
        "attention.query_key_value",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        [_SplitHeads()],
    ),
    *get_checkpoint_conversion_mapping("glm4_moe"),  # one tensor for all experts
]
register_checkpoint_conversion_mapping(LLaDA2MoeConfig.model_type, CONVERSIONS, overwrite=True)
