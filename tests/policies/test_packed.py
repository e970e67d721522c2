"""Packed linear layers compute the same function, without a second copy of the weights."""

from __future__ import annotations

import weakref
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Lfm2Config, Qwen2Config, Qwen3Config

from ets.models import LLaDAConfig
from ets.policies import packed
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.packed import Joined, JoinedLinear, PackedLinear, computes, pack
from ets.policies.settings import Horizon, Sampling
from ets.types import Problem
from tests.conftest import ALPHABET, random_qwen3, tiny_tokenizer

needs_product = pytest.mark.skipif(not computes(torch.float32), reason="this build of PyTorch has no packed product")


SIZES: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96}


def require_product(dtype: torch.dtype) -> None:
    if not computes(dtype):
        pytest.skip(f"this machine has no packed product of {dtype}")


def small_model(*, tied: bool = True) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES, num_hidden_layers=2, head_dim=8, intermediate_size=64, tie_word_embeddings=tied)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LEAST", 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 64, 600])
@pytest.mark.parametrize("shared", [False, True])
def test_the_product_is_that_of_the_layer(dtype: torch.dtype, rows: int, shared: bool) -> None:
    require_product(dtype)
    torch.manual_seed(0)
    layer = torch.nn.Linear(48, 80, dtype=dtype)
    inputs = torch.randn(rows, 3, 48, dtype=dtype)
    with torch.inference_mode():
        found = PackedLinear(layer, shared=shared)(inputs)
        exact = inputs.double() @ layer.weight.double().T + layer.bias.double()
    assert found.shape == (rows, 3, 80) and found.dtype == dtype
    assert (found - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()


@needs_product
@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_model_has_the_same_logits_and_readable_weights(tied: bool) -> None:
    model, ids = small_model(tied=tied), torch.randint(96, (3, 10))
    mine = deepcopy(model)
    pack(mine)
    assert sum(isinstance(layer, JoinedLinear) for layer in mine.modules()) == 2 * 5
    assert sum(isinstance(layer, PackedLinear) for layer in mine.modules()) == 2 * 2 + 1
    with torch.inference_mode():
        torch.testing.assert_close(mine(ids).logits, model(ids).logits, rtol=0, atol=1e-5)
    for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.k_proj"):
        layer, expected = (each.model.layers[0].get_submodule(name) for each in (mine, model))
        assert torch.equal(layer.weight, expected.weight) and layer.bias is None
        assert (layer.in_features, layer.out_features) == (expected.in_features, expected.out_features)


@needs_product
@pytest.mark.parametrize(
    ("config", "joined"),
    [
        (Qwen2Config(**SIZES, num_hidden_layers=1, intermediate_size=64), 5),  # with biases in attention
        (Lfm2Config(**SIZES, num_hidden_layers=2, layer_types=["conv", "full_attention"], intermediate_size=64), 7),
        (LLaDAConfig(vocab_size=96, d_model=32, n_heads=4, n_layers=1, mlp_hidden_size=64), 5),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_layers_that_read_one_input_are_joined_by_the_names_of_three_families(config: Any, joined: int) -> None:
    torch.manual_seed(0)
    model, ids = AutoModelForCausalLM.from_config(config).eval(), torch.randint(96, (3, 10))
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.3)  # biases are zero at first
    mine = deepcopy(model)
    pack(mine)
    layers = {name: layer for name, layer in mine.named_modules() if isinstance(layer, JoinedLinear)}
    assert len(layers) == joined
    for name, layer in layers.items():
        expected = model.get_submodule(name)
        assert torch.equal(layer.weight, expected.weight)
        assert (layer.bias is None) if expected.bias is None else torch.equal(layer.bias, expected.bias)
    with torch.inference_mode():
        torch.testing.assert_close(mine(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert all(layer.joined._computed is None for layer in layers.values())  # no output stays in memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_joined_layers_read_their_parts_of_one_product(
    order: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_product(dtype)
    layers = [torch.nn.Linear(8, out, dtype=dtype) for out in (4, 2, 6)]
    joined = Joined(layers)
    parts = [JoinedLinear(joined, place) for place in range(3)]
    products, product = [], joined.whole.forward
    monkeypatch.setattr(joined.whole, "forward", lambda inputs: (products.append(inputs), product(inputs))[1])
    with torch.inference_mode():
        for inputs in torch.randn(2, 5, 8, dtype=dtype):
            for place in order:
                torch.testing.assert_close(parts[place](inputs), layers[place](inputs))
    assert len(products) == 2


@needs_product
def test_joined_layers_compute_again_for_another_input() -> None:
    """As cross-attention does, or a layer that reads twice; the outputs of the first input must not be taken."""
    layers = [torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)]
    joined = Joined(layers)
    one, other = (JoinedLinear(joined, place) for place in range(2))
    x, y = torch.randn(2, 5, 8)
    with torch.inference_mode():
        for layer, inputs in ((0, x), (1, y), (0, y), (0, y), (1, x)):
            torch.testing.assert_close((one, other)[layer](inputs), layers[layer](inputs))


@needs_product
def test_an_output_that_a_model_changes_in_place_is_its_own() -> None:
    """As models do that clamp their queries; a second call gets the numbers of the layer again."""
    layers = [torch.nn.Linear(8, 4), torch.nn.Linear(8, 4)]
    joined, inputs = Joined(layers), torch.randn(5, 8)
    with torch.inference_mode():
        JoinedLinear(joined, 0)(inputs).zero_()
        for place in (0, 1):
            torch.testing.assert_close(JoinedLinear(joined, place)(inputs), layers[place](inputs))


@needs_product
def test_small_layers_are_packed_where_they_are_large_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LEAST", 80)
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    model = torch.nn.ModuleDict({name: torch.nn.Linear(8, 4) for name in names} | {"down_proj": torch.nn.Linear(8, 10)})
    pack(model)
    kinds = [JoinedLinear] * 3 + [torch.nn.Linear] * 3 + [PackedLinear]
    assert [type(layer) for layer in model.values()] == kinds


@needs_product
def test_the_old_weights_of_a_layer_are_freed_before_the_next_layer_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, living = small_model(tied=False), []
    old = weakref.ref(model.model.layers[0].self_attn.q_proj.weight)
    monkeypatch.setattr(packed, "Joined", lambda layers: (living.append(old() is not None), Joined(layers))[1])
    pack(model)
    assert living == [True, False, False, False]  # attention of layer 0, its network, layer 1


@needs_product
@pytest.mark.parametrize(
    "layers",
    [
        {"q_proj": {}, "k_proj": {"bias": False}, "v_proj": {}},
        {"gate_proj": {}, "up_proj": {"in_features": 9}},
        {"gate_proj": {}, "up_proj": {"dtype": torch.bfloat16}},
        {"q_proj": {}, "k_proj": {}},
        {"gate_proj": {}, "up_proj": {"hooked": True}},
        {"gate_proj": {}, "up_proj": {"tied": True}},
    ],
)
def test_layers_of_other_kinds_are_not_joined(layers: dict[str, dict[str, Any]]) -> None:
    def made(hooked: bool = False, tied: bool = False, **kind: Any) -> torch.nn.Linear:
        layer = torch.nn.Linear(**{"in_features": 8, "out_features": 4, **kind})
        if hooked:
            layer.register_forward_hook(lambda *_: None)
        if tied:
            layer.weight = model["gate_proj"].weight
        return layer

    model = torch.nn.ModuleDict()
    for name, kind in layers.items():
        model[name] = made(**kind)
    pack(model)
    assert not any(isinstance(layer, JoinedLinear) for layer in model.values())


@needs_product
def test_weights_that_the_embedding_shares_are_not_copied() -> None:
    model = small_model(tied=True)
    pack(model)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


@needs_product
def test_layers_that_are_more_than_a_product_stay() -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(inputs)

    hooked = torch.nn.Linear(8, 8)
    hooked.register_forward_hook(lambda *_: None)
    changed, empty = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    changed.forward = lambda inputs: 2 * inputs  # type: ignore[method-assign]
    del empty.weight  # as packages for quantised weights do
    kept = [Scaled(8, 8), hooked, changed, empty, torch.nn.Linear(8, 8, dtype=torch.float64)]
    model = torch.nn.Sequential(*kept, torch.nn.Linear(8, 8))
    pack(model)
    assert list(model)[:-1] == kept and isinstance(model[-1], PackedLinear)


@needs_product
def test_a_checkpoint_packs_its_weights_and_leaves_those_of_the_user(tmp_path: Path) -> None:
    given = Checkpoint.loaded(random_qwen3(len(ALPHABET), end=0).float(), tiny_tokenizer())
    given.model.save_pretrained(tmp_path)
    given.tokenizer.save_pretrained(tmp_path)
    texts = []
    for checkpoint in (given, Checkpoint(str(tmp_path), device="cpu")):
        policy = TransformersPolicy(checkpoint, Sampling(), Horizon(4, 8))
        starts = policy.start([Problem("0", (1, 2, 3))] * 20)
        texts.append([draw.state.tokens for draw in policy.finish(starts, np.arange(20, dtype=np.uint64))])
        layers = [isinstance(layer, PackedLinear | JoinedLinear) for layer in checkpoint.model.modules()]
        assert any(layers) == (checkpoint is not given)
    assert texts[0] == texts[1]


def test_an_unknown_dtype_is_not_packed() -> None:
    assert not computes(torch.float64)
