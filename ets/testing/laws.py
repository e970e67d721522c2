"""Exact laws by enumeration: of a reference policy and of the optimal policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from ets.types import Floats, Problem

Law: TypeAlias = Mapping[Any, float]
"""Probabilities by outcome, such as the tuple of all drawn tokens."""
TokenPrefix: TypeAlias = tuple[int, ...]


class Oracle(Protocol):
    """The exact laws of a policy, computed without the policy."""

    @property
    def root(self) -> Any:
        """The outcome of an empty generation."""

    @property
    def by_path(self) -> Oracle:
        """The laws over paths of draws; the oracle itself if one path leads to each outcome."""

    def outcome(self, state: Any) -> Any: ...
    def extend_law(self, problem: Problem, outcome: Any) -> Law: ...
    def finish_law(self, problem: Problem, outcome: Any) -> Law: ...


@dataclass(frozen=True)
class AutoregressiveOracle:
    """The exact laws of an autoregressive policy, by enumeration. Outcomes are tuples of all drawn tokens.

    Parameters
    ----------
    next_token : callable
        `(problem, tokens so far) -> [V]` probabilities.
    ended : callable
        `(problem, tokens) -> bool`: true after an end token or a stop string.
    block_size, max_length : int
    """

    next_token: Callable[[Problem, TokenPrefix], Floats]
    ended: Callable[[Problem, TokenPrefix], bool]
    block_size: int
    max_length: int

    @property
    def root(self) -> TokenPrefix:
        return ()

    @property
    def by_path(self) -> AutoregressiveOracle:
        return self

    def outcome(self, state: Any) -> TokenPrefix:
        return state.tokens

    def extend_law(self, problem: Problem, outcome: TokenPrefix) -> Law:
        """One guide step from a prefix."""
        return self._law(problem, outcome, min(len(outcome) + self.block_size, self.max_length))

    def finish_law(self, problem: Problem, outcome: TokenPrefix) -> Law:
        """From a prefix to the end."""
        return self._law(problem, outcome, self.max_length)

    def _law(self, problem: Problem, tokens: TokenPrefix, length: int) -> Law:
        if len(tokens) >= length or self.ended(problem, tokens):
            return {tokens: 1.0}
        law: dict[TokenPrefix, float] = {}
        for token, p in enumerate(self.next_token(problem, tokens)):
            if p > 0:
                for outcome, q in self._law(problem, (*tokens, token), length).items():
                    law[outcome] = p * q
        return law


def optimal_law(reference: Law, reward: Callable[[Any], float], lam: float) -> Law:
    """p* ∝ p_ref · exp(r/λ) over the outcomes of a reference law."""
    weights = {outcome: p * np.exp(reward(outcome) / lam) for outcome, p in reference.items()}
    total = sum(weights.values())
    return {outcome: weight / total for outcome, weight in weights.items()}


def total_variation(law: Law, other: Law) -> float:
    """Half the sum of absolute differences."""
    return 0.5 * sum(abs(law.get(x, 0.0) - other.get(x, 0.0)) for x in {*law, *other})


def frequencies(outcomes: Iterable[Hashable]) -> Law:
    """The share of each outcome among the drawn outcomes."""
    counts = Counter(outcomes)
    return {outcome: n / counts.total() for outcome, n in counts.items()}
