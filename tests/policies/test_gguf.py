"""GGUF files: the model of the file is the model in memory, logit for logit, and the file's rules are kept."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import ets
from ets.cli import main
from ets.policies.checkpoint import Checkpoint
from ets.policies.prompts import encode_prompt
from ets.types import InputError, Problem
from tests.policies.gguf_files import LETTERS, write_gguf

pytest.importorskip("gguf", reason="needs the package gguf, of the extra gguf")

SMALL: dict[str, Any] = {
    "vocab_size": len(LETTERS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "initializer_range": 0.4,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.tensor([[1, *([3, 4, 5, 6, 7] * 8)]])


def random_model(kind: str, **options: Any) -> Any:
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}{'Text' if kind == 'Gemma3' else ''}Config")(**{**SMALL, **options})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:  # a norm of ones would hide an offset
            parameter.data.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def llama() -> Any:
    return random_model("Llama")


@pytest.fixture(scope="module")
def file(llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama, "llama")


def require_equal_logits(found: Any, expected: Any) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(found(IDS).logits, expected(IDS).logits, rtol=0, atol=2e-5)


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": 10000.0, **options}


LOCAL = {"sliding_attention": rope("default")}
GLOBAL = {"rope_parameters": {**LOCAL, "full_attention": rope("linear", factor=8.0)}}
ATTENTION = {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "sliding_window": 16}
LINEAR = {"rope_parameters": rope("linear", factor=4.0)}
SCALED = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}
FAMILIES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("Llama", "llama", {}, {}),
    "llama, tied": ("Llama", "llama", {"tie_word_embeddings": True}, {}),
    "qwen2": ("Qwen2", "qwen2", {}, {}),
    "phi3": ("Phi3", "phi3", {"pad_token_id": 0}, {"tokenizer.ggml.padding_token_id": 0}),
    "gemma2": (
        "Gemma2",
        "gemma2",
        {"query_pre_attn_scalar": 16, "sliding_window": 16, "tie_word_embeddings": True},
        {"attention.sliding_window": 16},
    ),
    "llama, linear": ("Llama", "llama", LINEAR, SCALED),
    "llama, linear of an older file": ("Llama", "llama", LINEAR, {"rope.scale_linear": 4.0}),
    "llama, linear without a type": ("Llama", "llama", LINEAR, {"rope.scaling.factor": 4.0}),
    "qwen3, YaRN": (
        "Qwen3",
        "qwen3",
        {"rope_parameters": rope("yarn", factor=4.0, original_max_position_embeddings=32), "head_dim": 128},
        YARN,
    ),
    "gemma3, linear": (
        "Gemma3",
        "gemma3",
        {**GLOBAL, **ATTENTION, "num_hidden_layers": 6, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "attention.sliding_window": 16},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_model_that_was_written(family: str, tmp_path: Path) -> None:
    kind, architecture, options, keys = FAMILIES[family]
    model = random_model(kind, **options)
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture, keys=keys)
    require_equal_logits(Checkpoint(str(path)).model, model)


def test_the_frequency_factors_of_llama_3_are_applied(llama: Any, tmp_path: Path) -> None:
    """llama.cpp's converter writes the scaling as a tensor that transformers does not read."""
    limits = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    scaled = random_model("Llama", rope_parameters=rope("llama3", factor=8.0, **limits))
    factors = llama.model.rotary_emb.inv_freq / scaled.model.rotary_emb.inv_freq
    assert factors.max() > 2
    path = write_gguf(tmp_path / "tiny.gguf", scaled, "llama", tensors={"rope_freqs.weight": factors})
    require_equal_logits(Checkpoint(str(path)).model, scaled)
    write_gguf(tmp_path / "tiny.gguf", scaled, "llama", tensors={"rope_freqs.weight": factors[:3]})
    with pytest.raises(InputError, match=r"factors of the rotary frequencies in 'tiny\.gguf' do not fit"):
        _ = Checkpoint(str(path)).model


@pytest.mark.parametrize(("layers", "scalar"), [(2, 16), (46, 12)])
def test_the_attention_scale_of_gemma_2_depends_on_the_size(layers: int, scalar: int, tmp_path: Path) -> None:
    """The model of 27B (46 layers) scales by hidden_size / heads, the others by the width of a head."""
    model = random_model("Gemma2", num_attention_heads=2, hidden_size=24)
    model.config.num_hidden_layers = layers
    path = write_gguf(tmp_path / "tiny.gguf", model, "gemma2", keys={"tokenizer.ggml.add_bos_token": True})
    assert Checkpoint(str(path)).config.query_pre_attn_scalar == scalar


@pytest.mark.parametrize(
    ("keys", "tensors", "reason"),
    [
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, {}, "scaled by longrope"),
        ({**YARN, "rope.scaling.yarn_log_multiplier": 0.1}, {}, "scaled by yarn, yarn_log_multiplier"),
        ({}, {"blk.0.attn_q.bias": torch.ones(32)}, "leaves out 1 of the 22 tensors"),
        ({}, {"rope_factors_long.weight": torch.ones(8)}, "leaves out 1 of the 22 tensors"),
        ({"block_count": 3}, {}, "weights of .* are missing or do not fit: model.layers.2.* and 8 more"),
    ],
)
def test_a_file_that_transformers_would_read_wrongly_is_refused(
    keys: dict[str, Any], tensors: dict[str, Any], reason: str, llama: Any, tmp_path: Path
) -> None:
    layers = keys.pop("block_count", 2)
    llama.config.num_hidden_layers = layers
    try:
        path = write_gguf(tmp_path / "tiny.gguf", llama, "llama", keys=keys, tensors=tensors)
    finally:
        llama.config.num_hidden_layers = 2
    with pytest.raises(InputError, match=reason) as caught:
        _ = Checkpoint(str(path)).model
    assert "\n" not in str(caught.value)


BOS = "tokenizer.ggml.add_bos_token"
PRE = "tokenizer.ggml.pre"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({BOS: True}, [1, 7]), ({BOS: False}, [7]), ({}, [7]), ({PRE: "llama-bpe"}, [1, 7]), ({PRE: "qwen2"}, [7])],
)
def test_the_file_s_rule_of_the_bos_token_is_kept(
    keys: dict[str, Any], expected: list[int], llama: Any, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", llama, "llama", keys=keys)
    tokenizer = Checkpoint(str(path)).tokenizer
    assert tokenizer("ab")["input_ids"] == expected
    assert tokenizer("ab", add_special_tokens=False)["input_ids"] == [7]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert encode_prompt(tokenizer, Problem("a", "<s>ab"), 4, None) == (1, 7)  # and no second one


@pytest.mark.parametrize(("ids", "count"), [((7,), "none"), ((1, 1, 7), "two"), ((1,), ""), ((1, 7, 1, 1), "")])
def test_a_prompt_with_no_bos_token_or_two_is_used_with_a_warning(
    ids: tuple[int, ...], count: str, llama: Any, tmp_path: Path
) -> None:
    for asks in (True, False):
        path = write_gguf(tmp_path / f"{asks}.gguf", llama, "llama", keys={BOS: asks})
        tokenizer = Checkpoint(str(path)).tokenizer
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert encode_prompt(tokenizer, Problem("a", ids), 4, None) == ids
        text = f"the model expects one BOS token (<s>), and a prompt begins with {count}"
        assert [str(each.message).partition(";")[0] for each in caught] == [text] * bool(asks and count)


def test_gemma_expects_a_bos_token_whatever_its_tokenizer_adds() -> None:
    """A tokenizer that transformers has converted from a GGUF file, and saved, adds none."""
    from transformers import GemmaTokenizer

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "a"]
    tokenizer = GemmaTokenizer(vocab={letter: i for i, letter in enumerate(letters)}, merges=[])
    tokenizer.add_bos_token = False
    assert tokenizer("a")["input_ids"] == [4]
    with pytest.warns(UserWarning, match=r"expects one BOS token \(<bos>\), and a prompt begins with none"):
        encode_prompt(tokenizer, Problem("a", "a"), 4, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_prompt(tokenizer, Problem("a", "<bos>a"), 4, None)


def test_the_end_of_a_turn_ends_a_text(llama: Any, tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 6}
    assert Checkpoint(str(write_gguf(tmp_path / "a.gguf", llama, "llama"))).end_ids == {2}
    assert Checkpoint(str(write_gguf(tmp_path / "b.gguf", llama, "llama", keys=keys))).end_ids == {2, 5, 6}


def test_the_file_and_its_folder_give_the_texts_of_the_model_in_memory(
    file: Path, llama: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"block_size": 2, "max_length": 6, "candidates": 2, "rollouts": 2, "seed": 5}
    pair = (llama, Checkpoint(str(file)).tokenizer)
    expected = ets.sample("abc", model=pair, reward=lambda prompt, text: -len(text) / 9, **settings).text
    assert len(expected) > 2
    reward = file.with_name("reward.py")
    reward.write_text("def short(prompt, text):\n    return -len(text) / 9\n")
    options = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    for model in (file, file.parent):
        words = ["sample", "--model", str(model), "--prompt", "abc", "--reward", f"{reward}:short", *options]
        assert main(words) == 0
        assert expected.strip() in capsys.readouterr().out


def test_the_revision_follows_the_file(file: Path, llama: Any, tmp_path: Path) -> None:
    again = write_gguf(tmp_path / "tiny.gguf", llama, "llama")
    first = Checkpoint(str(file)).revision
    assert Checkpoint(str(again)).revision == first
    (tmp_path / "notes.json").write_text("{}")
    assert Checkpoint(str(again)).revision == first
    write_gguf(again, random_model("Llama", tie_word_embeddings=True), "llama")
    assert Checkpoint(str(again)).revision != first


def test_a_split_file_and_several_files_are_refused_by_name(file: Path, tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match=r"holds 2 GGUF files \(a\.gguf, b\.gguf\); give the path of one file"):
        Checkpoint(str(tmp_path))
    assert Checkpoint(str(tmp_path / "b.gguf")).config.model_type == "llama"
    for part in (1, 2):
        (tmp_path / f"m-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).unlink()
    for model in (tmp_path, tmp_path / "m-00001-of-00002.gguf"):
        with pytest.raises(InputError, match=r"part 1 of 2 of a split GGUF file.*llama-gguf-split --merge"):
            Checkpoint(str(model))


def test_a_missing_or_damaged_file_is_one_line(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"no file at .*nowhere\.gguf'; give an existing GGUF file"):
        Checkpoint(str(tmp_path / "nowhere.gguf"))
    with pytest.raises(InputError, match="neither a folder nor in the local cache"):
        Checkpoint("someone/nothing-cached/model.gguf")
    for content in (b"", b"GGUF", b"no GGUF file", file.read_bytes()[:300], file.read_bytes()[:-500]):
        (tmp_path / "bad.gguf").write_bytes(content)
        assert main(["sample", "--model", str(tmp_path), "--prompt", "ab", "--extract", "a"]) == 2
        shown = capsys.readouterr().err
        assert "error: cannot load the " in shown and "Traceback" not in shown


def test_a_file_of_the_hub_is_found_in_the_cache(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0" * 40
    repository = tmp_path / "models--someone--tiny-GGUF"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "tiny.gguf").write_bytes(file.read_bytes())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    checkpoint = Checkpoint("someone/tiny-GGUF/tiny.gguf")
    assert checkpoint.revision == Checkpoint(str(file)).revision
    require_equal_logits(checkpoint.model, Checkpoint(str(file)).model)
    with pytest.raises(InputError, match="neither a folder nor in the local cache"):
        Checkpoint("someone/tiny-GGUF/other.gguf")


def test_without_the_package_a_line_names_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    for model in (file, file.parent):
        with pytest.raises(
            InputError, match=r"'tiny\.gguf' is a GGUF file, which needs the package gguf; run `pip inst"
        ):
            Checkpoint(str(model))


def test_vllm_is_given_no_gguf_file(file: Path) -> None:
    from ets.policies.autoregressive.vllm import VLLMEngine

    with pytest.raises(InputError, match="use the engine transformers"):
        VLLMEngine(Checkpoint(str(file)))
