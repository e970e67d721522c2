"""The embedded problems and models, which run without a model hub (`docs/demo.md`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_ASSETS = Path(__file__).parent / "assets"


def model_path(model: Literal["reference", "small", "diffusion"] = "reference") -> str:
    """The folder of an embedded checkpoint, for `from_pretrained` or `ets.sample(model=…)`.

    `reference` and `small` are Qwen3 models; `small`, a proposal, has a quarter of the size or less. `diffusion` is a
    LLaDA model for the shorter problems of `ets.demo.sums`.
    """
    return str(_ASSETS / model)
