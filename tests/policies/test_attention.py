"""Attention of our own gives what transformers' SDPA gives: grouped queries, masked or not, and prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ets.kernel import energy_guided
from ets.policies import attention, kv_cache
from ets.policies.attention import NAME, attend_shared, grouped_sdpa, use_grouped_sdpa
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.checkpoint import Checkpoint
from ets.policies.transformers import TransformersPolicy
from ets.rewards import per_text
from ets.runner import run
from ets.types import Problem
from tests.conftest import random_qwen3, tiny_tokenizer


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_attention_is_sdpa(queries: int, groups: int, masked: bool) -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 6 // groups
    query, key, value = (torch.randn(4, heads, n, 8).double() for heads, n in ((6, queries), (groups, 9), (groups, 9)))
    mask = None
    if masked:
        mask = torch.rand(4, 1, queries, 9) > 0.3
        mask[..., -1] = True
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3, is_causal=False)
    found, _ = grouped_sdpa(module, query, key, value, mask, scaling=0.3, is_causal=False)
    torch.testing.assert_close(found, expected)


def test_only_sdpa_is_switched() -> None:
    model = random_qwen3(4, end=0)
    assert Checkpoint.loaded(model, tiny_tokenizer()).model.config._attn_implementation == NAME
    eager = random_qwen3(4, end=0)
    eager.set_attn_implementation("eager")
    use_grouped_sdpa(eager)
    assert eager.config._attn_implementation == "eager"


FAMILIES = {
    "cohere": True, "gemma": True, "glm": True, "gpt2": True, "gpt_neox": True, "granite": True, "llama": True,
    "olmo2": True, "opt": True, "phi3": True, "qwen2": True, "qwen3": True,
    "bloom": False, "gemma2": False, "gemma3_text": False, "mistral": False, "mpt": False, "stablelm": False,
}  # fmt: skip
"""Whether its attention may read a prefix: not with a sliding window, a bias for distance, or attention of its own."""


def random_network(family: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    others = {"vocab_size": 8, "intermediate_size": 32, "max_position_embeddings": 64, "head_dim": 4}
    ids = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **others, **ids)).double().eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_families_share_prefixes_where_their_attention_can_and_draw_the_same(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, checkpoint = [], Checkpoint.loaded(random_network(family), tiny_tokenizer())

    def attend(*given: Any) -> torch.Tensor:
        calls.append(given)
        return attend_shared(*given)

    def texts(shortest: int) -> list[tuple[int, ...]]:
        monkeypatch.setattr(kv_cache, "SHORTEST", shortest)
        policy = TransformersPolicy(checkpoint, Sampling(), Horizon(3, 9))
        step = energy_guided(per_text(lambda _, text: text.count("b")), candidates=4, rollouts=2, lam=1.0)
        problems = [Problem("p", (1, 2, 3)), Problem("q", (1, 3, 3, 2, 1, 2, 3))]
        return [result.state.tokens for result in run(policy, step, problems, width=2, seed=1)]

    monkeypatch.setattr(attention, "attend_shared", attend)
    apart = texts(1000)
    assert not calls and texts(1) == apart
    assert bool(calls) == FAMILIES[family]
