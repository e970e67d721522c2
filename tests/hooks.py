"""Watching what a network reads, for as long as a block of a test lasts: networks are shared between tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def hooked(module: torch.nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> Iterator[None]:
    """A hook before each forward pass of a module, and off it again at the end, however that comes."""
    handle = module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def what_is_read(model: torch.nn.Module) -> Iterator[list[tuple[int, int]]]:
    """The rows and columns of each forward pass of a language model."""
    seen: list[tuple[int, int]] = []

    def read(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))

    with hooked(model, read, with_kwargs=True):
        yield seen


def left_on(model: torch.nn.Module) -> set[tuple[str, str]]:
    """What may be left on a model: the names of its modules, each with the hook that it has or that it is training."""
    kinds = ("_forward_pre_hooks", "_forward_hooks", "training")
    return {(name, kind) for name, module in model.named_modules() for kind in kinds if getattr(module, kind)}
