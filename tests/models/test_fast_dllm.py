"""Fast-dLLM v2: published tensors and configurations load without remote code, and give the logits of the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ets.models import MASKED_DIFFUSION, FastDLLMConfig, FastDLLMForCausalLM
from tests.models.published import (
    IDS,
    Weights,
    attended,
    decoder_logits,
    gated,
    loaded_logits,
    rotated,
    write_checkpoint,
)

CONFIG: dict[str, Any] = {
    "architectures": ["Fast_dLLM_QwenForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoModelForCausalLM": "modeling.Fast_dLLM_QwenForCausalLM"},
    "bd_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "layer_types": ["full_attention", "full_attention"],
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "model_type": "Fast_dLLM_Qwen",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 20,
}
"""Fields of the published configurations, with smaller numbers; the small checkpoints tie the head."""


def shapes(tied: bool) -> dict[str, tuple[int, ...]]:
    width, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    head = width // CONFIG["num_attention_heads"]
    groups = CONFIG["num_key_value_heads"] * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.q_proj.weight": (width, width),
        "self_attn.k_proj.weight": (groups, width),
        "self_attn.v_proj.weight": (groups, width),
        "self_attn.q_proj.bias": (width,),
        "self_attn.k_proj.bias": (groups,),
        "self_attn.v_proj.bias": (groups,),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (inner, width),
        "mlp.up_proj.weight": (inner, width),
        "mlp.down_proj.weight": (width, inner),
    }
    vocabulary = (CONFIG["vocab_size"], width)
    found = {"model.embed_tokens.weight": vocabulary, "model.norm.weight": (width,)}
    found |= {} if tied else {"lm_head.weight": vocabulary}
    numbers = range(CONFIG["num_hidden_layers"])
    return found | {f"model.layers.{n}.{name}": shape for n in numbers for name, shape in layer.items()}


def reference(weights: Weights, ids: torch.Tensor, block: int) -> torch.Tensor:
    head, theta = CONFIG["hidden_size"] // CONFIG["num_attention_heads"], CONFIG["rope_theta"]

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        name = f"{name}.self_attn"
        parts = ((weights[f"{name}.{part}_proj.weight"], weights[f"{name}.{part}_proj.bias"]) for part in "qkv")
        q, k, v = ((x @ weight.T + bias).view(len(x), -1, head) for weight, bias in parts)
        out = attended(rotated(q, theta, head), rotated(k, theta, head), v, block)
        return out @ weights[f"{name}.o_proj.weight"].T

    layers, eps = CONFIG["num_hidden_layers"], CONFIG["rms_norm_eps"]
    return decoder_logits(
        weights, ids, layers, eps, "embed_tokens", attention, lambda x, name: gated(x, weights, f"{name}.mlp")
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("block", [1, 4])
def test_published_tensors_give_the_logits_of_the_equations(block: int, tied: bool, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, {**CONFIG, "tie_word_embeddings": tied}, shapes(tied))
    found = loaded_logits(tmp_path, FastDLLMForCausalLM, IDS, block)
    torch.testing.assert_close(found, reference(weights, IDS, block), rtol=0, atol=1e-5)


def test_the_published_configuration_is_the_familys(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, {})
    config: Any = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is FastDLLMConfig and (config.mask_token_id, config.rope_parameters["rope_theta"]) == (
        151665,
        1e6,
    )
    family = MASKED_DIFFUSION["Fast_dLLM_Qwen"]
    assert (family.block_length_of(config), family.sub_block, family.shift, family.threshold) == (32, 8, 1, 0.9)
