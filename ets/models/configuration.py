"""Checks of the configurations of published checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ets.types import InputError


def require_fixed(config: Any, family: str, values: Mapping[str, Any]) -> None:
    """Raise `InputError` for a field that is set to another value than in every published checkpoint of a family."""
    for name, value in values.items():
        if (given := getattr(config, name, value)) is not None and given != value:
            raise InputError(f"this {family} configuration has {name} {given!r}; only {value!r} is supported")
