"""From a checkpoint and one set of arguments to the policy of its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ets.models import MASKED_DIFFUSION
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.checkpoint import Checkpoint
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.transformers import TransformersPolicy
from ets.policies.unmasking import Schedule, Unmasking
from ets.types import InputError


def policy_of(
    checkpoint: Callable[[], Checkpoint],
    *,
    block_size: int,
    max_length: int,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    cfg: float | None = None,
    remasking: str | None = None,
    stop_at_end: bool | None = None,
) -> TransformersPolicy | MaskedDiffusionPolicy:
    """An autoregressive or a masked-diffusion policy, by the checkpoint's architecture.

    The arguments are those of `ets.sample`; the checkpoint is opened once they have been checked. For masked diffusion
    `max_length` is the canvas, and guide steps take `block_size` tokens each: I = max_length / block_size.

    Raises
    ------
    InputError
        For values out of range, or that the checkpoint's kind of model does not have.
    """
    sampling, horizon = Sampling(temperature, top_k, top_p), Horizon(block_size, max_length)
    own: dict[str, Any] = {"steps": steps, "block_length": block_length, "cfg": cfg, "remasking": remasking}
    own["stop_at_end"] = stop_at_end
    rule = {name: own[name] for name in ("cfg", "remasking", "stop_at_end") if own[name] is not None}
    unmasking = Unmasking(temperature, **rule)
    opened = checkpoint()
    family = MASKED_DIFFUSION.get(opened.config.model_type)
    if family is None:
        _require_unset(opened, "an autoregressive", **own)
        return TransformersPolicy(opened, sampling, horizon)
    _require_unset(opened, "a masked-diffusion", top_k=top_k, top_p=top_p)
    if block_length is None:
        block_length = max_length if max_length % family.block_length else family.block_length
    steps = max_length if steps is None else steps
    if max_length % block_size:
        raise InputError(
            f"block_size {block_size} does not divide max_length {max_length}, and a masked-diffusion model fills its "
            "canvas in equal guide steps; choose a divisor"
        )
    schedule = Schedule(max_length, steps, block_length, max_length // block_size)
    return MaskedDiffusionPolicy(opened, unmasking, schedule)


def _require_unset(checkpoint: Checkpoint, kind: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name} is {value!r}, but {checkpoint.name!r} is {kind} model, which has none; leave it out"
            )
