"""The test that every policy must pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product, zip_longest

import numpy as np

from ets.randomness import derive
from ets.testing.judging import check_law
from ets.testing.laws import Law, Oracle
from ets.types import Cost, Draw, Keys, Policy, Problem, State


def check_policy(
    policy: Policy, oracle: Oracle, problems: Sequence[Problem], *, draws: int = 100_000, level: float = 1e-4
) -> None:
    """Raise AssertionError unless a policy keeps its contract.

    `extend` and `finish` draw from the exact reference law, from the start and from an unfinished state. The recorded
    log-probabilities are the logarithms of the exact law of paths. A row's draw depends on its state and its key only.
    Each row has a new `Draw` and a new `Text`, also where tokens are equal.
    The rows' costs add up to the ledger. `lengths` and `step_length`, where the policy has them, bound the generated
    tokens. The law tests share `level` equally; where several paths lead to an outcome, both outcomes and paths are
    tested.

    Parameters
    ----------
    policy : Policy
    oracle : Oracle
        The policy's exact laws, computed another way.
    problems : sequence of Problem
        At least two, with prompts of different lengths. The laws are tested on the first problem.
    draws : int
        Per law test; 100,000 draws detect a fault of 1% on 20 outcomes at level 1e-4.
    level : float
        A correct policy fails with this probability at most.
    """
    problem, start = problems[0], policy.start(problems[:1])[0]
    views = (oracle,) if oracle.by_path is oracle else (oracle, oracle.by_path)
    assert oracle.outcome(start) == oracle.root and start.text == "" and not start.done
    middle = _likely_unfinished(policy.extend([start] * 64, _keys(64, 1)))
    states = ((start, 0.0), (middle.state, middle.text.logp))
    for number, ((state, so_far), method) in enumerate(product(states, ("extend", "finish"))):
        drawn = getattr(policy, method)([state] * draws, _keys(draws, 2 + number))
        for view in views:
            law, what = getattr(view, f"{method}_law")(problem, view.outcome(state)), f"{method} from {state.tokens}"
            check_law((view.outcome(draw.state) for draw in drawn), law, level=level / 4 / len(views), what=what)
        _check_log_probabilities(drawn, oracle.by_path, law, so_far, what)
    _check_independence(policy, oracle.by_path, problems)
    _check_identity(policy, start)
    _check_costs(policy, problems)
    if hasattr(policy, "lengths"):
        _check_lengths(policy, policy.lengths, problems)


def _keys(count: int, salt: int) -> Keys:
    return derive(np.arange(count, dtype=np.uint64), salt)


def _likely_unfinished(draws: Sequence[Draw]) -> Draw:
    unfinished = [draw for draw in draws if not draw.state.done]
    assert unfinished, "no extension is unfinished: choose a smaller block or a longer max_length"
    commonest = Counter(draw.state.tokens for draw in unfinished).most_common(1)[0][0]
    return next(draw for draw in unfinished if draw.state.tokens == commonest)


def _check_log_probabilities(draws: Sequence[Draw], oracle: Oracle, law: Law, so_far: float, what: str) -> None:
    """Checks `Draw.logp`, and `Text.logp` given the text's log-probability `so_far` before the call."""
    for outcome, draw in {oracle.outcome(draw.state): draw for draw in draws}.items():
        state, text, expected = draw.state, draw.text, np.log(law[outcome])
        assert text.tokens == state.tokens and text.done == state.done and text.text == state.text
        assert abs(draw.logp - expected) < 1e-4, f"{what}: logp {draw.logp} for {outcome}, {expected} expected"
        assert abs(text.logp - so_far - expected) < 1e-4, f"{what}: the text's logp {text.logp} is not since the prompt"


def _check_independence(policy: Policy, oracle: Oracle, problems: Sequence[Problem]) -> None:
    """Rows of mixed problems in one call equal the same rows in one call each."""
    rows = [problem for problem in problems for _ in range(8)]
    keys = _keys(len(rows), 9)
    shared = {problem.id: state for problem, state in zip(problems, policy.start(problems), strict=True)}
    together = policy.finish([shared[problem.id] for problem in rows], keys)
    for problem, key, draw in zip(rows, keys, together, strict=True):
        alone = policy.finish(policy.start([problem]), np.array([key]))[0]
        assert oracle.outcome(alone.state) == oracle.outcome(draw.state) and alone.state.text == draw.state.text
        assert abs(alone.logp - draw.logp) < 1e-4


def _check_identity(policy: Policy, start: State) -> None:
    """Equal rows of a call, and of two calls, have different objects."""
    for method in (policy.extend, policy.finish):
        drawn = [draw for _ in range(2) for draw in method([start] * 2, np.zeros(2, np.uint64))]
        for kind, found in (("Draw", drawn), ("Text", [draw.text for draw in drawn])):
            assert len({*map(id, found)}) == 4, f"two rows share a {kind} object; votes and costs count objects"


def _check_costs(policy: Policy, problems: Sequence[Problem]) -> None:
    before = policy.ledger
    states = [state for state in policy.start(problems) for _ in range(4)]
    extended = policy.extend(states, _keys(len(states), 10))
    unfinished = [draw.state for draw in extended if not draw.state.done]
    finished = policy.finish(unfinished, _keys(len(unfinished), 11)) if unfinished else []
    rows, spent = Cost.total([draw.cost for draw in (*extended, *finished)]), policy.ledger - before
    for name in ("prompt", "candidate", "rollout", "scored", "generated", "row_forwards", "vocabulary"):
        assert getattr(rows, name) == getattr(spent, name), f"{name}: rows {rows}, ledger {spent}"
    steps = zip((*states, *unfinished), (*extended, *finished), strict=True)
    tokens = ((before.tokens, draw.state.tokens) for before, draw in steps)
    assert rows.generated == sum(old != new for pair in tokens for old, new in zip_longest(*pair))
    assert all(draw.state.done for draw in finished)


def _check_lengths(policy: Policy, lengths: Sequence[int], problems: Sequence[Problem]) -> None:
    """An open text has generated at least `lengths[t]` tokens at boundary t, and a complete one at most the last."""
    rows = [(state, 0) for state in policy.start(problems) for _ in range(8)]
    for boundary in range(len(lengths)):
        for state, spent in rows:
            assert not state.done or spent <= lengths[-1], f"a text of {spent} tokens, and lengths are {lengths}"
            enough = boundary < len(lengths) - 1 and spent >= lengths[boundary]
            assert state.done or enough, f"{spent} tokens at boundary {boundary}, and lengths are {lengths}"
        rows = [(state, spent) for state, spent in rows if not state.done]
        drawn = policy.extend([state for state, _ in rows], _keys(len(rows), 12 + boundary)) if rows else []
        most = getattr(policy, "step_length", lengths[-1])
        assert all(draw.cost.generated <= most for draw in drawn), f"a step of more tokens than step_length {most}"
        rows = [(draw.state, spent + draw.cost.generated) for draw, (_, spent) in zip(drawn, rows, strict=True)]
