"""A2D-Qwen3: Qwen3's equations without the causal mask, its laws, and its folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ets.cli import main
from ets.models.a2d import A2DQwen3Config, A2DQwen3LMHeadModel
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching, Unmasking
from ets.testing import check_policy
from ets.types import Problem
from tests.conftest import MASKED_ALPHABET, canvas_oracle, random_qwen3, tiny_tokenizer

PROBLEMS = [Problem("p", "ab"), Problem("q", "b")]


def tiny_model() -> Any:
    """Qwen3's random weights of the other tests under the family's class."""
    causal = random_qwen3(len(MASKED_ALPHABET), end=0, spread=0.5)
    model = A2DQwen3LMHeadModel(A2DQwen3Config(**{**causal.config.to_dict(), "model_type": "a2d-qwen3"})).double()
    model.load_state_dict(causal.state_dict())
    return model.eval()


def policy_of(caching: Caching | None = None) -> MaskedDiffusionPolicy:
    checkpoint = Checkpoint.loaded(tiny_model(), tiny_tokenizer(MASKED_ALPHABET))
    return MaskedDiffusionPolicy(checkpoint, Unmasking(), Schedule(3, 3, 3, 3), caching=caching)


def judge(policy: MaskedDiffusionPolicy) -> None:
    oracle = canvas_oracle(policy.checkpoint, policy.schedule, policy.unmasking)
    check_policy(policy, oracle, PROBLEMS, draws=3_000, level=1e-4)


def test_every_position_attends_to_all_others_and_the_rest_is_qwen3() -> None:
    """With a mask of ones, Qwen3's decoder computes the same."""
    model, ids = tiny_model(), torch.tensor([[1, 2, 3, 3, 1]])
    causal = random_qwen3(len(MASKED_ALPHABET), end=0, spread=0.5).eval()
    everything = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = causal(ids, attention_mask={"full_attention": everything}).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-9, rtol=0)
        assert not torch.allclose(model(ids).logits, causal(ids).logits)


def test_laws_hold_on_a_tiny_network() -> None:
    """At a level of 1e-4."""
    policy = policy_of()
    check_policy(
        policy, canvas_oracle(policy.checkpoint, policy.schedule, policy.unmasking), PROBLEMS, draws=3_000, level=1e-4
    )


def test_a_cache_refreshed_at_every_step_is_exact() -> None:
    policy = policy_of(Caching("dual", refresh=1))
    check_policy(
        policy, canvas_oracle(policy.checkpoint, policy.schedule, policy.unmasking), PROBLEMS, draws=2_000, level=1e-4
    )


def test_a_folder_loads_without_remote_code_and_the_command_line_runs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model().float().save_pretrained(tmp_path)
    tiny_tokenizer(MASKED_ALPHABET).save_pretrained(tmp_path)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), A2DQwen3LMHeadModel)
    options = [
        "--reward",
        "likelihood",
        "--candidates",
        "2",
        "--rollouts",
        "1",
        "--max-length",
        "4",
        "--block-size",
        "2",
    ]
    assert main(["sample", "--model", str(tmp_path), "--prompt", "ab", *options]) == 0
    assert "chose" in capsys.readouterr().out
