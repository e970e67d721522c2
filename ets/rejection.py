"""Exact samples of p* ∝ p_ref · exp(r/λ) by rejection, where the largest reward is known.

1  draw a text             x ~ p_ref
2  accept it               with probability exp((r(x) - highest) / λ); then x is an exact sample of p*
3  repeat lines 1 and 2    until `limit` tokens are spent
4  choose among all texts  with probability proportional to exp(r/λ), and go on by the moves of `ets.refined`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ets.randomness import Purpose, uniform
from ets.step import (
    RewardError,
    Scoring,
    as_reward,
    choose,
    is_number,
    require_counts,
    require_positive,
    require_unweighed,
    require_variety,
    row_keys,
    score,
)
from ets.suffix_moves import Drawn, Plan, Pooled, Walk, advanced, cost_of, record, walk_from
from ets.types import Chain, Floats, InputError, Policy, Reward, State, StepFn, counted
from ets.walk import WalkPath, drawn_on, lengths_of

ROUNDING = 1e-9
"""The relative excess over the highest reward that counts as rounding."""


@dataclass(frozen=True)
class Search:
    """The state of a chain that has accepted no text yet.

    Parameters
    ----------
    start : State
        The policy's start state.
    spent, texts : int
        Tokens and texts generated so far.
    kept : WalkPath, optional
        One of the texts so far, chosen in proportion to exp(r/λ).
    value, total : float
        Its r/λ, and the log of the sum of exp(r/λ) over all texts so far.
    """

    start: State
    spent: int = 0
    texts: int = 0
    kept: WalkPath | None = None
    value: float = -np.inf
    total: float = -np.inf

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.start.tokens if self.kept is None else self.kept.tokens

    @property
    def text(self) -> str:
        return self.start.text if self.kept is None else self.kept.text

    @property
    def done(self) -> bool:
        """False: a chain that has ended holds the policy's state instead."""
        return False

    def walk(self, reward: Reward, kept: WalkPath) -> Walk:
        """A walk from the kept text."""
        return Walk(kept, self.value, self.spent, self.spent / self.texts, reward)


def exact(
    reward: Scoring | Reward, *, lam: float, highest: float, limit: int, budget: int | None = None, tries: int = 1
) -> StepFn:
    """Exact samples of p* ∝ p_ref · exp(r/λ) by rejection, within a limit of tokens.

    A text is accepted with probability exp((r - highest)/λ), so the accepted text follows p* (von Neumann, 1951). On
    average exp(highest/λ) / Z texts are drawn, Z = E_ref[exp(r/λ)]. For example, with a verifier of 0 and 1 and λ = 0.1
    the expected number is about one over the share of texts that pass. The decision to draw further texts depends on
    the tokens of rejected texts alone, so a limit leaves the law of accepted texts as it is.

    Where the limit pays for no further text, the chain goes on as `ets.refined` from a text that is chosen among all
    rejected texts in proportion to exp(r/λ), and its result is no exact sample. `Chain.exact` distinguishes the two.

    Parameters
    ----------
    reward : callable
        r, as in `ets.kernel.energy_guided`, of the text alone.
    lam : float
        λ > 0, in units of the reward.
    highest : float
        An upper bound on r: the closer, the fewer texts are rejected.
    limit : int
        The most tokens of rejection.
    budget : int, optional
        The most tokens of a chain, at least `limit`; by default four times the limit.
    tries : int
        Texts that are drawn together, and suffixes of a move. Texts after an accepted one are drawn in vain.

    Returns
    -------
    StepFn

    Raises
    ------
    InputError
        For values out of range, a deterministic policy, and a limit that pays for no text.
    RewardError
        For a reward above `highest`.
    """
    require_positive(lam=lam)
    require_counts(limit=limit)
    if not is_number(highest):
        raise InputError(f"highest is {highest!r}; it must be a finite number, the largest reward of a text")
    plan = Plan(4 * limit if budget is None else budget, 0.0, tries)
    if plan.budget < limit:
        raise InputError(f"budget {budget} is less than limit {limit}; raise it, or lower the limit")
    reward = as_reward(reward)
    if isinstance(reward, Pooled):
        raise InputError("the reward counts votes, and rejection needs a reward of the text alone; use ets.refined")

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        require_unweighed(policy)
        require_variety(policy, 2)
        if limit < tries * lengths_of(policy).most:
            raise InputError(
                f"limit is {counted(limit, 'token')}, and {counted(tries, 'text')} may have up to "
                f"{lengths_of(policy).most} each; raise the limit"
            )

        def begin(searching: Sequence[Chain]) -> list[Chain]:
            return _search(policy, searching, plan, limit, reward, lam, highest)

        return advanced(policy, chains, plan, lam, begin)

    return step


def _search(
    policy: Policy, chains: Sequence[Chain], plan: Plan, limit: int, reward: Reward, lam: float, highest: float
) -> list[Chain]:
    """Lines 1 to 4: `tries` texts of each chain, drawn together."""
    searches = [chain.state if isinstance(chain.state, Search) else Search(chain.state) for chain in chains]
    # line 1: x ~ p_ref, [B, n]
    starts = [WalkPath.start(search.start) for search in searches for _ in range(plan.tries)]
    drawn = drawn_on(policy, starts, row_keys(chains, Purpose.COMPLETION, plan.tries).ravel())
    numbers, lengths = uniform(row_keys(chains, Purpose.CHOICE, plan.tries + 1)), lengths_of(policy)
    judged = []
    for b, (chain, search) in enumerate(zip(chains, searches, strict=True)):
        fresh = drawn[b * plan.tries : (b + 1) * plan.tries]
        after = _judged(chain, search, fresh, numbers[b], reward, lam, highest)
        state = after.state
        if isinstance(state, Search) and state.kept and limit - state.spent < plan.tries * lengths.most:
            after = replace(after, state=walk_from(state.walk(reward, state.kept), plan, lengths))
        judged.append(after)
    return judged


def _judged(
    chain: Chain, search: Search, fresh: Sequence[Drawn], numbers: Floats, reward: Reward, lam: float, highest: float
) -> Chain:
    texts = [path.texts[-1] for path, _ in fresh]
    scored, reward_cost = score(reward, lam, chain, [(text,) for text in texts])
    values, cost = scored[:, 0], cost_of(fresh) + reward_cost
    if np.max(values) - highest / lam > ROUNDING * max(1.0, abs(highest / lam)):
        raise RewardError(
            f"the reward gave {np.max(values) * lam:.6g} for {chain.problem.called}, and highest is {highest}; "
            "raise highest"
        )
    # line 2: accept the first text whose uniform number is below exp((r - highest) / λ)
    accepted = np.flatnonzero(numbers[:-1] < np.exp(values - highest / lam))
    if accepted.size:
        choice = int(accepted[0])
        return chain.advance(fresh[choice][0].states[-1], replace(record(texts, values, choice, cost), exact=True))
    # line 4: a text in proportion to exp(r/λ) among all so far
    choice = (
        choose(np.array([search.total, *values]), float(numbers[-1]))
        if search.kept
        else 1 + choose(values, float(numbers[-1]))
    )
    held = [search.kept.texts[-1], *texts] if search.kept else texts
    log_weights = np.array([search.value, *values]) if search.kept else values
    after = Search(
        search.start,
        search.spent + cost.generated,
        search.texts + len(texts),
        fresh[choice - 1][0] if choice else search.kept,
        float(values[choice - 1]) if choice else search.value,
        float(np.logaddexp.reduce([search.total, *values])),
    )
    return chain.advance(after, record(held, log_weights, choice if search.kept else choice - 1, cost))
