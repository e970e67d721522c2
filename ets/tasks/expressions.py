"""Mathematical answers, compared by math-verify."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from functools import cache, lru_cache, partial
from importlib.util import find_spec
from typing import Any, TypeVar

from ets.tasks.latex import undecorated, without_blanks
from ets.types import not_installed

SECONDS = 5
"""Time for reading an answer, and for a comparison: the processor's, so a busy machine changes no result."""
LOADING_SECONDS = 600
"""Time for math-verify's first reading and comparison together, which import sympy."""
LONGEST = 400
"""Longer answers (in characters) are compared as strings."""
LONGEST_TEXT = 4000
"""Number of characters at the end of a text that `extracted` parses."""
RELATIVE = 5e-6
"""Relative error of a rounded decimal: 0.166667 equals 1/6, and .0000674 does not equal .0000672."""
DIGITS = 50
"""Precision of the numbers, in decimal digits."""
POINTS = 12
"""Number of points at which `agree_where_real` compares two expressions."""
ENOUGH = 3
"""Number of points at which both values must be real."""

_LABEL = re.compile(
    r"[\s$]*\\(?:text|mathrm)(?:bf|rm)?\s*\{\s*\(?[A-E]\)\s*\}(?:\\[ ,;:]|\\q?quad|~|\s)*(?=[^\s\\~$.,;:]|\\[a-z])"
)
_ORDINAL = re.compile(r"\^\{?(?:\\text\s*)?\{?(?:st|nd|rd|th)\}{0,2}$")
_REPEATING = re.compile(r"(-?)(\d*)\.(\d*)\\overline\{(\d+)\}")
_WRAPPED = re.compile(r"\\text\s*\{([^{}]*[\d(][^{}]*)\}")
_BASE = re.compile(r"_\{?(\d+)\}?$")
_BASE_IN_WORDS = re.compile(r"_\s*\{?\s*\\text\s*\{\s*([a-z]+)\s*\}\s*\}?$")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_BASES |= {"eleven": 11, "twelve": 12, "sixteen": 16}
_UNIT = r"\\text\s*\{(?!\s*(?:and|or|if|for|when|mod)\b)[^{}\d]+\}(?:\s*\^\s*\{?-?\d\}?)?"
_UNITS = re.compile(rf"(?<=[\d}})])\s*(?:/?\s*(?:{_UNIT}|\\d?frac\s*\{{\s*{_UNIT}\s*\}}\s*\{{\s*{_UNIT}\s*\}}))+$")
_SHORT_UNITS = "cm|mm|km|kg|mg|ft|in|mph|ml|mL|hr|sq|lb|lbs|oz|min|sec|deg"
_FUNCTIONS = "sin|cos|tan|cot|sec|csc|log|exp|max|min|gcd|lcm|mod|and|or|if|for|when|pi|sqrt|infinity"
_UNIT_WORD = rf"(?!(?:{_FUNCTIONS})\b)(?:(?:{_SHORT_UNITS})\b|(?=[a-z]*[aeiouy])[a-z]{{3,}})"
_UNITS_IN_WORDS = re.compile(rf"(?<=[\d}})])\s+{_UNIT_WORD}(?:(?:\s+|/){_UNIT_WORD}){{0,3}}(?:\^\{{?\d\}}?)?$")
_IMAGINARY = re.compile(r"(?<=\d)i(?![a-zA-Z])")  # math-verify takes `4i` for a real number times a variable
_DOTS = re.compile(r"\\(?:[lc]?dots[bcmo]?|cdots)(?![a-zA-Z])|\.\.\.|…")
_EQUALS = re.compile(r"(?<![<>!\\:])=")
_NAMED = re.compile(
    r"\s*[a-zA-Z]+(?:_\{?\w+\}?)?(?:\^\{?-?\d+\}?)?\s*\((?:[\d\s.,/{}+*^-]|\\(?:d?frac|sqrt|pi)(?![a-zA-Z]))+\)\s*=(?=\s*[^\s=])"
)
_TOTAL = re.compile(r"(?<==)\s*\d{1,3}(?:,\d{3})+\s*$")
_DECIMAL = r"-?(?:\d+\.?\d*|\.\d+)"
_EXPONENT = re.compile(rf"({_DECIMAL})[eE]([-+]?\d+)")
_MIXED = re.compile(r"(-?\d+) +(\d+)/(\d+)")
_OR = re.compile(r"\s*(?:\\text\s*\{\s*,?\s*or\s*\}|(?<![\\a-zA-Z]),?\s*or\b|\\lor(?![a-zA-Z])|\\vee(?![a-zA-Z]))\s*")
_ORDER = re.compile(r"[<>]|\\(?:le|ge|leq|geq|lt|gt|leqslant|geqslant)(?![a-zA-Z])")
_INTERVAL = re.compile(r"\s*[(\[][^()\[\]]*,[^()\[\]]*[)\]]\s*")

T = TypeVar("T")


class Expression(str):
    r"""An answer in LaTeX. Two are equal if math-verify verifies each by the other: ``\frac12`` equals ``0.5``.

    Beyond math-verify, a set is never equal to a point or an interval, nor are numbers of different bases. All
    expressions have the same hash, so a `Counter` groups equal expressions. Equality is symmetric, but not transitive:
    0.01234505 equals 0.0123450 and 0.0123451, which differ. A vote counts for the first equal group.
    A plain string equals an expression that is the same string.
    """

    __slots__ = ()

    def __new__(cls, latex: str) -> Expression:
        return super().__new__(cls, normalised_expression(latex))

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
        raise not_installed("math-verify", "benchmarks")


def normalised_expression(latex: str) -> str:
    r"""The answer without decoration, units, ``\%``, ordinals and wrapping text, which math-verify misreads.

    A percentage becomes a number, as in the dataset's answers, unless the number is less than one. ``\textbf{(C)}\ 9``,
    the choice of a test with its value, is the value.
    """
    label = _LABEL.match(latex)
    latex = without_blanks(undecorated(latex[label.end() :] if label else latex))
    latex = latex if re.match(r"-?0?\.", latex) else re.sub(r"\s*\\?%$", "", latex)
    latex = _ORDINAL.sub("", latex).replace(r"\varnothing", r"\emptyset")
    latex = _BASE_IN_WORDS.sub(_base, latex)
    wrapped = _WRAPPED.fullmatch(latex)
    latex = undecorated(wrapped.group(1)) if wrapped else latex
    latex = _UNITS_IN_WORDS.sub("", _UNITS.sub("", latex)).strip()
    latex = _EXPONENT.sub(r"\1\\times 10^{\2}", latex) if _EXPONENT.fullmatch(latex) else latex
    latex = _MIXED.sub(r"\1\\frac{\2}{\3}", latex) if _MIXED.fullmatch(latex) else latex
    repeating = _REPEATING.fullmatch(latex)
    return _as_fraction(*repeating.groups()) if repeating else latex


def _base(found: re.Match[str]) -> str:
    word = found.group(1)
    return f"_{{{_BASES[word]}}}" if word in _BASES else found.group()


def _as_fraction(sign: str, whole: str, fixed: str, period: str) -> str:
    """A repeating decimal as a fraction."""
    numerator = int(whole + fixed + period) - int(whole + fixed or "0")
    return rf"{sign}\frac{{{numerator}}}{{{'9' * len(period)}{'0' * len(fixed)}}}"


@lru_cache(2**16)
def equal(one: str, other: str) -> bool:
    """Whether each of two normalised answers verifies the other. False for a comparison that takes too long."""
    kinds = {_kind(one), _kind(other)}
    if kinds in ({"set", "row"}, {"list", "row"}) or len({*_BASE.findall(one), *_BASE.findall(other)}) > 1:
        return False
    if _DOTS.search(one) or _DOTS.search(other):  # math-verify would leave the dots out
        return _as_written(one) == _as_written(other)
    left, right = _meaning(one), _meaning(other)
    if not (left and right):
        return False
    if _verified(left, right) and _verified(right, left):
        return _in_time(lambda: numbers_differ(left[0], right[0])) is False
    return _in_time(lambda: agree_where_real(left[0], right[0])) is True


def _as_written(latex: str) -> str:
    return re.sub(r"\s", "", _DOTS.sub(r"\\dots", latex))


def _meaning(latex: str) -> tuple[Any, ...]:
    r"""math-verify's readings of the value of an answer.

    ``4+5=9``, ``f(3)=9`` and ``9=x`` come to 9, and a false equation like ``2+3=9`` stays an equation.
    ``x<2 \text{ or } x>3`` is a union of sets.
    """
    parts = _OR.split(latex)
    if len(parts) > 1 and all(map(_INTERVAL.fullmatch, parts)):
        return _read(r"\cup ".join(parts))
    if len(parts) > 1 and all(map(_ORDER.search, parts)):
        return _union([_read(part) for part in parts]) or _read(latex)
    latex = _TOTAL.sub(lambda number: number.group().replace(",", ""), latex)
    name = _NAMED.match(latex)
    if name:
        return _meaning(latex[name.end() :])
    sides = [side.strip() for side in _EQUALS.split(latex)]
    if len(sides) < 2 or "," in latex or not all(sides):
        return _read(latex)
    if len(sides) == 2 and re.fullmatch(r"[a-zA-Z]", sides[1]) and re.fullmatch(_DECIMAL, sides[0]):
        return _read(sides[0])
    left = [_read(side) for side in sides[:-1]]
    right = _read(sides[-1])
    if right and all(side and _numeric(side[0]) and _verified(side, right) for side in left):
        return right if all(_in_time(partial(numbers_differ, side[0], right[0])) is False for side in left) else ()
    return _read(latex)


def _union(readings: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The union of the sets that relations describe, or () if a relation describes no set."""
    from sympy import Union

    found = _in_time(lambda: Union(*(reading[0].as_set() for reading in readings)))
    return () if found is None else (found,)


def _numeric(reading: Any) -> bool:
    from sympy import Expr

    return isinstance(reading, Expr) and not reading.free_symbols


def _kind(latex: str) -> str:
    r"""``\{1,2\}`` is a set; ``(1,2)`` and ``[1,2]`` are rows (points or intervals); ``1,2`` is a list."""
    plain = latex.replace(" ", "")
    if plain.startswith("\\{") and plain.endswith("\\}"):
        return "set"
    if re.fullmatch(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]", plain):
        return "row"
    return "list" if re.fullmatch(r"[^()\[\]=<>]+(?:,[^()\[\]=<>]+)+", plain) else "other"


@lru_cache(2**16)
def _read(latex: str) -> tuple[Any, ...]:
    """math-verify's readings of an answer, or () if parsing or a comparison with a number takes too long."""
    require_math_verify()
    from math_verify.errors import TimeoutException
    from sympy import Rational

    if len(latex) > LONGEST:
        return ()
    parse, _ = _math_verify()
    latex = _IMAGINARY.sub(" i", latex)
    try:
        found = _limited(lambda limit: parse(rf"\boxed{{{latex}}}", parsing_timeout=limit, raise_on_error=True))
    except (Exception, TimeoutException):
        return ()
    return tuple(found) if _verified((Rational(7, 11),), tuple(found)) is not None else ()


def _verified(gold: tuple[Any, ...], answer: tuple[Any, ...]) -> bool | None:
    """math-verify's verdict, or None after a time-out."""
    from math_verify.errors import TimeoutException

    _, verify = _math_verify()
    try:
        options = {"allow_set_relation_comp": True, "raise_on_error": True}
        return _limited(lambda limit: verify(list(gold), list(answer), timeout_seconds=limit, **options))
    except TimeoutException:
        return None
    except Exception:  # expressions that cannot be compared are not equal
        return False


def extracted(text: str) -> str | None:
    """The LaTeX of the answer that math-verify extracts from a text. None without an answer or after a time-out."""
    require_math_verify()
    from math_verify.errors import TimeoutException

    parse, _ = _math_verify()
    tail = text[-LONGEST_TEXT:]
    try:
        found = _limited(lambda limit: parse(tail, parsing_timeout=limit, raise_on_error=True))
    except (Exception, TimeoutException):
        return None
    return found[-1] if len(found) > 1 and isinstance(found[-1], str) else None


@cache
def _math_verify() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """math-verify's `parse` and `verify`, called once, so loading time counts for no answer."""
    from math_verify import parse, verify

    limit = _main_thread_only(LOADING_SECONDS)
    half = parse(r"\boxed{\frac{1}{2}}", parsing_timeout=limit, raise_on_error=True)
    verify(half, half, timeout_seconds=limit, raise_on_error=True)
    return parse, verify


def _in_time(work: Callable[[], T]) -> T | None:
    """Call a function of sympy's expressions. None after a time-out or an error of sympy."""
    from math_verify.errors import TimeoutException
    from math_verify.utils import timeout

    try:
        return _limited(lambda limit: timeout(timeout_seconds=limit)(work)())
    except (Exception, TimeoutException):
        return None


def _limited(work: Callable[[int | None], T]) -> T:
    """Call math-verify with a limit in processor time: double the wall-clock limit while the thread hardly ran."""
    from math_verify.errors import TimeoutException

    limit = SECONDS
    while True:
        begun = time.thread_time()
        try:
            return work(_main_thread_only(limit))
        except TimeoutException:
            if time.thread_time() - begun >= 0.8 * SECONDS:
                raise
            limit *= 2


def _main_thread_only(limit: int) -> int | None:
    """The limit in the main thread, which receives math-verify's signals; None in other threads."""
    return limit if threading.current_thread() is threading.main_thread() else None


def numbers_differ(one: Any, other: Any) -> bool:
    """Whether two readings hold numbers that differ by more than `RELATIVE`, or at all where none is a decimal.

    Compares numbers, and the numbers in tuples, sets, intervals and matrices of the same size. False for all else.
    """
    from sympy import Float

    try:
        left, right = _values(one), _values(other)
    except (TypeError, ValueError):  # 1/0 is no number
        return False
    if left is None or right is None or len(left) != len(right):
        return False
    decimal = bool(one.atoms(Float) or other.atoms(Float))
    return any(
        not _close(a, b, RELATIVE if decimal else 10.0 ** (10 - DIGITS)) for a, b in zip(left, right, strict=True)
    )


def _close(one: Any, other: Any, relative: float) -> bool:
    if one == other or one.is_infinite or other.is_infinite:
        return bool(one == other)
    return bool(abs(one - other) <= relative * max(abs(one), abs(other)))


def _values(reading: Any) -> list[Any] | None:
    """The numbers in a reading, in order (a set's are sorted), or None if a part is no number."""
    from sympy import Expr, FiniteSet, Interval, MatrixBase, Tuple, nan

    if isinstance(reading, MatrixBase):
        parts = list(reading.flat())
    elif isinstance(reading, Interval):
        parts = [reading.start, reading.end]
    elif isinstance(reading, Tuple | FiniteSet):
        parts = list(reading.args)
    else:
        parts = [reading]
    if not all(isinstance(part, Expr) and not part.free_symbols for part in parts):
        return None
    values = [part.evalf(DIGITS) for part in parts]
    if any(not value.is_number or value is nan for value in values):
        return None
    return sorted(values, key=_place) if isinstance(reading, FiniteSet) else values


def _place(value: Any) -> tuple[float, float]:
    return complex(value).real, complex(value).imag


def agree_where_real(one: Any, other: Any) -> bool:
    r"""Whether two expressions with roots have the same value wherever both are real.

    ``\sqrt{1/n}`` and ``1/\sqrt{n}`` do; ``\sqrt{x^2}`` and ``x`` do not, as both are real at -1.
    """
    from sympy import Expr, Pow

    if not all(
        isinstance(each, Expr) and any(not power.exp.is_integer for power in each.atoms(Pow)) for each in (one, other)
    ):
        return False
    names = sorted(one.free_symbols, key=str)
    if not names or names != sorted(other.free_symbols, key=str):
        return False
    found = 0
    for place in range(POINTS):
        point = dict(zip(names, _numbers(place, len(names)), strict=True))
        left, right = (each.subs(point).evalf(DIGITS) for each in (one, other))
        if left.is_real and right.is_real:
            if not _close(left, right, 10.0 ** (10 - DIGITS)):
                return False
            found += 1
    return found >= ENOUGH


def _numbers(place: int, count: int) -> list[Any]:
    """Distinct fractions: all positive at even places, of both signs at odd places."""
    from sympy import Rational

    signs = [1 if place % 2 == 0 or (place // 2 + at) % 2 else -1 for at in range(count)]
    return [sign * Rational(3 * place + 5 * at + 2, 7) for at, sign in enumerate(signs)]
