"""Tiny random models of families whose layers are not all plain attention, from their real configuration classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

MIXED = ["linear_attention", "full_attention"]
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": MIXED,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED_EXPERT = EXPERTS | {"shared_expert_intermediate_size": 16}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
PLE = {"ple_layer_ids": [1], "ngram_size": 3, "heads_per_ngram": 2, "ple_embed_dim": 16, "ngram_vocab_size_base": 50}
INDEXER = {f"indexer_{name}": value for name, value in
           {"n_heads": 2, "kv_heads": 1, "head_dim": 8, "budget": 8, "compress_ratio": 2}.items()}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-Next": ("Qwen3NextConfig", ATTENTION | DELTA | SHARED_EXPERT),
    "Qwen3.5": ("Qwen3_5TextConfig", ATTENTION | DELTA),
    "Qwen3.5 mixture of experts": ("Qwen3_5MoeTextConfig", ATTENTION | DELTA | SHARED_EXPERT),
    "Qwen4 experimental": (
        "Qwen4ExpTextConfig",
        ATTENTION | DELTA | SHARED_EXPERT | PLE | INDEXER
        | {"hc_count": 2, "hc_lowrank": 4, "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 1},
    ),
    "Granite hybrid": (
        "GraniteMoeHybridConfig",
        ATTENTION | MAMBA | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2,
                             "shared_intermediate_size": 16},
    ),
    "Falcon-H1": ("FalconH1Config", ATTENTION | MAMBA | {"mamba_d_ssm": 64}),
    "LFM2": ("Lfm2Config", ATTENTION | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "LFM2 mixture of experts": (
        "Lfm2MoeConfig",
        ATTENTION | EXPERTS | {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "num_dense_layers": 1},
    ),
    "Nemotron-H": (  # transformers clamps the time step in a prompt, and does not token by token
        "NemotronHConfig",
        ATTENTION | {"layers_block_type": ["mamba", "attention", "mlp"], "mamba_num_heads": 8, "mamba_head_dim": 8,
                     "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16, "time_step_min": 1e-9},
    ),
    "OLMo hybrid": ("OlmoHybridConfig", ATTENTION | DELTA | {"linear_num_key_heads": 4}),
    "Bamba": ("BambaConfig", ATTENTION | MAMBA | {"attn_layer_indices": [1]}),
    "Mamba-2": (
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16, "expand": 2},
    ),
    "Mamba": ("MambaConfig", {"state_size": 8}),
    "Jamba": (
        "JambaConfig",
        ATTENTION | {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8},
    ),
    "DeepSeek V3.2": (
        "DeepseekV32Config",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
         "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "index_topk": 3, "index_n_heads": 2,
         "index_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "Llama 4": (
        "Llama4TextConfig",
        ATTENTION | {"attention_chunk_size": 4, "num_local_experts": 2, "intermediate_size_mlp": 48,
                     "layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 0]},
    ),
    "Gemma 4": (
        "Gemma4TextConfig",
        ATTENTION | {"global_head_dim": 16, "sliding_window": 4, "num_hidden_layers": 3, "num_kv_shared_layers": 0,
                     "layer_types": ["sliding_attention", "full_attention", "full_attention"],
                     "hidden_size_per_layer_input": 0},
    ),
    "Gemma 3n": (
        "Gemma3nTextConfig",
        ATTENTION | {"num_hidden_layers": 5, "intermediate_size": [48] * 5, "sliding_window": 4,
                     "layer_types": [*["sliding_attention", "full_attention"] * 2, "full_attention"],
                     "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
                     "activation_sparsity_pattern": [0.0] * 5, "altup_num_inputs": 2},
    ),
}  # fmt: skip
"""By family: the configuration class and the sizes of a tiny model."""
RECURRENT = ("Qwen3.5", "Granite hybrid", "Falcon-H1", "LFM2", "Mamba-2")
"""Families with different kinds of states."""


def random_model(family: str, vocabulary: int, end: int, seed: int = 0) -> Any:
    """A model in float64 whose logits differ by some units; experts are computed one by one, which float64 needs."""
    name, sizes = FAMILIES[family]
    config_class: Callable[..., Any] = getattr(transformers, name)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 512} | sizes
    if "layers_block_type" in shape:
        del shape["num_hidden_layers"]
    if "vocab_size_per_layer_input" in config_class.__dict__:
        shape["vocab_size_per_layer_input"] = vocabulary
    config = config_class(
        vocab_size=vocabulary,
        eos_token_id=end,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        **shape,
    )
    torch.manual_seed(seed)
    return spread_out(AutoModelForCausalLM.from_config(config, experts_implementation="eager"), 0.3)


def spread_out(model: Any, spread: float) -> Any:
    """The model in float64 with normal matrices, so that its logits differ by some units."""
    model = model.double().eval()
    for weights in model.parameters():
        if weights.dim() > 1:
            weights.data.normal_(std=spread)
    return model


def whole_logp(model: Any, prompt: tuple[int, ...], tokens: tuple[int, ...], **options: Any) -> float:
    """The log-probability of tokens after a prompt, by one forward pass over the whole text."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens]), **options).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + n, token]) for n, token in enumerate(tokens))
