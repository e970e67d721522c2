"""Comparisons of sympy's expressions where math-verify's rounding to six decimals is too coarse or too strict."""

from __future__ import annotations

from typing import Any

RELATIVE = 5e-6
"""Relative error of a rounded decimal: 0.166667 equals 1/6, and .0000674 does not equal .0000672."""
DIGITS = 50
"""Precision of the numbers, in decimal digits."""
POINTS = 12
"""Number of points at which `agree_where_real` compares two expressions."""
ENOUGH = 3
"""Number of points at which both values must be real."""


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
