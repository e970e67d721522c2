"""A budget of tokens towards p* ∝ p_ref · exp(r/λ): a choice among texts, then moves that redraw the ends of texts.

    1  draw N texts                     x^n ~ p_ref, until a part `start` of the budget is spent
    2  choose x                         x^n with probability proportional to w(x^n) = exp(r(x^n) / λ)
    3  repeat cycles c = 1, 2, …, C     until the budget is spent; an unfinished cycle is void
    4      for each guide boundary t    from the first one that the budget is expected to pay for to the last one of x
    5          draw n suffixes          x' ~ p_ref(. | x up to t)
    6          propose one of them      with probability proportional to w(x')
    7          accept it as x           with probability min(1, S / (S - w(x') + w(x))), S = Σ w over the n fresh texts
    8      x_c = x
    9  return x_c                       for c uniform over the last half of the cycles

Line 7 is min(1, w(x') / w(x)) for n = 1. For a reward of prefixes (`ets.of_prefixes`) a particle filter takes the place
of lines 1 and 2. Shape letters: B chains, N texts, n tries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np

from ets.baselines.completions import keep_one
from ets.baselines.particles import particle_filter
from ets.randomness import Purpose, derive, uniform
from ets.step import (
    Scoring,
    as_reward,
    choice_uniforms,
    choose,
    reads_prefixes,
    require_counts,
    require_positive,
    require_unweighed,
    require_variety,
    row_keys,
    score,
)
from ets.types import Chain, Cost, Draw, Floats, InputError, Policy, Problem, Reward, State, Step, StepFn, Text, counted
from ets.walk import Lengths, Recorded, WalkPath, drawn_on, lengths_of

Drawn: TypeAlias = tuple[WalkPath, list[Cost]]
"""A complete text with the costs of its draws."""

START, START_OF_PREFIXES = 0.25, 0.5
"""The part of the budget before the moves, by docs/choosing.md: for a reward of complete texts, and of prefixes."""
FEWEST_PARTICLES = 6


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
    typical : float
        The mean tokens of the texts before the moves.
    reward : Reward
        r, with the pool of the first choice where r counts votes.
    cut : int, optional
        The guide boundary t of the next move; None where the last cycle has ended.
    ends : tuple of End
        The text before the moves, and the ends of the cycles so far.
    """

    path: WalkPath
    value: float
    spent: int
    typical: float
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
    """The budget of a chain in tokens, the part of it before the moves, and the tries of a move.

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

    def require_room(self, lengths: Lengths) -> None:
        """Raise `InputError` for a budget that does not pay for one text."""
        if self.budget < lengths.most:
            raise InputError(
                f"the budget is {counted(self.budget, 'token')}, and a text may have {lengths.most}; raise it, or "
                "lower max_length"
            )

    def particles(self, lengths: Lengths) -> int:
        """N of a particle filter that spends the part `start` at any lengths, or `FEWEST_PARTICLES` where they fit."""
        fitting = self.budget // lengths.most
        return max(int(self.start * self.budget / lengths.most), min(FEWEST_PARTICLES, fitting))

    def next_texts(self, pool: Sequence[Draw], lengths: Lengths) -> range:
        """The numbers of the next texts of the first choice: as many as are expected to spend its part.

        The budget pays for them at any lengths.
        """
        count, spent = len(pool), sum(draw.cost.generated for draw in pool)
        expected = spent / count if count else lengths.most
        wanted = max(int((self.start * self.budget - spent) / expected), int(not count))
        return range(count, count + min(wanted, (self.budget - spent) // lengths.most))

    def first_cut(self, spent: int, typical: float, lengths: Lengths) -> int | None:
        """The first boundary of a cycle that the rest of the budget pays for if texts have `typical` tokens."""
        rest, first = float(self.budget - spent), None
        for boundary in reversed(range(len(lengths.least))):
            rest -= self.tries * max(0.0, typical - lengths.least[boundary])
            if rest < 0:
                break
            first = boundary
        return first

    def pays(self, walk: Walk, path: WalkPath, lengths: Lengths) -> bool:
        """Whether the budget pays for the next guide step of a suffix after the walk's cut, at any length."""
        drawn = path.drawn[-1] - walk.path.drawn[walk.cut or 0]
        return drawn + lengths.next_step(path) <= (self.budget - walk.spent) // self.tries


def refined(reward: Scoring | Reward, *, lam: float, budget: int, start: float | None = None, tries: int = 1) -> StepFn:
    """A choice on a part of a budget of tokens, then suffix moves: samples of p* ∝ p_ref · exp(r/λ).

    The first step of a chain draws texts until the part `start` of the budget is spent, and chooses one in proportion
    to exp(r/λ). For a reward of prefixes (`ets.of_prefixes`) the first steps are those of
    `ets.baselines.particle_filter` instead. Every later step is a move: it cuts the text x at a guide boundary t,
    redraws the suffix from p_ref(. | x up to t), and accepts the new text x' with probability
    min(1, exp((r(x') - r(x)) / λ)). The cuts of a cycle are all boundaries of x, from the first to the last. The chain
    returns the text at the end of a cycle.

    A cycle leaves p* invariant. Proof for a move at a cut t: given the prefix z = x up to t, p* is proportional to
    p_ref(x | z) exp(r(x)/λ), the proposal is independent of x given z, and its density cancels all terms except
    exp((r(x') - r(x)) / λ) in the ratio of Metropolis and Hastings (1970). A text that ends before t is its own prefix,
    so a move at t keeps it, and the cycle leaves such moves out at no cost. With n tries the move is a choice among x
    and n fresh texts in proportion to their weights, Metropolised (Liu, 1996). So the total variation to p* never grows
    from cycle to cycle, and it tends to 0 if every text can follow any other.

    The budget ends a cycle that it does not pay for, and the tokens of this cycle are lost. A chain spends at most the
    budget.

    The number of cycles C depends on the lengths of the texts. The text at the end of the last cycle is therefore no
    sample of p*, however large the budget is: it is the text at which the tokens ran out, and long texts use more of
    them. The text at the end of a cycle that is uniform over the last half of the cycles has an error of order 1/C. The
    expected sum over the cycles of an indicator is E[C] p* up to a constant (Wald's identity for Markov chains), and C
    varies by the square root of its mean. Where all texts have one length, C is a constant, and the error of a walk
    from p* is 0. C is small in practice: a cycle costs the tokens of about half as many texts as x has guide steps. The
    error flatters a reward that rises with the length: in a measurement with 22 cycles the mean reward was
    0.136 ± 0.011 in place of 0.101 ± 0.005.

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
    start : float, optional
        The part of the budget before the moves: 0 is one text (or six particles), and 1 leaves the moves the rest of
        the last text. By default a quarter, and a half for a reward of prefixes.
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
    reward, prefixes = as_reward(reward), reads_prefixes(reward)
    plan = Plan(budget, (START_OF_PREFIXES if prefixes else START) if start is None else start, tries)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, 2)
        lengths = lengths_of(policy)
        plan.require_room(lengths)

        def begin(beginning: Sequence[Chain]) -> list[Chain]:  # lines 1 and 2
            if prefixes:
                first = particle_filter(reward, particles=plan.particles(lengths), lam=lam)
            else:
                first = first_choice(reward, lam, plan, lengths)
            begun = first(Recorded(policy), [_recorded(chain) for chain in beginning])
            return [_walking(chain, reward, plan, lengths) for chain in begun]

        return advanced(policy, chains, plan, lam, begin)

    return step


def advanced(
    policy: Policy, chains: Sequence[Chain], plan: Plan, lam: float, begin: Callable[[Sequence[Chain]], list[Chain]]
) -> list[Chain]:
    """The chains after a step: walks by `walk_on`, lines 3 to 9, and all others by `begin`."""
    walking = [chain for chain in chains if isinstance(chain.state, Walk)]
    others = [chain for chain in chains if not isinstance(chain.state, Walk)]
    on, begun = iter(walk_on(policy, walking, plan, lam)), iter(begin(others) if others else [])
    return [next(on if isinstance(chain.state, Walk) else begun) for chain in chains]


def first_choice(reward: Reward, lam: float, plan: Plan, lengths: Lengths) -> StepFn:
    """Lines 1 and 2, for paths: the texts of each chain, drawn together, and the choice among them."""

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        keys, pools = row_keys(chains, Purpose.COMPLETION), list[list[Draw]]([] for _ in chains)
        while rows := [(b, n) for b, pool in enumerate(pools) for n in plan.next_texts(pool, lengths)]:
            row_numbers = np.array([n for _, n in rows])
            drawn = policy.finish([chains[b].state for b, _ in rows], derive(keys[[b for b, _ in rows]], row_numbers))
            for (b, _), draw in zip(rows, drawn, strict=True):
                pools[b].append(draw)
        chosen = zip(chains, pools, choice_uniforms(chains), strict=True)
        return [keep_one(chain, pool, number, weigh) for chain, pool, number in chosen]

    def weigh(chain: Chain, texts: Sequence[Text]) -> tuple[Floats, Cost]:
        values, cost = score(_fixed(reward, chain, texts), lam, chain, [(text,) for text in texts])
        return values[:, 0], cost

    return step


def _fixed(reward: Reward, chain: Chain, texts: Sequence[Text]) -> Reward:
    """The reward as a function of the text: votes are those of the first choice."""
    return reward.fixed(chain.problem, texts) if isinstance(reward, Pooled) else reward


def _recorded(chain: Chain) -> Chain:
    """The chain with a path as its state, from the start state of a policy."""
    return chain if chain.trace else replace(chain, state=WalkPath.start(chain.state))


def _walking(chain: Chain, reward: Reward, plan: Plan, lengths: Lengths) -> Chain:
    """The chain at the start of its first cycle, once it has chosen a text."""
    if not isinstance(chain.state, WalkPath):
        return chain
    last = chain.trace[-1]
    value = float(last.log_rewards[last.choice, 0])
    spent = chain.cost.generated
    walk = Walk(chain.state, value, spent, spent / len(last.candidates), _fixed(reward, chain, last.candidates))
    return replace(chain, state=walk_from(walk, plan, lengths))


def walk_from(walk: Walk, plan: Plan, lengths: Lengths) -> Walk | State:
    """The walk at the start of its first cycle; the policy's state where the budget pays for none."""
    ready = _next_cycle(walk, plan, lengths)
    return walk.path.states[-1] if ready.cut is None else ready


def _next_cycle(walk: Walk, plan: Plan, lengths: Lengths) -> Walk:
    """The walk at the first cut of its next cycle; without a cut where the budget pays for no move of x."""
    first = plan.first_cut(walk.spent, walk.typical, lengths)
    ready = replace(walk, cut=first, ends=(*walk.ends, walk.end))
    possible = first is not None and first < walk.path.steps and plan.pays(ready, walk.path.cut(first), lengths)
    return ready if possible else replace(ready, cut=None)


def walk_on(policy: Policy, chains: Sequence[Chain], plan: Plan, lam: float) -> list[Chain]:
    """Lines 3 to 9 for chains whose states are walks: one move of each, drawn together, or the text that it returns."""
    walks: dict[int, Walk] = {b: chain.state for b, chain in enumerate(chains)}  # type: ignore[misc]
    lengths = lengths_of(policy)
    # line 5: x' ~ p_ref(. | x up to t), [B, n]
    keys, numbers = row_keys(chains, Purpose.CANDIDATE, plan.tries), uniform(row_keys(chains, Purpose.CHOICE, 2))
    going = [b for b, walk in walks.items() if walk.cut is not None]
    rows = [(b, walks[b].path.cut(walks[b].cut or 0)) for b in going for _ in range(plan.tries)]
    redrawn = iter(
        drawn_on(
            policy,
            [path for _, path in rows],
            keys[going].ravel(),
            lambda n, path: plan.pays(walks[rows[n][0]], path, lengths),
        )
    )
    fresh = {b: [next(redrawn) for _ in range(plan.tries)] for b in going}
    return [
        _moved(chain, fresh[b], numbers[b], plan, lengths, lam) if b in fresh else _returned(chain, numbers[b])
        for b, chain in enumerate(chains)
    ]


def _moved(chain: Chain, fresh: Sequence[Drawn], numbers: Floats, plan: Plan, lengths: Lengths, lam: float) -> Chain:
    walk: Walk = chain.state  # type: ignore[assignment]
    cost, cut = cost_of(fresh), walk.cut or 0
    if not all(path.done for path, _ in fresh):  # the budget is spent: the cycle is void
        void = record((walk.end.text,), np.array([walk.value]), 0, cost, cut)
        return chain.advance(replace(walk, cut=None, spent=walk.spent + cost.generated), void)
    texts = [path.texts[-1] for path, _ in fresh]
    values, reward_cost = score(walk.reward, lam, chain, [(text,) for text in texts])
    log_weights = np.array([walk.value, *values[:, 0]])
    # line 6: one of the fresh texts, in proportion to w
    proposed = 1 + choose(log_weights[1:], float(numbers[0]))
    # line 7: accept it with probability min(1, S / (S - w(x') + w(x)))
    choice = proposed if numbers[1] < math.exp(log_acceptance(log_weights, proposed)) else 0
    moved = replace(
        walk,
        path=fresh[choice - 1][0] if choice else walk.path,
        value=float(log_weights[choice]),
        spent=walk.spent + max(1, cost.generated),  # uniform diffusion may redraw a canvas without changing a token
        cut=cut + 1,
    )
    if cut + 1 >= moved.path.steps:  # line 8: the cycle ends, since x has no further boundary
        moved = _next_cycle(moved, plan, lengths)
    return chain.advance(moved, record((walk.end.text, *texts), log_weights, choice, cost + reward_cost, cut))


def _returned(chain: Chain, numbers: Floats) -> Chain:
    """Line 9: the text at the end of a cycle, uniform over the last half; the first text where no cycle has ended."""
    walk: Walk = chain.state  # type: ignore[assignment]
    first, *ends = walk.ends
    held = ends[len(ends) // 2 :] or [first]
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
