"""Attention of our own gives what transformers' SDPA gives: grouped queries, masked or not, and prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ets.kernel import energy_guided
from ets.policies.autoregressive import attention
from ets.policies.autoregressive import cache as kv_cache
from ets.policies.autoregressive.attention import (
    NAME,
    attend,
    attend_shared,
    grouped_sdpa,
    has_kernel,
    use_grouped_sdpa,
)
from ets.policies.autoregressive.cache import (
    Prefix,
    RowCache,
    RowMemory,
    additive_mask,
    fork,
    in_common,
    share,
)
from ets.policies.autoregressive.cache_layers import Kind
from ets.policies.autoregressive.reader import reader_of
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
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


def test_a_bias_for_positions_is_added_to_grouped_queries() -> None:
    torch.manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    query, key, value, bias = (
        torch.randn(4, *sizes).double() for sizes in ((6, 1, 8), (2, 9, 8), (2, 9, 8), (6, 1, 9))
    )
    expected, _ = sdpa_attention_forward(module, query, key, value, None, position_bias=bias)
    torch.testing.assert_close(grouped_sdpa(module, query, key, value, None, position_bias=bias)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_parts_are_as_exact_as_one_in_low_precision(dtype: torch.dtype) -> None:
    """Scores of about 100, which such numbers round by 0.03 or 0.25."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(4, 2, n, 64) for n in (3, 4000, 4000))
    query[..., 0], key[..., 0] = 20, 40
    key[1:, :, :3000], value[1:, :, :3000] = key[0, :, :3000], value[0, :, :3000]
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    begun, sdpa = RowCache([Kind(True)], 3000, [3000]), torch.nn.functional.scaled_dot_product_attention
    begun.layers[0].update(key[:1, :, :3000], value[:1, :, :3000])
    found = attend_shared(query, key[:, :, 3000:], value[:, :, 3000:], None, [Prefix(begun, [0] * 4)], 0)
    exact = sdpa(query.double(), key.double(), value.double())
    assert (found - exact).norm() < 2 * (sdpa(query, key, value) - exact).norm()


def test_many_large_values_stay_within_float16() -> None:
    """Their sum, 80,000, is beyond it."""
    begun, key = RowCache([Kind(True)], 2000, [2000]), torch.zeros(1, 1, 2000, 8, dtype=torch.float16)
    begun.layers[0].update(key, key + 40)
    found = attend_shared(key[:, :, :1], key, key + 40, None, [Prefix(begun, [0])], 0)
    torch.testing.assert_close(found, key[:, :, :1] + 40)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[0, 0, 1, 1], [1, 0, 1, 1], [0, 1, 1]])
@pytest.mark.parametrize("masked", [False, True])
def test_groups_of_any_shape_attend_as_each_row_alone(dtype: torch.dtype, rows: list[int], masked: bool) -> None:
    """Rows in the order of their groups, out of it, and in groups of unequal size; the second prefix is shorter."""
    torch.manual_seed(0)
    begun = RowCache([Kind(True)], 40, [40, 33 if masked else 40])
    keys, values = (torch.randn(2, 2, 40, 16).to(dtype) for _ in range(2))
    begun.layers[0].update(keys, values)
    query, key, value = (torch.randn(len(rows), 2, n, 16).to(dtype) for n in (3, 5, 5))
    padding = torch.tensor([0, 2, 4, 0][: len(rows)])
    mask = additive_mask(padding, 5, dtype) if masked else None
    found = attend_shared(query, key, value, mask, [Prefix(begun, rows)], 0)
    for n, row in enumerate(rows):
        own, begin = slice(int(padding[n]) if masked else 0, None), 40 - begun.lengths[row]
        whole = [torch.cat((a[row, :, begin:], b[n, :, own]), 1) for a, b in ((keys, key), (values, value))]
        exact = torch.nn.functional.scaled_dot_product_attention(*(each.double() for each in (query[n], *whole)))
        assert (found[n] - exact).abs().max() < 16 * max(torch.finfo(dtype).eps, 1e-7)


def test_a_kernel_that_computes_otherwise_or_is_missing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_kernel("cpu", torch.float32)
    right = attention._by_kernel
    for wrong in (lambda *given: (right(*given)[0], right(*given)[1] + 1), lambda *given: torch.ops.aten.no_such()):
        monkeypatch.setattr(attention, "_by_kernel", wrong)
        has_kernel.cache_clear()
        assert not has_kernel("cpu", torch.float32)
    has_kernel.cache_clear()


def test_values_of_another_width_than_keys_take_the_products() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 4)
    found, _ = attend(query, key, value, None, 8**-0.5)
    torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(query, key, value))


class Launches(TorchDispatchMode):
    """Counts operations that compute or copy, each at least one kernel on a GPU; views launch none."""

    free = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::promote_types", "aten::lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = operation._schema.returns
        view = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        self.count += not view and not operation._schema.name.startswith(self.free)
        return operation(*args, **(kwargs or {}))


@torch.no_grad()
def test_a_token_step_with_a_shared_prefix_launches_few_kernels() -> None:
    """36 layers in bfloat16: 2,291, and 2,039 with copies of the prefix, as many as on transformers' own cache."""
    sizes = {"num_hidden_layers": 36, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8}
    config = AutoConfig.for_model("qwen3", **sizes, num_attention_heads=4, num_key_value_heads=2, vocab_size=64)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    use_grouped_sdpa(model)
    reader = reader_of(model, "deep", (1, 2, 3))
    begun = reader.empty(1, 200)
    memories, counts = [RowMemory(begun, 0, reader.read(begun, [[1] * 200])[0])] * 8, []
    for cache in (share(memories, 2), fork(memories, 2)):
        with Launches() as launches:
            reader.read(cache, torch.ones(8, 1, dtype=torch.long))
        counts.append(launches.count)
    assert counts[0] <= 2_300 and counts[1] <= 2_050


def test_on_a_gpu_a_prefix_is_shared_if_many_columns_need_not_be_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = RowCache([Kind(True)], 500, [500])
    begun.layers[0].update(torch.zeros(1, 1, 500, 2), torch.zeros(1, 1, 500, 2))
    begun.attended = frozenset({0})
    assert in_common([RowMemory(begun)] * 101)
    monkeypatch.setitem(kv_cache.SAVED, "cpu", 50_001)
    assert not in_common([RowMemory(begun)] * 101) and in_common([RowMemory(begun)] * 102)


REASONS = {"none": True, "sliding_window": False, "position_bias": False, "float mask": False, "key": False}


@pytest.mark.parametrize("reason", REASONS)
def test_a_layer_shares_if_it_looks_at_all_that_stands_in_the_cache(reason: str) -> None:
    cache, module = RowCache([Kind(True)] * 2, 4, [0]), torch.nn.Module()
    module.num_key_value_groups, module.layer_idx = 2, 1
    kept = [layer.update(torch.ones(1, 2, 4, 8), torch.ones(1, 2, 4, 8)) for layer in cache.layers]
    key, value = kept[0 if reason == "key" else 1]
    mask = torch.zeros(1, 1, 4, 4) if reason == "float mask" else None
    more: dict[str, Any] = {"sliding_window": 3, "position_bias": torch.zeros(1, 4, 4, 4)}
    more = {name: given for name, given in more.items() if name == reason}
    grouped_sdpa(module, torch.ones(1, 4, 4, 8), key, value, mask, row_cache=cache, **more)
    assert cache.attended == ({1} if REASONS[reason] else set())


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
    "bart": False, "bloom": False, "gemma2": False, "gemma3_text": False, "hrm_text": False, "jetmoe": False,
    "mistral": False, "mpt": False, "phimoe": False, "stablelm": False,
}  # fmt: skip
"""Whether its attention may read a prefix: not with a sliding window (phimoe's is in its mask alone), a bias for
distance or attention of its own, nor where keys change behind the cache (hrm_text, jetmoe) or its columns count as
positions (bart)."""


def random_network(family: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    others = {
        "vocab_size": 8,
        "intermediate_size": 32,
        "max_position_embeddings": 64,
        "head_dim": 4,
        "decoder_layers": 2,
    }
    ids = {"eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    ids |= {"sliding_window": 4} if family == "phimoe" else {}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes, **others, **ids)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").double().eval()
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

    def texts(saved: int) -> list[tuple[int, ...]]:
        monkeypatch.setitem(kv_cache.SAVED, "cpu", saved)
        policy = TransformersPolicy(checkpoint, Sampling(), Horizon(3, 9))
        step = energy_guided(per_text(lambda _, text: text.count("b")), candidates=4, rollouts=2, lam=1.0)
        problems = [Problem("p", (1, 2, 3)), Problem("q", (1, 3, 3, 2, 1, 2, 3))]
        return [result.state.tokens for result in run(policy, step, problems, width=2, seed=1)]

    reader_of(checkpoint.model, family, (1, 2, 3))  # tests the model
    monkeypatch.setattr(attention, "attend_shared", attend)
    apart = texts(10**6)
    assert not calls and texts(0) == apart
    assert bool(calls) == FAMILIES[family]
