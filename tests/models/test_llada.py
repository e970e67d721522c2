"""LLaDA: the publishers' logits from the publishers' files, whatever the padding, the attention and the dtype."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ets.models import LLaDAConfig, LLaDAModelLM, llada
from ets.policies.autoregressive.attention import NAME as GROUPED
from ets.policies.diffusion.cache import Recalling, Recording
from ets.types import InputError

GOLDEN = Path(__file__).parents[1] / "golden" / "llada"
PUBLISHED = json.loads((GOLDEN / "config.json").read_text())
IDS, LOGITS = (load_file(GOLDEN / "forward.safetensors")[name] for name in ("input_ids", "logits"))
PADS = (0, 10, 31)
"""Positions at the left of each of the three rows that the tests below take for padding."""
LOADERS = (AutoModelForCausalLM, AutoModel, LLaDAModelLM)


def load(loader: Any = LLaDAModelLM, folder: Path = GOLDEN, **options: Any) -> Any:
    return loader.from_pretrained(folder, **options).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    """The publishers' tiny checkpoint; a test that changes it takes its own."""
    return load()


def logits(model: Any, ids: torch.Tensor = IDS, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **options).logits


def padding() -> torch.Tensor:
    mask = torch.ones_like(IDS)
    for row, pad in enumerate(PADS):
        mask[row, :pad] = 0
    return mask


def same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def check_padded_rows(model: Any) -> None:
    """Each row of a left-padded batch has the logits that it has alone, without padding."""
    batch = logits(model, attention_mask=padding())
    assert batch.isfinite().all()  # at the padding too: a NaN there would spread
    for row, pad in enumerate(PADS):
        same(batch[row, pad:], logits(model, IDS[row : row + 1, pad:])[0])


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("trusting", [False, True])
def test_the_published_layout_loads_and_gives_the_published_logits(loader: Any, trusting: bool) -> None:
    """Every weight has its place, and the code that `auto_map` names is not asked for, even from who would trust it."""
    assert PUBLISHED["auto_map"]["AutoModel"] and not list(GOLDEN.glob("*.py"))
    model, report = loader.from_pretrained(GOLDEN, trust_remote_code=trusting, output_loading_info=True)
    assert type(model) is LLaDAModelLM and not any(report.values())
    same(logits(model.eval()), LOGITS)


def test_importing_the_package_registers_the_model_type() -> None:
    assert type(AutoConfig.for_model("llada")) is LLaDAConfig
    assert type(AutoConfig.from_pretrained(GOLDEN)) is LLaDAConfig


@pytest.mark.parametrize("loader", LOADERS)
def test_saved_and_loaded_again_the_logits_are_identical(model: Any, loader: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(loader, tmp_path)), logits(model))


def test_a_saved_configuration_keeps_the_publishers_names(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    renamed = {"torch_dtype", "use_cache"}  # transformers says dtype, and leaves generation out of a configuration
    assert {name: saved[name] for name in PUBLISHED.keys() - renamed} == {
        name: value for name, value in PUBLISHED.items() if name not in renamed
    }
    assert saved["dtype"] == "float32" and not saved.keys() & LLaDAConfig.attribute_map.keys()
    weights = [load_file(folder / "model.safetensors").keys() for folder in (tmp_path, GOLDEN)]
    assert weights[0] == weights[1]


def test_loading_follows_the_dtype_and_the_device_asked_for() -> None:
    spread = load(AutoModelForCausalLM, dtype="auto", device_map="auto")
    assert spread.dtype == torch.float32 and spread.device.type in {"cpu", "cuda"}
    same(logits(spread, IDS.to(spread.device)).cpu(), LOGITS, 1e-3)
    assert load(dtype=torch.float64, device_map="cpu").dtype == torch.float64


def test_blocks_may_lie_on_disk(tmp_path: Path) -> None:
    """What is built without weights and gets them later, block by block, computes the same."""
    places = {"model.transformer.wte": "cpu", "model.transformer.ff_out": "disk", "model.transformer.ln_f": "cpu"}
    places |= {f"model.transformer.blocks.{n}": place for n, place in enumerate(("cpu", "disk", "disk"))}
    same(logits(load(device_map=places, offload_folder=tmp_path)), LOGITS)


def test_rows_of_different_lengths_share_a_batch(model: Any) -> None:
    check_padded_rows(model)


def test_padding_that_is_not_masked_is_noticed(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llada, "create_bidirectional_mask", lambda *arguments, **options: None)
    with pytest.raises(AssertionError, match="not close"):
        check_padded_rows(model)


def test_what_stands_at_the_padding_does_not_matter(model: Any) -> None:
    other = torch.where(padding().bool(), IDS, (IDS + 7) % 250)
    one, two = (logits(model, ids, attention_mask=padding())[padding().bool()] for ids in (IDS, other))
    same(one, two)


def test_positions_are_counted_from_the_first_real_token(model: Any) -> None:
    """Only distances matter to the logits, so this looks at the count: a long padding must not cost precision."""
    counted = llada.positions_of(IDS, padding())
    for row, pad in enumerate(PADS):
        assert counted[row, pad:].tolist() == list(range(IDS.shape[1] - pad))
    assert llada.positions_of(IDS, None).tolist() == [list(range(IDS.shape[1]))]


def test_positions_that_are_given_are_used_row_by_row(model: Any) -> None:
    """Rows shuffled together with their positions give the shuffled logits; shuffled alone they do not."""
    torch.manual_seed(0)
    order = torch.stack([torch.randperm(IDS.shape[1]) for _ in IDS])
    shuffled, expected = IDS.gather(1, order), LOGITS.gather(1, order[..., None].expand_as(LOGITS))
    same(logits(model, shuffled, position_ids=order), expected)
    assert (logits(model, shuffled) - expected).abs().max() > 1


def test_a_gap_between_positions_counts(model: Any) -> None:
    positions = torch.arange(IDS.shape[1])[None].repeat(len(IDS), 1)
    positions[1, 20:] += 30
    found = logits(model, position_ids=positions)
    same(found[[0, 2]], LOGITS[[0, 2]])
    assert (found[1] - LOGITS[1]).abs().max() > 1


def test_requested_logits_are_those_of_the_full_forward_row_by_row(model: Any) -> None:
    torch.manual_seed(0)
    at = torch.rand(IDS.shape) < 0.3
    at[1] = False
    at[1, 5] = True  # rows need not ask for equally many
    assert len({int(row.sum()) for row in at}) == 3
    same(logits(model, logits_at=at), logits(model)[at], 1e-5)
    masked = padding()
    same(logits(model, logits_at=at, attention_mask=masked), logits(model, attention_mask=masked)[at], 1e-5)
    assert logits(model, logits_at=torch.zeros_like(at)).shape == (0, PUBLISHED["vocab_size"])


@pytest.mark.parametrize("attention", ["sdpa", "eager", GROUPED])
def test_attention_is_not_causal(attention: str) -> None:
    model = load(attn_implementation=attention)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 250
    assert (logits(model, changed)[:, 0] - logits(model)[:, 0]).abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa", GROUPED])
def test_every_attention_implementation_agrees(attention: str) -> None:
    model = load(attn_implementation=attention)
    assert model.config._attn_implementation == attention
    same(logits(model), LOGITS)
    check_padded_rows(model)


def random_model(**fields: Any) -> Any:
    torch.manual_seed(0)
    ids = {"mask_token_id": 250, "eos_token_id": 251, "pad_token_id": 251}
    return LLaDAModelLM(LLaDAConfig(vocab_size=256, init_std=0.2, **ids, **fields)).eval()


def test_grouped_heads_are_the_same_model_with_their_keys_and_values_repeated() -> None:
    """No published checkpoint has them, but the configuration has a field for them."""
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 2, "mlp_hidden_size": 48}
    grouped, full = random_model(n_kv_heads=2, **shape), random_model(**shape)
    weights = grouped.state_dict()
    for name in weights:
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(weights)
    for attention in ("sdpa", "eager"):
        grouped.set_attn_implementation(attention)
        same(logits(grouped), logits(full))


def test_bfloat16_stays_near_float32() -> None:
    """Compared on the same rounded weights, so that what is left is the arithmetic."""
    low = load(dtype=torch.bfloat16)
    found, expected = logits(low), logits(load(dtype=torch.bfloat16).float())
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()
    assert logits(low, attention_mask=padding()).isfinite().all()


def check_far_positions(model: Any) -> None:
    """Only distances matter to the logits, so all of them may stand 4000 further on."""
    near, far = (logits(model, position_ids=torch.arange(IDS.shape[1])[None] + start) for start in (0, 4000))
    assert (near - far).abs().max() < 0.02 * near.abs().max()


def recalled(model: Any, window: slice, ids: torch.Tensor, recording: Recording) -> torch.Tensor:
    """Logits of a window of the padded rows, whose other keys and values are cached."""
    positions = llada.positions_of(IDS, padding())[:, window]
    exchange = Recalling(recording.cached)
    return logits(model, ids[:, window], attention_mask=padding(), position_ids=positions, exchange=exchange)


@pytest.mark.parametrize("window", [slice(36, 44), slice(36, 48)], ids=["dual", "prefix"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", GROUPED])
def test_a_window_beside_what_is_known_is_the_whole(attention: str, window: slice) -> None:
    """Of an unchanged sequence, in padded rows; of a changed one, what stands outside is as it was."""
    model = load(attn_implementation=attention)
    recording = Recording([(pad, window.start, window.stop) for pad in PADS])
    whole = logits(model, attention_mask=padding(), exchange=recording)
    same(whole, logits(model, attention_mask=padding()))
    same(recalled(model, window, IDS, recording), whole[:, window])
    changed = (IDS + 1) % 250
    later = logits(model, torch.cat((IDS[:, : window.start], changed[:, window], IDS[:, window.stop :]), 1))
    assert (recalled(model, window, changed, recording) - whole[:, window]).abs().max() > 1
    assert (recalled(model, window, changed, recording)[0] - later[0, window]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_keep_their_precision_in_every_dtype(dtype: torch.dtype) -> None:
    check_far_positions(load(dtype=dtype))


def test_angles_in_bfloat16_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    precise = llada.LLaDAModel._angles
    monkeypatch.setattr(llada.LLaDAModel, "_angles", lambda self, positions: precise(self, positions).bfloat16())
    with pytest.raises(AssertionError):
        check_far_positions(load(dtype=torch.bfloat16))


def test_angles_are_the_publishers_to_the_last_bit(model: Any) -> None:
    """At position 4000 another order of the same operations already differs by 2e-4 radians."""
    frequencies = 1.0 / (PUBLISHED["rope_theta"] ** (torch.arange(0, 16, 2).float() / 16))
    expected = torch.outer(torch.arange(8192).float(), frequencies)
    found = model.model._angles(torch.arange(8192)[None])[0]
    assert torch.equal(found, torch.cat((expected, expected), -1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("activation_type", "swiglu"),
        ("alibi", True),
        ("attention_layer_norm", True),
        ("bias_for_layer_norm", True),
        ("block_group_size", 2),
        ("block_type", "sequential"),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("input_emb_norm", True),
        ("layer_norm_type", "default"),
        ("layer_norm_with_affine", False),
        ("multi_query_attention", True),
        ("rope", False),
        ("rope_full_precision", False),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}),
        ("scale_logits", True),
        ("tie_word_embeddings", True),
        ("weight_tying", True),
    ],
)
def test_another_architecture_is_refused_in_one_line(name: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED | {name: value}))
    shutil.copy(GOLDEN / "model.safetensors", tmp_path)
    for load_it in (AutoConfig.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(InputError, match=f"^this LLaDA configuration has {name} .* is supported$") as caught:
            load_it(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_field_that_is_null_or_missing_has_its_default(tmp_path: Path) -> None:
    fields = {**PUBLISHED, "alibi": None, "n_kv_heads": None}
    del fields["scale_logits"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert LLaDAConfig.from_pretrained(tmp_path).n_kv_heads == PUBLISHED["n_heads"]


def test_the_standard_names_make_the_same_configuration() -> None:
    """Heads for keys and values follow the heads for queries, under whichever name these came."""
    standard = {standard: PUBLISHED[own] for standard, own in LLaDAConfig.attribute_map.items()}
    del standard["num_key_value_heads"]
    config = LLaDAConfig(**standard)
    assert {name: getattr(config, name) for name in LLaDAConfig.attribute_map.values()} == {
        name: PUBLISHED[name] for name in LLaDAConfig.attribute_map.values()
    }
    assert config.max_position_embeddings == PUBLISHED["max_sequence_length"]


def test_a_new_model_starts_small() -> None:
    """At random weights all tokens are about equally likely, so that training starts near log V."""
    fresh = LLaDAModelLM(LLaDAConfig(**{**PUBLISHED, "init_std": 0.02}))
    assert all((weight == 1).all() for name, weight in fresh.named_parameters() if "norm" in name or "ln_f" in name)
    matrices = [weight.detach() for weight in fresh.parameters() if weight.dim() > 1]
    assert all(abs(float(weight.std()) - 0.02) < 2e-3 for weight in matrices)
    loss = torch.nn.functional.cross_entropy(logits(fresh).flatten(0, 1), IDS.flatten())
    assert float(loss) == pytest.approx(5.545, abs=0.1)  # log 256


def test_every_weight_is_trained() -> None:
    model = load().train()
    model(IDS, logits_at=torch.ones_like(IDS, dtype=torch.bool)).logits.logsumexp(-1).sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())
