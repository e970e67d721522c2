"""The benchmark of `ets serve`: a tiny run asks a real server, and every answer is counted and held to its prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

for package in ("fastapi", "uvicorn", "prometheus_client", "httpx2"):
    pytest.importorskip(package)


def test_a_tiny_run_measures_every_column(load: Any) -> None:
    setting, cpu = load("suite").DRY.requests, torch.device("cpu")
    conditions = load("measuring").Conditions(cpu, torch.float32, load("floor").Peak(1.0, 1.0), repeats=1, threads=1)
    table = load("serving").measure(setting, conditions)
    throughput, memory = table.rows
    assert len(throughput.seconds) == len(throughput.against) == 1
    assert throughput.counts["answers"] == "4 of 4" and memory.counts["answers"] == "3 of 3"
    assert throughput.counts["equal"] == "4 of 4"
    assert min(throughput.counts[name] for name in ("ours (tokens/s)", "compared (tokens/s)")) > 0
    assert 0 < throughput.counts["first text, p50 (s)"] <= throughput.counts["first text, p95 (s)"]
    assert memory.counts["RSS after 1 (MB)"] > 50
    assert "3 clients, 4 prompts" in table.markdown()


def test_an_answer_to_another_prompt_is_seen(load: Any) -> None:
    serving = load("serving")
    prompts = [
        "Question: Tom has 5 eggs. He buys 4. How many eggs does Tom have now?",
        "Question: Mia has 14 cards. She buys 31. How many cards does Mia have now?",
    ]
    texts = ["He has 5+4=9 eggs. #### 9", "She has 14+31=45 cards. #### 45"]

    def answers(order: list[int]) -> list[Any]:
        return [serving.Answer(prompt, texts[n], {}, 0.1) for prompt, n in zip(prompts, order, strict=True)]

    assert serving.belonging(answers([0, 1])) == 2
    assert serving.belonging(answers([1, 0])) == 0


def test_prompts_are_distinct(load: Any) -> None:
    serving = load("serving")
    found = [prompt for prompt, _ in zip(serving._questions(), range(1500), strict=False)]
    assert len(set(found)) == 1500
