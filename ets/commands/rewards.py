"""Rewards that a command line can name: ready-made ones, and functions of one's own."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ets.types import InputError

if TYPE_CHECKING:
    from ets.types import Reward

NAMES = ("self-consistency", "likelihood", "likelihood-per-token", "entropy", "self-certainty")
OF_CERTAINTY = ("entropy", "self-certainty")
"""Rewards that want `certainty=True`."""


def named_reward(name: str, extract: Callable[[str], Any] | None) -> Reward | None:
    """A reward by its name, `module:function` or `file.py:function`; None for self-consistency, which `extract` makes.

    Raises
    ------
    InputError
        For a name or a function that is not there, code that raises when it is read, or self-consistency without a
        reader of answers.
    """
    from ets import rewards

    if name == "self-consistency":
        if extract is None:
            raise InputError("self-consistency compares answers; add --extract with a pattern that finds them")
        return None
    ready: dict[str, Callable[[], Reward]] = {
        "likelihood": rewards.likelihood,
        "likelihood-per-token": partial(rewards.likelihood, per_token=True),
        "entropy": rewards.entropy,
        "self-certainty": rewards.self_certainty,
    }
    return ready[name]() if name in ready else rewards.as_reward(_function(name))


def pattern_extract(pattern: str) -> Callable[[str], str | None]:
    """A reader of answers: the first group of the last match, or the whole of it where the pattern has no group."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"extract is {pattern!r}, which is no regular expression: {error}") from None

    def extract(text: str) -> str | None:
        found = list(compiled.finditer(text))
        return found[-1].group(min(1, compiled.groups)) if found else None

    return extract


def _function(name: str) -> Any:
    """The function that `module:function` or `file.py:function` names; its module is executed."""
    place, _, attribute = name.rpartition(":")
    if not place:
        raise InputError(f"the reward is {name!r}; give {', '.join(NAMES)}, module:function or file.py:function")
    try:
        module = _file_module(Path(place).expanduser()) if place.endswith(".py") else _module(place)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"cannot read the reward {name!r}: {said}; give code that can be imported") from error
    if not hasattr(module, attribute):
        raise InputError(f"{place} has no {attribute!r}; name a function of (prompt, text) that is in it")
    return getattr(module, attribute)


def _module(name: str) -> Any:
    """A module that is installed, or lies where the command is run."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _file_module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses, for one, look their module up
    spec.loader.exec_module(module)
    return module
