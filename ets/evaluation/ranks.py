"""The processes of one command, as `torchrun` or `accelerate launch` start them; they share its problems."""

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
"""A process waits so long for the slowest one."""
GRACE = 10.0
"""Seconds in which the launcher ends the other processes after the one that has told what is wrong."""

COPIED_BY = {
    "vllm": "--replicas (GEN_DP in the scripts, data_parallel_size in the paper's form)",
    "endpoint": "the server's own --data-parallel-size",
}
"""Engines that several processes would not share; what copies their model instead."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """A process's place among those of a command; by default it is alone.

    Parameters
    ----------
    rank, size : int
        Its number, from 0, and how many there are.
    store : torch.distributed.Store, optional
        What all of them reach while they live.
    """

    rank: int = 0
    size: int = 1
    store: Any = None

    @property
    def first(self) -> bool:
        """Whether it is the one that speaks for all, and whose journal is the run's."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Its own of some items: they are dealt out in turn."""
        return items[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank, once all have come here.

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
        """Until all have come here."""
        self.gather(None)

    def say(self, line: str, **options: Any) -> None:
        """Print, if it is the first."""
        if self.first:
            print(line, **options)

    @property
    def device(self) -> str | None:
        """Where its model is: on a GPU of its own, or on the CPU without any; None for a process that is alone.

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
    """This process's place, once all have joined; the launcher's environment variables tell it.

    Raises
    ------
    InputError
        If they tell one half.
    """
    if _alone():
        return ALONE
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(iter(rendezvous("env://")))
    except ValueError as error:
        raise InputError(f"WORLD_SIZE is set, but {error}; launch with torchrun, or unset WORLD_SIZE") from error
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    # Its threads must end before the interpreter does: one that wants the interpreter afterwards aborts the process.
    atexit.register(distributed.destroy_process_group)
    if _local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(_local_rank())
    if rank:  # the first one tells for all
        warnings.simplefilter("ignore")
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return Ranks(rank, size, store)


def require_shareable(engine: str, ranks: Ranks) -> None:
    """Raise `InputError` for several processes with an engine that has its own ways to share its work."""
    if ranks.size > 1 and engine in COPIED_BY:
        raise InputError(
            f"the engine {engine} takes one process, not {ranks.size}; for copies of the model, use {COPIED_BY[engine]}"
        )


def told_once(command: Callable[[], None]) -> Callable[[], None]:
    """The command, whose bad input or interruption one process tells, and the others end without a word."""

    def run() -> None:
        try:
            command()
        except (InputError, KeyboardInterrupt) as error:
            if _tells():
                raise
            interrupted = isinstance(error, KeyboardInterrupt)
            time.sleep(0 if interrupted else GRACE)  # a launcher ends all at the first end, which must be the teller's
            raise SystemExit(130 if interrupted else 2) from None

    return run


def _tells() -> bool:
    """Whether it is the first to ask."""
    try:
        return _alone() or join().store.add("told", 1) == 1
    except (InputError, RuntimeError):  # nobody can be asked
        return True


def _alone() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) < 2


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))
