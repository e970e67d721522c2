"""Groups of chains that share an engine: while a group waits for its slowest rollout, another group draws."""

from __future__ import annotations

import threading
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from queue import SimpleQueue
from typing import Protocol, TypeAlias, runtime_checkable

from ets.runner import distinct, run
from ets.step import require_counts
from ets.types import Chain, Policy, Problem, StepFn

Reported: TypeAlias = "SimpleQueue[Chain | BaseException | None]"
"""Reports of the threads: chains, an error, or None at the end of a thread."""


@runtime_checkable
class Interruptible(Protocol):
    """A policy whose draws another thread can interrupt."""

    def interrupt(self, thread: int) -> None: ...


@runtime_checkable
class Member(Protocol):
    """A policy in a joint batch, which waits until each policy in it draws, or has left."""

    def leave(self) -> None: ...


def run_in_groups(
    groups: Sequence[tuple[Policy, StepFn]],
    problems: Iterable[Problem],
    *,
    width: int,
    seed: int,
    samples: int = 1,
    done: Container[tuple[str, int]] = (),
) -> Iterator[Chain]:
    """Yield chains in the order in which they end, like `ets.runner.run`, from a thread per group.

    A reward runs in the thread of its group, while the engine serves the other groups. The steps under way share the
    seconds that pass equally, so that the seconds of all chains add up to the wall-clock time.

    Parameters
    ----------
    groups : sequence of (Policy, StepFn)
        One pair for each group, since threads cannot share policies or stateful step functions. The policies share a
        thread-safe engine, such as `ets.policies.autoregressive.vllm.VLLMEngine`.
    problems, seed, samples, done
        As for `run`. The chains of a problem stay in one group.
    width : int
        Chains that advance at once in all groups together, at least 1 per group.

    Raises
    ------
    InputError
        For the errors of `run`. The other groups then end after their current step, or within the step if the policy is
        `Interruptible`. All groups end when the caller closes the iterator.
    """
    require_counts(groups=len(groups), width=width, samples=samples)
    shared, found = _Shared(problems), SimpleQueue[Chain | BaseException | None]()

    def work(policy: Policy, step: StepFn) -> None:
        try:
            each = max(1, width // len(groups))
            chains = run(
                policy,
                shared.guarded(step),
                shared,
                width=each,
                seed=seed,
                samples=samples,
                done=done,
                clock=shared.clock,
            )
            for chain in chains:
                found.put(chain)
            found.put(None)
        except BaseException as error:
            found.put(error)
        finally:
            if isinstance(policy, Member):
                policy.leave()

    threads = [threading.Thread(target=work, args=group, daemon=True) for group in groups]
    for thread in threads:
        thread.start()
    try:
        yield from _until_all_end(found, len(threads))
    finally:
        shared.stopped = True
        for thread, (policy, _) in zip(threads, groups, strict=True):
            _end(thread, policy)


def _until_all_end(found: Reported, threads: int) -> Iterator[Chain]:
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
        thread.join(timeout=0.1)  # the thread may have begun another draw


class _Stopped(Exception):
    """Ends a thread after the caller has closed the iterator."""


class _Shared:
    """Problems that several threads take in turn, until `stopped` is set, and the clock of their steps."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self._problems, self._lock = distinct(problems), threading.Lock()
        self.stopped = False
        self._steps, self._shared, self._at = 0, 0.0, time.perf_counter()

    def clock(self, begun: int = 0) -> float:
        """Seconds, of which each counts as 1/n while n steps are under way; `begun` steps begin now."""
        with self._lock:
            now = time.perf_counter()
            self._shared += (now - self._at) / max(1, self._steps)
            self._at, self._steps = now, self._steps + begun
            return self._shared

    def __iter__(self) -> Iterator[Problem]:
        return self

    def __next__(self) -> Problem:
        with self._lock:
            return next(self._problems)

    def guarded(self, step: StepFn) -> StepFn:
        """The step function, counted by the clock, which raises once `stopped` is set."""

        def guarded(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
            if self.stopped:
                raise _Stopped
            self.clock(begun=1)
            try:
                return step(policy, chains)
            finally:
                self.clock(begun=-1)

        return guarded
