"""The published samplers of SDAR, LLaDA2 and Fast-dLLM v2 at temperature 0, as loops over whole forwards.

The published samplers fill the last block. A canvas ends before, so its last block is not compared if it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ets import models
from ets.models import MASKED_DIFFUSION
from ets.policies.checkpoint import Checkpoint
from ets.types import Problem
from tests.block_causal import SHIFT, block_causal_logits
from tests.conftest import tiny_tokenizer
from tests.policies.diffusion.test_policy import keys, make

ALPHABET = ("<end>", *(chr(97 + n) for n in range(26)), "<mask>")
END, MASK = 0, len(ALPHABET) - 1
LENGTH, BLOCK, SUB_BLOCK = 24, 8, 4
KINDS: dict[str, tuple[Any, Any]] = {
    "sdar": (models.SDARConfig, models.SDARForCausalLM),
    "llada2": (models.LLaDA2MoeConfig, models.LLaDA2MoeModelLM),
    "fast_dllm": (models.FastDLLMConfig, models.FastDLLMForCausalLM),
}


def network(family: str) -> Any:
    config, model = KINDS[family]
    torch.manual_seed(1)
    fields: dict[str, Any] = {} if family == "fast_dllm" else {"head_dim": 8}
    if family == "llada2":
        fields |= {"num_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    numbers = {"vocab_size": len(ALPHABET), "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    numbers |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
    numbers |= {"max_position_embeddings": 128, "tie_word_embeddings": False, "pad_token_id": None}
    if family != "llada2":
        del numbers["moe_intermediate_size"]
    # The grouped product of experts has no float64, and transformers takes it if a parent class was made before.
    fields |= {"mask_token_id": MASK, "eos_token_id": END, "experts_implementation": "eager"}
    return model(config(**numbers, **fields)).double().eval()


def drawn(model: Any, x: Sequence[int], shift: int) -> tuple[list[int], list[float]]:
    """The most probable token at each position, never the mask, and the model's probability of the token."""
    logits = block_causal_logits(model, x, BLOCK, shift)
    tokens = logits[:, :MASK].argmax(-1)
    return tokens.tolist(), logits.softmax(-1).gather(-1, tokens[:, None])[:, 0].tolist()


def block_by_block(model: Any, prompt: tuple[int, ...], steps: int, threshold: float) -> list[int]:
    """SDAR with dynamic confidence, and LLaDA2: what exceeds the threshold, or else the quota of the most confident."""
    x = [*prompt, *[MASK] * LENGTH, *[MASK] * (-(len(prompt) + LENGTH) % BLOCK)]
    quotas = [BLOCK // steps + (step < BLOCK % steps) for step in range(steps)]
    for first in range(len(prompt) // BLOCK * BLOCK, len(x), BLOCK):
        for quota in quotas:
            masked = [i for i in range(first, first + BLOCK) if x[i] == MASK]
            tokens, confidence = drawn(model, x[: first + BLOCK], 0)
            chosen = [i for i in masked if confidence[i] > threshold]
            if len(chosen) < min(quota, len(masked)):
                chosen = sorted(masked, key=lambda i: -confidence[i])[:quota]
            for i in chosen:
                x[i] = tokens[i]
        if END in x[len(prompt) : first + BLOCK]:
            break
    return x[len(prompt) :]


def by_sub_blocks(model: Any, prompt: tuple[int, ...], threshold: float) -> list[int]:
    """Fast-dLLM v2: the next token after a full block, then sub-blocks, by the logits one place to the left."""
    x, total = list(prompt), len(prompt) + LENGTH
    while len(x) < total and END not in x[len(prompt) :]:
        if len(x) % BLOCK == 0:
            x.append(drawn(model, [*x, MASK], 1)[0][-1])
        first = len(x) // BLOCK * BLOCK
        x += [MASK] * (first + BLOCK - len(x))
        for begin in range(first, first + BLOCK, SUB_BLOCK):
            while masked := [i for i in range(begin, begin + SUB_BLOCK) if x[i] == MASK]:
                tokens, confidence = drawn(model, x, 1)
                best = max(masked, key=lambda i: confidence[i])
                for i in [i for i in masked if confidence[i] > threshold or i == best]:
                    x[i] = tokens[i]
    return x[len(prompt) :]


def text(tokens: Sequence[int]) -> list[int]:
    return list(tokens[: tokens.index(END)] if END in tokens else tokens)


@pytest.mark.parametrize("threshold", [0.1, 0.99])
@pytest.mark.parametrize(("family", "steps"), [("sdar", BLOCK), ("sdar", 3), ("llada2", BLOCK), ("fast_dllm", BLOCK)])
def test_the_published_tokens(family: str, steps: int, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts that end inside a block and at its end, in one call; texts end with the first end token."""
    name = "Fast_dLLM_Qwen"
    monkeypatch.setitem(MASKED_DIFFUSION, name, replace(MASKED_DIFFUSION[name], sub_block=SUB_BLOCK))
    checkpoint = Checkpoint.loaded(network(family), tiny_tokenizer(ALPHABET))
    rng, count = np.random.default_rng(0), LENGTH // BLOCK * steps
    policy = make(checkpoint, LENGTH, count, BLOCK, 1, temperature=0, threshold=threshold, stop_at_end=True)
    prompts = [tuple(rng.integers(1, MASK, size=length).tolist()) for length in (16, 24, 32, 16)]
    prompts += [tuple(rng.integers(1, MASK, size=length).tolist()) for length in (13, 21, 3)]
    draws = policy.finish(policy.start([Problem(str(n), prompt) for n, prompt in enumerate(prompts)]), keys(7))
    for prompt, draw in zip(prompts, draws, strict=True):
        if family == "fast_dllm":
            expected = by_sub_blocks(checkpoint.model, prompt, threshold)
        else:
            expected = block_by_block(checkpoint.model, prompt, steps, threshold)
        whole = LENGTH - len(prompt) % BLOCK  # the positions in blocks that are not cut
        assert text(draw.state.tokens[:whole]) == text(expected[:whole])
    assert SHIFT[family] == (family == "fast_dllm")
    assert threshold > 0.9 or any(len(set(draw.state.path)) < LENGTH // 2 for draw in draws)  # type: ignore[attr-defined]
