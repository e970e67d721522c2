"""PEFT adapters: the folder of an adapter is its base model with the adapter's weights, or is refused in one line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ets
from ets.cli import main
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.checkpoint import Checkpoint
from ets.types import InputError
from tests.conftest import random_qwen3, tiny_tokenizer

peft = pytest.importorskip("peft", reason="needs the package peft, of the extra peft")

IDS = torch.tensor([[1, 2, 3, 2, 1]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    random_qwen3(4, end=0).float().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def adapted(base: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    lora = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **options}
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora)).eval()


@pytest.fixture(scope="module")
def lora(base: Path) -> Any:
    return adapted(base)


@pytest.fixture(scope="module")
def folder(lora: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora")
    lora.save_pretrained(path)
    return path


def changed(folder: Path, to: Path, **fields: Any) -> Path:
    """A copy of an adapter with other fields in its configuration."""
    shutil.copytree(folder, to)
    config = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return to


def sampled(model: Any) -> str:
    reward = lambda prompt, text: len(text) / 2  # noqa: E731
    return ets.sample("abc", model=model, reward=reward, block_size=2, max_length=6, candidates=2, rollouts=2).text


def test_the_logits_are_those_of_base_and_adapter(base: Path, lora: Any, folder: Path) -> None:
    with torch.inference_mode():
        expected, plain = lora(IDS).logits, Checkpoint(str(base)).model(IDS).logits
        torch.testing.assert_close(Checkpoint(str(folder)).model(IDS).logits, expected, rtol=0, atol=1e-5)
    assert (expected - plain).abs().max() > 0.1


def test_an_adapter_in_bfloat16_gets_the_dtype_of_the_model(lora: Any, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copied = changed(folder, tmp_path / "half")
    file = copied / "adapter_model.safetensors"
    save_file({name: each.bfloat16() for name, each in load_file(file).items()}, file, metadata={"format": "pt"})
    model = Checkpoint(str(copied)).model
    assert {each.dtype for each in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, lora(IDS).logits, rtol=0, atol=0.1)


def test_a_folder_gives_the_texts_of_the_peft_model_in_memory(
    lora: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = sampled((lora, tiny_tokenizer()))
    assert sampled(folder) == expected != ""
    words = "--prompt abc --reward likelihood --block-size 2 --max-length 6 --candidates 2 --rollouts 2"
    assert main(["sample", "--model", str(folder), *words.split()]) == 0
    assert "cost:" in capsys.readouterr().out


def test_a_folder_with_config_and_weights_is_its_own_base(base: Path, lora: Any, folder: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(base, both)
    for file in folder.iterdir():
        shutil.copy(file, both)
    with torch.inference_mode():
        torch.testing.assert_close(Checkpoint(str(both)).model(IDS).logits, lora(IDS).logits, rtol=0, atol=1e-5)


def test_the_adapter_s_tokenizer_comes_first(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    tiny_tokenizer(("<end>", "x", "y", "z")).save_pretrained(other)
    assert Checkpoint(str(folder)).tokenizer("b")["input_ids"] == [2]
    assert Checkpoint(str(other)).tokenizer("y")["input_ids"] == [2]


def test_the_revision_covers_adapter_and_base(base: Path, folder: Path, tmp_path: Path) -> None:
    other_base = tmp_path / "base"
    shutil.copytree(base, other_base)
    copied = changed(folder, tmp_path / "copied", base_model_name_or_path=str(other_base))
    config = (copied / "adapter_config.json").read_text()
    revisions = [Checkpoint(str(base)).revision, Checkpoint(str(copied)).revision]
    (copied / "adapter_config.json").write_text(config.replace('"lora_alpha": 8', '"lora_alpha": 9'))
    revisions.append(Checkpoint(str(copied)).revision)
    (copied / "adapter_config.json").write_text(config)
    assert Checkpoint(str(copied)).revision == revisions[1]
    random_qwen3(4, end=0, seed=8).float().save_pretrained(other_base)
    revisions.append(Checkpoint(str(copied)).revision)
    assert len(set(revisions)) == 4


def test_virtual_tokens_are_refused(base: Path, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings)
    model.save_pretrained(tmp_path / "prompt")
    kinds = ("PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING")
    folders = [tmp_path / "prompt", *(changed(folder, tmp_path / kind, peft_type=kind) for kind in kinds)]
    for each in [*map(str, folders), (model, tiny_tokenizer())]:
        with pytest.raises(InputError, match=r"virtual tokens have no token ids; give a LoRA") as caught:
            sampled(each)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"base_model_name_or_path": "nowhere/nothing"}, "base model of the adapter .* is missing: the checkpoint"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"task_type": "SEQ_CLS"}, "is an adapter for SEQ_CLS"),
        ({"alora_invocation_tokens": [1, 2]}, "is an activated LoRA"),
        ({"peft_type": "NO_SUCH_KIND"}, "cannot load the adapter of"),
        ({"target_modules": ["q_proj"]}, "weights of .* are missing or do not fit"),
        ({"r": 3}, "cannot load the adapter of"),
    ],
)
def test_an_unsuitable_adapter_is_one_line(fields: dict[str, Any], reason: str, folder: Path, tmp_path: Path) -> None:
    copied = changed(folder, tmp_path / "adapter", **fields)
    with pytest.raises(InputError, match=reason) as caught:
        _ = Checkpoint(str(copied)).model
    assert "\n" not in str(caught.value)


def test_an_adapter_on_an_adapter_and_a_damaged_one_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has the adapter .* as its base"):
        Checkpoint(str(changed(folder, tmp_path / "second", base_model_name_or_path=str(folder))))
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read adapter_config\.json of"):
        Checkpoint(str(tmp_path))


def test_without_peft_a_line_names_the_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match=r"is an adapter, which needs the package peft; run `pip install peft`"):
        sampled(folder)


def test_vllm_is_given_no_adapter(lora: Any, folder: Path) -> None:
    with pytest.raises(InputError, match="use the engine transformers"):
        VLLMEngine(Checkpoint(str(folder)))
    with pytest.raises(InputError, match="vLLM loads models from files"):
        VLLMEngine(Checkpoint.loaded(lora, tiny_tokenizer()))
