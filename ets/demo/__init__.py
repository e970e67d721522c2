"""The embedded problems and models: what runs where no model hub can be reached (`docs/demo.md`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_ASSETS = Path(__file__).parent / "assets"


def model_path(model: Literal["reference", "small", "diffusion"] = "reference") -> str:
    """The folder of an embedded checkpoint, for `from_pretrained` or `ets.sample(model=…)`.

    `reference` and `small` are of the Qwen3 architecture; `small` is a quarter of the size or less, for use as a
    proposal. `diffusion` is of the LLaDA architecture, and answers shorter problems (`ets.demo.sums`).
    """
    return str(_ASSETS / model)
