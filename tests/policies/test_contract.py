"""Every engine of the registry keeps the contract of policies. A new engine adds a case to `CASES`.

The models have four tokens, so that all outcomes can be enumerated by full forward passes without a cache. Each test
fails by chance with a probability of at most 1e-4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from ets.policies.checkpoint import Checkpoint
from ets.policies.registry import ENGINES, policy_of
from ets.rejection import exact
from ets.rewards import per_text
from ets.runner import run
from ets.suffix_moves import refined
from ets.testing import check_policy
from ets.types import Problem
from ets.walk import lengths_of
from tests.block_causal import MODELS, tiny
from tests.conftest import canvas_oracle, causal_oracle, random_qwen3, tiny_tokenizer
from tests.laws.uniform import UniformOracle
from tests.tiny_server import TinyServer

LEVEL = 1e-4
PROBLEMS = [Problem("p", "abc"), Problem("q", (1, 3, 3, 2, 1)), Problem("r", "b")]
CANVAS_PROBLEMS = [Problem("p", "ab"), Problem("q", (1, 2, 2, 1)), Problem("r", "b")]
SETTINGS = {"temperature": 0.8, "block_size": 2, "max_length": 4}
CANVAS = {"max_length": 4, "steps": 4, "block_length": 2, "guide_steps": 2, "temperature": 0.8}

UNIFORM: dict[str, Any] = {
    "max_length": 4,
    "guide_steps": 4,
    "max_denoising_steps": 2,
    "t_min": 0.4,
    "t_max": 0.8,
    "entropy_bound": 0.6,
    "stability_threshold": 0,
    "confidence_threshold": 0.5,
}
"""Two canvases of two tokens and at most two denoising steps; the acceptance, and the early ends, vary."""


@contextmanager
def through_transformers(tiny: Checkpoint, folder: Path) -> Iterator[Any]:
    yield policy_of(lambda: tiny, engine="transformers", **SETTINGS)


@contextmanager
def through_a_server(tiny: Checkpoint, folder: Path) -> Iterator[Any]:
    with TinyServer(tiny) as server:
        yield policy_of(lambda: tiny, engine="endpoint", endpoint=server.address, connections=16, **SETTINGS)


@contextmanager
def through_vllm(tiny: Checkpoint, folder: Path) -> Iterator[Any]:
    """Its kernels take heads of 32 numbers and more."""
    if find_spec("vllm") is None:
        pytest.skip("no vLLM here; `bash scripts/setup.sh vllm`")
    random_qwen3(4, end=0, width=64, spread=0.2).float().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    policy = policy_of(
        lambda: Checkpoint(str(folder), device="cpu", dtype="float32"), engine="vllm", memory_gib=0.5, **SETTINGS
    )
    with policy.engine:
        yield policy


@contextmanager
def masked_diffusion(tiny: Checkpoint, folder: Path) -> Iterator[Any]:
    yield policy_of(lambda: tiny, engine="masked-diffusion", **CANVAS)


@contextmanager
def uniform_diffusion(tiny: Checkpoint, folder: Path) -> Iterator[Any]:
    yield policy_of(lambda: tiny, engine="uniform-diffusion", **UNIFORM)


def uniform_paths(policy: Any, t_max: float) -> Any:
    denoising = replace(policy.denoising, t_max=t_max)
    return UniformOracle(policy.checkpoint.model, policy.checkpoint.tokenizer, policy.schedule, denoising)


def canvases(policy: Any, temperature: float) -> Any:
    return canvas_oracle(policy.checkpoint, policy.schedule, replace(policy.unmasking, temperature=temperature))


Case: TypeAlias = tuple[Callable[..., Any], str, Callable[[Any, float], Any], list[Problem], int]
CASES: dict[str, Case] = {
    "transformers": (through_transformers, "tiny_checkpoint", causal_oracle, PROBLEMS, 10_000),
    "vllm": (through_vllm, "tiny_checkpoint", causal_oracle, PROBLEMS, 4_000),
    "endpoint": (through_a_server, "tiny_checkpoint", causal_oracle, PROBLEMS, 400),
    "masked-diffusion": (masked_diffusion, "tiny_llada", canvases, CANVAS_PROBLEMS, 10_000),
    "uniform-diffusion": (uniform_diffusion, "tiny_diffusion_gemma", uniform_paths, CANVAS_PROBLEMS, 8_000),
}
"""By engine: the policy, its checkpoint, its exact laws computed another way, the problems, and draws per law test."""


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_keeps_the_contract_and_budgets(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    opened, checkpoint, oracle_of, problems, draws = CASES[engine]
    with opened(request.getfixturevalue(checkpoint), tmp_path) as policy:
        check_policy(policy, oracle_of(policy, 0.8), problems, draws=draws, level=LEVEL)
        keeps_its_budget(policy, problems)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "vllm"])
def test_another_temperature_turns_the_law_red(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """With a quarter of the draws, and at least 400."""
    opened, checkpoint, oracle_of, problems, draws = CASES[engine]
    with (
        opened(request.getfixturevalue(checkpoint), tmp_path) as policy,
        pytest.raises(AssertionError, match="exact law"),
    ):
        check_policy(policy, oracle_of(policy, 1.3), problems, draws=max(400, draws // 4), level=LEVEL)


def keeps_its_budget(policy: Any, problems: list[Problem]) -> None:
    """Chains of `refined` and of `exact` spend at most their budget, and the ledger counts the same tokens."""
    longest = lengths_of(policy).most
    reward = per_text(lambda problem, text: -0.1 * text.count("a"))
    for step in (
        refined(reward, lam=0.1, budget=5 * longest),
        exact(reward, lam=0.02, highest=0.1, limit=2 * longest, budget=5 * longest),  # few texts are accepted
    ):
        before = policy.ledger
        chains = list(run(policy, step, problems, width=2, seed=0, samples=2))
        assert len(chains) == 2 * len(problems) and all(chain.state.done for chain in chains)
        assert all(0 < chain.cost.generated <= 5 * longest for chain in chains)
        assert any(each.cut is not None for chain in chains for each in chain.trace)
        spent = policy.ledger - before
        for name in ("prompt", "candidate", "generated", "row_forwards"):
            assert getattr(spent, name) == sum(getattr(chain.cost, name) for chain in chains), name


@pytest.mark.filterwarnings("ignore:block_length is 2")
@pytest.mark.parametrize("family", MODELS)
def test_block_causal_models_keep_a_budget_of_tokens(family: str) -> None:
    keeps_its_budget(policy_of(lambda: tiny(family), engine="masked-diffusion", **CANVAS), CANVAS_PROBLEMS)


@pytest.mark.parametrize(
    "law",
    [{"remasking": "origin", "quotas": "time"}, {"threshold": 0.4}, {"stop_at_end": True}, {"cache": "dual"}],
    ids=str,
)
def test_samplers_of_masked_diffusion_keep_a_budget_of_tokens(law: dict[str, Any], tiny_dream: Checkpoint) -> None:
    keeps_its_budget(policy_of(lambda: tiny_dream, engine="masked-diffusion", **CANVAS | law), CANVAS_PROBLEMS)
