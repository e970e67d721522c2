"""A verifier: is the answer right? For problems whose answer is known or can be checked."""

from __future__ import annotations

from collections.abc import Callable

from ets.rewards.lifting import Extract, TextReward, as_extract
from ets.types import Problem


def verifier(extract: Extract, check: Callable[[Problem, object], bool]) -> TextReward:
    """1 for a text whose extracted answer passes `check(problem, answer)`, 0 for others and for no answer.

    `extract` takes a text, or a problem and a text. The reward is a fixed function of (problem, text), so the law
    p* ∝ p_ref · exp(r/λ) holds for it.
    """

    read = as_extract(extract)

    def judged(problem: Problem, text: str) -> float:
        answer = read(problem, text)
        return float(answer is not None and check(problem, answer))

    return TextReward(lambda problem, texts: [judged(problem, text) for text in texts])
