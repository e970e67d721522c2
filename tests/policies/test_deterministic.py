"""The setting `deterministic`: rows go through the model one by one, so that no text depends on the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from ets.kernel import energy_guided
from ets.policies.checkpoint import Checkpoint
from ets.policies.registry import policy_of
from ets.rewards import per_text
from ets.runner import run
from ets.types import InputError, Problem
from tests.conftest import ALPHABET, MASKED_ALPHABET, random_llada, random_qwen3, tiny_tokenizer
from tests.hooks import hooked

PROBLEMS = [Problem(str(n), "abacab"[: 1 + n % 6]) for n in range(6)]
STEP = energy_guided(per_text(lambda prompt, text: 0.5 * text.count("b")), candidates=3, rollouts=2, lam=1.0)


def checkpoint(engine: str) -> Checkpoint:
    """In bfloat16, where the rounding of a row depends on the rows next to it."""
    if engine == "transformers":
        return Checkpoint.loaded(random_qwen3(len(ALPHABET), end=0).bfloat16(), tiny_tokenizer())
    model = random_llada(len(MASKED_ALPHABET), end=0).bfloat16()
    return Checkpoint.loaded(model, tiny_tokenizer(MASKED_ALPHABET))


@contextmanager
def rows_read(model: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of each forward pass of a model without its head."""
    seen: list[int] = []

    def read(module: Any, args: Any, options: dict[str, Any]) -> None:
        seen.append(len(args[0] if args else options["input_ids"]))

    with hooked(model, read, with_kwargs=True):
        yield seen


@pytest.mark.parametrize("engine", ["transformers", "masked-diffusion"])
def test_texts_and_log_probabilities_are_equal_bit_for_bit_at_any_width(engine: str) -> None:
    loaded = checkpoint(engine)
    policy: Any = policy_of(lambda: loaded, engine=engine, block_size=2, max_length=6, deterministic=True)
    policy.finish(policy.start(PROBLEMS[:1]), np.zeros(1, np.uint64))  # the test of the model has two rows
    with rows_read(loaded.model.base_model) as rows:
        found = [list(run(policy, STEP, PROBLEMS, width=width, seed=0)) for width in (1, 6)]
    alone, together = ({c.problem.id: (c.state.tokens, c.state.logp) for c in chains} for chains in found)
    assert alone == together
    assert set(rows) == {1}


def test_an_engine_that_batches_in_another_process_has_no_such_setting() -> None:
    with pytest.raises(InputError, match="deterministic"):
        policy_of(lambda: checkpoint("transformers"), engine="vllm", deterministic=True)
