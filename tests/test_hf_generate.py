"""transformers' own `generate`, with this method as its decoding loop."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ets
from ets import demo
from ets.hf_generate import HONOURED, GuidedOutput, _sampling
from ets.policies.autoregressive.truncation import probabilities
from ets.types import InputError
from tests.conftest import random_llada, random_qwen3, tiny_tokenizer

PROMPTS = [
    "Question: Tom has 5 eggs. How many eggs does Tom have now?\nAnswer:",
    "Question: Nora has 22 stickers. She buys 4 jars with 5 stickers each. How many stickers does she have?\nAnswer:",
]
SMALL: dict[str, Any] = {"m_candidates": 3, "k_monte_carlo": 2, "block_size": 16, "seed": 3}
ROOT = Path(__file__).parents[1]


def short(prompt: str, text: str) -> float:
    return -len(text) / 100


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo.model_path("small")
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path, padding_side="left")


@pytest.fixture(scope="module")
def batch(loaded: tuple[Any, Any]) -> Any:
    """Two prompts of different lengths, padded on the left."""
    return loaded[1](PROMPTS, return_tensors="pt", padding=True)


def guided(loaded: tuple[Any, Any], batch: Any, **changed: Any) -> Any:
    settings = SMALL | {"reward": short, "max_new_tokens": 48, "top_k": 0} | changed
    return loaded[0].generate(**batch, **{"custom_generate": ets.generate, "tokenizer": loaded[1]} | settings)


def test_a_padded_batch_gives_what_sample_gives(loaded: tuple[Any, Any], batch: Any) -> None:
    """Prompts as they were given, then the chain's own tokens, then padding."""
    numbers: dict[str, Any] = {"candidates": 3, "rollouts": 2, "block_size": 16, "max_length": 48, "seed": 3}
    law: dict[str, Any] = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
    expected = ets.sample(PROMPTS, model=loaded, reward=short, **numbers, **law)
    sequences = guided(loaded, batch, **law)
    width = batch["input_ids"].shape[1]
    assert batch["attention_mask"][0].sum() < width and torch.equal(sequences[:, :width], batch["input_ids"])
    drawn = [result.trace[-1].candidates[result.trace[-1].choice].tokens for result in expected]
    assert len(set(map(len, drawn))) == 2 and sequences.shape[1] == width + max(map(len, drawn))
    for row, tokens in zip(sequences[:, width:].tolist(), drawn, strict=True):
        assert tuple(row[: len(tokens)]) == tokens
        assert set(row[len(tokens) :]) <= {loaded[1].pad_token_id}


def test_the_folder_does_the_same_without_a_hub(
    loaded: tuple[Any, Any], batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    folder: dict[str, Any] = {"custom_generate": str(ROOT), "trust_remote_code": True}
    assert torch.equal(guided(loaded, batch, **folder), guided(loaded, batch))
    with pytest.raises(InputError, match="streamer is set"):
        guided(loaded, batch, **folder, streamer=object())


def test_what_sample_returns_comes_along_when_a_dictionary_is_asked_for(loaded: tuple[Any, Any], batch: Any) -> None:
    out = guided(loaded, batch, return_dict_in_generate=True, reward=None, extract=lambda text: text.count("<<"))
    assert isinstance(out, GuidedOutput) and out["sequences"].shape[0] == 2 and out.results is not None
    for row, result in zip(out.sequences, out.results, strict=True):
        assert result.text in loaded[1].decode(row) and result.answer == result.text.count("<<")
        assert result.cost.generated > 0 and result.vote is not None


def test_rewards_are_told_the_prompt_as_text(loaded: tuple[Any, Any], batch: Any) -> None:
    asked = set()

    def reward(prompt: str, text: str) -> float:
        asked.add(prompt)
        return 0.0

    guided(loaded, batch, reward=reward)
    assert asked == set(PROMPTS)


def test_a_tokenizer_can_be_bound_where_the_model_names_none() -> None:
    model, ids = random_qwen3(4, end=0), torch.tensor([[1, 2]])
    arguments: dict[str, Any] = {"reward": lambda prompt, text: float(prompt == "ab"), "max_new_tokens": 4}
    with pytest.raises(InputError, match="has no name_or_path to load its tokenizer"):
        model.generate(ids, custom_generate=ets.generate, **arguments)
    bound = partial(ets.generate, tokenizer=tiny_tokenizer())
    out = model.generate(ids, custom_generate=bound, return_dict_in_generate=True, **arguments)
    assert out.results[0].trace[0].log_rewards == pytest.approx(10.0)


def test_the_end_is_the_generation_configurations(loaded: tuple[Any, Any], batch: Any) -> None:
    """Not the tokenizer's, and several end alike; stop strings stay, as far as they were drawn."""
    newline = loaded[1].encode("\n")[-1]
    own, width = loaded[1].eos_token_id, batch["input_ids"].shape[1]
    for row in guided(loaded, batch, eos_token_id=[own, newline], pad_token_id=7)[:, width:].tolist():
        tokens = [token for token in row if token != 7]
        assert tokens[-1] in (own, newline) and not {own, newline} & set(tokens[:-1])
    free, stopped = (
        [loaded[1].decode(row[width:], skip_special_tokens=True) for row in guided(loaded, batch, stop=stop)]
        for stop in ([], ["\n"])
    )
    assert all("\n" in text[:-1] for text in free)  # so that to ignore the stop would be seen
    assert all(text.index("\n") == len(text) - 1 for text in stopped)


def test_the_model_is_left_as_it_was(loaded: tuple[Any, Any], batch: Any) -> None:
    model = loaded[0]
    model.train()
    before = model.config._attn_implementation
    guided(loaded, batch)
    assert model.training and model.config._attn_implementation == before
    model.eval()


@pytest.mark.parametrize("law", [{}, {"temperature": 0.7}, {"top_k": 7}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8}])
def test_the_law_is_the_one_that_transformers_would_sample(law: dict[str, float]) -> None:
    from transformers import GenerationConfig

    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    config = GenerationConfig(do_sample=True, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **law})
    model = random_qwen3(40, end=0)
    processed = model._get_logits_processor(config, 1)(torch.zeros(5, 1, dtype=torch.long), logits)
    torch.testing.assert_close(probabilities(_sampling(config), logits), processed.softmax(-1))
    assert {type(rule) for rule in model._get_logits_processor(config, 1)} <= set(HONOURED)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_beams": 2}, "num_beams is 2, which"),
        ({"min_p": 0.1}, "min_p is 0.1, which"),
        ({"typical_p": 0.5}, "typical_p is 0.5, which"),
        ({"repetition_penalty": 1.2}, "a RepetitionPenaltyLogitsProcessor acts"),
        ({"no_repeat_ngram_size": 2}, "a NoRepeatNGramLogitsProcessor acts"),
        ({"min_new_tokens": 3}, "a MinLengthLogitsProcessor acts"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [1]}, "a PrefixConstrainedLogitsProcessor acts"),
        ({"max_time": 3.0}, "a MaxTimeCriteria acts"),
        ({"output_scores": True}, "output_scores is True, which"),
        ({"cache_implementation": "static"}, "cache_implementation is 'static', which"),
        ({"position_ids": torch.zeros(2, 30, dtype=torch.long)}, "position_ids skip or repeat"),
        ({"temperature": 0.0}, "at temperature 0"),
        ({"block_size": 100}, "block_size 100 is longer"),
        ({"stop": "\n"}, "stop is"),
        ({"reward": None}, "neither a reward nor extract"),
    ],
)
def test_what_has_no_place_is_refused(loaded: tuple[Any, Any], batch: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        guided(loaded, batch, **wrong)


def test_a_processor_that_contradicts_the_configuration_is_refused(loaded: tuple[Any, Any], batch: Any) -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper

    with pytest.raises(InputError, match="a TemperatureLogitsWarper acts"):
        guided(loaded, batch, logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.5)]))
    agreeing = LogitsProcessorList([TemperatureLogitsWarper(0.5)])
    assert torch.equal(
        guided(loaded, batch, logits_processor=agreeing, temperature=0.5), guided(loaded, batch, temperature=0.5)
    )


def test_the_documentation_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    page = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    tokens = []
    for block in blocks:
        exec(block.replace("path/to/this/repository", str(ROOT)), names)
        tokens.append(names.get("tokens"))
    assert "cost: " in capsys.readouterr().out
    assert torch.equal(tokens[1], tokens[2])  # a folder and a bound tokenizer come to the same


def test_masked_diffusion_is_refused() -> None:
    model, ids = random_llada(4, 0), torch.tensor([[1, 2]])
    config = type("Config", (), {"max_length": 6, "eos_token_id": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0})
    rules: dict[str, Any] = {"logits_processor": [], "stopping_criteria": [], "generation_config": config}
    with pytest.raises(InputError, match="not autoregressive"):
        ets.generate(model, ids, tokenizer=tiny_tokenizer(), reward=short, **rules)


def test_recurrent_layers_run(loaded: tuple[Any, Any], batch: Any) -> None:
    """transformers hands over a cache for them, which the caller has not given."""
    from transformers import MambaConfig, MambaForCausalLM

    size = {"vocab_size": len(loaded[1]), "hidden_size": 8, "num_hidden_layers": 1}
    model = MambaForCausalLM(MambaConfig(**size, eos_token_id=0, pad_token_id=0))
    sequences = guided((model, loaded[1]), batch, custom_generate=partial(ets.generate, tokenizer=loaded[1]))
    assert len(sequences) == len(batch["input_ids"])


def test_rewards_get_the_messages_of_a_chat_prompt(chat_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat_model), AutoTokenizer.from_pretrained(chat_model)
    messages, given = [{"role": "user", "content": "Tom has 5 eggs."}], list[Any]()
    batch = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")

    def noted(prompt: Any, text: str) -> float:
        given.append(prompt)
        return 0.0

    settings: dict[str, Any] = {"m_candidates": 2, "k_monte_carlo": 1, "block_size": 4, "max_new_tokens": 4}
    model.generate(**batch, **settings, custom_generate=ets.generate, reward=noted)
    assert given and all(each == tuple(messages) for each in given)
