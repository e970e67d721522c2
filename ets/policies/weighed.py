"""The policy of the method ets-is: p_ref with a proposal, or with a faster sampler of masked diffusion at a level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ets.policies.registry import FAST, fast_sampler_of, law_of, proposal_engine_of, proposal_of
from ets.policies.settings import FastSampler, Sampling, Weighing
from ets.settings import made
from ets.types import InputError, Policy

if TYPE_CHECKING:
    from ets.policies.checkpoint import Checkpoint


PROPOSED = ("proposal", "proposal_engine", "proposal_utilization", "proposal_temperature")
"""Settings of a proposal."""


@dataclass(frozen=True)
class Weighed:
    """The policy of the method ets-is, the target law of the weights ("" for p_ref), the settings, and the label."""

    policy: Policy
    target: str
    description: str
    label: str


def weighed_policy(policy: Policy, values: Mapping[str, Any], opened: Callable[[str], Checkpoint]) -> Weighed:
    """p_ref paired with a proposal or with a faster sampler, by the settings of `Weighing`, `FastSampler` and p_ref.

    `opened` opens a checkpoint by name. Raises `InputError` without a proposal or a faster sampler, and for policies
    that do not fit together.
    """
    try:
        return _at_level(policy, values) if hasattr(policy, "unmasking") else _pair(policy, values, opened)
    except InputError as error:
        raise InputError(f"for the method ets-is, {error}") from error


def _pair(policy: Any, values: Mapping[str, Any], opened: Callable[[str], Checkpoint]) -> Weighed:
    from ets.importance import ImportanceSampling

    weighing, fast = made(Weighing, values), made(FastSampler, values)
    if weighing.proposal is None:
        raise InputError("there is no proposal; add --proposal (SMALL_MODEL_PATH in the scripts), or leave ets-is out")
    _refuse(values, ("level", *(f"fast_{name}" for name in FAST)), "masked diffusion")
    small = opened(weighing.proposal)
    block_size = fast.is_block_size or getattr(getattr(policy, "horizon", None), "block_size", None)
    if fast.is_block_size is not None and hasattr(policy, "at_law"):
        policy = policy.at_law(policy.sampling, replace(policy.horizon, block_size=fast.is_block_size))
    truncation = {name: values[name] for name in ("top_k", "top_p") if name in values}
    warmth, engine = weighing.proposal_temperature, proposal_engine_of(weighing, lambda: small)
    proposal = proposal_of(policy, lambda: small, ready=engine, temperature=warmth, truncation=truncation)
    parts = [f"{weighing.proposal}@{small.revision[:8]}", f"block{block_size}", _law_of(proposal.sampling)]
    if engine is not None:  # vLLM's texts are equal to those of transformers in law, not token for token
        parts.append(engine.engine_name)
    label = f"ETS-IS (M {{size}}, K {{rollouts}}, block {block_size})"
    pair = ImportanceSampling(policy, proposal, weighing.clip)
    return Weighed(pair, "", "-".join([*parts, f"clip{weighing.clip}"]), label)


def _at_level(policy: Policy, values: Mapping[str, Any]) -> Weighed:
    from ets.policies.diffusion.levels import target_of

    weighing, fast = made(Weighing, values), made(FastSampler, values)
    _refuse(values, (*PROPOSED, "is_block_size"), "a pair with a proposal")
    changed = {name: getattr(fast, f"fast_{name}") for name in FAST}
    if all(value is None for value in changed.values()):
        raise InputError("there is no faster sampler; give what makes it fast, such as fast_cache dual")
    level = weighing.level or "0"
    sampler = fast_sampler_of(policy, level, clip=weighing.clip, **changed)
    law = law_of(getattr(sampler, "sampler", sampler))
    kept = {name: law[name] for name in FAST if name in law}
    parts = [f"level{level}", *(f"{name}{value}" for name, value in kept.items() if value is not None)]
    label = f"ETS-IS at level {level} (M {{size}}, K {{rollouts}})"
    return Weighed(sampler, target_of(level), "-".join([*parts, f"clip{weighing.clip}"]), label)


def _law_of(sampling: Sampling) -> str:
    return f"T{sampling.temperature:g}-k{sampling.top_k}-p{sampling.top_p}"


def _refuse(values: Mapping[str, Any], names: Iterable[str], kind: str) -> None:
    for name in names:
        if values.get(name) is not None:
            raise InputError(f"{name} is {values[name]!r}, which only {kind} has; leave it out")
