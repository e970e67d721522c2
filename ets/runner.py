"""Advance many chains together over one policy."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from ets.randomness import chain_key
from ets.step import require_counts, shared_out
from ets.types import Chain, Cost, InputError, Policy, Problem, State, StepFn


def run(
    policy: Policy,
    step: StepFn,
    problems: Iterable[Problem],
    *,
    width: int,
    seed: int,
    samples: int = 1,
    done: Container[tuple[str, int]] = (),
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Chain]:
    """Yield complete chains, while up to `width` chains advance together.

    Parameters
    ----------
    policy, step : Policy, StepFn
        `step(policy, chains)` advances chains by one guide step.
    problems : iterable of Problem
        The runner reads the next problem when a chain ends. Ids must be unique.
    width : int
        Chains that advance together. The random numbers do not depend on it, and the results only by rounding errors.
    seed : int
    samples : int
        Chains per problem, which share the start state.
    done : container of (problem id, sample)
        Chains to skip.
    clock : callable
        Returns seconds; `Cost.seconds` of a step is a difference of two of its values.

    Raises
    ------
    InputError
        For values out of range, or from `Policy.start` for an unsupported prompt.
    """
    require_counts(width=width, samples=samples)
    if not isinstance(seed, int):
        raise InputError(f"seed is {seed!r}; it must be a whole number")
    requests = ((problem, sample) for problem in distinct(problems) for sample in range(samples))
    waiting = (request for request in requests if (request[0].id, request[1]) not in done)
    return _advance(policy, step, waiting, width, seed, clock)


def distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Yield the problems; raise `InputError` at the second problem with the same id."""
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise InputError(
                f"two problems have the id {problem.id!r}; ids must be unique, since the keys are hashes of them"
            )
        seen.add(problem.id)
        yield problem


def _advance(
    policy: Policy,
    step: StepFn,
    waiting: Iterator[tuple[Problem, int]],
    width: int,
    seed: int,
    clock: Callable[[], float],
) -> Iterator[Chain]:
    active: list[Chain] = []
    starts: dict[str, State] = {}
    while True:
        fresh = list(islice(waiting, width - len(active)))
        starts = _start(policy, [problem for problem, _ in fresh], starts)
        active += [Chain(p, sample, chain_key(seed, p.id, sample), starts[p.id]) for p, sample in fresh]
        starts = {p.id: starts[p.id] for p, _ in fresh[-1:]} or starts  # only the last problem may have further samples
        if not active:
            return
        active = _timed(policy, step, active, clock)
        yield from (chain for chain in active if chain.state.done)
        active = [chain for chain in active if not chain.state.done]


def _start(policy: Policy, problems: Sequence[Problem], known: dict[str, State]) -> dict[str, State]:
    """Start states by problem id; the samples of a problem are consecutive, so only the first id may be known."""
    if not problems:
        return known
    kept = {id: state for id, state in known.items() if id == problems[0].id}
    new = list({problem.id: problem for problem in problems if problem.id not in kept}.values())
    return kept | dict(zip((problem.id for problem in new), policy.start(new), strict=True))


def _timed(policy: Policy, step: StepFn, chains: Sequence[Chain], clock: Callable[[], float]) -> list[Chain]:
    """Take a step, and split the seconds and forward passes between the chains by token positions."""
    before, begun = policy.ledger, clock()
    advanced = step(policy, chains)
    _require_advanced(advanced, chains)
    seconds, forwards = clock() - begun, policy.ledger.forwards - before.forwards
    return shared_out(advanced, Cost(forwards=forwards, seconds=seconds))


def _require_advanced(advanced: Any, chains: Sequence[Chain]) -> None:
    """Raise `InputError` unless a step function returned each chain with one more step."""
    good = isinstance(advanced, Sequence) and len(advanced) == len(chains)
    if not good or any(len(after.trace) <= len(before.trace) for after, before in zip(advanced, chains, strict=True)):
        raise InputError(
            f"the step function returned {type(advanced).__name__}; it must return the {len(chains)} chains that it "
            "got, in the same order, each advanced by `chain.advance(state, step)`"
        )
