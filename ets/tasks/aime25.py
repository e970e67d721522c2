r"""AIME 2025: thirty competition problems, whose answers are whole numbers from 0 to 999.

An example row (invented, in the format of math-ai/aime25)::

    id:      0
    problem: Find the remainder when $3^{10}$ is divided by $1000$.
    answer:  49
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ets.tasks.aime24 import Aime24, share_right


class Aime25(Aime24):
    """The answers of AIME 2024, for the problems of 2025."""

    name = "aime25"
    lm_eval = "aime25"


def process_results(doc: Mapping[str, Any], results: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """For lm-eval: see `share_right`."""
    return share_right(Aime25(), doc, results)
