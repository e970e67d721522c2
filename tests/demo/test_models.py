"""The embedded models load like any checkpoint, and sample the same whatever advances beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ets import demo
from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.rewards import majority
from ets.runner import run
from ets.tasks import Arithmetic

TASK = Arithmetic()


@pytest.mark.parametrize("size", ["reference", "small"])
def test_the_checkpoints_are_small_and_load_by_the_auto_classes(size: Any) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    path = Path(demo.model_path(size))
    assert sum(file.stat().st_size for file in path.glob("*.safetensors")) <= 8 * 2**20
    config = AutoConfig.from_pretrained(path)
    assert config.model_type == "qwen3"
    assert config.max_position_embeddings >= 8192
    assert AutoTokenizer.from_pretrained(path).eos_token_id == config.eos_token_id
    assert AutoModelForCausalLM.from_pretrained(path).num_parameters() > 0


def test_the_small_model_is_at_least_four_times_smaller_and_shares_the_vocabulary() -> None:
    reference, small = (Checkpoint(demo.model_path(size)) for size in ("reference", "small"))  # type: ignore[arg-type]
    assert reference.model.num_parameters() >= 4 * small.model.num_parameters()
    assert reference.tokenizer.get_vocab() == small.tokenizer.get_vocab()


@given(st.text(max_size=200))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_any_text_round_trips(text: str) -> None:
    tokenizer = Checkpoint(demo.model_path()).tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def texts_at_width(width: int, dtype: torch.dtype, count: int) -> dict[str, list[str]]:
    """Every text of every trace, by problem."""
    policy = TransformersPolicy(Checkpoint(demo.model_path(), dtype), Sampling(1.9), Horizon(24, 72))
    step = energy_guided(majority(TASK.extract), candidates=4, rollouts=2, lam=0.1)
    chains = run(policy, step, TASK.problems(count, 0), width=width, seed=0)
    return {
        chain.problem.id: [text.text for guide in chain.trace for row in guide.rollouts for text in row]
        for chain in chains
    }


def test_one_problem_at_a_time_gives_the_texts_of_32_in_float64() -> None:
    assert texts_at_width(1, torch.float64, 32) == texts_at_width(32, torch.float64, 32)


def test_one_problem_at_a_time_gives_the_texts_of_32_in_float32() -> None:
    """A sum in another order may move a token over a CDF edge, then a choice: two problems may go another way."""
    alone, together = texts_at_width(1, torch.float32, 32), texts_at_width(32, torch.float32, 32)
    assert len(alone) == len(together) == 32
    assert sum(together[problem] == texts for problem, texts in alone.items()) >= 30
