"""Checkpoints are checked at once, and without waiting for a hub that cannot be reached."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from ets import demo, hub, sample
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.autoregressive.truncation import probabilities
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.types import InputError, Problem
from tests.conftest import ALPHABET, MASKED_ALPHABET, random_llada, random_qwen3, tiny_tokenizer


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "nowhere", "a/b/c", "a b/c", "~nobody/x y"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"no checkpoint at '{name}'"):
        Checkpoint(name)


@pytest.mark.parametrize(
    ("written", "truncation"),
    [
        ({"top_k": 20, "top_p": 0.95}, {"top_k": 20, "top_p": 0.95}),
        ({"top_k": 0, "top_p": 1.0}, {"top_k": None, "top_p": None}),
        ({}, {"top_k": 50, "top_p": None}),
    ],
)
def test_the_truncation_is_that_of_generate(
    written: dict[str, float], truncation: dict[str, float | None], tmp_path: Path
) -> None:
    """The file's values, or transformers' own default; the tokens that `generate` can draw are the witness."""
    folder = tmp_path / "model"
    shutil.copytree(demo.model_path("small"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 0, **written}))
    checkpoint = Checkpoint(str(folder))
    assert checkpoint.truncation == truncation
    ids = torch.tensor([checkpoint.tokenizer("Question: Tom has 5").input_ids])
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "do_sample": True,
        "temperature": 20.0,
        "max_new_tokens": 1,
        "num_return_sequences": 4000,
    }
    drawn = set(checkpoint.model.generate(ids, attention_mask=torch.ones_like(ids), **options)[:, -1].tolist())
    law = Sampling(20.0, **truncation)  # type: ignore[arg-type]
    support = set(probabilities(law, checkpoint.model(ids).logits[0, -1]).nonzero()[:, 0].tolist())
    assert drawn <= support and len(drawn) > 0.5 * len(support)


def test_settings_of_generate_that_change_the_law_and_are_not_applied_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo.model_path("small"), folder)
    assert Checkpoint(str(folder)).unapplied == {}
    written = {"top_k": 20, "temperature": 0.7, "repetition_penalty": 1.05, "min_p": 0.0, "typical_p": 1.0}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **written}))
    assert Checkpoint(str(folder)).unapplied == {"repetition_penalty": 1.05}


def test_a_folder_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json"):
        Checkpoint(str(tmp_path))


def test_an_unreachable_hub_is_found_out_before_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(InputError, match="the model hub cannot be reached"):
        Checkpoint("someone/something-that-is-not-cached")


def test_a_damaged_checkpoint_is_one_line(tmp_path: Path) -> None:
    random_qwen3(4, end=0).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot load the weights of") as caught:
        _ = Checkpoint(str(tmp_path)).model
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="cannot load the"):
        _ = Checkpoint(str(tmp_path)).config


def test_a_folder_without_a_tokenizer_file_is_refused(tmp_path: Path) -> None:
    random_qwen3(4, end=0).save_pretrained(tmp_path)  # transformers makes a tokenizer of special tokens for it
    with pytest.raises(InputError, match=r"^the tokenizer of .* has special tokens alone; .* tokenizer.json$"):
        _ = Checkpoint(str(tmp_path)).tokenizer


def test_a_file_of_weights_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^'m/model.safetensors' is a file without the ending .gguf"):
        Checkpoint("m/model.safetensors")


def test_a_hub_name_is_looked_up_in_the_cache_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_reachable", lambda address: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match="neither a folder nor in the local cache"):
        Checkpoint("someone/something-that-is-not-cached")


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end token"):
        Checkpoint.loaded(random_qwen3(4, end=0), tokenizer)


def test_all_end_tokens_count_and_no_sampling_setting_of_the_checkpoint_does(tmp_path: Path) -> None:
    model, tokenizer = random_qwen3(4, end=0), tiny_tokenizer()
    model.generation_config.eos_token_id = [0, 3]
    model.generation_config.temperature = 0.1
    model.generation_config.do_sample = True
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert Checkpoint(str(tmp_path)).end_ids == {0, 3}
    assert Checkpoint.loaded(model, tokenizer).end_ids == {0, 3}


def test_weights_are_loaded_in_the_dtype_asked_for() -> None:
    assert Checkpoint(demo.model_path("small")).model.dtype == torch.float32
    assert Checkpoint(demo.model_path("small"), dtype=torch.float64).model.dtype == torch.float64
    assert Checkpoint(demo.model_path("small"), dtype="bfloat16").model.dtype == torch.bfloat16


def test_an_unknown_dtype_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(InputError, match="dtype is 'int4'; choose from float32, bfloat16, float16"):
        Checkpoint(demo.model_path("small"), dtype="int4")


def test_the_revision_tells_weights_apart() -> None:
    sizes = [Checkpoint(demo.model_path(size)).revision for size in ("reference", "small", "reference")]
    assert sizes[0] == sizes[2] != sizes[1]


def test_a_published_llada_is_loaded_by_our_own_code(tmp_path: Path) -> None:
    """In a fresh process: its configuration points to remote code, which must neither be run nor asked about."""
    shutil.copytree(Path(__file__).parents[1] / "golden" / "llada", tmp_path / "llada")
    shutil.copy(Path(demo.model_path("diffusion")) / "tokenizer.json", tmp_path / "llada")
    shutil.copy(Path(demo.model_path("diffusion")) / "tokenizer_config.json", tmp_path / "llada")
    code = f"from ets import Checkpoint; print(type(Checkpoint({str(tmp_path / 'llada')!r}).model).__module__)"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.stdout.strip() == "ets.models.llada", done.stderr
    assert "custom code" not in done.stdout + done.stderr


def test_a_masked_diffusion_model_is_no_autoregressive_one() -> None:
    checkpoint = Checkpoint(demo.model_path("diffusion"))
    with pytest.raises(
        InputError, match=r"is a masked-diffusion model \(llada\).*use the engine masked-diffusion, or llada"
    ):
        TransformersPolicy(checkpoint, Sampling(), Horizon(1, 2))


@pytest.mark.parametrize(
    ("method", "package"), [("awq", "gptqmodel"), ("gptq", "optimum"), ("bitsandbytes", "bitsandbytes")]
)
def test_a_quantised_checkpoint_without_its_package_is_named_before_the_weights(
    method: str, package: str, tmp_path: Path
) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"the package {package} is installed")
    shutil.copytree(demo.model_path("small"), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    path = tmp_path / "model" / "config.json"
    written = {"quant_method": method, **({"load_in_4bit": True} if package == method else {"bits": 4})}
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": written}))
    with pytest.raises(InputError, match=f"is quantised by {method}.*{package}.*; install the package") as caught:
        TransformersPolicy(Checkpoint(str(path.parent)), Sampling(), Horizon(1, 2))
    assert "\n" not in str(caught.value)


def test_compressed_tensors_give_the_logits_of_the_rounded_weights(tmp_path: Path) -> None:
    compressed = pytest.importorskip("compressed_tensors", reason="needs compressed-tensors, which vLLM installs")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization import apply_quantization_config as apply

    arguments = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    config = QuantizationConfig(
        config_groups={"all": QuantizationScheme(targets=["Linear"], weights=arguments)},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=["lm_head"],
    )
    model, expected = random_qwen3(4, end=0).float(), random_qwen3(4, end=0).float()
    apply(model, config)
    for name, module in model.named_modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.data.abs().amax(1, keepdim=True) / 127
            rounded = (module.weight.data / module.weight_scale.data).round() * module.weight_scale.data
            expected.get_submodule(name).weight.data = rounded
    compressor = compressed.ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    checkpoint, ids = Checkpoint(str(tmp_path)), torch.tensor([[1, 2, 3, 3, 2]])
    with torch.inference_mode():
        torch.testing.assert_close(checkpoint.model(ids).logits, expected(ids).logits, rtol=0, atol=1e-4)
    settings: dict[str, Any] = {"block_size": 2, "max_length": 4, "reward": lambda prompt, text: float(len(text))}
    texts = [sample("ab", model=each, **settings).text for each in (checkpoint, (expected, tiny_tokenizer()))]
    assert texts[0] == texts[1] != ""


def test_missing_weights_are_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(demo.model_path("small"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file({key: value for key, value in weights.items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"weights of .* are missing or do not fit: {name} and 0 more"):
        _ = Checkpoint(str(tmp_path / "model")).model


@pytest.mark.parametrize("kind", ["autoregressive", "masked diffusion"])
def test_weights_on_disk_are_read_as_in_memory(kind: str, tmp_path: Path) -> None:
    """accelerate keeps the weights of a module on disk, and a tensor of the meta device in its place."""
    from transformers import AutoModelForCausalLM

    masked = kind == "masked diffusion"
    model = (random_llada(4, end=0) if masked else random_qwen3(4, end=0)).float()
    model.save_pretrained(tmp_path / "model")
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    tokenizer = tiny_tokenizer(MASKED_ALPHABET if masked else ALPHABET)
    settings: dict[str, Any] = {"block_size": 2, "max_length": 6, "reward": lambda prompt, text: len(text) / 2}
    texts = []
    for place in ("cpu", "disk"):
        places = {**dict.fromkeys(leaves, "cpu"), embedding: place}
        options: dict[str, Any] = {"device_map": places, "offload_folder": tmp_path / "offloaded"}
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", **options)
        assert loaded.get_input_embeddings().weight.device.type == ("meta" if place == "disk" else "cpu")
        texts.append(sample("ab", model=(loaded, tokenizer), **settings).text)
    assert texts[0] == texts[1] != ""
    if not masked:
        policy = TransformersPolicy(Checkpoint.loaded(loaded, tokenizer), Sampling(), Horizon(2, 6))
        with pytest.raises(InputError, match=r"are on disk.*leave the method beam out"):
            policy.beam(policy.start([Problem("a", "ab")]), 2)
