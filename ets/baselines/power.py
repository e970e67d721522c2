"""Power sampling: Metropolis-Hastings on p_ref^α by redrawing the ends of texts (Karan and Du, arXiv 2510.14901)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ets.randomness import Purpose, uniform
from ets.step import require_counts, require_positive, require_unweighed, require_variety, row_keys
from ets.types import Chain, Cost, Floats, Keys, Policy, State, Step, StepFn
from ets.walk import WalkPath, drawn_on


def power_sampling(*, alpha: float, moves: int) -> StepFn:
    """Draw from p_ref^α, normalised over complete texts, by Metropolis-Hastings moves.

    p_ref^α is p* for the reward log p_ref and λ = 1/(α - 1), the target of `one_step(likelihood(), lam=1 / (α - 1))`.
    Every guide step draws one more block from p_ref and then makes `moves` moves on the text x so far, of n guide
    steps. A move chooses a boundary j < n of x uniformly and redraws the text after x_j from p_ref, which gives x' with
    n' guide steps. By way of each j, x goes to x' with probability (1/n) p_ref(x' | x_j) A, so detailed balance on
    p_ref^α holds with

        A(x, x') = min(1, p_ref(x')^α p_ref(x | x_j) n / (p_ref(x)^α p_ref(x' | x_j) n'))
                 = min(1, [p_ref(x') / p_ref(x)]^(α - 1) · n / n'),

    because p_ref(x) = p_ref(x_j) p_ref(x | x_j).

    While x is open, a move stops at the boundary n, and its target is p_ref^α over the texts that are open there: a
    shorter complete text is not accepted. These stages only find a good first text. As soon as a block completes x, the
    step makes its moves over complete texts, on p_ref^α, and ends the chain. So the last moves leave p_ref^α invariant,
    for texts of any lengths, and the law tends to p_ref^α as `moves` grows. At α = 1 the law is p_ref with any number
    of moves.

    The paper redraws from any token on, from the model at temperature 1/α. This function redraws from guide boundaries
    on, from p_ref itself, which every policy can do, at the price of more rejections after long redraws. For masked
    diffusion p_ref is the law of paths: the power applies to the probability of the tokens and of their order of
    revelation, not to the probability of a text.

    A step's candidates `[1 + moves]` in the trace are the first text and the proposals of the moves. `log_rewards` are
    (α - 1) log p_ref. `log_weights` are the log-probabilities of acceptance (see `acceptance_rate`), no energies. A
    chain keeps the states at all boundaries until its end.

    Parameters
    ----------
    alpha : float
        α > 0; above 1 it sharpens p_ref.
    moves : int
        Per guide step, at least 1. For texts of I guide steps the draws cost as much as 1 + moves (I + 3) / 4 texts.

    Raises
    ------
    InputError
        For values out of range, and for a deterministic policy.
    """
    require_positive(alpha=alpha)
    require_counts(moves=moves)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, 1 + moves)
        before = [as_path(chain.state) for chain in chains]
        keys = row_keys(chains, Purpose.CANDIDATE)
        walks = [_Walk(*row) for row in drawn_on(policy, before, keys, lambda n, path: path.steps == before[n].steps)]
        keys, numbers = row_keys(chains, Purpose.ROLLOUT, moves), uniform(row_keys(chains, Purpose.CHOICE, moves, 2))
        for move in range(moves):
            _move(policy, walks, keys[:, move], numbers[:, move], alpha)
        return [walk.advanced(chain, alpha) for walk, chain in zip(walks, chains, strict=True)]

    return step


def acceptance_rate(trace: Sequence[Step]) -> float:
    """The expected share of accepted moves in a chain: the mean of their acceptance probabilities."""
    return float(np.mean([np.exp(step.log_weights[1:]) for step in trace]))


def as_path(state: State) -> WalkPath:
    """The state of a chain as a path; a policy's start state is a path without guide steps."""
    return state if isinstance(state, WalkPath) else WalkPath.start(state)


def log_acceptance(now: WalkPath, proposed: WalkPath, alpha: float) -> float:
    """log A(x, x'), see `power_sampling`; -inf where one text is complete and the other is not."""
    if proposed.done != now.done:
        return -math.inf
    log_ratio = proposed.texts[-1].logp - now.texts[-1].logp
    return min(0.0, (alpha - 1) * log_ratio + math.log(now.steps / proposed.steps))


class _Walk:
    """The moves of one chain in one guide step."""

    def __init__(self, path: WalkPath, costs: Sequence[Cost]) -> None:
        self.path, self.costs = path, list(costs)
        self.limit = math.inf if path.done else path.steps
        self.texts, self.log_acceptances, self.choice = [path.texts[-1]], [0.0], 0

    def judge(self, proposed: WalkPath, costs: Sequence[Cost], number: float, alpha: float) -> None:
        """Accept the proposed path if a uniform number is below its acceptance probability."""
        log_accepted = log_acceptance(self.path, proposed, alpha)
        self.texts.append(proposed.texts[-1])
        self.log_acceptances.append(log_accepted)
        self.costs += costs
        if number < math.exp(log_accepted):
            self.path, self.choice = proposed, len(self.texts) - 1

    def advanced(self, chain: Chain, alpha: float) -> Chain:
        log_rewards = np.array([[(alpha - 1) * text.logp] for text in self.texts])
        rollouts = tuple((text,) for text in self.texts)
        weights = np.array(self.log_acceptances)
        step = Step(tuple(self.texts), rollouts, log_rewards, weights, self.choice, Cost.total(self.costs))
        return chain.advance(self.path.states[-1] if self.path.done else self.path, step)


def _move(policy: Policy, walks: Sequence[_Walk], keys: Keys, numbers: Floats, alpha: float) -> None:
    """One move of every chain, by keys `[B]` and uniform numbers `[B, 2]` for the boundary and the acceptance."""
    cuts = [walk.path.cut(int(where * walk.path.steps)) for walk, where in zip(walks, numbers[:, 0], strict=True)]
    redrawn = drawn_on(policy, cuts, keys, lambda n, path: path.steps < walks[n].limit)
    for walk, (proposed, costs), number in zip(walks, redrawn, numbers[:, 1].tolist(), strict=True):
        walk.judge(proposed, costs, number, alpha)
