"""SDAR: published tensors and configurations load without remote code, and give the logits of the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from ets.models import MASKED_DIFFUSION, SDARConfig, SDARForCausalLM, SDARMoeForCausalLM
from tests.models.published import (
    IDS,
    Weights,
    attended,
    decoder_logits,
    gated,
    loaded_logits,
    rms_norm,
    rotated,
    write_checkpoint,
)

CONFIG: dict[str, Any] = {
    "architectures": ["SDARForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_sdar.SDARForCausalLM"},
    "attn_implementation": "flex_attention",
    "attention_bias": False,
    "block_size": 4,
    "debug": False,
    "eos_token_id": 1,
    "fuse_cross_entropy": True,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 40,
    "mask_token_id": 19,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "model_type": "sdar",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "use_cache": False,
    "use_sliding_window": False,
    "vocab_size": 20,
}
"""Fields of the published configurations, with smaller numbers."""
EXPERTS: dict[str, Any] = {
    "architectures": ["SDARMoeForCausalLM"],
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "model_type": "sdar_moe",
    "moe_intermediate_size": 12,
    "norm_topk_prob": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
"""The further fields of the mixture of experts."""


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (heads, width),
        "self_attn.k_proj": (groups, width),
        "self_attn.v_proj": (groups, width),
        "self_attn.o_proj": (width, heads),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
    }
    names = ["mlp"]
    if "num_experts" in config:
        layer["mlp.gate"], inner = (config["num_experts"], width), config["moe_intermediate_size"]
        names = [f"mlp.experts.{expert}" for expert in range(config["num_experts"])]
    for name in names:
        layer |= {f"{name}.{part}_proj": (inner, width) for part in ("gate", "up")} | {
            f"{name}.down_proj": (width, inner)
        }
    vocabulary = (config["vocab_size"], width)
    found = {"model.embed_tokens.weight": vocabulary, "lm_head.weight": vocabulary, "model.norm.weight": (width,)}
    numbers = range(config["num_hidden_layers"])
    return found | {f"model.layers.{n}.{name}.weight": shape for n in numbers for name, shape in layer.items()}


def reference(weights: Weights, ids: torch.Tensor, block: int) -> torch.Tensor:
    head, eps, theta = CONFIG["head_dim"], CONFIG["rms_norm_eps"], CONFIG["rope_theta"]

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        name = f"{name}.self_attn"
        q, k, v = ((x @ weights[f"{name}.{part}_proj.weight"].T).view(len(x), -1, head) for part in "qkv")
        q, k = (rms_norm(h, weights[f"{name}.{part}_norm.weight"], eps) for part, h in (("q", q), ("k", k)))
        out = attended(rotated(q, theta, head), rotated(k, theta, head), v, block)
        return out @ weights[f"{name}.o_proj.weight"].T

    def feed_forward(x: torch.Tensor, name: str) -> torch.Tensor:
        dense = f"{name}.mlp.gate_proj.weight" in weights
        return (gated if dense else routed)(x, weights, f"{name}.mlp")

    return decoder_logits(weights, ids, CONFIG["num_hidden_layers"], eps, "embed_tokens", attention, feed_forward)


def routed(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """A token's most probable experts, weighed by their probabilities among themselves."""
    out = []
    for token in x:
        p = (weights[f"{name}.gate.weight"] @ token).softmax(-1)
        chosen = p.argsort(descending=True)[: EXPERTS["num_experts_per_tok"]].tolist()
        parts = [p[i] / p[chosen].sum() * gated(token, weights, f"{name}.experts.{i}") for i in chosen]
        out.append(torch.stack(parts).sum(0))
    return torch.stack(out)


@pytest.mark.parametrize("block", [1, 4, 8])
@pytest.mark.parametrize("loaded", [SDARForCausalLM, SDARMoeForCausalLM])
def test_published_tensors_give_the_logits_of_the_equations(loaded: type, block: int, tmp_path: Path) -> None:
    config = CONFIG if loaded is SDARForCausalLM else {**CONFIG, **EXPERTS}
    weights = write_checkpoint(tmp_path, config, shapes(config))
    found = loaded_logits(tmp_path, loaded, IDS, block)
    torch.testing.assert_close(found, reference(weights, IDS, block), rtol=0, atol=1e-5)


def test_the_published_configuration_is_the_familys(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, {})
    config: Any = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is SDARConfig and (config.mask_token_id, config.rope_parameters["rope_theta"]) == (19, 1e6)
    family = MASKED_DIFFUSION["sdar"]
    assert family.block_length_of(config) == 4 == family.block_length_of(SDARConfig(block_size=0))
    assert family.block_length_of(SDARConfig(block_size=32)) == 32
    assert SDARConfig().mask_token_id == 151669


def test_a_saved_model_has_the_published_names(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, CONFIG, shapes(CONFIG))
    model = SDARForCausalLM.from_pretrained(tmp_path)
    assert set(model.state_dict()) == set(weights)
