"""The size of a method that costs a given amount."""

from __future__ import annotations

import math
from collections.abc import Callable

PILOTS = 8
"""The largest number of measurements."""
MOST = 16
"""The largest size, in multiples of the first guess."""


def size_for(share_of: Callable[[int], float], first: int) -> tuple[int, float]:
    """The size whose cost comes nearest to a budget, and its cost as a share of the budget.

    The secant method searches until two neighbouring sizes enclose the budget.

    Parameters
    ----------
    share_of : callable
        Measures the cost of a size as a share of the budget; the cost grows with the size.
    first : int
        A guess, at least 1.
    """
    low, high = (0, 0.0), (0, math.inf)
    size, most = first, MOST * first
    for _ in range(PILOTS):
        measured = (size, share_of(size))
        other = high if high[0] else low
        low, high = (measured, high) if measured[1] < 1 else (low, measured)
        if low[0] == most or (high[0] and high[0] - low[0] <= 1):
            break
        slope = (measured[1] - other[1]) / (measured[0] - other[0])
        reach = round(size + (1 - measured[1]) / slope) if slope > 0 else 4 * size
        size = min(max(reach, low[0] + 1), high[0] - 1 if high[0] else min(4 * size, most))
    return min((pair for pair in (low, high) if pair[0]), key=lambda pair: abs(1 - pair[1]))
