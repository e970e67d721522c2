"""Attention for decoding with grouped queries: no copy of the cache, also where rows are padded.

transformers' own SDPA path repeats the keys and values of the whole cache for every query head as soon as there is a
mask, in each layer and for each token. With one query per row, the heads of a group can stand in the place of queries
instead: the same sums, and the cache is read where it is.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "ets_grouped_sdpa"


def grouped_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention `[rows, queries, heads, width]` of `[rows, heads, queries, width]` over grouped keys and values."""
    rows, heads, queries, width = query.shape
    groups = key.shape[1]
    if queries > 1 or groups == heads:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(rows, groups, heads // groups, width)
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, -1), None


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_grouped_sdpa(model: Any) -> None:
    """Switch a model from SDPA to the same attention without copies; other implementations are left as they are."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation(NAME)
