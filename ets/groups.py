"""Several groups of chains over one engine: while one waits for its slowest rollout, another one uses the engine."""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Protocol, TypeAlias, runtime_checkable

from ets.runner import distinct, run
from ets.step import require_counts
from ets.types import Chain, Policy, Problem, StepFn

Found: TypeAlias = "SimpleQueue[Chain | BaseException | None]"
"""What threads report: chains, an error, or that they have nothing more to do."""


@runtime_checkable
class Interruptible(Protocol):
    """A policy whose draws can be ended by another thread than the one that waits for them."""

    def interrupt(self, thread: int) -> None: ...


def run_in_groups(
    groups: Sequence[tuple[Policy, StepFn]],
    problems: Iterable[Problem],
    *,
    width: int,
    seed: int,
    samples: int = 1,
    done: Container[tuple[str, int]] = (),
) -> Iterator[Chain]:
    """Yield chains as they end, like `ets.runner.run`, from one thread per group.

    Rewards run in their group's thread, beside the engine. A step's seconds are those that its group waited: over all
    groups they add up to more than the clock's.

    Parameters
    ----------
    groups : sequence of (Policy, StepFn)
        For each group a policy and a step function of its own, since neither may be shared between threads. The
        policies draw from one engine that may, such as `ets.policies.autoregressive.vllm.VLLMEngine`.
    problems, seed, samples, done
        As for `run`. A problem's chains stay in one group.
    width : int
        Chains that are under way in all groups together, at least one in each.

    Raises
    ------
    InputError
        As `run` does; the other groups then end with the step that they are taking, or, if the policy is
        `Interruptible`, within it. So they do when nobody takes the chains any more.
    """
    require_counts(groups=len(groups), width=width, samples=samples)
    shared, found = _Shared(problems), SimpleQueue[Chain | BaseException | None]()

    def work(policy: Policy, step: StepFn) -> None:
        try:
            each = max(1, width // len(groups))
            chains = run(policy, shared.guarded(step), shared, width=each, seed=seed, samples=samples, done=done)
            for chain in chains:
                found.put(chain)
            found.put(None)
        except BaseException as error:
            found.put(error)

    threads = [threading.Thread(target=work, args=group, daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    try:
        yield from _until_all_end(found, len(threads))
    finally:
        shared.stopped = True
        for thread, (policy, _) in zip(threads, groups, strict=True):
            _end(thread, policy)


def _until_all_end(found: Found, threads: int) -> Iterator[Chain]:
    while threads:
        item = found.get()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            threads -= 1
        else:
            yield item


def _end(thread: threading.Thread, policy: Policy) -> None:
    while thread.is_alive():
        if isinstance(policy, Interruptible) and thread.ident is not None:
            policy.interrupt(thread.ident)
        thread.join(timeout=0.1)  # by then it may have begun another draw


class _Stopped(Exception):
    """Nobody waits for the chains any more."""


class _Shared:
    """Problems that several threads take from, until they are stopped."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._problems, self._lock = distinct(problems), threading.Lock()
        self.stopped = False

    def __iter__(self) -> Iterator[Problem]:
        return self

    def __next__(self) -> Problem:
        with self._lock:
            return next(self._problems)

    def guarded(self, step: StepFn) -> StepFn:
        """The step, unless stopped."""

        def guarded(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
            if self.stopped:
                raise _Stopped
            return step(policy, chains)

        return guarded
