"""Whether the sampler keeps its laws on this device: a part of the tests, on models that can be enumerated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache
from itertools import takewhile
from typing import Any

import torch
from measuring import Conditions, Row, Table
from random_models import llada, qwen3, random_checkpoint

from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Horizon, Sampling, Unmasking
from ets.rewards import per_text
from ets.runner import run
from ets.testing import (
    AutoregressiveOracle,
    CanvasSchedule,
    MaskedDiffusionOracle,
    Oracle,
    check_law,
    check_policy,
    enumerated_step,
)
from ets.testing.masked_laws import StepLaw
from ets.types import Floats, Policy, Problem, one_line
from tests.laws.kernel import kernel_law

ABOUT = """\
Real networks with four tokens, in float32 on the device; their laws are enumerated from the same weights in float64 on
the CPU, by a full forward pass over every prefix or canvas. Each line is a test at level 1e-4: a right sampler fails it
once in 10,000 seeds, and the seeds are fixed. The first of each kind draws {draws:,} rows from the model's own law, in
one guide step and to the end, and compares log-probabilities, rows beside others with rows alone, and costs. The others
hold {draws:,} chains to the exact law at this M and K, and {alone} of them to those that are sampled one at a time."""
LEVEL, LAM, M, K, END = 1e-4, 0.5, 3, 2, 0
PROBLEMS = [Problem("p", (1, 2, 1)), Problem("q", (2, 1, 1, 2, 1))]
SPREAD = 0.5
"""Scale of the random weights: laws differ between tokens and positions."""


def measure(draws: int, conditions: Conditions) -> Table:
    """Every test; the table says `passes` or `red`."""
    rows = []
    for label, test in tests(conditions.device, draws).items():
        begun = time.perf_counter()
        verdict = _verdict(test)
        rows.append(Row(label, [time.perf_counter() - begun], counts={"draws": draws, "law": verdict}))
    shape = f"M {M}, K {K}, λ {LAM}; texts of four tokens in two guide steps, canvases of three tokens in three."
    return Table("laws", "Laws", ABOUT.format(draws=draws, alone=_alone(draws)), shape, rows)


def _verdict(test: Callable[[], None]) -> str:
    try:
        test()
    except AssertionError as error:
        return f"red: {one_line(error)}"
    return "passes"


def tests(device: torch.device, draws: int) -> dict[str, Callable[[], None]]:
    """By label."""
    causal, causal_law = _causal(device)
    proposal, proposal_law = _causal(device, temperature=1.5)
    canvas, canvas_law = _canvas(device)
    return {
        "autoregressive": lambda: check_policy(causal, causal_law, PROBLEMS, draws=draws, level=LEVEL),
        "autoregressive, ETS": lambda: _check_kernel(causal, causal_law, draws),
        "autoregressive, ETS-IS": lambda: _check_kernel(causal, causal_law, draws, proposal, proposal_law),
        "masked diffusion": lambda: check_policy(canvas, canvas_law, PROBLEMS, draws=draws, level=LEVEL),
        "masked diffusion, ETS": lambda: _check_kernel(canvas, canvas_law, draws),
    }


def _causal(device: torch.device, temperature: float = 1.0) -> tuple[TransformersPolicy, AutoregressiveOracle]:
    """A policy and its laws by full forward passes."""
    config = qwen3(2, 16, 2, 1, 8, 32, 4, tied=False)
    config.initializer_range, config.eos_token_id = SPREAD, END
    checkpoint = random_checkpoint(config, device, torch.float32)
    exact = _on_the_cpu(checkpoint)

    @cache
    def of(ids: tuple[int, ...]) -> Floats:
        return (exact(ids)[-1] / temperature).softmax(-1).numpy()

    horizon = Horizon(block_size=2, max_length=4)
    oracle = AutoregressiveOracle(
        lambda problem, tokens: of((*problem.prompt, *tokens)), lambda _, tokens: END in tokens, 2, 4
    )
    return TransformersPolicy(checkpoint, Sampling(temperature), horizon), oracle


def _canvas(device: torch.device) -> tuple[MaskedDiffusionPolicy, MaskedDiffusionOracle]:
    """A policy and its laws by one forward pass over each canvas, every draw of its masks ranked as the rule says."""
    config = llada(2, 16, 2, 32, 4)
    config.init_std = SPREAD
    checkpoint, mask = random_checkpoint(config, device, torch.float32), config.mask_token_id
    exact, numbers = _on_the_cpu(checkpoint), CanvasSchedule(3, 3, 3, 3)

    @cache
    def of(prompt: tuple[int, ...], canvas: tuple[int, ...]) -> StepLaw:
        logits, revealed = exact((*prompt, *canvas))[-len(canvas) :], len(canvas) - canvas.count(mask)
        ranks = logits.log_softmax(-1).numpy()
        logits[:, mask] = -math.inf
        masked = [at for at in numbers.block(revealed) if canvas[at] == mask]
        return enumerated_step(logits.softmax(-1).numpy(), ranks, masked, numbers.quotas[numbers.step(revealed)])

    oracle = MaskedDiffusionOracle(
        lambda problem, canvas: of(tuple(problem.prompt), canvas) if mask in canvas else {}, numbers, mask
    )
    return MaskedDiffusionPolicy(checkpoint, Unmasking(), Schedule(3, 3, 3, 3)), oracle


def _on_the_cpu(checkpoint: Checkpoint) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """The same weights in float64: from token ids to logits `[length, V]`."""
    model = deepcopy(checkpoint.model).to("cpu", torch.float64)

    @torch.no_grad()
    def logits(ids: tuple[int, ...]) -> torch.Tensor:
        return model(torch.tensor([ids])).logits[0]

    return logits


def _check_kernel(
    policy: Policy, law: Oracle, draws: int, proposal: Policy | None = None, proposal_law: Oracle | None = None
) -> None:
    """Chains follow the exact law at finite M and K, and do not depend on how many advance together."""
    numbers: dict[str, Any] = {"lam": LAM, "candidates": M, "rollouts": K}
    exact = kernel_law(law, PROBLEMS[0], lambda tokens: _liking(_spelled(tokens)), proposal=proposal_law, **numbers)
    step = energy_guided(per_text(lambda _, text: _liking(text)), **numbers)
    policy = policy if proposal is None else ImportanceSampling(policy, proposal)

    def drawn(width: int, samples: int) -> dict[int, tuple[int, ...]]:
        chains = run(policy, step, PROBLEMS[:1], width=width, seed=0, samples=samples)
        return {chain.sample: chain.state.tokens for chain in chains}

    together, alone = drawn(2000, draws), drawn(1, _alone(draws))
    check_law(together.values(), exact, level=LEVEL)
    assert all(together[n] == alone[n] for n in alone), "a chain depends on what is sampled beside it"


def _alone(draws: int) -> int:
    """How many chains are sampled one at a time, too."""
    return min(64, draws // 20)


def _spelled(tokens: Sequence[int]) -> str:
    """The text of an outcome, up to its end."""
    return "".join(f"<{token}>" for token in takewhile(lambda token: token != END, tokens))


def _liking(text: str) -> float:
    return 0.5 * text.count("<2>") - 0.25 * text.count("<1>")
