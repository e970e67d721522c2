"""LLaDA2: published tensors and configurations load without remote code, and give the logits of the equations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from ets.models import MASKED_DIFFUSION, LLaDA2MoeConfig, LLaDA2MoeModelLM
from ets.types import InputError
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
    "architectures": ["LLaDA2MoeModelLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_llada2_moe.LLaDA2MoeModelLM"},
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 8,
    "hidden_act": "silu",
    "hidden_size": 24,
    "initializer_range": 0.02,
    "intermediate_size": 40,
    "max_position_embeddings": 128,
    "max_window_layers": 28,
    "model_type": "llada2_moe",
    "moe_intermediate_size": 12,
    "moe_router_enable_expert_bias": True,
    "n_group": 4,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "pad_token_id": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 600000,
    "rotary_dim": 4,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "topk_group": 2,
    "torch_dtype": "float32",
    "use_bias": False,
    "use_cache": False,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_sliding_window": False,
    "vocab_size": 20,
}
"""Fields of the published configurations, with smaller numbers."""


def shapes() -> dict[str, tuple[int, ...]]:
    width, head, experts = CONFIG["hidden_size"], CONFIG["head_dim"], CONFIG["num_experts"]
    heads, fused = CONFIG["num_attention_heads"], CONFIG["num_attention_heads"] + 2 * CONFIG["num_key_value_heads"]
    vocabulary, layers = (CONFIG["vocab_size"], width), CONFIG["num_hidden_layers"]
    found: dict[str, tuple[int, ...]] = {
        "model.word_embeddings.weight": vocabulary,
        "lm_head.weight": vocabulary,
        "model.norm.weight": (width,),
    }
    for n in range(layers):
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
            "attention.query_key_value": (fused * head, width),
            "attention.query_layernorm": (head,),
            "attention.key_layernorm": (head,),
            "attention.dense": (width, heads * head),
        }
        if n < CONFIG["first_k_dense_replace"]:
            layer |= mlp("mlp", CONFIG["intermediate_size"])
        else:
            layer |= mlp("mlp.shared_experts", CONFIG["moe_intermediate_size"]) | {"mlp.gate": (experts, width)}
            for expert in range(experts):
                layer |= mlp(f"mlp.experts.{expert}", CONFIG["moe_intermediate_size"])
            found[f"model.layers.{n}.mlp.gate.expert_bias"] = (experts,)
        found |= {f"model.layers.{n}.{name}.weight": shape for name, shape in layer.items()}
    return found


def mlp(name: str, inner: int) -> dict[str, tuple[int, ...]]:
    width = CONFIG["hidden_size"]
    return {f"{name}.gate_proj": (inner, width), f"{name}.up_proj": (inner, width), f"{name}.down_proj": (width, inner)}


def routed(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """A token's experts: the best by score + bias, in the groups whose two best add up to most; weighed by score."""
    scores = (x @ weights[f"{name}.gate.weight"].T).sigmoid()
    size = CONFIG["num_experts"] // CONFIG["n_group"]
    out = []
    for token, score in zip(x, scores, strict=True):
        biased = (score + weights[f"{name}.gate.expert_bias"]).tolist()
        groups = [range(first, first + size) for first in range(0, len(biased), size)]
        groups.sort(key=lambda group: -sum(sorted(biased[i] for i in group)[-2:]))
        allowed = [i for group in groups[: CONFIG["topk_group"]] for i in group]
        chosen = sorted(allowed, key=lambda i: -biased[i])[: CONFIG["num_experts_per_tok"]]
        total = sum(float(score[i]) for i in chosen)
        parts = [float(score[i]) / total * gated(token, weights, f"{name}.experts.{i}") for i in chosen]
        out.append(CONFIG["routed_scaling_factor"] * torch.stack(parts).sum(0))
    return torch.stack(out) + gated(x, weights, f"{name}.shared_experts")


def reference(weights: Weights, ids: torch.Tensor, block: int) -> torch.Tensor:
    head, eps, theta = CONFIG["head_dim"], CONFIG["rms_norm_eps"], CONFIG["rope_theta"]
    sizes = [CONFIG["num_attention_heads"], *[CONFIG["num_key_value_heads"]] * 2]

    def attention(x: torch.Tensor, name: str) -> torch.Tensor:
        name = f"{name}.attention"
        q, k, v = (x @ weights[f"{name}.query_key_value.weight"].T).view(len(x), -1, head).split(sizes, 1)
        q, k = (rms_norm(h, weights[f"{name}.{part}_layernorm.weight"], eps) for part, h in (("query", q), ("key", k)))
        width = int(head * CONFIG["partial_rotary_factor"])
        out = attended(rotated(q, theta, width), rotated(k, theta, width), v, block)
        return out @ weights[f"{name}.dense.weight"].T

    def feed_forward(x: torch.Tensor, name: str) -> torch.Tensor:
        dense = f"{name}.mlp.gate_proj.weight" in weights
        return (gated if dense else routed)(x, weights, f"{name}.mlp")

    layers = CONFIG["num_hidden_layers"]
    return decoder_logits(weights, ids, layers, eps, "word_embeddings", attention, feed_forward)


@pytest.mark.parametrize("block", [1, 4, 8])
def test_published_tensors_give_the_logits_of_the_equations(block: int, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, CONFIG, shapes())
    found = loaded_logits(tmp_path, LLaDA2MoeModelLM, IDS, block)
    torch.testing.assert_close(found, reference(weights, IDS, block), rtol=0, atol=1e-5)


def test_the_bias_and_the_groups_choose_experts_of_the_reference(tmp_path: Path) -> None:
    """Otherwise the test above would say nothing about them."""
    weights = write_checkpoint(tmp_path, CONFIG, shapes())
    x = torch.randn(20, CONFIG["hidden_size"], generator=torch.Generator().manual_seed(0)).double()
    name = "model.layers.1.mlp"
    expected = routed(x, weights, name)
    unbiased = {**weights, f"{name}.gate.expert_bias": torch.zeros(CONFIG["num_experts"])}
    assert (routed(x, unbiased, name) - expected).abs().max() > 0.01
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONFIG, "topk_group", CONFIG["n_group"])
        assert (routed(x, weights, name) - expected).abs().max() > 0.01


def test_a_saved_checkpoint_has_the_published_tensors(tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path, CONFIG, shapes())
    LLaDA2MoeModelLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(saved[name].double(), weight, rtol=0, atol=0)
    config = AutoConfig.from_pretrained(tmp_path / "saved").to_dict()
    kept = CONFIG.keys() - {"torch_dtype", "use_cache", "rope_theta", "rope_scaling"}
    assert {name: config[name] for name in kept} == {name: CONFIG[name] for name in kept}


def test_the_published_configuration_is_the_familys(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONFIG, {})
    config: Any = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is LLaDA2MoeConfig and config.rope_parameters["rope_theta"] == 600000
    assert config.rope_parameters["partial_rotary_factor"] == 0.5
    assert (config.mask_token_id, config.eos_token_id) == (156895, 156892)
    family = MASKED_DIFFUSION["llada2_moe"]
    assert (family.block_length_of(config), family.threshold, family.shift) == (32, 0.95, 0)


@pytest.mark.parametrize(("name", "value"), [("use_bias", True), ("score_function", "softmax"), ("norm_head", True)])
def test_another_architecture_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"this LLaDA2 configuration has {name} {value!r}; only"):
        LLaDA2MoeConfig(**{name: value})
