"""Policies given by a table, so small that everything about them can be enumerated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ets.randomness import uniform
from ets.step import require_counts, require_positive
from ets.testing.laws import AutoregressiveOracle, Prefix
from ets.types import Cost, Draw, Floats, Followed, InputError, Keys, Policy, Problem, Scored, State, Text

END = 0
"""The end token of the tabular policy; the others are letters."""


@dataclass(frozen=True, eq=False)
class TabularState:
    problem: Problem
    tokens: Prefix
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
        Tokens per guide step and in all: at most 6.
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
        self._states: dict[tuple[str, Prefix], TabularState] = {}

    def _row(self, prompt: str | Prefix, prefix: Prefix) -> Floats:
        name = prompt.encode() if isinstance(prompt, str) else prompt
        rng = np.random.default_rng([self.seed, len(name), *name, 10**6, *prefix])
        logits = self.concentration * rng.standard_normal(self.vocabulary) / self.temperature
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def next_token(self, problem: Problem, tokens: Prefix) -> Floats:
        """The exact next-token law `[V]`."""
        return self._table(problem.prompt, tokens)

    @staticmethod
    def spelled(tokens: Prefix) -> str:
        """The text of an outcome: letters, without the end token."""
        return "".join(chr(96 + token) for token in tokens if token != END)

    @property
    def oracle(self) -> AutoregressiveOracle:
        """The exact laws."""
        return AutoregressiveOracle(
            self.next_token, lambda problem, tokens: END in tokens, self.block_size, self.max_length
        )

    @property
    def deterministic(self) -> bool:
        return False

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [TabularState(problem, (), "", 0.0, False) for problem in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.block_size, "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.max_length, "rollout")

    def require_proposal(self, proposal: Policy) -> None:
        """Refuse what is no table of equally many tokens and the same lengths."""
        if not isinstance(proposal, TabularPolicy):
            raise InputError(f"a {type(proposal).__name__} has other states than a table; choose a TabularPolicy")
        for name in ("vocabulary", "max_length"):
            mine, other = getattr(self, name), getattr(proposal, name)
            if mine != other:
                raise InputError(f"{name} is {mine} here and {other} in the proposal; make them equal")

    def follow(self, own: Sequence[Any], foreign: Sequence[State]) -> list[Followed]:
        """Looked up; what a model would read is charged."""
        followed = []
        for before, after in zip(own, foreign, strict=True):
            new, logp = self._read(before, after)
            state = self._drawn(before, after.tokens, logp, "candidate").state
            followed.append(Followed(state, Cost(scored=0 if after.done else new)))
        self.ledger = Cost.total([self.ledger, *(row.cost for row in followed)])
        return followed

    def logp(self, starts: Sequence[State], ends: Sequence[State]) -> list[Scored]:
        """Looked up; a model would read all but the last token."""
        read = [self._read(*row) for row in zip(starts, ends, strict=True)]
        scored = [Scored(logp, Cost(scored=new - 1)) for new, logp in read]
        self.ledger = Cost.total([self.ledger, *(row.cost for row in scored)])
        return scored

    def _read(self, before: Any, after: State) -> tuple[int, float]:
        """How many tokens the second state has more than the first, and their log-probability."""
        begun, problem = len(before.tokens), before.problem
        if after.tokens[:begun] != before.tokens:
            raise InputError(f"the tokens {after.tokens} do not go on from {before.tokens}")
        steps = [(after.tokens[:n], after.tokens[n]) for n in range(begun, len(after.tokens))]
        return len(steps), float(sum(np.log(self.next_token(problem, prefix)[token]) for prefix, token in steps))

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The most probable token at each turn. (The table is of the tempered law: what it says is the model.)"""
        return self.beam(states, 1)

    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """Beam search by the sum of log-probabilities; one that keeps every prefix finds the most probable text."""
        require_counts(beams=beams)
        draws = [self._search(state, beams) for state in states]
        self.ledger = Cost.total([self.ledger, *(draw.cost for draw in draws)])
        return draws

    def _search(self, state: Any, beams: int) -> Draw:
        """Stops when what has ended cannot be beaten: a longer text is never more probable than its beginning."""
        running, ended, extended = [(0.0, state.tokens)], [(-np.inf, ())], 0
        while running and running[0][0] > max(ended)[0]:
            extended += len(running)
            longer = [
                (logp + float(np.log(p)), (*tokens, token))
                for logp, tokens in running
                for token, p in enumerate(self.next_token(state.problem, tokens))
            ]
            longer.sort(reverse=True)
            ended += [beam for beam in longer[:beams] if self._ended(beam[1])]
            running = [beam for beam in longer if not self._ended(beam[1])][:beams]
        logp, tokens = max(ended)
        return replace(self._drawn(state, tokens, logp, "rollout"), cost=Cost(rollout=extended, generated=extended))

    def _ended(self, tokens: Prefix) -> bool:
        return tokens[-1] == END or len(tokens) == self.max_length

    def _draw(self, states: Sequence[Any], keys: Keys, block: int, kind: str) -> list[Draw]:
        if any(state.done for state in states):
            raise InputError("a state has ended; draw from open states")
        tokens, logps = [state.tokens for state in states], np.zeros(len(states))
        lengths = [min(len(prefix) + block, self.max_length) for prefix in tokens]
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
        self.ledger = Cost.total([self.ledger, *_tally(draws)])
        return draws

    def _drawn(self, before: TabularState, tokens: Prefix, logp: float, kind: str) -> Draw:
        key = (before.problem.id, tokens)
        state = self._states.get(key)
        if state is None:
            text = self.spelled(tokens)
            state = self._states[key] = TabularState(
                before.problem, tokens, text, before.logp + logp, self._ended(tokens)
            )
        count = len(tokens) - len(before.tokens)
        cost = Cost(candidate=count, generated=count) if kind == "candidate" else Cost(rollout=count, generated=count)
        return Draw(state, Text(tokens, state.text, before.logp + logp, state.done), logp, cost)


def _tally(draws: Sequence[Draw]) -> list[Cost]:
    """The draws' costs, equal ones summed by multiplication: adding 100,000 objects one by one is slow."""
    return [
        Cost(candidate=c.candidate * n, rollout=c.rollout * n, generated=c.generated * n)
        for c, n in Counter(draw.cost for draw in draws).items()
    ]


def pick_rows(probabilities: Floats, uniforms: Floats) -> NDArray[np.int64]:
    """`ets.weights.pick` for each row of `[..., V]`, all entries positive."""
    cdf = np.cumsum(probabilities, axis=-1)
    return np.minimum((cdf <= uniforms[..., None] * cdf[..., -1:]).sum(axis=-1), probabilities.shape[-1] - 1)
