"""A model is read right, or refused in one line before anything is drawn."""

from __future__ import annotations

import gc
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Phi3Config

from ets.policies.autoregressive.reader import reader_of
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.randomness import derive
from ets.types import InputError, Problem
from tests.conftest import ALPHABET, random_qwen3, tiny_tokenizer
from tests.hooks import hooked, what_is_read
from tests.policies.autoregressive import hybrids
from tests.policies.autoregressive.hybrids import spread_out, whole_logp

SWITCH = 32


def policy_of(model: Any, max_length: int = 4) -> TransformersPolicy:
    return TransformersPolicy(Checkpoint.loaded(model, tiny_tokenizer()), Sampling(), Horizon(2, max_length))


def keys(count: int) -> Any:
    return derive(np.arange(count, dtype=np.uint64), 3)


def problem_of(length: int) -> Problem:
    return Problem(str(length), tuple(1 + n % 3 for n in range(length)))


def long_rope() -> Any:
    """Phi-3 whose rotary embedding changes for a whole text after 32 tokens."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SWITCH, **factors}
    config = Phi3Config(
        vocab_size=len(ALPHABET),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        original_max_position_embeddings=SWITCH,
        rope_parameters=rope,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    return spread_out(AutoModelForCausalLM.from_config(config), 0.4)


def test_rows_on_either_side_of_a_longrope_switch_share_no_forward_pass() -> None:
    model = long_rope()
    policy = policy_of(model)
    starts = policy.start([problem_of(5), problem_of(60), problem_of(12)])
    draws = policy.finish(starts * 4, keys(12))
    scored = policy.logp(starts * 4, [draw.state for draw in draws])
    for draw, found in zip(draws, scored, strict=True):
        state = draw.state
        expected = whole_logp(model, state.prompt, state.tokens, use_cache=False)
        assert (draw.logp, found.logp) == (pytest.approx(expected, abs=1e-9), pytest.approx(expected, abs=1e-9))


def test_a_text_that_may_cross_a_longrope_switch_is_refused_with_the_longest_length() -> None:
    model = long_rope()
    with pytest.raises(InputError, match=f"longrope changes after {SWITCH}; set max_length to at most 5"):
        policy_of(model, max_length=6).start([problem_of(28)])
    assert policy_of(model, max_length=5).start([problem_of(28)])  # the last token is never read


def test_ids_without_an_embedding_are_refused_by_their_number() -> None:
    policy = policy_of(random_qwen3(3, end=0))  # the tokenizer has four tokens
    with pytest.raises(InputError, match="token id 3, and the model has embeddings of 3"):
        policy.start([Problem("p", "abc")])


def test_a_model_with_an_encoder_is_refused() -> None:
    model = random_qwen3(len(ALPHABET), end=0)
    model.config.is_encoder_decoder = True
    with pytest.raises(InputError, match="has an encoder and a decoder"):
        policy_of(model)


def test_whatever_the_first_forward_pass_raises_is_one_line() -> None:
    model = random_qwen3(len(ALPHABET), end=0)

    def broken(*_: Any) -> None:
        raise RuntimeError("no kernel\nfor this device")

    policy = policy_of(model)
    with hooked(model.model, broken), pytest.raises(InputError, match="failed on its first prompt: no kernel for this"):
        policy.finish(policy.start([problem_of(3)]), keys(1))
    assert policy.finish(policy.start([problem_of(3)]), keys(1))  # a failed test is made again


@pytest.mark.parametrize("length", [1, 3])
def test_a_model_that_looks_ahead_is_refused(length: int) -> None:
    """A bidirectional model gives other logits for the first part of a text than for the whole; a prompt of one token
    does not hide it."""
    model = random_qwen3(len(ALPHABET), end=0)
    model.config.is_causal = False
    policy = policy_of(model)
    with pytest.raises(InputError, match="gives other logits for a text in two parts"):
        policy.finish(policy.start([problem_of(length)]), keys(1))


def test_a_model_that_looks_ahead_is_refused_after_a_prompt_of_one_token() -> None:
    model = random_qwen3(len(ALPHABET), end=0)
    model.config.is_causal = False
    with pytest.raises(InputError, match="gives other logits for a text in two parts"):
        reader_of(model, "", (1,))


def test_chunks_longer_than_the_test_of_the_model_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Llama 4 attends to chunks of 40 tokens; the test reads 24, the longer row has 60."""
    name, sizes = hybrids.FAMILIES["Llama 4"]
    monkeypatch.setitem(hybrids.FAMILIES, "Llama 4", (name, sizes | {"attention_chunk_size": 40}))
    policy = policy_of(hybrids.random_model("Llama 4", len(ALPHABET), end=0), max_length=8)
    draws = policy.finish(policy.start([problem_of(60), problem_of(21)]) * 4, keys(8))
    for draw in draws:
        state: Any = draw.state
        text = torch.tensor([state.prompt + state.tokens])
        logps = policy.checkpoint.model(text).logits[0].detach().log_softmax(-1)
        expected = sum(float(logps[len(state.prompt) - 1 + n, token].detach()) for n, token in enumerate(state.tokens))
        assert draw.logp == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["Mamba", "Mamba-2", "Nemotron-H"])
def test_models_in_bfloat16_with_logits_in_float32_may_round_in_bfloat16(family: str) -> None:
    model = hybrids.random_model(family, len(ALPHABET), end=0).bfloat16()
    assert reader_of(model, "", (1, 2, 3)).may_pad == (family != "Mamba")


def test_a_model_can_be_freed() -> None:
    model = random_qwen3(len(ALPHABET), end=0)
    reader_of(model, "", (1, 2))
    gone = ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_policy_goes_on_from_states_of_another_law() -> None:
    policy = policy_of(random_qwen3(len(ALPHABET), end=0))
    states = [draw.state for draw in policy.extend(policy.start([problem_of(3)]) * 8, keys(8))]
    open_states = [state for state in states if not state.done]
    assert policy.at_law(Sampling(0.5)).finish(open_states, keys(len(open_states)))


def test_a_model_is_tested_once() -> None:
    model = random_qwen3(len(ALPHABET), end=0)
    policies = [policy_of(model) for _ in range(2)]
    counts = []
    for policy in policies:
        with what_is_read(model) as shapes:
            policy.finish(policy.start([problem_of(3)]), keys(1))
        counts.append(len(shapes))
    assert counts[1] <= 4 < counts[0]
    assert reader_of(model, "", (1,)) is reader_of(model, "", (2,))
