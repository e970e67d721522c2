"""From a checkpoint and one set of settings to a policy: the one place where settings become policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ets.models import MASKED_DIFFUSION
from ets.path_weights import PathWeights
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.server import Endpoint
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.canvas_cache import Caching
from ets.policies.checkpoint import Checkpoint
from ets.policies.levels import weighed_sampler
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.transformers import TransformersPolicy
from ets.policies.unmasking import Schedule, Unmasking
from ets.proposal import ImportanceSampling
from ets.types import InputError, Policy

SETTINGS = (
    "temperature", "top_k", "top_p", "block_size", "max_length", "guide_steps", "steps", "block_length", "cfg",
    "remasking", "stop_at_end", "threshold", "factor", "cache", "refresh", "memory_gib", "certainty",
)  # fmt: skip
"""The names of `policy_of`'s settings, without the resources."""
RESOURCES = {
    "vllm": ("replicas", "tensor_parallel", "utilization"),
    "endpoint": ("endpoint", "served_model", "key_variable", "connections", "seconds"),
}
"""By engine, what it runs with, which the law does not depend on."""
CHECKPOINT = "checkpoint"
"""The value of top_k or top_p that stands for `Checkpoint.truncation`."""


def policy_of(
    checkpoint: Callable[[], Checkpoint],
    *,
    max_length: int,
    temperature: float,
    block_size: int | None = None,
    guide_steps: int | None = None,
    top_k: int | str | None = None,
    top_p: float | str | None = None,
    steps: int | None = None,
    block_length: int | None = None,
    cfg: float | None = None,
    remasking: str | None = None,
    stop_at_end: bool | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    cache: str | None = None,
    refresh: int | None = None,
    memory_gib: float | None = None,
    certainty: bool = False,
    engine: str | VLLMEngine | Endpoint | None = None,
    **resources: Any,
) -> TransformersPolicy | EnginePolicy | MaskedDiffusionPolicy:
    """A policy of a checkpoint, which is opened once what can be checked without it has been.

    Parameters
    ----------
    checkpoint : callable
        Opens it.
    max_length : int
        Tokens in all; for masked diffusion the canvas.
    temperature, top_k, top_p : float, int, float
        Of `Sampling`; masked diffusion has the temperature alone. "checkpoint" for top_k or top_p stands for the value
        of `Checkpoint.truncation`.
    block_size, guide_steps : int
        How long a guide step is: so many tokens, or, for masked diffusion alone, a share of the denoising steps. One
        of the two; for masked diffusion `block_size` stands for `max_length / block_size` guide steps.
    steps, block_length, cfg, remasking, stop_at_end
        Of `Schedule` and `Unmasking`, for masked diffusion alone; by default one step per token, the family's block
        length (or the whole canvas, where that does not divide it), and the defaults of `Unmasking`.
    threshold, factor, cache, refresh
        Of `Unmasking` and `Caching`, for masked diffusion alone: a faster sampler, which is then p_ref itself.
    memory_gib : float, optional
        Limit on the cache of rows under way; by default half of the free memory.
    certainty : bool
        Record `Text.certainty`, which engines that draw by themselves (vllm, endpoint) do not tell.
    engine : {"transformers", "vllm", "endpoint", "masked-diffusion"}, VLLMEngine or Endpoint, optional
        What runs the model; by default the checkpoint's architecture decides. One that is there already holds this
        checkpoint, may be shared, and has its resources.
    **resources
        Names in `RESOURCES`, None for the default: of `VLLMEngine`, or of `Endpoint`, whose address `endpoint` is.

    Raises
    ------
    InputError
        For values out of range, or that the checkpoint's kind of model does not have.
    """
    _sampling(temperature, top_k, top_p, None)  # values out of range are refused before anything is opened
    horizon = None if block_size is None else Horizon(block_size, max_length)
    rule = {"cfg": cfg, "remasking": remasking, "stop_at_end": stop_at_end, "threshold": threshold, "factor": factor}
    unmasking = Unmasking(temperature, **_given(rule))
    caching = _caching(cache, refresh)
    resources = _given(resources)
    named = _name_of(engine)
    _require_own(named, resources)
    if certainty and named in RESOURCES:
        raise InputError(f"the engine {named} does not tell how certain the model is of its tokens; use transformers")
    opened = checkpoint()
    if (named or _engine_for(opened)) != "masked-diffusion":
        only = {"guide_steps": guide_steps, "steps": steps, "block_length": block_length, **rule, "cache": cache}
        _require_unset(opened, "an autoregressive", only)
        shared = _given({"memory_gib": memory_gib, "certainty": certainty or None})
        sampling = _sampling(temperature, top_k, top_p, opened)
        return _autoregressive(opened, engine, sampling, horizon, **shared, **resources)
    _require_unset(opened, "a masked-diffusion", {"top_k": top_k, "top_p": top_p})
    schedule = Schedule(
        max_length,
        max_length if steps is None else steps,
        _block_length(opened, max_length) if block_length is None else block_length,
        _guide_steps(guide_steps, block_size, max_length),
    )
    return MaskedDiffusionPolicy(
        opened, unmasking, schedule, caching=caching, memory_gib=memory_gib, certainty=certainty
    )


def at_law(policy: Policy, sampling: Sampling) -> Policy:
    """The policy at another law: the same checkpoint or engine, horizon and end tokens.

    Raises
    ------
    InputError
        For masked diffusion, which has no top-k and top-p.
    """
    if isinstance(policy, EnginePolicy):
        return EnginePolicy(policy.engine, sampling, policy.horizon, end_ids=policy.endings.end_ids)
    if isinstance(policy, TransformersPolicy):
        shared: dict[str, Any] = {"memory_gib": policy.memory_gib, "end_ids": policy.endings.end_ids}
        return TransformersPolicy(policy.checkpoint, sampling, policy.horizon, **shared)
    raise InputError(f"{type(policy).__name__} has no top-k and top-p; leave the method base out, and take plain")


def proposal_of(
    reference: Policy,
    checkpoint: Callable[[], Checkpoint],
    *,
    temperature: float | None = None,
    top_k: int | str | None = None,
    top_p: float | str | None = None,
) -> TransformersPolicy:
    """A proposal q for a policy: another model (or the same one) with the policy's guide steps, length and endings.

    Parameters
    ----------
    reference : Policy
        Made by `policy_of`.
    checkpoint : callable
        Opens the proposal's.
    temperature : float, optional
        By default the policy's.
    top_k, top_p : int or "checkpoint", float or "checkpoint"
        The settings that `policy_of` got for the policy. At "checkpoint" q has the truncation in the generation_config
        of its own checkpoint. The texts that q cannot draw are missing from every energy.

    Raises
    ------
    InputError
        For values out of range, or models that do not fit each other.
    """
    if not isinstance(reference, TransformersPolicy):
        masked = isinstance(reference, MaskedDiffusionPolicy)
        mend = "leave it out (LLaDA has levels instead)" if masked else "leave it out, or use transformers"
        raise InputError(f"{type(reference).__name__} takes no proposal; {mend}")
    warmth = reference.sampling.temperature if temperature is None else temperature
    _sampling(warmth, top_k, top_p, None)  # values out of range are refused before anything is opened
    opened = checkpoint()
    law = _sampling(warmth, top_k, top_p, opened)
    shared: dict[str, Any] = {"memory_gib": reference.memory_gib, "end_ids": reference.endings.end_ids}
    proposal = TransformersPolicy(opened, law, reference.horizon, **shared)
    ImportanceSampling(reference, proposal)  # what does not fit is named now
    return proposal


def fast_sampler_of(
    exact: Policy,
    level: str = "0",
    *,
    checkpoint: Callable[[], Checkpoint] | None = None,
    temperature: float | None = None,
    remasking: str | None = None,
    threshold: float | None = None,
    factor: float | None = None,
    cache: str | None = None,
    refresh: int | None = None,
    clip: tuple[float, float] | None = None,
) -> MaskedDiffusionPolicy | PathWeights:
    """A faster sampler with the canvas and the guide steps of a masked-diffusion policy, weighed towards it at a level.

    Parameters
    ----------
    exact : Policy
        Made by `policy_of`.
    level : str
        A key of `ets.policies.levels.LEVELS`; at "0" the fast sampler itself, every weight exactly 1.
    checkpoint : callable, optional
        Opens the fast sampler's model; by default it is the policy's.
    temperature, remasking, threshold, factor, cache, refresh
        As for `policy_of`; by default the policy's own. One of threshold and factor replaces both of the policy's.
    clip : (float, float), optional
        Bounds on the ratios; level 0 has none.

    Raises
    ------
    InputError
        For values out of range, or a pair that has no ratio at this level.
    """
    if not isinstance(exact, MaskedDiffusionPolicy):
        raise InputError(f"{type(exact).__name__} has no faster sampler; leave the level out")
    if level == "0" and clip is not None:
        raise InputError(f"clip is {clip!r}, but at level 0 every weight is exactly 1; leave it out")
    changed = _given({"temperature": temperature, "remasking": remasking})
    if (threshold, factor) != (None, None):
        changed |= {"threshold": threshold, "factor": factor}
    kept = exact.caching
    if (cache, refresh) != (None, None):
        kept = _caching(cache or (kept.kind if kept else None), refresh)
    opened = checkpoint() if checkpoint else exact.checkpoint
    unmasking = replace(exact.unmasking, **changed)
    shared: dict[str, Any] = {"memory_gib": exact.memory_gib, "certainty": exact.certainty}
    fast = MaskedDiffusionPolicy(opened, unmasking, exact.schedule, caching=kept, **shared)
    return weighed_sampler(exact, fast, level, clip)


def _sampling(
    temperature: float, top_k: int | str | None, top_p: float | str | None, checkpoint: Checkpoint | None
) -> Sampling:
    """The distribution, with the checkpoint's own truncation in the place of "checkpoint"; without one, none there."""
    given: dict[str, Any] = {"top_k": top_k, "top_p": top_p}
    own = {name: checkpoint and checkpoint.truncation[name] for name, value in given.items() if value == CHECKPOINT}
    return Sampling(temperature, **given | own)


def _caching(cache: str | None, refresh: int | None) -> Caching | None:
    if cache is not None:
        return Caching(cache, refresh)
    if refresh is not None:
        raise InputError(f"refresh is {refresh}, but there is no cache to refresh; add cache, or leave it out")
    return None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _require_own(engine: str | None, resources: Mapping[str, Any]) -> None:
    for name, value in resources.items():
        owners = [owner for owner, names in RESOURCES.items() if name in names]
        if not owners:
            raise TypeError(f"policy_of() has no setting {name!r}")
        if engine not in owners:
            raise InputError(f"{name} is {value!r}, which the engine {owners[0]} alone has; leave it out")


def _name_of(engine: str | VLLMEngine | Endpoint | None) -> str | None:
    if isinstance(engine, VLLMEngine):
        return "vllm"
    return "endpoint" if isinstance(engine, Endpoint) else engine


def _autoregressive(
    checkpoint: Checkpoint,
    engine: str | VLLMEngine | Endpoint | None,
    sampling: Sampling,
    horizon: Horizon | None,
    **resources: Any,
) -> TransformersPolicy | EnginePolicy:
    if horizon is None:
        raise InputError("block_size is not set; set it to the tokens of a guide step")
    named = _name_of(engine)
    if named not in RESOURCES:
        return TransformersPolicy(checkpoint, sampling, horizon, **resources)
    if checkpoint.config.model_type in MASKED_DIFFUSION:
        raise InputError(
            f"{checkpoint.name!r} is a masked-diffusion model, which the engine {named} does not have; "
            "see llada/eval.sh"
        )
    return EnginePolicy(_ready(engine, checkpoint, **resources), sampling, horizon)


def _ready(
    engine: str | VLLMEngine | Endpoint | None, checkpoint: Checkpoint, **resources: Any
) -> VLLMEngine | Endpoint:
    """The engine that is there already, or one of the policy's own: vLLM is loaded later, a connection is made now."""
    if not isinstance(engine, VLLMEngine | Endpoint):
        return VLLMEngine(checkpoint, **resources) if engine == "vllm" else _connection(checkpoint, **resources)
    for name, value in resources.items():
        raise InputError(f"{name} is {value!r}, but the engine is there already; say it where the engine is made")
    return engine


def _connection(
    checkpoint: Checkpoint,
    *,
    endpoint: str = "",
    served_model: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    memory_gib: float | None = None,
    **limits: Any,
) -> Endpoint:
    if not endpoint:
        raise InputError("endpoint is not set; give the server's address, such as http://localhost:8000/v1")
    if memory_gib is not None:
        raise InputError(f"memory_gib is {memory_gib}, but the cache is the server's; say it in the server's command")
    return Endpoint(endpoint, checkpoint, model=served_model, key=key_variable, **limits)


def _engine_for(checkpoint: Checkpoint) -> str:
    return "masked-diffusion" if checkpoint.config.model_type in MASKED_DIFFUSION else "transformers"


def _block_length(checkpoint: Checkpoint, max_length: int) -> int:
    family = MASKED_DIFFUSION.get(checkpoint.config.model_type)
    return max_length if family is None or max_length % family.block_length else family.block_length


def _guide_steps(guide_steps: int | None, block_size: int | None, max_length: int) -> int:
    if (guide_steps is None) == (block_size is None):
        raise InputError(f"block_size is {block_size} and guide_steps {guide_steps}; set one of the two")
    if guide_steps is not None:
        return guide_steps
    assert block_size is not None
    if max_length % block_size:
        raise InputError(
            f"block_size {block_size} does not divide max_length {max_length}, and a masked-diffusion model fills its "
            "canvas in equal guide steps; choose a divisor"
        )
    return max_length // block_size


def _require_unset(checkpoint: Checkpoint, kind: str, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name} is {value!r}, but {checkpoint.name!r} is {kind} model, which has none; leave it out"
            )
