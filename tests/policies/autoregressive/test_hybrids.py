"""Families with recurrent states, indexers, chunks or shared keys draw from the law of the model itself.

The reference is always a whole forward pass over the text, without a cache. Many layers compute in float32 whatever the
model's dtype, so that log-probabilities agree to 1e-4.
"""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ets.cli import main
from ets.kernel import energy_guided
from ets.policies.autoregressive import transformers as transformers_policy
from ets.policies.autoregressive.cache import RowMemory, fork
from ets.policies.autoregressive.cache_layers import StateLayer
from ets.policies.autoregressive.reader import reader_of
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.randomness import derive
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_policy
from ets.types import InputError, Problem
from tests.conftest import ALPHABET, causal_oracle, tiny_tokenizer
from tests.hooks import what_is_read
from tests.policies.autoregressive.hybrids import FAMILIES, RECURRENT, random_model
from tests.policies.autoregressive.hybrids import whole_logp as logp_of

PROBLEMS = [Problem("p", "abc"), Problem("q", (1, 3, 3, 2, 1)), Problem("r", "b")]
LONG = [Problem("p", (1, 2, 3, 1, 2)), Problem("q", tuple(1 + n % 3 for n in range(21))), Problem("r", (3,) * 9)]
LEVEL = 1e-4


@cache
def checkpoint(family: str) -> Checkpoint:
    return Checkpoint.loaded(random_model(family, len(ALPHABET), end=0), tiny_tokenizer())


def policy_of(family: str, block_size: int = 2, max_length: int = 4, **options: Any) -> TransformersPolicy:
    return TransformersPolicy(checkpoint(family), Sampling(), Horizon(block_size, max_length), **options)


whole_logp = partial(logp_of, use_cache=False)


def keys(count: int) -> Any:
    return derive(np.arange(count, dtype=np.uint64), 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_laws_hold(family: str) -> None:
    """At a level of 1e-4."""
    policy = policy_of(family, block_size=1, max_length=3)
    check_policy(policy, causal_oracle(policy), PROBLEMS, draws=3_000, level=LEVEL)


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_whole_forward_passes_at_any_width(family: str) -> None:
    """Rows of prompts of 5, 9 and 21 tokens share forward passes, and go on through sliding windows and chunks."""
    policy, step = policy_of(family, 4, 12), energy_guided(liking_b, candidates=3, rollouts=2, lam=1.0)
    found = [list(run(policy, step, LONG, width=width, seed=2, samples=4)) for width in (1, 32)]
    alone, together = ({(c.problem.id, c.sample): c.state for c in chains} for chains in found)
    assert {name: state.tokens for name, state in alone.items()} == {n: s.tokens for n, s in together.items()}
    for state in together.values():
        assert state.logp == pytest.approx(whole_logp(policy.checkpoint.model, state.prompt, state.tokens), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_prompt_that_is_read_in_parts_is_read_as_a_whole(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of eight tokens of a prompt of 21, through sliding windows and chunks of attention."""
    monkeypatch.setattr(transformers_policy, "READ_TOGETHER", 8)
    policy = policy_of(family, 4, 12)
    draws = policy.finish(policy.start(LONG) * 4, keys(4 * len(LONG)))
    for state in (draw.state for draw in draws):
        assert state.logp == pytest.approx(whole_logp(policy.checkpoint.model, state.prompt, state.tokens), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_whole_forward_passes(family: str) -> None:
    """Paths of different lengths, scored together from states that are copied."""
    policy = policy_of(family, 1, 12)
    starts = policy.start(LONG) * 8
    begun = [draw.state for draw in policy.extend(starts, keys(24)) if not draw.state.done]
    ends = [draw.state for draw in policy.finish(begun * 2, keys(2 * len(begun)))]
    model = policy.checkpoint.model
    for scored, start, end in zip(policy.logp(begun * 2, ends), begun * 2, ends, strict=True):
        expected = whole_logp(model, end.prompt, end.tokens) - whole_logp(model, end.prompt, start.tokens)
        assert scored.logp == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["Qwen3.5", "Bamba"])
def test_nothing_is_computed_twice(family: str) -> None:
    """Positions by a hook, for M 8, K 3, block 8, length 32: at most 1.02 times the minimum."""
    policy = policy_of(family, 8, 32, end_ids=[])
    problem = Problem("p", (1, 2) * 50)
    reader_of(policy.checkpoint.model, family, (1, 2, 3))  # tests the model once
    with what_is_read(policy.checkpoint.model) as shapes:
        (chain,) = run(policy, energy_guided(liking_b, candidates=8, rollouts=3, lam=1.0), [problem], width=1, seed=0)
    minimum = 100 + sum(8 * 8 + 8 * 3 * (32 - 8 * (i + 1)) for i in range(4))
    assert sum(rows * columns for rows, columns in shapes) <= 1.02 * minimum
    assert chain.cost.positions <= 1.02 * minimum


@pytest.mark.parametrize("family", RECURRENT)
def test_padding_never_enters_a_state(family: str) -> None:
    """Rows of 4 and 11 tokens in one cache give the logits of each row alone, token after token, in float32."""
    model = random_model(family, len(ALPHABET), end=0).float()
    reader = reader_of(model, family, (1, 2, 3))
    texts = [[1, 2, 3, 1, 2, 3, 3], [3, 1, 1, 2, 2, 3, 1, 2, 3, 1, 1, 2, 3, 1]]
    with torch.inference_mode():
        memories = []
        for text in texts:
            alone = reader.empty(1, len(text))
            reader.read(alone, [text[:-3]])
            memories.append(RowMemory(alone, 0))
        together = fork(memories, 3)
        for at in (-3, -2, -1):
            logits = reader.read(together, [[text[at]] for text in texts])[:, -1]
            for row, text in zip(logits, texts, strict=True):
                torch.testing.assert_close(row, reader.whole(text)[at], atol=1e-5, rtol=1e-5)


def first_row(self: Any, sources: Any, places: Any) -> None:
    """A fork that copies the states of the first row to every row."""
    copy_states(self, sources, [places[0] for _ in places])


copy_states = StateLayer.take_states


@pytest.mark.parametrize("family", RECURRENT)
def test_states_of_another_row_turn_the_laws_red_and_are_found_by_the_test_of_the_first_prompt(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_of(family, block_size=1, max_length=3)
    reader_of(policy.checkpoint.model, family, (1, 2, 3))  # already tested, so that the fault reaches the draws
    monkeypatch.setattr(StateLayer, "take_states", first_row)
    with pytest.raises(AssertionError):
        check_policy(policy, causal_oracle(policy), PROBLEMS, draws=2_000, level=LEVEL)
    fresh = Checkpoint.loaded(random_model(family, len(ALPHABET), end=0, seed=1), tiny_tokenizer())
    other = TransformersPolicy(fresh, Sampling(), Horizon(1, 3))
    with pytest.raises(InputError, match="gives other logits in a row next to a longer one"):
        other.finish(other.start(PROBLEMS[:1]), keys(1))


@pytest.mark.parametrize("family", RECURRENT)
def test_states_that_are_not_copied_at_a_fork_are_found(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of the only memory and its fork then share a tensor, which the model changes in place."""

    def alias(self: Any, sources: Any, places: Any) -> None:
        copy_states(self, sources, places)
        if len(sources) == 1 and len(places) == 1:
            self.conv_states, self.recurrent_states = dict(sources[0].conv_states), dict(sources[0].recurrent_states)

    policy = policy_of(family, block_size=1, max_length=3)
    (start,) = policy.start(PROBLEMS[:1])
    right = policy.finish([start], keys(1))[0].logp
    monkeypatch.setattr(StateLayer, "take_states", alias)
    policy.finish([start], keys(1))
    assert abs(policy.finish([start], keys(1))[0].logp - right) > 1e-3


def test_beam_search_through_recurrent_layers_is_refused() -> None:
    policy = policy_of("Qwen3.5")
    with pytest.raises(InputError, match="has recurrent layers"):
        policy.beam(policy.start(PROBLEMS[:1]), 3)
    assert policy.beam(policy.start(PROBLEMS[:1]), 1)[0].state.done


def test_memory_limits_count_states() -> None:
    policy = policy_of("Mamba-2", 4, 8)
    policy.finish(policy.start(PROBLEMS[:1]), keys(1))
    layers = len(policy.checkpoint.model.backbone.layers)
    columns, states = reader_of(policy.checkpoint.model, "", (1,)).bytes_of_a_row
    convolution, state_space = (64 + 2 * 8) * 4, 8 * 8 * 8  # in float64, and in float32
    assert columns == 0 and states == layers * (8 * convolution + 4 * state_space)


def liking_b_text(prompt: str, text: str) -> float:
    return 0.5 * text.count("b") - 0.25 * len(text)


liking_b = per_text(liking_b_text)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_line_runs_a_folder(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_model(family, len(ALPHABET), end=0).float().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    words = ["sample", "--prompt", "abba", "--model", str(tmp_path), "--reward", "likelihood", "--candidates", "2"]
    assert main([*words, "--rollouts", "1", "--block-size", "2", "--max-length", "4"]) == 0
    assert "tokens generated" in capsys.readouterr().out


@pytest.mark.parametrize("family", RECURRENT)
def test_padding_in_a_state_is_found(family: str) -> None:
    """The states after a padded prompt, in the place of the states after the prompt, give other log-probabilities."""
    policy = policy_of(family, 2, 6)
    (start,) = policy.start(PROBLEMS[2:])  # one token: a short convolution sees three
    model, reader = policy.checkpoint.model, reader_of(policy.checkpoint.model, family, start.prompt)
    right = policy.finish([start], keys(1))[0]
    assert right.logp == pytest.approx(whole_logp(model, start.prompt, right.state.tokens), abs=1e-4)
    padded = reader.empty(1, 1 + len(start.prompt))
    with torch.inference_mode():
        reader.read(padded, [[0, *start.prompt]])
    for layer, other in zip(start.memory.cache.layers, padded.layers, strict=True):
        if hasattr(layer, "recurrent_states"):
            layer.conv_states, layer.recurrent_states = dict(other.conv_states), dict(other.recurrent_states)
    wrong = policy.finish([start], keys(1))[0]
    assert abs(wrong.logp - whole_logp(model, start.prompt, wrong.state.tokens)) > 1e-3
