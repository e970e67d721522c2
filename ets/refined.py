"""A budget of tokens towards p* ∝ p_ref · exp(r/λ): one step on a part of it, then moves that redraw the ends of texts.

    1  draw N texts                     x^n ~ p_ref, until a part `start` of the budget is spent
    2  choose x                         x^n with probability proportional to w(x^n) = exp(r(x^n) / λ)
    3  repeat cycles c = 1, 2, …, C     until the budget pays for no further cycle
    4      for each guide boundary t    from the first one that the budget pays for to the last one of x
    5          draw n suffixes          x' ~ p_ref(. | x up to t)
    6          propose one of them      with probability proportional to w(x')
    7          accept it as x           with probability min(1, S / (S - w(x') + w(x))), S = Σ w over the n fresh texts
    8      x_c = x
    9  return x_c                       for c uniform over the last half of the cycles

Line 7 is min(1, w(x') / w(x)) for n = 1. Shape letters: B chains, n tries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from ets.randomness import Purpose, derive, uniform
from ets.step import (
    Scoring,
    as_reward,
    choice_uniforms,
    choose,
    require_counts,
    require_positive,
    require_unweighed,
    require_variety,
    row_keys,
    score,
)
from ets.types import Chain, Cost, Floats, InputError, Policy, Problem, Reward, State, Step, StepFn, Text
from ets.walk import WalkPath, drawn_on, lengths_of

Drawn: TypeAlias = tuple[WalkPath, list[Cost]]
"""A complete text with the costs of its draws."""


@runtime_checkable
class Pooled(Protocol):
    """A reward of the answers in a pool, which `fixed` makes a function of the text."""

    def fixed(self, problem: Problem, texts: Sequence[Text]) -> Reward: ...


@dataclass(frozen=True)
class End:
    """x_c, the text at the end of a cycle, with r(x_c) / λ."""

    state: State
    text: Text
    value: float


@dataclass(frozen=True)
class Walk:
    """The state of a chain between two moves.

    Parameters
    ----------
    path : WalkPath
        The complete text x, with the states at its guide boundaries.
    value : float
        r(x) / λ.
    spent : int
        Tokens generated so far.
    reward : Reward
        r, with the pool of the first choice where r counts votes.
    cut : int, optional
        The guide boundary t of the next move; None where the last cycle has ended.
    ends : tuple of End
        The ends of the cycles so far.
    """

    path: WalkPath
    value: float
    spent: int
    reward: Reward
    cut: int | None = None
    ends: tuple[End, ...] = ()

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.path.tokens

    @property
    def text(self) -> str:
        return self.path.text

    @property
    def done(self) -> bool:
        """False: a chain that has ended holds the policy's state instead."""
        return False

    @property
    def end(self) -> End:
        return End(self.path.states[-1], self.path.texts[-1], self.value)


@dataclass(frozen=True)
class Plan:
    """The budget of a chain in tokens, the part of it for the first choice, and the tries of a move.

    Methods take the policy's `lengths`, see `ets.walk.lengths_of`.

    Raises
    ------
    InputError
        For values out of range.
    """

    budget: int
    start: float
    tries: int

    def __post_init__(self) -> None:
        require_counts(budget=self.budget, tries=self.tries)
        if not 0 <= self.start <= 1:
            raise InputError(f"start is {self.start!r}; it must be a share of the budget, from 0 to 1")

    def require_room(self, lengths: Sequence[int]) -> None:
        """Raise `InputError` for a budget that does not pay for one text."""
        if self.budget < lengths[-1]:
            raise InputError(
                f"the budget is {self.budget} tokens, and a text may have {lengths[-1]}; raise it, or lower max_length"
            )

    def next_texts(self, pool: Sequence[Drawn], lengths: Sequence[int]) -> range:
        """The numbers of the next texts of the first choice: as many as are expected to spend its part.

        The budget pays for them at any lengths.
        """
        count, spent = len(pool), sum(path.drawn[-1] for path, _ in pool)
        expected = spent / count if count else lengths[-1]
        wanted = max(int((self.start * self.budget - spent) / expected), int(not count))
        return range(count, count + min(wanted, (self.budget - spent) // lengths[-1]))

    def first_cut(self, spent: int, lengths: Sequence[int]) -> int | None:
        """The first boundary of a cycle that the rest of the budget pays for at any lengths; None without one."""
        rest, first = self.budget - spent, len(lengths) - 1
        for boundary in range(len(lengths) - 2, -1, -1):
            rest -= self.tries * (lengths[-1] - lengths[boundary])
            first = boundary if rest >= 0 else first
        return None if first == len(lengths) - 1 else first


def refined(reward: Scoring | Reward, *, lam: float, budget: int, start: float = 0.25, tries: int = 1) -> StepFn:
    """One step on a part of a budget of tokens, then suffix moves: samples of p* ∝ p_ref · exp(r/λ).

    The first step of a chain draws texts until the part `start` of the budget is spent, and chooses one in proportion
    to exp(r/λ). Every later step is a move: it cuts the text x at a guide boundary t, redraws the suffix from
    p_ref(. | x up to t), and accepts the new text x' with probability min(1, exp((r(x') - r(x)) / λ)). The cuts of a
    cycle are all boundaries of x, from the first to the last. The chain returns the text at the end of a cycle.

    A cycle leaves p* invariant. Proof for a move at a cut t: given the prefix z = x up to t, p* is proportional to
    p_ref(x | z) exp(r(x)/λ), the proposal is independent of x given z, and its density cancels all terms except
    exp((r(x') - r(x)) / λ) in the ratio of Metropolis and Hastings (1970). A text that ends before t is its own prefix,
    so a move at t keeps it, and the cycle leaves such moves out at no cost. With n tries the move is a choice among x
    and n fresh texts in proportion to their weights, Metropolised (Liu, 1996). So the total variation to p* never grows
    from cycle to cycle, and it tends to 0 if every text can follow any other.

    The number of cycles C depends on the lengths of the texts. The text at the end of the last cycle is therefore no
    sample of p*, however large the budget is: for example, C is larger where x was short. The text at the end of a
    cycle that is uniform over the last half of the cycles has an error of order 1/C, since the expected sum over the
    cycles of an indicator is E[C] p* up to a constant (Wald's identity for Markov chains). Where all texts have one
    length, C is a constant, and the error of a walk from p* is 0.

    `power_sampling` is the same walk with (α - 1) log p_ref in place of r/λ.

    The trace holds a `Step` for each move: candidate 0 is x, the others are the new texts, `log_rewards` are r/λ, `cut`
    is t, and `choice` is 0 where the move was rejected. The candidates of the last `Step` are the ends of the cycles.

    Parameters
    ----------
    reward : callable
        r, as in `ets.kernel.energy_guided`, of the text alone. A move scores the new texts. Of a reward that counts
        votes (`ets.rewards.majority`, `agreement_share`) the texts of the first choice are the pool: their votes fix
        the reward, and the moves target its p*.
    lam : float
        λ > 0, in units of the reward.
    budget : int
        The most tokens that a chain generates.
    start : float
        The part of the budget for the first choice, from 0 (one text) to 1 (`ets.baselines.one_step`).
    tries : int
        n, the suffixes of a move. One is best per token; a GPU draws n suffixes in about the time of one.

    Returns
    -------
    StepFn

    Raises
    ------
    InputError
        For values out of range, a deterministic policy, and a budget below the longest text of the policy.
    """
    require_positive(lam=lam)
    reward, plan = as_reward(reward), Plan(budget, start, tries)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, 2)
        plan.require_room(lengths_of(policy))
        walking = [chain for chain in chains if isinstance(chain.state, Walk)]
        fresh = [chain for chain in chains if not isinstance(chain.state, Walk)]
        on, begun = iter(walk_on(policy, walking, plan, lam)), iter(_begin(policy, fresh, plan, reward, lam))
        return [next(on if isinstance(chain.state, Walk) else begun) for chain in chains]

    return step


def _begin(policy: Policy, chains: Sequence[Chain], plan: Plan, reward: Reward, lam: float) -> list[Chain]:
    """Lines 1 and 2: the texts of each chain, drawn together, and the choice among them."""
    lengths, keys = lengths_of(policy), row_keys(chains, Purpose.COMPLETION)
    pools: list[list[Drawn]] = [[] for _ in chains]
    while rows := [(b, n) for b, pool in enumerate(pools) for n in plan.next_texts(pool, lengths)]:
        paths = [WalkPath.start(chains[b].state) for b, _ in rows]
        found = drawn_on(policy, paths, derive(keys[[b for b, _ in rows]], np.array([n for _, n in rows])))
        for (b, _), each in zip(rows, found, strict=True):
            pools[b].append(each)
    begun = []
    for chain, pool, number in zip(chains, pools, choice_uniforms(chains), strict=True):
        texts = tuple(path.texts[-1] for path, _ in pool)
        fixed = reward.fixed(chain.problem, texts) if isinstance(reward, Pooled) else reward
        log_rewards, reward_cost = score(fixed, lam, chain, [(text,) for text in texts])
        choice, cost = choose(log_rewards[:, 0], number), cost_of(pool) + reward_cost
        walk = Walk(pool[choice][0], float(log_rewards[choice, 0]), cost.generated, fixed)
        begun.append(chain.advance(walk_from(walk, plan, lengths), record(texts, log_rewards[:, 0], choice, cost)))
    return begun


def walk_from(walk: Walk, plan: Plan, lengths: Sequence[int]) -> Walk | State:
    """The walk at the start of its first cycle; the policy's state where the budget pays for none."""
    ready = _next_cycle(walk, plan, lengths)
    return walk.path.states[-1] if ready.cut is None else ready


def _next_cycle(walk: Walk, plan: Plan, lengths: Sequence[int]) -> Walk:
    """The walk at the first cut of its next cycle; without a cut where the budget pays for no move of x."""
    first = plan.first_cut(walk.spent, lengths)
    return replace(walk, cut=first if first is not None and first < walk.path.steps else None)


def walk_on(policy: Policy, chains: Sequence[Chain], plan: Plan, lam: float) -> list[Chain]:
    """Lines 3 to 9 for chains whose states are walks: one move of each, drawn together, or the text that it returns."""
    walks: dict[int, Walk] = {b: chain.state for b, chain in enumerate(chains)}  # type: ignore[misc]
    going = [(b, walk.cut) for b, walk in walks.items() if walk.cut is not None]
    # line 5: x' ~ p_ref(. | x up to t), [B, n]
    keys, numbers = row_keys(chains, Purpose.CANDIDATE, plan.tries), uniform(row_keys(chains, Purpose.CHOICE, 2))
    cuts = [walks[b].path.cut(t) for b, t in going for _ in range(plan.tries)]
    redrawn = iter(drawn_on(policy, cuts, keys[[b for b, _ in going]].ravel()))
    fresh = {b: [next(redrawn) for _ in range(plan.tries)] for b, _ in going}
    lengths = lengths_of(policy)
    return [
        _moved(chain, fresh[b], numbers[b], plan, lengths, lam) if b in fresh else _returned(chain, numbers[b])
        for b, chain in enumerate(chains)
    ]


def _moved(
    chain: Chain,
    fresh: Sequence[Drawn],
    numbers: Floats,
    plan: Plan,
    lengths: Sequence[int],
    lam: float,
) -> Chain:
    walk: Walk = chain.state  # type: ignore[assignment]
    texts = [path.texts[-1] for path, _ in fresh]
    values, reward_cost = score(walk.reward, lam, chain, [(text,) for text in texts])
    log_weights = np.array([walk.value, *values[:, 0]])
    # line 6: one of the fresh texts, in proportion to w
    proposed = 1 + choose(log_weights[1:], float(numbers[0]))
    # line 7: accept it with probability min(1, S / (S - w(x') + w(x)))
    choice = proposed if numbers[1] < math.exp(log_acceptance(log_weights, proposed)) else 0
    cost, cut = cost_of(fresh) + reward_cost, walk.cut or 0
    moved = replace(
        walk,
        path=fresh[choice - 1][0] if choice else walk.path,
        value=float(log_weights[choice]),
        spent=walk.spent + max(1, cost.generated),  # uniform diffusion may redraw a canvas without changing a token
        cut=cut + 1,
    )
    if cut + 1 >= moved.path.steps:  # line 8: the cycle ends, since x has no further boundary
        moved = _next_cycle(replace(moved, ends=(*moved.ends, moved.end)), plan, lengths)
    return chain.advance(moved, record((walk.end.text, *texts), log_weights, choice, cost, cut))


def _returned(chain: Chain, numbers: Floats) -> Chain:
    """Line 9: the text at the end of a cycle, uniform over the last half."""
    walk: Walk = chain.state  # type: ignore[assignment]
    held = walk.ends[len(walk.ends) // 2 :]
    choice = int(numbers[0] * len(held))
    step = record([end.text for end in held], np.array([end.value for end in held]), choice, Cost())
    equal = np.where(np.isneginf(step.log_weights), -np.inf, 0.0)
    return chain.advance(held[choice].state, replace(step, log_weights=equal))


def record(texts: Sequence[Text], log_weights: Floats, choice: int, cost: Cost, cut: int | None = None) -> Step:
    """The step of a choice among complete texts by r/λ `[M]`."""
    return Step(
        tuple(texts), tuple((text,) for text in texts), log_weights[:, None], log_weights, choice, cost, cut=cut
    )


def cost_of(drawn: Sequence[Drawn]) -> Cost:
    return Cost.total(cost for _, costs in drawn for cost in costs)


def log_acceptance(log_weights: Floats, proposed: int) -> float:
    """The log-probability of going from text 0 to a proposed text, from r/λ of all texts `[1 + n]`.

    min(1, S / (S - w(x') + w(x))) with S = Σ w over the n fresh texts. Where all weights are zero it is 0: the walk
    goes on to texts that the reward may allow.
    """
    largest = float(np.max(log_weights))
    if math.isinf(largest):
        return 0.0
    weights = np.exp(log_weights - largest)
    fresh, rest = float(np.sum(weights[1:])), float(np.sum(np.delete(weights, proposed)))
    if fresh == 0.0:
        return -math.inf
    return min(0.0, math.log(fresh) - math.log(rest)) if rest else 0.0
