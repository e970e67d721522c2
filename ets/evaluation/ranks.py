"""The processes of one command, started by `torchrun` or `accelerate launch`, which share the problems."""

from __future__ import annotations

import atexit
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from ets.types import InputError

PATIENCE = timedelta(days=30)
"""The longest wait for the slowest process."""
JOINING = timedelta(minutes=5)
"""The longest wait for the processes to start, which a launcher starts at once."""
CONNECTING = timedelta(minutes=1)
"""The longest wait for connections between processes that have started: one of them may end before it connects."""
GRACE = 10.0
"""Seconds in which the launcher ends the other processes after the process that has printed the error."""

COPIED_BY = {
    "vllm": "--replicas (GEN_DP in the scripts, data_parallel_size in the paper's form)",
    "endpoint": "the server's own --data-parallel-size",
}
"""By engine that several processes cannot share: the setting that makes copies of the model."""

T = TypeVar("T")


class NotJoinedError(InputError):
    """Raised in each process that has started, as none of them can reach the others."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among the processes of a command; by default a single process.

    Parameters
    ----------
    rank, size : int
        The number of this process, from 0, and the number of processes.
    store : torch.distributed.Store, optional
        A store that all processes reach.
    """

    rank: int = 0
    size: int = 1
    store: Any = None

    @property
    def first(self) -> bool:
        """Whether this process prints for all processes, and writes the journal of the run."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items of this process: items are dealt out in turn."""
        return items[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, once all processes have called this.

        Raises
        ------
        InputError
            If another process has ended.
        """
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise InputError(
                "another process of this command has ended; start it again, it goes on where it was interrupted"
            ) from error
        return values

    def wait(self) -> None:
        """Return once all processes have called this."""
        self.gather(None)

    def say(self, line: str, **options: Any) -> None:
        """Print in the first process."""
        if self.first:
            print(line, **options)

    @property
    def device(self) -> str | None:
        """The device of this process's model: one GPU for each process, or the CPU without a GPU; None if alone.

        Raises
        ------
        InputError
            For fewer GPUs than processes.
        """
        if self.size == 1:
            return None
        import torch

        count, local = torch.cuda.device_count(), _local_rank()
        if 0 < count <= local:
            raise InputError(f"{count} GPUs for {local + 1} or more processes on a machine; launch {count} on each")
        return f"cuda:{local}" if count else "cpu"


ALONE = Ranks()


@cache
def join() -> Ranks:
    """The place of this process, from the environment variables of the launcher, once all processes have joined.

    Raises
    ------
    InputError
        If a variable is missing.
    NotJoinedError
        If a process has not joined within `JOINING`, or ends before it has connected to the other processes.
    """
    if alone():
        return ALONE
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=JOINING)))
        store.set(f"joined-{rank}", "")
        store.wait([f"joined-{each}" for each in range(size)], JOINING)
        distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=CONNECTING)
        # The group's timeout holds for its connections and for its waits; PyTorch has no public way to change it.
        distributed.distributed_c10d._set_pg_timeout(PATIENCE)
    except ValueError as error:
        raise InputError(f"WORLD_SIZE is set, but {error}; launch with torchrun, or unset WORLD_SIZE") from error
    except RuntimeError as error:
        raise NotJoinedError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but a process has not started within "
            f"{JOINING.total_seconds():g} seconds, or has ended; start all of them again"
        ) from error
    # A thread that runs after the interpreter has ended aborts the process.
    atexit.register(distributed.destroy_process_group)
    if _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    if rank:  # the first process prints warnings for all
        warnings.simplefilter("ignore")
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return Ranks(rank, size, store)


def require_shareable(engine: str, ranks: Ranks) -> None:
    """Raise `InputError` for several processes with an engine that shares work in another way."""
    if ranks.size > 1 and engine in COPIED_BY:
        raise InputError(
            f"the engine {engine} takes one process, not {ranks.size}; for copies of the model, use {COPIED_BY[engine]}"
        )


def reported_once(command: Callable[[], None]) -> Callable[[], None]:
    """The command; one process raises its `InputError` or interruption, and the other processes end silently."""

    def run() -> None:
        try:
            command()
        except (InputError, OSError, MemoryError, KeyboardInterrupt) as error:
            if isinstance(error, NotJoinedError) or _reports():
                raise
            interrupted = isinstance(error, KeyboardInterrupt)
            time.sleep(0 if interrupted else GRACE)  # the launcher ends all processes at the first end: the reporter's
            raise SystemExit(130 if interrupted else 2) from None

    return run


def _reports() -> bool:
    """Whether this process is the first to ask."""
    try:
        return alone() or join().store.add("told", 1) == 1
    except (InputError, RuntimeError):  # no store can be reached
        return True


def alone() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) < 2


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
