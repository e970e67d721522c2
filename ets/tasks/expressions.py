"""Mathematical answers that are equal when math-verify says so."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, TypeVar

from ets.types import InputError

SECONDS = 5
"""Time for reading an answer, and for a comparison: the processor's, so that a busy machine calls no answer wrong."""
LOADING_SECONDS = 600
"""Time for math-verify's first reading and comparison together, which load what they need."""
LONGEST = 400
"""Longer answers are compared as they are written."""

_SPACED = re.compile(r"(?<=\d)(?:\\[,;: !]|~|\{,\}|,\\!)(?=\d{3}(?!\d))")
_ORDINAL = re.compile(r"\^\{?(?:\\(?:text|mathrm|textrm)\s*)?\{?(?:st|nd|rd|th)\}{0,2}$")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_WRAPPED = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*[\d(][^{}]*)\}")
_BASE = re.compile(r"_\{?(\d+)\}?$")

T = TypeVar("T")


class Expression(str):
    r"""An answer in LaTeX. Two are equal if math-verify verifies each by the other: ``\frac12`` equals ``0.5``.

    Beyond math-verify, a set is never equal to a point or an interval, nor are numbers of different bases. All have
    one hash, so that a `Counter` groups equal ones. As verification rounds, equality is not quite transitive: among
    0.3333331, 1/3 and 0.3333329 the first to come decides. Plain strings are equal to what is written alike.
    """

    __slots__ = ()

    def __new__(cls, latex: str) -> Expression:
        return super().__new__(cls, normalised(latex))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Expression) or str.__eq__(self, other):
            return str.__eq__(self, other) is True
        return equal(*sorted((str(self), str(other))))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(Expression)


def require_math_verify() -> None:
    """Raise `InputError` if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise InputError("math-verify is not installed; install it with: pip install 'ets-sampling[benchmarks]'")


def normalised(latex: str) -> str:
    r"""Without what math-verify stumbles over: a full stop, thin spaces in numbers, ``\%``, ordinals, wrapping text.

    A percentage is its number, as in the dataset's answers, unless it is less than one percent.
    """
    latex = latex.strip().rstrip(".,;:").strip()
    latex = re.sub(r"^\$+(.*[^\\$])\$+$", r"\1", latex, flags=re.DOTALL).strip().rstrip(".,;:")
    latex = latex.replace("\\left", "").replace("\\right", "") if "arrow" not in latex else latex
    latex = _SPACED.sub("", latex)
    latex = latex if re.match(r"-?0?\.", latex) else re.sub(r"\s*\\?%$", "", latex)
    latex = _ORDINAL.sub("", latex)
    wrapped = _WRAPPED.fullmatch(latex)
    latex = wrapped.group(1).strip() if wrapped else latex
    repeating = _REPEATING.fullmatch(latex)
    return _as_fraction(*repeating.groups()) if repeating else latex


def _as_fraction(sign: str, whole: str, fixed: str, period: str) -> str:
    """A repeating decimal as a fraction."""
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"{sign}\frac{{{numerator}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


@lru_cache(2**16)
def equal(one: str, other: str) -> bool:
    """Whether each of two normalised answers verifies the other. A comparison that takes too long says no."""
    if {_kind(one), _kind(other)} == {"set", "row"} or len({*_BASE.findall(one), *_BASE.findall(other)}) > 1:
        return False
    left, right = _read(one), _read(other)
    return bool(left and right and _verified(left, right) and _verified(right, left))


def _kind(latex: str) -> str:
    r"""``\{1,2\}`` is a set; ``(1,2)`` and ``[1,2]`` are rows, be they points or intervals."""
    plain = latex.replace(" ", "")
    if plain.startswith("\\{") and plain.endswith("\\}"):
        return "set"
    return "row" if re.fullmatch(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", plain) else "other"


@lru_cache(2**16)
def _read(latex: str) -> tuple[Any, ...]:
    """math-verify's readings of an answer; none for one that takes too long to read or to compare with a number."""
    require_math_verify()
    from math_verify.errors import TimeoutException
    from sympy import Rational

    if len(latex) > LONGEST:
        return ()
    parse, _ = _math_verify()
    try:
        found = _limited(lambda limit: parse(rf"\boxed{{{latex}}}", parsing_timeout=limit, raise_on_error=True))
    except (Exception, TimeoutException):
        return ()
    return tuple(found) if _verified((Rational(7, 11),), tuple(found)) is not None else ()


def _verified(gold: tuple[Any, ...], answer: tuple[Any, ...]) -> bool | None:
    """math-verify's judgement; None if it takes too long."""
    from math_verify.errors import TimeoutException

    _, verify = _math_verify()
    try:
        options = {"allow_set_relation_comp": True, "raise_on_error": True}
        return _limited(lambda limit: verify(list(gold), list(answer), timeout_seconds=limit, **options))
    except TimeoutException:
        return None
    except Exception:  # what cannot be compared is not equal
        return False


@cache
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """math-verify's `parse` and `verify`, used once: the seconds that they take to load count for no answer."""
    from math_verify import parse, verify

    limit = _heard(LOADING_SECONDS)
    half = parse(r"\boxed{\frac{1}{2}}", parsing_timeout=limit, raise_on_error=True)
    verify(half, half, timeout_seconds=limit, raise_on_error=True)
    return parse, verify


def _limited(work: Callable[[int | None], T]) -> T:
    """What some work of math-verify's gives; its limit is of the clock, so it gets more while it was hardly run."""
    from math_verify.errors import TimeoutException

    limit = SECONDS
    while True:
        begun = time.thread_time()
        try:
            return work(_heard(limit))
        except TimeoutException:
            if time.thread_time() - begun >= 0.8 * SECONDS:
                raise
            limit *= 2


def _heard(limit: int) -> int | None:
    """math-verify's limit works by signals, which reach the main thread alone; elsewhere nothing interrupts it."""
    return limit if threading.current_thread() is threading.main_thread() else None
