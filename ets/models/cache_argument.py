"""The name of a model's argument for its cache."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

NAMES = ("cache", "past_key_values", "cache_params")
"""Models of transformers 5.24 have the first name; earlier releases and models with code of their own, the others."""


def cache_argument(module: Any) -> str | None:
    """The name of the cache among the arguments of a module's `forward`, or None."""
    return _argument(type(module).forward)


def as_argument(cache: Any, module: Any) -> dict[str, Any]:
    """The cache under its name, to be passed to a module."""
    return {cache_argument(module) or "past_key_values": cache}


@lru_cache
def _argument(forward: Callable[..., Any]) -> str | None:
    parameters = inspect.signature(forward).parameters
    return next((name for name in NAMES if name in parameters), None)
