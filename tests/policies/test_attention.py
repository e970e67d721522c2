"""Grouped-query decoding gives what transformers' SDPA gives, masked or not."""

from __future__ import annotations

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ets.policies.attention import NAME, grouped_sdpa, use_grouped_sdpa
from ets.policies.checkpoint import Checkpoint
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
