"""The number of rows that fit into memory at once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from ets.step import require_positive
from ets.types import InputError

S = TypeVar("S")
T = TypeVar("T")


def cache_bytes(config: Any, itemsize: int) -> int:
    """Bytes of one token of one row in a cache: 2 · layers · key-value heads · head width · itemsize."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * itemsize)


class MemoryLimit:
    """Limit on the bytes of the rows that advance together; more rows are split into chunks.

    Parameters
    ----------
    gib : float, optional
        By default half of the free memory at the first use, after the model has been loaded.
    device : callable
        Returns the device of the memory; called at most once.
    one_by_one : bool
        Every chunk is a single item.

    Raises
    ------
    InputError
        For a limit that is not a finite number above zero.
    """

    def __init__(self, gib: float | None, device: Callable[[], torch.device], one_by_one: bool = False) -> None:
        if gib is not None:
            require_positive(memory_gib=gib)
        self._bytes = None if gib is None else gib * 2.0**30
        self._device, self._most = device, 1 if one_by_one else None
        self._halved = False

    def in_chunks(self, items: Sequence[S], bytes_each: float, work: Callable[[Sequence[S]], T]) -> list[T]:
        """The results of `work` on chunks that keep the limit; a chunk that runs out of memory is halved.

        Raises
        ------
        InputError
            If memory runs out with a single item.
        """
        results: list[T] = []
        at = 0
        while at < len(items):
            size = self.rows(len(items) - at, bytes_each)
            try:
                results.append(work(items[at : at + size]))
                at += size
                continue
            except torch.OutOfMemoryError as error:
                self.require_several(size, bytes_each, error)
            # After the except block nothing refers to the failed attempt, so CUDA can free the memory.
            self.halve(size * bytes_each)
        return results

    def rows(self, count: int, bytes_each: float, used: float = 0.0) -> int:
        """How many of `count` rows fit next to the bytes in use, at least one."""
        return self._most or max(1, min(count, int((self._limit() - used) / bytes_each)))

    def require_several(self, size: int, bytes_each: float, error: Exception) -> None:
        """Raise `InputError` where memory ran out with a single item."""
        if size == 1:
            raise InputError(
                f"out of memory with one row of about {bytes_each / 2**30:.2g} GiB; "
                f"shorten the prompt or the generation: {error}"
            ) from None

    def _limit(self) -> float:
        if self._bytes is None:
            self._bytes = free_bytes(self._device()) / 2
        return self._bytes

    def halve(self, used: float) -> None:
        """Lower the limit after running out of memory. The caller draws the rows again, with the same keys."""
        torch.cuda.empty_cache()
        if not self._halved:
            warnings.warn(f"out of memory at {used / 2**30:.2g} GiB; going on with fewer rows at once", stacklevel=2)
        self._halved, self._bytes = True, used / 2


def weights_device(model: Any) -> torch.device:
    """The device of the first weights that are in memory: accelerate leaves a meta tensor for weights on disk."""
    found = (weights.device for weights in model.parameters() if weights.device.type != "meta")
    return next(found, torch.device("cpu"))


def free_bytes(device: torch.device) -> float:
    """Bytes for new tensors. On a GPU, PyTorch's reserve counts as free.

    On a CPU, the processes of a launcher share the free memory equally; 4 GiB without /proc/meminfo.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = [int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable:")]
    return (found[0] if found else 4 * 2.0**30) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
