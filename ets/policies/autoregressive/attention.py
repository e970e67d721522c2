"""Attention for decoding: no copy of the cache for grouped queries, and one read of a prefix that rows share.

With a mask, the SDPA path of transformers repeats the keys and values of the whole cache for every query head, in each
layer and for each token. After a cache, the heads of a group take the place of further queries instead. The sums are
the same, and no copy is made. The rows of one prompt fold into the queries as well: one product reads the prefix for
all rows, and a weighted average joins the result with the attention over each row's further columns. The rollouts of
one candidate read its columns together in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ets.policies.autoregressive.cache import Prefix, RowCache, additive_mask

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

    With one query per row, the attention covers the prefixes of `row_cache` as well.
    """
    rows, heads, queries, width = query.shape
    groups = key.shape[1]
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.to(query.dtype)  # a layer may compute in another dtype than the weights
    if (
        row_cache is not None
        and not row_cache.shares
        and _can_share(row_cache, module, key, value, attention_mask, **kwargs)
    ):
        row_cache.attended |= {module.layer_idx}
    if row_cache is not None and row_cache.prefixes:
        folded = query.reshape(rows, groups, heads // groups, width)
        out = attend_shared(folded, key, value, attention_mask, row_cache.prefixes, module.layer_idx, scaling)
        return out.reshape(rows, 1, heads, -1), None
    first_read = queries > 1 and (attention_mask is None or attention_mask.shape[1] > 1 or key.shape[2] == queries)
    if first_read or groups == heads or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    folded = query.reshape(rows, groups, heads // groups * queries, width)
    if queries > 1 and attention_mask is not None:  # the same mask for every head of a group
        attention_mask = attention_mask.expand(-1, heads // groups, -1, -1).flatten(1, 2)[:, None]
    out = torch.nn.functional.scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
    return out.reshape(rows, heads, queries, -1).transpose(1, 2).contiguous(), None  # layers may call `view`


def _can_share(
    cache: RowCache,
    module: Any,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    sliding_window: int | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> bool:
    """Whether the layer attends to all earlier tokens, with keys and values that are both the cache's."""
    plain = sliding_window is None and position_bias is None and (mask is None or mask.dtype == torch.bool)
    number = getattr(module, "layer_idx", None)
    if not plain or number is None or number >= len(cache.layers):
        return False
    kept = getattr(cache.layers[number], "keys", None), getattr(cache.layers[number], "values", None)
    return all(
        own is not None and own.data_ptr() == used.data_ptr() for own, used in zip(kept, (key, value), strict=True)
    )


def attend_shared(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefixes: Sequence[Prefix],
    layer: int,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of queries `[rows, groups, heads, width]` over prefixes and keys `[rows, groups, columns, width]`.

    `attend` returns an average of values and the logarithm of the sum of weights. The sums weigh the averages.
    """
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if mask is not None and mask.dtype == torch.bool:  # some models turn a mask that is added to scores into a bool
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    out, log = attend(query, key, value, mask, scaling)
    for left, prefix in enumerate(prefixes, 1 - len(prefixes)):
        common, common_log = _attend_in_groups(query, *prefix.keys_and_values(layer), prefix, scaling)
        out = torch.lerp(common, out, (log - common_log).sigmoid_().to(out.dtype)[..., None])
        log = torch.logaddexp(log, common_log) if left else log
    return out


def _attend_in_groups(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, prefix: Prefix, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attend` over a prefix, with the rows of a group as further queries: `[rows, groups, heads, ...]`."""

    def here(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.to(query.device) for tensor in tensors)  # layers may be on other devices than the prefix

    mask = None if prefix.mask is None else prefix.mask.to(query)
    shape = prefix.most, query.shape[2]
    if prefix.regular:  # a copy instead of an index
        grouped = query.view(-1, *shape[:1], *query.shape[1:]).transpose(1, 2)
    else:
        grouped = query[here(*prefix.members)]
    parts = attend(grouped.flatten(2, 3), keys, values, mask, scaling)
    out, log = (part.view(*part.shape[:2], *shape, *part.shape[3:]).transpose(1, 2) for part in parts)
    if prefix.regular:
        return out.flatten(0, 1), log.flatten(0, 1)
    places = here(prefix.groups, prefix.places)
    return out[places], log[places]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages of values `[..., queries, width]`, and the logarithms of the sums of exp(score) `[..., queries]`.

    One kernel where the device has it for these tensors; `mask` is added to the scores.
    """
    if key.shape[-1] == value.shape[-1] and has_kernel(query.device.type, query.dtype):
        return _by_kernel(query, key, value, mask, scaling)
    return _by_products(query, key, value, mask, scaling)


def _by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernels behind `scaled_dot_product_attention`, which return the logarithms too."""
    if query.device.type == "cpu":
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, log = attention(query, key, value, 0.0, False, attn_mask=mask, scale=scaling)
        return out, log
    mask = None if mask is None else mask.expand(*query.shape[:-1], key.shape[2])
    attention = torch.ops.aten._scaled_dot_product_efficient_attention
    out, log, *_ = attention(query, key, value, mask, True, scale=scaling)
    return out, log[..., : query.shape[2]]  # the kernel writes whole blocks of queries


def _by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Products with scores in float32 or more: bfloat16 has no number between 128 and 129.

    The weights are normalised before the product: a sum over thousands of columns may overflow float16.
    """
    key, precise = key.transpose(-1, -2), torch.promote_types(query.dtype, torch.float32)
    if query.is_cuda and query.dtype != precise:  # without a copy of the keys
        scores = torch.bmm(query.flatten(0, 1), key.flatten(0, 1), precise).view(*query.shape[:-1], -1)
    else:
        scores = query.to(precise) @ key.to(precise)
    scores.mul_(scaling)
    if mask is not None:
        scores.add_(mask)
    largest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    return weights.div_(total).to(value.dtype) @ value, (largest + total.log())[..., 0]


@lru_cache
@torch.inference_mode()
def has_kernel(device: str, dtype: torch.dtype) -> bool:
    """Whether `_by_kernel` computes on the device what `_by_products` computes, up to rounding, with and without mask.

    A test of random tensors decides, since PyTorch does not document these kernels.
    """
    numbers = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, n, 16, generator=numbers).to(device, dtype) for n in (5, 37, 37))
    masks = (None, additive_mask(torch.tensor([0, 9, 30], device=device), 37, dtype))
    try:
        found = [_by_kernel(query, key, value, mask, 0.3) for mask in masks]  # no kernel's default, 16 ** -0.5
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = [_by_products(query, key, value, mask, 0.3) for mask in masks]
    fine = torch.finfo(torch.float32).eps
    allowed = 8 * max(torch.finfo(dtype).eps, 4 * fine), 1e-3 if torch.finfo(dtype).eps > fine else 32 * fine
    return all(
        one.shape == other.shape and float((one - other).abs().max()) <= most
        for pair in zip(found, expected, strict=True)
        for one, other, most in zip(*pair, allowed, strict=True)
    )


AttentionInterface.register(NAME, grouped_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_grouped_sdpa(model: Any) -> None:
    """Switch a model from SDPA to `grouped_sdpa`; other implementations of attention stay."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation(NAME)
