"""The embedded problems and models: what runs where no model hub can be reached (`docs/demo.md`)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_ASSETS = Path(__file__).parent / "assets"


def model_path(size: Literal["reference", "small"] = "reference") -> str:
    """The folder of an embedded Qwen3-architecture checkpoint, for `from_pretrained` or `ets.sample(model=…)`.

    `small` is a quarter of the size or less, for use as a proposal.
    """
    return str(_ASSETS / size)
