"""From a model in any of its forms and the settings of a front door to a policy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeAlias

from ets.importance import ImportanceSampling
from ets.policies.autoregressive.server import Endpoint, endpoint_of
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.levels import target_of
from ets.policies.registry import (
    engine_named,
    fast_sampler_of,
    own_policy,
    policy_of,
    proposal_engine_of,
    proposal_of,
)
from ets.policies.settings import ServerResources, Weighing
from ets.settings import fields_of, made
from ets.types import InputError, Policy, one_line

Local: TypeAlias = str | Path | tuple[Any, Any] | Checkpoint
"""A model that transformers runs in this process."""
Model: TypeAlias = Local | VLLMEngine | Endpoint
"""One of these, the address of a server (http://…), or one that is served already, whose owner closes it."""
FAST = ("threshold", "factor", "cache", "refresh")
"""Settings that make a sampler of masked diffusion faster."""


@contextmanager
def in_use(model: Model | Policy, values: Mapping[str, Any]) -> Iterator[tuple[Model | Policy, dict[str, Any]]]:
    """The model and the settings of the policy for the time of a call.

    A server's address, as the model or as the setting `endpoint`, becomes an `Endpoint`, which is closed afterwards. A
    loaded pair is left as it was found.
    """
    served = isinstance(model, str) and model.startswith(("http://", "https://"))
    rest = dict(values)
    if served and "endpoint" in rest:
        raise InputError(f"the model is an address, {model}, and endpoint is {rest['endpoint']!r}; leave one out")
    if served or "endpoint" in rest:
        resources = {name: rest.pop(name) for name in fields_of(ServerResources) if name in rest}
        resources.setdefault("endpoint", model)
        checkpoint = None if served else checkpoint_of(model)  # type: ignore[arg-type]
        with endpoint_of(made(ServerResources, resources), checkpoint) as endpoint:
            yield endpoint, rest
    else:
        with lent(model):
            yield model, rest


def lent(model: Any) -> AbstractContextManager[None]:
    """`left_as_found` for the model of a loaded pair, and nothing for another model."""
    pair = isinstance(model, tuple) and len(model) == 2
    return left_as_found(model[0]) if pair else nullcontext()


@dataclass
class _Loan:
    """A model's state before the first of the calls that use it now."""

    training: list[tuple[Any, bool]]
    attention: str | None
    calls: int = 0


_LOANS: dict[int, _Loan] = {}
_LENDING = threading.Lock()


@contextmanager
def left_as_found(model: Any) -> Iterator[None]:
    """Restore a model's training mode and attention implementation, which a policy changes.

    Calls in several threads may use a model at once: the end of the last call restores the state before the first.
    """
    with _LENDING:
        if id(model) not in _LOANS:
            modules = model.modules() if hasattr(model, "modules") else ()
            attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
            _LOANS[id(model)] = _Loan([(module, module.training) for module in modules], attention)
        loan = _LOANS[id(model)]
        loan.calls += 1
    try:
        yield
    finally:
        with _LENDING:
            loan.calls -= 1
            if not loan.calls:
                del _LOANS[id(model)]
                for module, training in loan.training:
                    module.training = training
                if getattr(getattr(model, "config", None), "_attn_implementation", None) != loan.attention:
                    model.set_attn_implementation(loan.attention)


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
    weighing, checkpoint = with_engine(weighing), Checkpoint(model, dtype)
    first = policy_of(lambda: checkpoint, engine=engine, **values)
    running = getattr(first, "engine", None)
    shared = {} if running is None else fields_of(*engine_named(running.engine_name).resources)
    kept = {name: value for name, value in values.items() if name not in shared}

    def opened(law: Mapping[str, Any]) -> Policy:
        merged = {**kept, **law}
        return weighed_by(opened_policy(running or checkpoint, merged, weighing), merged, weighing)[0]

    return opened


def with_engine(weighing: Weighing) -> Weighing:
    """The same with the proposal's engine in place of its name and its settings, unless transformers runs it.

    Raises `InputError` as `proposal_engine_of` does.
    """
    engine: Any = proposal_engine_of(weighing, partial(checkpoint_of, weighing.proposal, "proposal"))  # type: ignore[arg-type]
    if engine is None:
        return weighing
    return replace(weighing, proposal=engine, proposal_engine=None, proposal_utilization=None)


@contextmanager
def proposal_in_use(weighing: Weighing) -> Iterator[Weighing]:
    """`with_engine` for the time of a call, which closes an engine that it has made; a loaded pair is left as found."""
    made_here = with_engine(weighing)
    engine: Any = made_here.proposal
    with closing(engine) if engine is not weighing.proposal else lent(engine):
        yield made_here


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
        ready = small if isinstance(small, VLLMEngine | Endpoint) else None
        opened = partial(checkpoint_of, ready.checkpoint if ready else small, "proposal")
        proposal = proposal_of(policy, opened, ready=ready, temperature=warmth, truncation=truncation)
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
    several = isinstance(model, tuple | list)
    shown = f"a {type(model).__name__} of {len(model)}" if several else one_line(repr(model))
    raise InputError(
        f"{name} is {shown}; pass a checkpoint's folder or name, a Checkpoint or a (model, tokenizer) pair "
        "(a VLLMEngine or an Endpoint may be the model or the proposal)"
    )


@lru_cache(maxsize=2)
def _last_checkpoint(name: str, dtype: str | None) -> Checkpoint:
    return Checkpoint(name, dtype)
