"""From a model in any of its forms and the settings of a front door to a policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from ets.importance import ImportanceSampling
from ets.policies.autoregressive.server import Endpoint
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.levels import target_of
from ets.policies.registry import engine_named, fast_sampler_of, own_policy, policy_of, proposal_of
from ets.policies.settings import Weighing
from ets.settings import fields_of
from ets.types import InputError, Policy

Local: TypeAlias = str | Path | tuple[Any, Any] | Checkpoint
"""A model that transformers runs in this process."""
Model: TypeAlias = Local | VLLMEngine | Endpoint
"""One of these, or one that is served already; its owner closes it."""
FAST = ("threshold", "factor", "cache", "refresh")
"""Settings that make a sampler of masked diffusion faster."""


def as_level(given: Mapping[str, Any]) -> str | None:
    level = given.get("level")
    return None if level is None else str(level)


def opened_policy(
    model: Model | Policy, values: Mapping[str, Any], weighing: Weighing, dtype: str | None = None
) -> Policy:
    """p_ref. At a level above 0 the settings of a faster sampler are not its own: they make the proposal.

    `dtype` is that of the weights of a model by name. Raises `InputError` for a model that is loaded already.
    """
    if dtype is not None and not isinstance(model, str | Path):
        raise InputError(f"dtype is {dtype!r}, but the model is no name of a checkpoint; load it with this dtype")
    if isinstance(model, Policy):
        for name, value in values.items():
            raise InputError(f"{name} is {value!r}, but the model is a policy already; make the policy with it")
        return model
    if weighing.level not in (None, "0"):
        values = {name: value for name, value in values.items() if name not in FAST}
    if isinstance(model, VLLMEngine | Endpoint):
        return policy_of(lambda: model.checkpoint, ready=model, **values)
    return policy_of(lambda: checkpoint_of(model, dtype=dtype), **values)


def policies_of(
    model: str, engine: str | None, dtype: str | None, values: Mapping[str, Any], weighing: Weighing
) -> Callable[[Mapping[str, Any]], Policy]:
    """`(law) -> Policy`: policies of one model, under settings that replace some of `values`.

    All policies share the weights, or the running engine. Raises `InputError` as `policy_of` does.
    """
    if engine is not None and ":" in engine:
        own = own_policy(engine, model, values)

        def unchanged(law: Mapping[str, Any]) -> Policy:
            for name, value in law.items():
                raise InputError(f"{name} is {value!r}, and the law of the engine {engine} is fixed; leave it out")
            return own

        return unchanged
    checkpoint = Checkpoint(model, dtype)
    first = policy_of(lambda: checkpoint, engine=engine, **values)
    running = getattr(first, "engine", None)
    shared = {} if running is None else fields_of(*engine_named(running.engine_name).resources)
    kept = {name: value for name, value in values.items() if name not in shared}

    def opened(law: Mapping[str, Any]) -> Policy:
        merged = {**kept, **law}
        return weighed_by(opened_policy(running or checkpoint, merged, weighing), merged, weighing)[0]

    return opened


def weighed_by(policy: Policy, values: Mapping[str, Any], weighing: Weighing) -> tuple[Policy, str | None]:
    """What the step samples from, and its target in words where the sampler is a faster one of masked diffusion."""
    fast = {name: values[name] for name in FAST if name in values}
    level, small, warmth = weighing.level, weighing.proposal, weighing.proposal_temperature
    if small is None and level is None:
        for name in ("clip", "proposal_temperature"):
            if getattr(weighing, name) is not None:
                raise InputError(f"{name} is {getattr(weighing, name)}, but there is no proposal; name one")
    if level is not None:
        own: dict[str, Any] = {} if level == "0" else {"temperature": warmth, **fast}
        if level == "1" and "remasking" not in values:
            own["remasking"] = "largest"  # at level 1 drawn tokens must not choose positions
        policy = fast_sampler_of(policy, level, **own, clip=weighing.clip)
    if small is not None:
        truncation = {name: values[name] for name in ("top_k", "top_p") if name in values}
        opened = partial(checkpoint_of, small, "proposal")
        proposal = proposal_of(policy, opened, temperature=warmth, truncation=truncation)
        policy = ImportanceSampling(policy, proposal, weighing.clip)
    at = "0" if level is None and fast else level
    return policy, None if at is None else f"{target_of(at)} (level {at})"


def checkpoint_of(model: Local, name: str = "model", dtype: str | None = None) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, tuple) and len(model) == 2:
        return Checkpoint.loaded(*model)
    if isinstance(model, str | Path):
        return _last_checkpoint(str(model), dtype)
    shown = (
        f"a {type(model).__name__} of {len(model)}" if isinstance(model, tuple | list) else f"a {type(model).__name__}"
    )
    raise InputError(
        f"{name} is {shown}; pass a checkpoint's folder or name, a Checkpoint or a (model, tokenizer) pair "
        "(a VLLMEngine or an Endpoint may be the model alone)"
    )


@lru_cache(maxsize=2)
def _last_checkpoint(name: str, dtype: str | None) -> Checkpoint:
    return Checkpoint(name, dtype)
