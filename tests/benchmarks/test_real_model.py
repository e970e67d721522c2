"""The benchmark of a real model: every way draws as many tokens after the same prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ets
from ets.policies.checkpoint import Checkpoint

CPU = torch.device("cpu")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


@pytest.fixture
def checkpoint() -> Checkpoint:
    found = Checkpoint(str(ets.demo.model_path("small")), device="cpu")
    found.tokenizer.chat_template = TEMPLATE
    return found


@pytest.fixture
def setting(load: Any) -> Any:
    return load("real_model").Setting("small", "must-contain", (torch.float32,), (1, 3), length=4)


def test_every_way_draws_as_many_tokens(load: Any, checkpoint: Checkpoint, setting: Any) -> None:
    prompts = setting.prompts(checkpoint)
    assert len({len(prompt) for prompt in prompts[:3]}) > 1  # so that there is padding
    batch = load("real_model").Batch(checkpoint, checkpoint, prompts[:3], setting.length)
    drawn = batch.generate()
    assert drawn.shape == (3, max(map(len, prompts[:3])) + setting.length)
    assert batch.plain().generated == batch.one_step().generated == batch.tokens == 3 * setting.length
    assert batch.plain().prompt == sum(map(len, prompts[:3])) and batch.one_step().prompt == len(prompts[0])


def test_generate_reads_the_same_prompts_to_the_right_of_the_padding(
    load: Any, checkpoint: Checkpoint, setting: Any
) -> None:
    prompts = setting.prompts(checkpoint)[:3]
    rows = (
        load("real_model")
        .Batch(checkpoint, checkpoint, prompts, setting.length)
        .generate()[:, : -setting.length]
        .tolist()
    )
    for row, prompt in zip(rows, prompts, strict=True):
        assert tuple(row[-len(prompt) :]) == prompt and not any(row[: -len(prompt)])
    assert "<|user|>Tell a short story" in checkpoint.tokenizer.decode(prompts[0])


def test_a_line_has_the_speed_of_both_ways(load: Any, checkpoint: Checkpoint, setting: Any) -> None:
    conditions = load("measuring").Conditions(CPU, torch.float32, load("floor").Peak(1.0, 1.0), repeats=2)
    rows = list(load("real_model").rows_of(checkpoint, checkpoint, setting, conditions))
    assert [row.label for row in rows] == [
        "float32, 1 row, plain",
        "float32, 3 rows, plain",
        "float32, 3 rows, one step",
    ]
    for row in rows:
        assert len(row.seconds) == len(row.against) == 2 and min(*row.seconds, *row.against) > 0
    speed = load("real_model")._speed(12, [1.0, 2.0, 4.0])
    assert speed == "6 (3 to 12)"
