"""From a checkpoint and one set of arguments to the policy of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable

from ets.models import MASKED_DIFFUSION
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.checkpoint import Checkpoint
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.transformers import TransformersPolicy
from ets.policies.unmasking import Remasking, Schedule, Unmasking
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
    remasking: Remasking | None = None,
) -> TransformersPolicy | MaskedDiffusionPolicy:
    """An autoregressive or a masked-diffusion policy, by the checkpoint's architecture.

    The arguments are those of `ets.sample`; the checkpoint is opened once they have been checked. For masked diffusion
    `max_length` is the canvas, and guide steps take `block_size` tokens each: I = ⌈max_length / block_size⌉.

    Raises
    ------
    InputError
        For values out of range, or that the checkpoint's kind of model does not have.
    """
    sampling, horizon = Sampling(temperature, top_k, top_p), Horizon(block_size, max_length)
    unmasking = Unmasking(temperature, remasking or "low_confidence", cfg or 0.0)
    opened = checkpoint()
    family = MASKED_DIFFUSION.get(opened.config.model_type)
    if family is None:
        _require_unset(opened, "autoregressive", steps=steps, block_length=block_length, cfg=cfg, remasking=remasking)
        return TransformersPolicy(opened, sampling, horizon)
    _require_unset(opened, "masked-diffusion", top_k=top_k, top_p=top_p)
    block = block_length or (max_length if max_length % family.block_length else family.block_length)
    schedule = Schedule(max_length, steps or max_length, block, math.ceil(max_length / block_size))
    return MaskedDiffusionPolicy(opened, unmasking, schedule)


def _require_unset(checkpoint: Checkpoint, kind: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name} is {value!r}, but {checkpoint.name!r} is a {kind} model, which has none; leave it out"
            )
