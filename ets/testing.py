"""Policies small enough to be enumerated, exact laws, and the tests that any new policy must pass.

A new policy is judged by `check_policy`, against an oracle that computes its laws some other way. A law test
says whether drawn outcomes follow an exact law, at a stated level: a correct sampler fails it with that
probability at most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeAlias

import numpy as np

from ets.randomness import derive, uniform
from ets.transition import require_counts, require_positive
from ets.types import Cost, Draw, Floats, InputError, Keys, Policy, Problem, State, Text

Law: TypeAlias = Mapping[Any, float]
"""Probabilities by outcome; an outcome is the tuple of all tokens drawn."""
Prefix: TypeAlias = tuple[int, ...]


# Exact laws ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AutoregressiveOracle:
    """The exact laws of an autoregressive policy, by enumeration.

    Parameters
    ----------
    next_token : callable
        `(problem, tokens so far) -> [V]` probabilities.
    ended : callable
        `(problem, tokens) -> bool`, beside the length: an end token or a stop string.
    block_size, max_length : int
    """

    next_token: Callable[[Problem, Prefix], Floats]
    ended: Callable[[Problem, Prefix], bool]
    block_size: int
    max_length: int

    def extend_law(self, problem: Problem, tokens: Prefix) -> Law:
        """One guide step from `tokens`."""
        return self._law(problem, tokens, min(len(tokens) + self.block_size, self.max_length))

    def finish_law(self, problem: Problem, tokens: Prefix) -> Law:
        """From `tokens` to the end."""
        return self._law(problem, tokens, self.max_length)

    def _law(self, problem: Problem, tokens: Prefix, length: int) -> Law:
        if len(tokens) >= length or self.ended(problem, tokens):
            return {tokens: 1.0}
        law: dict[Prefix, float] = {}
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
    counts = Counter(outcomes)
    return {outcome: n / counts.total() for outcome, n in counts.items()}


# Tests of a law -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What a law test found: p-values of the G-test and of the total-variation test, each at half the level."""

    p_g: float
    p_tv: float
    level: float
    impossible: frozenset[Hashable]

    @property
    def passed(self) -> bool:
        return not self.impossible and min(self.p_g, self.p_tv) >= self.level / 2


def judge_law(outcomes: Iterable[Hashable], law: Law, *, level: float = 1e-4, seed: int = 0) -> Verdict:
    """Whether drawn outcomes follow an exact law.

    Two statistics, each at half the level: G sees one wrong cell, total variation sees a fault spread over
    many. Cells with an expectation below 5 are pooled. Their distributions under the law are simulated, so
    the p-values are exact at any number of draws.
    """
    counts = Counter(outcomes)
    draws = counts.total()
    cells = sorted(law, key=lambda outcome: law[outcome], reverse=True)
    rare = [outcome for outcome in cells if law[outcome] * draws < 5]
    kept = cells[: len(cells) - len(rare)]
    observed = [counts[outcome] for outcome in kept]
    expected = [law[outcome] * draws for outcome in kept]
    if rare:
        observed.append(sum(counts[outcome] for outcome in rare))
        expected.append(sum(law[outcome] for outcome in rare) * draws)
    p_g, p_tv = _p_values(np.array(observed), np.array(expected), int(8 / level), seed)
    return Verdict(p_g, p_tv, level, frozenset(outcome for outcome in counts if law.get(outcome, 0.0) <= 0))


def _statistics(counts: Floats, expected: Floats) -> tuple[Floats, Floats]:
    """G and total variation (in draws) of counts `[..., cells]`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        g = 2 * np.sum(np.where(counts > 0, counts * np.log(counts / expected), 0.0), axis=-1)
    return g, 0.5 * np.sum(np.abs(counts - expected), axis=-1)


def _p_values(observed: Floats, expected: Floats, simulations: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    null = rng.multinomial(int(observed.sum()), expected / expected.sum(), size=simulations).astype(float)
    pairs = zip(_statistics(observed.astype(float), expected), _statistics(null, expected), strict=True)
    p_g, p_tv = ((1 + np.sum(simulated >= seen - 1e-9)) / (1 + simulations) for seen, simulated in pairs)
    return float(p_g), float(p_tv)


def check_law(outcomes: Iterable[Hashable], law: Law, *, level: float = 1e-4, what: str = "the draws") -> None:
    """Raise AssertionError if drawn outcomes do not follow an exact law (see `judge_law`)."""
    verdict = judge_law(outcomes, law, level=level)
    assert verdict.passed, f"{what} do not follow the exact law: {verdict}"


# One test for every policy ------------------------------------------------------------------------------


class Oracle(Protocol):
    """The exact laws of a policy, computed without it."""

    def extend_law(self, problem: Problem, tokens: Prefix) -> Law: ...
    def finish_law(self, problem: Problem, tokens: Prefix) -> Law: ...


def check_policy(
    policy: Policy, oracle: Oracle, problems: Sequence[Problem], *, draws: int = 100_000, level: float = 1e-4
) -> None:
    """Raise AssertionError unless a policy keeps its contract (laws 1, 2 and 4 of the design).

    `extend` and `finish`, from the start and from a state on the way, draw from the exact reference law;
    recorded log-probabilities are those of the exact law; a row's draw depends on its state and key only, not
    on the rows beside it; the rows' costs add up to the ledger. The law tests share `level` equally.

    Parameters
    ----------
    policy : Policy
    oracle : Oracle
        Its exact laws, computed some other way.
    problems : sequence of Problem
        At least two, with prompts of different lengths. The laws are tested on the first.
    draws : int
        Per law test; 100,000 see a fault of 1% on 20 outcomes at level 1e-4.
    level : float
        The probability at most that a correct policy fails.
    """
    problem, start = problems[0], policy.start(problems[:1])[0]
    assert start.tokens == () and start.text == "" and not start.done
    middle = _likely_unfinished(policy.extend([start] * 64, _keys(64, 1)))
    for number, (state, method, law_of) in enumerate(
        (state, method, law_of)
        for state in (start, middle)
        for method, law_of in ((policy.extend, oracle.extend_law), (policy.finish, oracle.finish_law))
    ):
        drawn = method([state] * draws, _keys(draws, 2 + number))
        law, name = law_of(problem, state.tokens), f"{method.__name__} from {state.tokens}"
        check_law((draw.state.tokens for draw in drawn), law, level=level / 4, what=name)
        _check_log_probabilities(drawn, law, name)
    _check_independence(policy, problems)
    _check_costs(policy, problems)


def _keys(count: int, salt: int) -> Keys:
    return derive(np.arange(count, dtype=np.uint64), salt)


def _likely_unfinished(draws: Sequence[Draw]) -> State:
    open_states = [draw.state for draw in draws if not draw.state.done]
    assert open_states, "no extension is unfinished: choose a smaller block or a longer max_length"
    commonest = Counter(state.tokens for state in open_states).most_common(1)[0][0]
    return next(state for state in open_states if state.tokens == commonest)


def _check_log_probabilities(draws: Sequence[Draw], law: Law, name: str) -> None:
    drawn = {draw.state.tokens: draw for draw in draws}
    for tokens, draw in drawn.items():
        assert draw.text.tokens == tokens and draw.text.done == draw.state.done and draw.text.text == draw.state.text
        assert abs(draw.logp - np.log(law[tokens])) < 1e-4, (
            f"{name}: logp {draw.logp} for {tokens}, {np.log(law[tokens])} expected"
        )


def _check_independence(policy: Policy, problems: Sequence[Problem]) -> None:
    """Rows drawn together, problems mixed, equal the rows drawn one by one from states of their own."""
    rows = [problem for problem in problems for _ in range(8)]
    keys = _keys(len(rows), 9)
    shared = {problem.id: state for problem, state in zip(problems, policy.start(problems), strict=True)}
    together = policy.finish([shared[problem.id] for problem in rows], keys)
    for problem, key, draw in zip(rows, keys, together, strict=True):
        alone = policy.finish(policy.start([problem]), np.array([key]))[0]
        assert alone.state.tokens == draw.state.tokens and alone.state.text == draw.state.text
        assert abs(alone.logp - draw.logp) < 1e-4


def _check_costs(policy: Policy, problems: Sequence[Problem]) -> None:
    before = policy.ledger
    states = [state for state in policy.start(problems) for _ in range(4)]
    extended = policy.extend(states, _keys(len(states), 10))
    unfinished = [draw.state for draw in extended if not draw.state.done]
    finished = policy.finish(unfinished, _keys(len(unfinished), 11)) if unfinished else []
    rows, spent = Cost.total([draw.cost for draw in (*extended, *finished)]), policy.ledger - before
    for name in ("prompt", "candidate", "rollout", "scored", "generated"):
        assert getattr(rows, name) == getattr(spent, name), f"{name}: rows {rows}, ledger {spent}"
    assert rows.generated == sum(len(d.state.tokens) for d in extended) + sum(
        len(f.state.tokens) - len(s.tokens) for f, s in zip(finished, unfinished, strict=True)
    )
    assert all(draw.state.done for draw in finished)


# A tabular autoregressive policy ------------------------------------------------------------------------

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

    @property
    def oracle(self) -> AutoregressiveOracle:
        """The exact laws."""
        return AutoregressiveOracle(
            self.next_token, lambda problem, tokens: END in tokens, self.block_size, self.max_length
        )

    def start(self, problems: Sequence[Problem]) -> list[State]:
        return [TabularState(problem, (), "", 0.0, False) for problem in problems]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.block_size, "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.max_length, "rollout")

    def _draw(self, states: Sequence[Any], keys: Keys, block: int, kind: str) -> list[Draw]:
        tokens, logps = [state.tokens for state in states], np.zeros(len(states))
        lengths = [min(len(prefix) + block, self.max_length) for prefix in tokens]
        rows = list(range(len(states)))
        while rows:
            contexts = [(states[n].problem.prompt, tokens[n]) for n in rows]
            number = {context: i for i, context in enumerate(dict.fromkeys(contexts))}
            table = np.stack([self._table(*context) for context in number])[[number[context] for context in contexts]]
            drawn = _pick_rows(table, uniform(keys[rows], np.array([len(tokens[n]) for n in rows])))
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
            text = "".join(chr(96 + token) for token in tokens if token != END)
            done = tokens[-1] == END or len(tokens) == self.max_length
            state = self._states[key] = TabularState(before.problem, tokens, text, before.logp + logp, done)
        count = len(tokens) - len(before.tokens)
        cost = Cost(candidate=count, generated=count) if kind == "candidate" else Cost(rollout=count, generated=count)
        return Draw(state, Text(tokens, state.text, state.logp, state.done), logp, cost)


def _tally(draws: Sequence[Draw]) -> list[Cost]:
    """The draws' costs, equal ones summed by multiplication: adding 100,000 objects one by one is slow."""
    return [
        Cost(candidate=c.candidate * n, rollout=c.rollout * n, generated=c.generated * n)
        for c, n in Counter(draw.cost for draw in draws).items()
    ]


def _pick_rows(probabilities: Floats, uniforms: Floats) -> Any:
    """`ets.weights.pick` for each row of `[rows, V]`, all entries positive."""
    cdf = np.cumsum(probabilities, axis=1)
    return np.minimum((cdf <= uniforms[:, None] * cdf[:, -1:]).sum(axis=1), probabilities.shape[1] - 1)
