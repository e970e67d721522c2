"""The one test that judges every policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ets.randomness import derive
from ets.testing.judging import check_law
from ets.testing.laws import Law, Oracle
from ets.types import Cost, Draw, Keys, Policy, Problem, State


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
