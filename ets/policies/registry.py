"""The engines by name, and the way from settings to a policy. A new engine is one file and one line in `ENGINES`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ets import demo
from ets.own_code import named_object, running
from ets.policies import settings as owners
from ets.settings import fields_of, made, require_known
from ets.types import InputError, Policy

if TYPE_CHECKING:
    from ets.path_weights import PathWeights
    from ets.policies.autoregressive.engine import EnginePolicy
    from ets.policies.autoregressive.server import Endpoint
    from ets.policies.autoregressive.transformers import TransformersPolicy
    from ets.policies.autoregressive.vllm import VLLMEngine
    from ets.policies.checkpoint import Checkpoint
    from ets.policies.diffusion.policy import MaskedDiffusionPolicy


@dataclass(frozen=True)
class EngineEntry:
    """One way to run a model.

    `maker` is the `module:function` that returns a policy from a checkpoint and the objects of `law` and `resources`,
    and optionally from a running engine, `ready`. Results depend on the settings of the dataclasses in `law`, and not
    on the settings of the dataclasses in `resources`. `embedded` maps names of embedded models to folders. The unit
    `currency` of budgets is "generated", tokens, or "positions", token positions that the model computed. `minimum` is
    the default of the votes that an answer needs to be the majority's.
    """

    maker: str
    law: tuple[type, ...]
    resources: tuple[type, ...]
    embedded: Mapping[str, str] = field(default_factory=dict)
    currency: str = "generated"
    minimum: int = 1

    @property
    def settings(self) -> tuple[type, ...]:
        return self.law + self.resources

    def objects(self, values: Mapping[str, Any], checkpoint: Checkpoint | None) -> list[Any]:
        """The objects of `law` and `resources`; raises `InputError` for values out of range.

        A value "checkpoint" of top_k or top_p becomes the checkpoint's value, and None without a checkpoint.
        """
        known = dict(values)
        for name in ("top_k", "top_p"):
            if known.get(name) == owners.CHECKPOINT:
                known[name] = checkpoint and checkpoint.truncation[name]
        if not {"block_size", "guide_steps"} & known.keys():
            known["block_size"] = min(owners.BLOCK_SIZE, known.get("max_length", owners.MAX_LENGTH))
        if "cache" not in known and "refresh" in known:
            raise InputError(f"refresh is {known['refresh']}, but there is no cache to refresh; add cache")
        cached = "cache" in known
        return [made(owner, known) if cached or owner is not owners.Caching else None for owner in self.settings]


_SMALL = {"embedded": demo.model_path("reference"), "embedded-small": demo.model_path("small")}


def _autoregressive(module: str, resources: type) -> EngineEntry:
    maker = f"ets.policies.autoregressive.{module}:make_policy"
    return EngineEntry(maker, (owners.Sampling, owners.Horizon), (resources,), _SMALL)


ENGINES: dict[str, EngineEntry] = {
    "transformers": _autoregressive("transformers", owners.MemorySettings),
    "vllm": _autoregressive("vllm", owners.VLLMResources),
    "endpoint": _autoregressive("server", owners.ServerResources),
    "masked-diffusion": EngineEntry(
        "ets.policies.diffusion.policy:make_policy",
        law=(owners.Unmasking, owners.CanvasSettings, owners.Caching),
        resources=(owners.MemorySettings,),
        embedded={"embedded": demo.model_path("diffusion")},
        currency="positions",
        minimum=2,
    ),
    "uniform-diffusion": EngineEntry(
        "ets.policies.diffusion.uniform:make_policy",
        law=(owners.UniformDenoising, owners.UniformCanvases),
        resources=(owners.MemorySettings,),
        currency="positions",
    ),
}
SETTINGS = tuple(dict.fromkeys(owner for engine in ENGINES.values() for owner in engine.settings))
"""The dataclasses of all engines' settings."""


def engine_named(name: str) -> EngineEntry:
    """The engine of a name; `file.py:function` is an engine of a user, see `own_policy`. Raises `InputError`."""
    if ":" in name:
        return EngineEntry(name, SETTINGS, ())
    if name not in ENGINES:
        raise InputError(f"unknown engine {name!r}; choose from {', '.join(ENGINES)}, or file.py:function")
    return ENGINES[name]


def policy_of(
    checkpoint: Callable[[], Checkpoint], *, engine: str | None = None, ready: Any = None, **values: Any
) -> Any:
    """The policy of a checkpoint. The checks of the settings that need no checkpoint come before it is opened.

    Parameters
    ----------
    checkpoint : callable
        Opens the checkpoint.
    engine : str, optional
        A key of `ENGINES`; by default the checkpoint's architecture decides between transformers and diffusion.
    ready : VLLMEngine or Endpoint, optional
        A running engine, which policies may share.
    **values
        Settings of the engine; None stands for the default.

    Raises
    ------
    InputError
        For values out of range, or settings that the engine does not have.
    """
    values = {name: value for name, value in values.items() if value is not None}
    if ready is not None:
        engine = ready.engine_name
    require_known(values, SETTINGS)
    if engine is not None:
        _require_settings(engine, values)
    if ready is not None and (taken := [n for n in values if n in fields_of(*engine_named(engine or "").resources)]):
        raise InputError(f"{taken[0]} is {values[taken[0]]!r}, but the engine runs already; give it to the engine")
    for found in [each for name, each in ENGINES.items() if engine in (None, name)]:
        if values.keys() <= fields_of(*found.settings).keys():
            found.objects(values, None)  # raises for values out of range before the checkpoint is opened
            break
    opened = checkpoint()
    if engine is None:
        from ets.models import diffusion_engine

        engine = diffusion_engine(opened.config.model_type) or "transformers"
        _require_settings(engine, values, f"{opened.name!r}, run by {engine},")
    found = engine_named(engine)
    module, _, function = found.maker.partition(":")
    maker = getattr(import_module(module), function)
    return maker(opened, *found.objects(values, opened), **({} if ready is None else {"ready": ready}))


def _require_settings(engine: str, values: Mapping[str, Any], subject: str = "") -> None:
    for name, value in values.items():
        if name not in fields_of(*engine_named(engine).settings):
            raise InputError(
                f"{name} is {value!r}, which {subject or f'the engine {engine}'} does not have; leave it out"
            )


def own_policy(name: str, model: str, values: Mapping[str, Any]) -> Policy:
    """The policy that a user's function returns: `function(model, **settings)`.

    Raises `InputError` for an unknown name, a setting that is no parameter, or a result that is no `Policy`.
    """
    function = named_object(name, "engine")
    parameters = inspect.signature(function).parameters
    open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    for key, value in values.items():
        if not open_ended and key not in parameters:
            raise InputError(f"{key} is {value!r}, which the engine {name} does not take; leave it out")
    with running(f"the engine {name}"):
        policy = function(_SMALL.get(model, model), **values)
    if not isinstance(policy, Policy):
        kind = type(policy).__name__
        raise InputError(f"the engine {name} made a {kind}; it must be a policy: start, extend, finish")
    return policy


def minimum_votes(policy: Policy) -> int:
    """The votes that an answer needs under the majority reward. In the authors' code: 2 for masked diffusion."""
    return ENGINES["masked-diffusion" if hasattr(policy, "unmasking") else "transformers"].minimum


def law_of(policy: Policy) -> dict[str, Any]:
    """The settings that the policy's results depend on, as JSON values: equal laws give equal values."""
    found: dict[str, Any] = {}
    for part in ("sampling", "horizon", "unmasking", "denoising", "schedule", "caching"):
        if (each := getattr(policy, part, None)) is not None:
            found |= asdict(each)
    if found.get("top_p") == 1:
        found["top_p"] = None
    engine: Any = getattr(policy, "engine", None)
    if getattr(engine, "engine_name", None) == "endpoint":
        found |= {"served_model": engine.model, "approximate": engine.approximate, "placement": "the server's"}
    return found


PROPOSAL_SHARE = 0.3
"""Share of a GPU's memory for a proposal in vLLM: the reference policy has its weights and cache on the same GPU."""


def proposal_engine_of(weighing: owners.Weighing, checkpoint: Callable[[], Checkpoint]) -> VLLMEngine | Endpoint | None:
    """The engine of a proposal, which the caller closes unless it is running already; None for transformers.

    Raises `InputError` for an unknown engine, and for settings of an engine without a proposal, of an engine that is
    running, or of one that is not vLLM.
    """
    from ets.policies.autoregressive.law import require_autoregressive
    from ets.policies.autoregressive.server import Endpoint
    from ets.policies.autoregressive.vllm import VLLMEngine

    given: Any = weighing.proposal
    engine, share = weighing.proposal_engine, weighing.proposal_utilization
    running = isinstance(given, VLLMEngine | Endpoint)
    for name, value in {"proposal_engine": engine, "proposal_utilization": share}.items():
        if value is not None and given is None:
            raise InputError(f"{name} is {value!r}, but there is no proposal; name one")
        if value is not None and running:
            raise InputError(f"{name} is {value!r}, but the proposal is an engine already; leave it out")
    if running:
        return given
    if engine not in (None, "transformers", "vllm"):
        raise InputError(f"proposal_engine is {engine!r}; choose transformers or vllm")
    if engine != "vllm":
        if share is not None:
            raise InputError(f"proposal_utilization is {share}, which vLLM alone has; set proposal_engine to vllm")
        return None
    opened = checkpoint()
    require_autoregressive(opened, "vllm")
    return VLLMEngine(opened, utilization=PROPOSAL_SHARE if share is None else share)


def proposal_of(
    reference: Policy,
    checkpoint: Callable[[], Checkpoint],
    *,
    ready: VLLMEngine | Endpoint | None = None,
    temperature: float | None = None,
    truncation: Mapping[str, Any] | None = None,
) -> TransformersPolicy | EnginePolicy:
    """A proposal: another model (or the same model) with the guide steps, length and end tokens of a policy.

    Parameters
    ----------
    reference : Policy
    checkpoint : callable
        Opens the proposal's checkpoint.
    ready : VLLMEngine or Endpoint, optional
        The engine that runs the proposal; by default transformers runs it.
    temperature : float, optional
        By default the policy's temperature.
    truncation : mapping of str to value, optional
        The settings top_k and top_p; "checkpoint" stands for the values of the proposal's checkpoint.

    Raises
    ------
    InputError
        For values out of range, or models that do not fit each other.
    """
    from ets.importance import ImportanceSampling
    from ets.policies.autoregressive.engine import EnginePolicy
    from ets.policies.autoregressive.transformers import TransformersPolicy

    if not isinstance(reference, TransformersPolicy):
        masked = hasattr(reference, "unmasking")
        remedy = "leave it out (LLaDA has levels instead)" if masked else "leave it out, or use transformers"
        raise InputError(f"{type(reference).__name__} takes no proposal; {remedy}")
    warmth = reference.sampling.temperature if temperature is None else temperature
    values = {"temperature": warmth, **(truncation or {})}
    ENGINES["transformers"].objects(values, None)  # raises for values out of range before the checkpoint is opened
    opened = checkpoint()
    law = ENGINES["transformers"].objects(values, opened)[0]
    ends = reference.endings.end_ids
    proposal: TransformersPolicy | EnginePolicy
    if ready is None:
        proposal = TransformersPolicy(opened, law, reference.horizon, memory_gib=reference.memory_gib, end_ids=ends)
    else:
        proposal = EnginePolicy(ready, law, reference.horizon, end_ids=ends)
    ImportanceSampling(reference, proposal)  # raises for models that do not fit
    return proposal


FAST = ("temperature", "remasking", "threshold", "factor", "cache", "refresh")
"""Settings by which a faster sampler of masked diffusion may differ from p_ref."""


def fast_sampler_of(
    exact: Policy,
    level: str = "0",
    *,
    checkpoint: Callable[[], Checkpoint] | None = None,
    clip: tuple[float, float] | None = None,
    **settings: Any,
) -> MaskedDiffusionPolicy | PathWeights:
    """A faster sampler with the canvas and the guide steps of a masked-diffusion policy, weighed towards it at a level.

    Parameters
    ----------
    exact : Policy
    level : str
        "0": the fast sampler, with every weight exactly 1; or another key of `ets.policies.diffusion.levels.LEVELS`.
    checkpoint : callable, optional
        Opens the fast sampler's model; by default the policy's model.
    clip : (float, float), optional
        Bounds on the ratios; level 0 has none.
    **settings
        Names of `FAST`, as for `policy_of`; None stands for the policy's value. A threshold or a factor replaces both
        of the policy's.

    Raises
    ------
    InputError
        For values out of range, or a pair that has no ratio at this level.
    """
    from ets.policies.diffusion.levels import weighed_sampler
    from ets.policies.diffusion.policy import MaskedDiffusionPolicy

    if not isinstance(exact, MaskedDiffusionPolicy):
        raise InputError(f"{type(exact).__name__} has no faster sampler; leave the level out")
    if level == "0" and clip is not None:
        raise InputError(f"clip is {clip!r}, but at level 0 every weight is exactly 1; leave it out")
    require_known(settings, (), FAST)
    changed = {name: value for name, value in settings.items() if value is not None}
    caching, cache, refresh = exact.caching, changed.pop("cache", None), changed.pop("refresh", None)
    if (cache, refresh) != (None, None):
        kind = cache or (caching.cache if caching else None)
        if kind is None:
            raise InputError(f"refresh is {refresh}, but there is no cache to refresh; add cache")
        caching = owners.Caching(kind, refresh)
    if changed.keys() & {"threshold", "factor"}:
        changed = {"threshold": None, "factor": None} | changed
    opened = checkpoint() if checkpoint else exact.checkpoint
    shared: dict[str, Any] = {name: getattr(exact, name) for name in ("memory_gib", "certainty", "one_by_one")}
    unmasking = replace(exact.unmasking, **changed)
    fast = MaskedDiffusionPolicy(opened, unmasking, exact.schedule, caching=caching, **shared)
    return weighed_sampler(exact, fast, level, clip)
