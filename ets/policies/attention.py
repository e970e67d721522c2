"""Attention for decoding: no copy of the cache for grouped queries, and one reading of what rows have in common.

transformers' own SDPA path repeats the keys and values of the whole cache for every query head as soon as there is a
mask, in each layer and for each token. With one query per row, the heads of a group can stand in the place of queries
instead: the same sums, and the cache is read where it is. The rows of one prompt can stand there too: their queries
meet its keys and values in one product, and what they find is added to what they find in their own columns.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ets.policies.kv_cache import Prefix, RowCache

NAME = "ets_grouped_sdpa"


def grouped_sdpa(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    row_cache: RowCache | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention `[rows, queries, heads, width]` of `[rows, heads, queries, width]` over grouped keys and values.

    Where `row_cache` has a prefix, for one query per row, over that as well.
    """
    rows, heads, queries, width = query.shape
    groups = key.shape[1]
    if row_cache is not None:
        row_cache.attended += _can_share(attention_mask, **kwargs)
    if row_cache is not None and row_cache.prefix is not None:
        folded = query.reshape(rows, groups, heads // groups, width)
        out = attend_shared(folded, key, value, attention_mask, row_cache.prefix, module.layer_idx, scaling)
        return out.reshape(rows, 1, heads, -1), None
    if queries > 1 or groups == heads:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(rows, groups, heads // groups, width)
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, 1, heads, -1), None


def _can_share(mask: torch.Tensor | None, sliding_window: int | None = None, **kwargs: Any) -> bool:
    """Whether this layer looks at all that came before, with no weight but what queries and keys say."""
    return sliding_window is None and (mask is None or mask.dtype == torch.bool)


def attend_shared(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: Prefix,
    layer: int,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention `[rows, groups, heads, width]` of such queries over a prefix and `[rows, groups, columns, width]`.

    Each part gives sums weighted by exp(score - its largest score), and the sum of the weights; the two add up when
    both are brought to the same largest score.
    """
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    keys, values = prefix.keys_and_values(layer)
    own = _partial(query, key, value, mask)
    shared = [part[prefix.groups, prefix.places] for part in _partial_of_groups(query, keys, values, prefix)]
    largest = torch.maximum(own[2], shared[2])
    scales = [(part[2] - largest).exp() for part in (own, shared)]
    sums, weights = (own[i] * scales[0] + shared[i] * scales[1] for i in (0, 1))
    return (sums / weights).to(query.dtype)


def _partial_of_groups(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prefix: Prefix
) -> list[torch.Tensor]:
    """What `_partial` finds for the rows of each prefix together, `[prefixes, rows of one, groups, heads, ...]`."""
    _, groups, heads, width = query.shape
    stacked = query.new_zeros(len(keys), prefix.most, groups, heads, width)
    stacked[prefix.groups, prefix.places] = query
    folded = stacked.transpose(1, 2).reshape(len(keys), groups, -1, width)
    parts = _partial(folded, keys, values, prefix.mask)
    return [part.view(len(keys), groups, prefix.most, heads, -1).transpose(1, 2) for part in parts]


def _partial(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums of values weighted by exp(score - largest), the weights' sums, the largest scores; at least in float32."""
    scores = query @ key.transpose(-1, -2)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if mask is not None:
        scores.masked_fill_(~mask, -torch.inf)
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    return (weights.to(value.dtype) @ value).to(weights.dtype), weights.sum(-1, keepdim=True), largest


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_grouped_sdpa(model: Any) -> None:
    """Switch a model from SDPA to the same attention without copies; other implementations are left as they are."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation(NAME)
