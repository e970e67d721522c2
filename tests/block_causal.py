"""Exact laws of block-causal diffusion by enumeration: one forward pass over the whole sequence, without a cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from ets import models
from ets.policies.checkpoint import Checkpoint
from ets.testing import MaskedDiffusionOracle, enumerated_step
from tests.conftest import MASKED_ALPHABET, canvas_scores, shared, tiny_tokenizer
from tests.laws.masked import parallel_bar

END, A, B, MASK = range(4)


def _random(config: type, model: type, seed: int, **fields: Any) -> Any:
    """A network with random weights in float64, a vocabulary of four and the mask token last."""
    torch.manual_seed(seed)
    numbers = {
        "vocab_size": len(MASKED_ALPHABET),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.5,
        "tie_word_embeddings": False,
        "mask_token_id": MASK,
        "eos_token_id": END,
        "pad_token_id": None,
    }
    # The grouped product of experts has no float64, and transformers takes it if a parent class was made before.
    return model(config(**numbers, **fields, experts_implementation="eager")).double()


def random_sdar(seed: int = 3) -> Any:
    return _random(models.SDARConfig, models.SDARForCausalLM, seed, head_dim=8, block_size=2)


def random_sdar_moe(seed: int = 3) -> Any:
    fields = {"head_dim": 8, "block_size": 2, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    return _random(models.SDARMoeConfig, models.SDARMoeForCausalLM, seed, norm_topk_prob=True, **fields)


def random_fast_dllm(seed: int = 3) -> Any:
    return _random(models.FastDLLMConfig, models.FastDLLMForCausalLM, seed, bd_size=2)


def random_llada2(seed: int = 3) -> Any:
    """A dense layer, and a layer of four experts in two groups, of which one is chosen; biases differ by expert."""
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 12}
    model = _random(models.LLaDA2MoeConfig, models.LLaDA2MoeModelLM, seed, head_dim=8, **experts)
    model.model.layers[1].mlp.gate.e_score_correction_bias.copy_(torch.tensor([0.2, -0.1, 0.1, 0.0]))
    return model


MODELS = {"sdar": random_sdar, "sdar_moe": random_sdar_moe, "llada2": random_llada2, "fast_dllm": random_fast_dllm}
SHIFT = {"sdar": 0, "sdar_moe": 0, "llada2": 0, "fast_dllm": 1}
_CHECKPOINTS: dict[str, Checkpoint] = {}


def tiny(family: str) -> Checkpoint:
    """The tiny checkpoint of a family, one for all tests of a process."""
    if family not in _CHECKPOINTS:
        _CHECKPOINTS[family] = shared(MODELS[family](), tiny_tokenizer(MASKED_ALPHABET))
    return _CHECKPOINTS[family]


def block_causal_logits(model: Any, tokens: Sequence[int], block: int, shift: int = 0) -> torch.Tensor:
    """Logits `[length, V]` for the token at each position: block b sees blocks 0 to b, counted from position 0."""
    of = torch.arange(len(tokens)) // block
    with torch.no_grad():
        found = model(torch.tensor([tokens]), attention_mask=(of[None] <= of[:, None])[None, None]).logits[0]
    return found.roll(shift, 0)


@dataclass(frozen=True)
class AlignedCanvas:
    """Blocks of prompt + canvas, written down block by block: a plan for the oracles of `ets.testing`."""

    gen_length: int
    block_length: int
    steps: int
    guide_steps: int
    prompt: int

    @property
    def steps_per_block(self) -> int:
        return self.steps * self.block_length // self.gen_length

    @property
    def blocks(self) -> list[range]:
        """The canvas positions of each block that holds some."""
        ends = range(self.prompt - self.prompt % self.block_length, self.prompt + self.gen_length, self.block_length)
        cut = ((max(end, self.prompt), min(end + self.block_length, self.prompt + self.gen_length)) for end in ends)
        return [range(first - self.prompt, last - self.prompt) for first, last in cut]

    @property
    def quotas(self) -> list[int]:
        share, rest = divmod(self.block_length, self.steps_per_block)
        return [share + (step < rest) for step in range(self.steps_per_block)]

    def active(self, canvas: Sequence[int]) -> tuple[int, range]:
        """The leftmost block with masks, and its number."""
        return next((n, block) for n, block in enumerate(self.blocks) if any(canvas[i] == MASK for i in block))

    def step_at(self, path: Sequence[int]) -> int:
        """The number of the step after a path."""
        number, block = self.active([MASK if step < 0 else A for step in path])
        return max([number * self.steps_per_block, *(path[i] + 1 for i in block if path[i] >= 0)])

    def boundary(self, revealed: int) -> int:
        each, blocks = self.steps // self.guide_steps, self.gen_length // self.block_length
        ends = list(accumulate(self.quotas * blocks))[each - 1 :: each]
        return next(n for n in ends if n > revealed)


def encoded(checkpoint: Checkpoint, prompt: Any) -> tuple[int, ...]:
    return prompt if isinstance(prompt, tuple) else tuple(checkpoint.tokenizer(prompt)["input_ids"])


def block_oracle(policy: Any, problem: Any, shift: int = 0, align: bool = True) -> MaskedDiffusionOracle:
    """The exact laws of a policy for one problem, of the policy's settings and nothing else of the policy."""
    checkpoint, plan, rule = policy.checkpoint, policy.schedule, policy.unmasking
    prompt = encoded(checkpoint, problem.prompt)
    numbers = AlignedCanvas(
        plan.gen_length, plan.block_length, plan.steps, plan.guide_steps, len(prompt) if align else 0
    )
    bar = parallel_bar(rule.threshold, rule.factor)

    def law(_: Any, canvas: tuple[int, ...]) -> Any:
        if MASK not in canvas:
            return {}
        _, block = numbers.active(canvas)
        found = block_causal_logits(checkpoint.model, (*prompt, *canvas), plan.block_length, shift)[len(prompt) :]
        tempered = found / rule.temperature
        tempered[:, MASK] = -math.inf
        masked = [j for j in block if canvas[j] == MASK]
        if plan.sub_block:
            parts = [_part(len(prompt) + j, plan.block_length, plan.sub_block) for j in masked]
            masked = [j for j, part in zip(masked, parts, strict=True) if part == parts[0]]
        revealed = len(block) - len([j for j in block if canvas[j] == MASK])
        step = [0, *accumulate(numbers.quotas)].index(revealed) if not rule.parallel else 0
        ranks = canvas_scores(found.softmax(-1), rule.remasking, MASK)
        quota = min(len(masked), numbers.quotas[step])
        return enumerated_step(tempered.softmax(-1).numpy(), ranks, masked, quota, bar)

    return MaskedDiffusionOracle(law, numbers, MASK)  # type: ignore[arg-type]


def _part(place: int, block: int, sub_block: int) -> int:
    return -1 if place % block == 0 else place % block // sub_block


def path_logps(policy: Any, prompt: Sequence[int], state: Any, shift: int = 0) -> np.ndarray[Any, Any]:
    """The log-probability of the tokens of each step, by a forward pass over the canvas before the step."""
    tokens, path, found = np.array(state.tokens), np.array(state.path), []
    for step in sorted({int(n) for n in path if n >= 0}):
        canvas = np.where((path >= 0) & (path < step), tokens, MASK)
        logits = block_causal_logits(policy.checkpoint.model, (*prompt, *canvas), policy.schedule.block_length, shift)
        logp = policy.unmasking.probabilities(logits[len(prompt) :], MASK).log().numpy()
        found.append(sum(logp[i, tokens[i]] for i in np.flatnonzero(path == step)))
    return np.array(found)
