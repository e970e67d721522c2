"""Energy-guided test-time scaling: sample from the RL-optimal policy of a frozen language model.

The public names; each loads its module when first used, so `import ets` is instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Caching": "ets.policies.settings",
    "Chain": "ets.types",
    "Chat": "ets.chat",
    "Checkpoint": "ets.policies.checkpoint",
    "Cost": "ets.types",
    "Horizon": "ets.policies.settings",
    "InputError": "ets.types",
    "MaskedDiffusionPolicy": "ets.policies.diffusion.policy",
    "Problem": "ets.types",
    "Result": "ets.api",
    "Sampling": "ets.policies.settings",
    "Schedule": "ets.policies.diffusion.denoise",
    "Step": "ets.types",
    "Text": "ets.types",
    "TransformersPolicy": "ets.policies.autoregressive.transformers",
    "UniformCanvases": "ets.policies.settings",
    "UniformDenoising": "ets.policies.settings",
    "UniformDiffusionPolicy": "ets.policies.diffusion.uniform",
    "Unmasking": "ets.policies.settings",
    "energy_guided": "ets.kernel",
    "exact": "ets.rejection",
    "generate": "ets.hf_generate",
    "of_prefixes": "ets.step",
    "refined": "ets.suffix_moves",
    "run": "ets.runner",
    "sample": "ets.api",
}
_MODULES = ("baselines", "demo", "rewards", "stopping")

__all__ = [
    "Caching",
    "Chain",
    "Chat",
    "Checkpoint",
    "Cost",
    "Horizon",
    "InputError",
    "MaskedDiffusionPolicy",
    "Problem",
    "Result",
    "Sampling",
    "Schedule",
    "Step",
    "Text",
    "TransformersPolicy",
    "UniformCanvases",
    "UniformDenoising",
    "UniformDiffusionPolicy",
    "Unmasking",
    "__version__",
    "baselines",
    "demo",
    "energy_guided",
    "exact",
    "generate",
    "of_prefixes",
    "refined",
    "rewards",
    "run",
    "sample",
    "stopping",
]

if TYPE_CHECKING:
    from ets import baselines, demo, rewards, stopping
    from ets.api import Result, sample
    from ets.chat import Chat
    from ets.hf_generate import generate
    from ets.kernel import energy_guided
    from ets.policies.autoregressive.transformers import TransformersPolicy
    from ets.policies.checkpoint import Checkpoint
    from ets.policies.diffusion.denoise import Schedule
    from ets.policies.diffusion.policy import MaskedDiffusionPolicy
    from ets.policies.diffusion.uniform import UniformDiffusionPolicy
    from ets.policies.settings import Caching, Horizon, Sampling, UniformCanvases, UniformDenoising, Unmasking
    from ets.rejection import exact
    from ets.runner import run
    from ets.step import of_prefixes
    from ets.suffix_moves import refined
    from ets.types import Chain, Cost, InputError, Problem, Step, Text


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"ets.{name}")
    else:
        raise AttributeError(f"module 'ets' has no attribute {name!r}")
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
