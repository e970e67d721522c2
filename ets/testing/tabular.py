"""An autoregressive policy given by a table, small enough for the enumeration of all its laws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ets.randomness import uniform
from ets.step import require_counts, require_positive
from ets.testing.laws import AutoregressiveOracle, TokenPrefix
from ets.types import Cost, Draw, Floats, InputError, Keys, Problem, State, Text

END = 0
"""The end token of the tabular policy; the other tokens are letters."""


@dataclass(frozen=True, eq=False)
class TabularState:
    problem: Problem
    tokens: TokenPrefix
    text: str
    logp: float
    done: bool


@dataclass
class TabularPolicy:
    """An autoregressive model given by a random table of next-token laws, one per (prompt, prefix).

    Parameters
    ----------
    vocabulary : int
        Tokens, the end token included: 2 to 6.
    block_size, max_length : int
        Tokens per guide step and per text: at most 6.
    temperature, concentration : float
        Logits are `concentration` times a standard normal, divided by `temperature`.
    seed : int
        Of the table.
    """

    vocabulary: int = 3
    block_size: int = 1
    max_length: int = 3
    temperature: float = 1.0
    concentration: float = 1.0
    seed: int = 0
    ledger: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        require_counts(block_size=self.block_size, max_length=self.max_length)
        require_positive(temperature=self.temperature, concentration=self.concentration)
        if not (2 <= self.vocabulary <= 6 and self.max_length <= 6):
            raise InputError(f"vocabulary {self.vocabulary}, max_length {self.max_length}: enumerable up to 6 and 6")
        self._table = cache(self._row)
        self._states: dict[tuple[str, TokenPrefix], TabularState] = {}

    def _row(self, prompt: str | TokenPrefix, prefix: TokenPrefix) -> Floats:
        name = prompt.encode() if isinstance(prompt, str) else prompt
        rng = np.random.default_rng([self.seed, len(name), *name, 10**6, *prefix])
        logits = self.concentration * rng.standard_normal(self.vocabulary) / self.temperature
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def next_token(self, problem: Problem, tokens: TokenPrefix) -> Floats:
        """The exact next-token law `[V]`."""
        return self._table(problem.prompt, tokens)

    @staticmethod
    def spelled(tokens: TokenPrefix) -> str:
        """The text of an outcome: letters, without the end token."""
        return "".join(chr(96 + token) for token in tokens if token != END)

    @property
    def oracle(self) -> AutoregressiveOracle:
        """The exact laws."""
        return AutoregressiveOracle(self.next_token, lambda _, tokens: END in tokens, self.block_size, self.max_length)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least tokens of an open text at each guide boundary, and the most of a complete text."""
        return (*range(0, self.max_length, self.block_size), self.max_length)

    @property
    def step_length(self) -> int:
        """The most tokens of a guide step."""
        return self.block_size

    @property
    def deterministic(self) -> bool:
        return False

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [TabularState(problem, (), "", 0.0, False) for problem in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.block_size, "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.max_length, "rollout")

    def _longest(self, problem: Problem) -> int:
        return min(self.max_length, problem.max_length or self.max_length)

    def _ended(self, tokens: TokenPrefix) -> bool:
        return tokens[-1] == END or len(tokens) == self.max_length

    def _draw(self, states: Sequence[Any], keys: Keys, block: int, kind: str) -> list[Draw]:
        if any(state.done for state in states):
            raise InputError("a state has ended; draw from open states")
        tokens, logps = [state.tokens for state in states], np.zeros(len(states))
        lengths = [min(len(state.tokens) + block, self._longest(state.problem)) for state in states]
        rows = list(range(len(states)))
        while rows:
            contexts = [(states[n].problem.prompt, tokens[n]) for n in rows]
            number = {context: i for i, context in enumerate(dict.fromkeys(contexts))}
            table = np.stack([self._table(*context) for context in number])[[number[context] for context in contexts]]
            drawn = pick_rows(table, uniform(keys[rows], np.array([len(tokens[n]) for n in rows])))
            logps[rows] += np.log(table[np.arange(len(rows)), drawn])
            for n, token in zip(rows, drawn.tolist(), strict=True):
                tokens[n] = (*tokens[n], token)
            rows = [n for n in rows if tokens[n][-1] != END and len(tokens[n]) < lengths[n]]
        draws = [self._drawn(*row, kind) for row in zip(states, tokens, logps.tolist(), strict=True)]
        self.ledger += total_cost(draws)
        return draws

    def _drawn(self, before: TabularState, tokens: TokenPrefix, logp: float, kind: str) -> Draw:
        place, total = (before.problem.id, tokens), before.logp + logp
        if place not in self._states:
            ended = self._ended(tokens) or len(tokens) == self._longest(before.problem)
            self._states[place] = TabularState(before.problem, tokens, self.spelled(tokens), total, ended)
        state = self._states[place]
        count = len(tokens) - len(before.tokens)
        text = Text(tokens, state.text, total, state.done)
        return Draw(state, text, logp, Cost(**{kind: count, "generated": count}))


def total_cost(rows: Iterable[Any]) -> Cost:
    """The sum of the rows' costs; equal costs are multiplied, since adding 100,000 objects is slow."""
    counts = Counter(row.cost for row in rows)
    return Cost.total(Cost(*(value * n for value in astuple(cost))) for cost, n in counts.items())


def pick_rows(probabilities: Floats, uniforms: Floats) -> NDArray[np.int64]:
    """`ets.weights.pick` for each row of `[..., V]`, all entries positive."""
    cdf = np.cumsum(probabilities, axis=-1)
    return np.minimum((cdf <= uniforms[..., None] * cdf[..., -1:]).sum(axis=-1), probabilities.shape[-1] - 1)
