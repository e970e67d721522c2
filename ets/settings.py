"""Settings as fields of dataclasses, and what every front door makes of them.

A sampler, an engine or a method owns a frozen dataclass whose fields are made by `setting`. From these fields come the
flags of the command line, the keywords of `ets.sample` and their documentation, and the configuration of a results
folder. No front door lists a setting by hand.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any, TypeVar

from ets.types import InputError

T = TypeVar("T")
Read = Callable[[str], Any]
"""Parses the text of a flag; raises ValueError for text that it cannot parse."""


def setting(default: Any, text: str, read: Read = str, *, flags: tuple[str, ...] = ()) -> Any:
    """A dataclass field with its default, its help text, the parser of its flag, and further names of the flag."""
    return field(default=default, metadata={"text": text, "read": read, "flags": flags})


@dataclass(frozen=True)
class Guide:
    """The guide step: M, K and λ (Algorithm 1)."""

    candidates: int = setting(8, "M, candidates per guide step", int)
    rollouts: int = setting(3, "K, rollouts per candidate", int)
    lam: float = setting(0.1, "λ, in units of the reward", float)


@dataclass(frozen=True)
class Spending:
    """A budget of tokens in place of M, K and I (`ets.refined`), and the largest reward (`ets.exact`)."""

    tokens: int | None = setting(
        None,
        "spend at most so many generated tokens in place of M and K; moves redraw from multiples of block_size on",
        int,
    )
    highest: float | None = setting(None, "with tokens: the largest reward, for exact samples by rejection", float)


def fields_of(*owners: type) -> dict[str, Field[Any]]:
    """The settings of some dataclasses by name; dataclasses may share a setting."""
    return {each.name: each for owner in owners for each in fields(owner) if "text" in each.metadata}


def made(owner: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from the values that are its settings; further values are left to other dataclasses."""
    return owner(**{name: values[name] for name in fields_of(owner) if name in values})


def require_known(values: Iterable[str], owners: Iterable[type], further: Iterable[str] = ()) -> None:
    """Raise `InputError` for a name that is no setting of the dataclasses; the error suggests the nearest name."""
    known = [*fields_of(*owners), *further]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}"
            raise InputError(f"{name} is no setting here; {hint}")


def configuration(*owned: Any) -> dict[str, Any]:
    """The settings of some dataclasses' objects as JSON values."""
    return {name: list(v) if isinstance(v, tuple) else v for each in owned for name, v in asdict(each).items()}


def flag(name: str) -> str:
    """The flag of a setting: `block_size` becomes `--block-size`."""
    return f"--{name.replace('_', '-')}"


def add_flags(parser: Any, *owners: type, title: str = "", leave_out: Iterable[str] = ()) -> None:
    """Add a flag for each setting. A flag that is not given leaves no value, so that defaults stand in one place."""
    group = parser.add_argument_group(title) if title else parser
    known = {option for action in parser._actions for option in action.option_strings}
    for name, each in fields_of(*owners).items():
        if flag(name) in known or name in leave_out:
            continue
        names = [flag(name), *map(flag, each.metadata["flags"])]
        text = f"{each.metadata['text']}{_default_text(each)}".replace("%", "%%")
        reader = _reader(each.metadata["read"])
        group.add_argument(*names, dest=name, type=reader, default=argparse.SUPPRESS, help=text)


def _reader(read: Read) -> Read:
    def parsed(text: str) -> Any:
        try:
            return read(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parsed.__name__ = getattr(read, "__name__", "value")  # argparse names it: "invalid int value"
    return parsed


def _default_text(each: Field[Any]) -> str:
    if each.default in (MISSING, None, "") or "(default" in each.metadata["text"]:
        return ""
    return f" (default: {each.default})"


def documented(*owners: type) -> str:
    """The settings as the lines of a NumPy-style section: name, default, meaning."""
    lines = []
    for name, each in fields_of(*owners).items():
        lines.append(f"{name} : default {each.default!r}")
        lines += textwrap.wrap(each.metadata["text"], 110, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def with_settings(*owners: type) -> Callable[[T], T]:
    """Decorate a function of `**settings`: its signature and its docstring show the settings of the dataclasses.

    The docstring's line `{settings}` becomes the list of `documented`.
    """

    def decorate(function: T) -> T:
        own = inspect.signature(function)  # type: ignore[arg-type]
        first = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        kind = inspect.Parameter.KEYWORD_ONLY
        further = [inspect.Parameter(n, kind, default=each.default) for n, each in fields_of(*owners).items()]
        function.__signature__ = own.replace(parameters=[*first, *further])  # type: ignore[attr-defined]
        if function.__doc__:
            function.__doc__ = function.__doc__.replace(
                "{settings}", textwrap.indent(documented(*owners), "    ").strip()
            )
        return function

    return decorate


def number_or(kind: Callable[[str], Any], word: str, value: Any) -> Read:
    """A parser of numbers, and of one word that stands for a value: `none` for None."""

    def read(text: str) -> Any:
        try:
            return value if text == word else kind(text)
        except ValueError:
            raise InputError(f"{text!r} is no number; give a number, or {word}") from None

    return read


def boolean(text: str) -> bool:
    """True or False, by these words."""
    if text not in ("True", "False"):
        raise InputError(f"{text!r} is neither True nor False")
    return text == "True"


def bounds(text: str) -> tuple[float, float]:
    """Two numbers from `LOW,HIGH` or `LOW:HIGH`."""
    try:
        low, high = map(float, text.replace(":", ",").split(","))
    except ValueError:
        raise InputError(f"{text!r} is no pair of bounds; give the lowest and the highest, such as 0.1,10") from None
    return low, high


def numbers(text: str) -> tuple[float, ...]:
    """Numbers from `1,2.5,4`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{text!r} is no list of numbers; give them with commas, such as 1,2.5,4") from None
