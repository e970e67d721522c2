"""The rules that autoregressive engines share."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from ets import demo
from ets.policies.autoregressive.law import Endings
from ets.policies.checkpoint import Checkpoint
from ets.policies.prompts import encode_prompt
from ets.policies.settings import Horizon, Sampling
from ets.policies.token_draws import pick_tokens
from ets.types import InputError, Problem
from tests.conftest import tiny_tokenizer


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
    ],
)
def test_sampling_out_of_range_is_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is"):
        Sampling(**options)


def test_a_block_longer_than_the_length_is_refused() -> None:
    with pytest.raises(InputError, match="block_size 5 is longer than max_length 4"):
        Horizon(5, 4)
    with pytest.raises(InputError, match="block_size is 0"):
        Horizon(0, 4)


def test_a_token_without_an_embedding_is_named() -> None:
    with pytest.raises(InputError, match=r"has the token id 3, and the model has embeddings of 3; call model.resize"):
        encode_prompt(tiny_tokenizer(), Problem("x", "abc"), 2, 5, vocabulary=3)


def test_every_cdf_edge_falls_on_the_right_side() -> None:
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.125, 0.125, 0.0], dtype=torch.float64)
    edges = p.cumsum(0)
    for token in (1, 3, 4, 5):
        low, high = edges[token] - p[token], edges[token]
        uniforms = torch.stack([low, torch.nextafter(high, torch.tensor(0.0, dtype=torch.float64))])
        tokens, logps = pick_tokens(p.expand(2, -1), uniforms)
        assert tokens.tolist() == [token, token]
        assert logps.tolist() == pytest.approx([math.log(p[token])] * 2)
    assert pick_tokens(p[None], torch.tensor([1.0 - 2**-53], dtype=torch.float64))[0].item() == 5


def test_a_rare_token_of_a_large_vocabulary_is_reachable() -> None:
    """150,000 tokens: in a float32 CDF the last one would be lost."""
    p = torch.full((1, 150_000), 1 / 150_000, dtype=torch.float64)
    last = torch.tensor([1 - 0.5 / 150_000], dtype=torch.float64)
    assert pick_tokens(p, last)[0].item() == 149_999
    middle = torch.tensor([75_000.5 / 150_000], dtype=torch.float64)
    assert pick_tokens(p, middle)[0].item() == 75_000


@pytest.fixture(scope="module")
def embedded() -> Any:
    return Checkpoint(demo.model_path())


@pytest.mark.parametrize("stop", ["shells now", " has", "\n\nQuestion:", "日本", "é", "9", "s"])
@pytest.mark.parametrize(
    "text", ["Tom has 19 shells now\n\nQuestion: 日本語, café? 9", "aé日本\n\nQuestion:shells now has9s"]
)
def test_a_stop_string_is_found_by_the_token_that_completes_it(embedded: Checkpoint, stop: str, text: str) -> None:
    endings = Endings(embedded.tokenizer, embedded.end_ids, embedded.config.vocab_size)
    tokens = embedded.tokenizer(text)["input_ids"]
    reached = [n for n in range(1, len(tokens) + 1) if endings.reached(tokens[:n], (stop,))]
    complete = [n for n in range(1, len(tokens) + 1) if stop in embedded.tokenizer.decode(tokens[:n])]
    assert complete
    assert reached[0] == complete[0]
    assert endings.text(tokens[: reached[0]], (stop,)) == text[: text.index(stop)]


def byte_tokenizer() -> Any:
    """Every token is a byte, as where a tokenizer falls back to bytes: a run of them is decoded whole or not at all."""
    vocabulary = {"</s>": 0, "<unk>": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize("before", ["", "日", "日本語日本語日本語日本語", "é日本語日本語日本語日本語"])
def test_a_stop_string_of_bytes_ends_the_text_at_its_last_byte(before: str) -> None:
    endings, stop = Endings(byte_tokenizer(), [0], 258), ("テスト",)
    tokens = [2 + byte for byte in f"{before}{stop[0]}後".encode()]
    reached = [n for n in range(1, len(tokens) + 1) if endings.reached(tokens[:n], stop)]
    assert reached[0] == len(f"{before}{stop[0]}".encode())
    assert endings.text(tokens[: reached[0]], stop) == before


def test_the_first_of_several_stop_strings_cuts() -> None:
    endings = Endings(tiny_tokenizer(), [0], 4)
    assert endings.text((1, 2, 3, 1), ("ca", "bc")) == "a"


def test_a_stop_string_counts_outside_of_thinking_sections_alone() -> None:
    """The tags are a and b; of every text, the first prefix in which a stop string stands outside of them ends it."""
    endings, stop, thinking = Endings(tiny_tokenizer(), [0], 4), ("cc", "bc"), ("a", "b")
    ended = set[str]()
    for tokens in itertools.product((1, 2, 3), repeat=6):
        text = endings.decode(tokens)
        places = [n for n in range(6) if text.startswith(stop, n) and text.rfind("a", 0, n) <= text.rfind("b", 0, n)]
        first = next((n for n in range(1, 7) if endings.reached(tokens[:n], stop, thinking)), None)
        assert first == (places[0] + 2 if places else None)
        assert endings.text(tokens, stop, thinking) == text[: places[0] if places else None]
        ended.add(text if first is None else text[:first])
    assert {"accbcc"[:4], "acc"} & ended == set() and {"cc", "accbbc"} <= ended


def test_a_section_may_have_begun_in_the_prompt() -> None:
    endings = Endings(tiny_tokenizer(), [0], 4)
    assert endings.text((3, 3, 2, 3, 3), ("cc",), ("a", "b"), prompt=(2, 1)) == "ccb"
    assert endings.text((3, 3, 2, 3, 3), ("cc",), ("a", "b"), prompt=(1, 2)) == ""
    assert not endings.reached((3, 3), ("cc",), ("a", "b"), prompt=(2, 1))
    assert endings.is_thinking((3, 3), ("a", "b"), (2, 1)) and not endings.is_thinking((3, 2), ("a", "b"), (2, 1))


def test_the_end_token_is_no_text_but_inner_special_tokens_are() -> None:
    endings = Endings(tiny_tokenizer(), [0], 4)
    assert endings.text((1, 2, 0), ()) == "ab"
    assert endings.text((1, 0, 2), ()) == "a<end>b"


@pytest.mark.parametrize("prompt", ["", ()])
def test_an_empty_prompt_is_refused_by_name(prompt: Any) -> None:
    with pytest.raises(InputError, match="problem 'x' is empty"):
        encode_prompt(tiny_tokenizer(), Problem("x", prompt), 2, 100)


def test_a_prompt_that_leaves_no_room_is_refused_by_name() -> None:
    assert encode_prompt(tiny_tokenizer(), Problem("x", "abc"), 2, 5) == (1, 2, 3)
    with pytest.raises(InputError, match="'x' has 3 tokens, which leaves no room for a generation of 3"):
        encode_prompt(tiny_tokenizer(), Problem("x", "abc"), 3, 5)
