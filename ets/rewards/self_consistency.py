"""Self-consistency: rewards that compare a rollout's answer with the answers of the other rollouts."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ets.rewards.lifting import Extract, ReadText, remembering
from ets.step import require_counts
from ets.types import Chain, InputError, Problem, Reward, Text

VotePool: TypeAlias = Literal["step", "chain"]
"""The rollouts that vote: of the current guide step, or of all guide steps of the chain so far."""

Answered: TypeAlias = Sequence[tuple[Hashable | None, Text]]
"""(answer, rollout) pairs of a pool in the order of (step, candidate, rollout); None is no answer."""


def votes(extract: ReadText, texts: Sequence[Text]) -> dict[Hashable, float]:
    """The votes for each answer: a text's vote is 1, or with a proposal its importance ratio over the largest ratio.

    Texts without an answer do not vote.
    """
    return _counted(_with_answers([(extract(text.text), text) for text in texts]))


def winner(extract: ReadText, texts: Sequence[Text], minimum: int = 1) -> Hashable | None:
    """The majority answer of `texts`; None if no text has an answer, or fewer than `minimum` texts give the winner.

    Among equal counts the answer that reached the count first in the order of `texts` wins: for a, b, b, a it is b.
    """
    return _winner([(extract(text.text), text) for text in texts], minimum)


def voters(steps: Iterable[Iterable[Sequence[Text]]]) -> list[Text]:
    """The voting rollouts of steps with cells `[M, K]`: each step's rollouts without the rollouts of earlier steps.

    A complete candidate fills its K cells and votes K times. A rollout that a kernel retains votes once.
    """
    known: set[int] = set()
    voting: list[Text] = []
    for rows in steps:
        new = [text for row in rows for text in row if id(text) not in known]
        known.update(map(id, new))
        voting += new
    return voting


def _with_answers(answered: Answered) -> Answered:
    return [(answer, text) for answer, text in answered if answer is not None]


def _weighed(answered: Answered) -> list[tuple[Hashable | None, float]]:
    """(answer, vote) pairs: the vote is the importance ratio over the largest ratio, which cannot overflow."""
    largest = max((text.log_ratio for _, text in answered), default=0.0)
    return [(answer, math.exp(text.log_ratio - largest)) for answer, text in answered if text.log_ratio > -math.inf]


def _counted(answered: Answered) -> dict[Hashable | None, float]:
    """The sum of the votes for each answer; None counts as an answer here."""
    counts: defaultdict[Hashable | None, float] = defaultdict(float)
    for answer, vote in _weighed(answered):
        counts[answer] += vote
    return dict(counts)


def _winner(answered: Answered, minimum: int) -> Hashable | None:
    """The answer that first reached the most votes; None if fewer than `minimum` texts give the answer."""
    counts: defaultdict[Hashable | None, float] = defaultdict(float)
    weighed = _weighed(_with_answers(answered))
    best: Hashable | None = None
    for answer, vote in weighed:
        counts[answer] += vote
        if best is None or counts[answer] > counts[best]:
            best = answer
    return best if _texts(weighed)[best] >= minimum else None


def _texts(weighed: Iterable[tuple[Hashable | None, float]]) -> Counter[Hashable | None]:
    """The number of texts with a positive vote for each answer."""
    return Counter(answer for answer, _ in weighed)


def majority(extract: Extract, *, pool: VotePool = "chain", minimum: int = 1) -> PooledReward:
    """The paper's reward: 1 for a rollout whose answer is the majority answer of the pool, else 0.

    r = 1[a(x_0) = â], where â is the answer with the most votes in the pool. A rollout's vote is 1, or with a proposal
    its (clipped) importance ratio. A complete candidate votes K times. Among equal counts the answer that reached the
    count first in the order of (step, candidate, rollout) wins. A rollout without an answer has no vote and the
    reward 0. At λ = 0.1 a rollout with the majority answer weighs e^10 times as much as any other.

    **At finite M and K** the reward is no fixed function of the text, because â is random. A guide step from x_t draws
    all M candidates and M·K rollouts, and then a candidate in proportion to mean_k exp(1[a_mk = â] / λ), â a function
    of all M·K answers (and of the answers of earlier steps). `tests/laws/voting.py` enumerates that law.

    **As M → ∞** a guide step draws x_s ∝ p_ref(x_s | x_t) · E[exp(1[a = â_t] / λ) | x_s]. Let
    π_t(a) = P_ref(answer a | x_t). With `pool="step"` â_t is the mode of π_t, with `pool="chain"` the mode of the mean
    of π_t' over the steps t' so far, where the mode is unique. In the first step â_t is a*, the mode of
    P_ref(answer | prompt). If â_t is a* on every path, as with one guide step, the law is p* ∝ p_ref · exp(r/λ) of the
    *fixed* reward r = 1[a(x_0) = a*]. Otherwise it differs. Example: π_0 is 60% a and 40% b, and x_1 has 90% b. The
    mean has 65% b, and the chain goes on towards b at any M.

    Parameters
    ----------
    extract : callable
        `text -> answer or None` or `(problem, text) -> answer or None`: a pure function, whose results are cached.
        Answers that are equal as keys of a dictionary (`==` and the same hash) vote together.
    pool : {"step", "chain"}
        The rollouts that vote: of this step, or of all steps of the chain so far (the default, as in the paper).
    minimum : int
        The least number of rollouts with the majority answer; below it every reward is 0. The authors' code for LLaDA
        uses 2. With a proposal the number counts all rollouts of positive ratio.

    Returns
    -------
    Reward
        With values in {0, 1}.

    Raises
    ------
    InputError
        For another pool, or a minimum below 1.

    References
    ----------
    Li et al., arXiv 2601.21484; the behaviour of the authors' code: docs/differences.md.
    """

    def judged(answered: Answered) -> Callable[[Hashable | None], float]:
        best = _winner(answered, minimum)
        values: dict[Hashable, float] = {} if best is None else {best: 1.0}  # equality as in the count, by key
        return lambda answer: values.get(answer, 0.0)

    return _pooled(extract, pool, minimum, judged)


def agreement_share(extract: Extract, *, pool: VotePool = "chain", minimum: int = 1) -> PooledReward:
    """The share of the pooled rollouts that agree with a rollout's answer; 0 for a rollout without an answer.

    At the same λ the reward is weaker than `majority`: answers with 60% and 40% of the votes differ by 0.2 here, and by
    1 there.

    The share is no fixed function of the text, so the law p* ∝ p_ref · exp(r/λ) does not apply. As M → ∞, the pool of a
    step draws x_s ∝ p_ref(x_s | x_t) · E[exp(π_t(a)/λ) | x_s], with a the rollout's answer and π_t(a) = P_ref(a | x_t).
    The pool of the chain replaces π_t by the mean of π_t' over the steps t' so far, weighted by their votes. A
    rollout's vote is as in `majority`; a rollout that a kernel retains votes in its first step alone. With a proposal
    the shares tend to the same π_t, but at finite M a rollout of large ratio may dominate the pool.

    Parameters
    ----------
    extract, pool
        As in `majority`.
    minimum : int
        The least number of rollouts with an answer of positive vote; the reward of rarer answers is 0.

    Returns
    -------
    Reward
        With values in [0, 1].

    Raises
    ------
    InputError
        For another pool, or a minimum below 1.
    """

    def judged(answered: Answered) -> Callable[[Hashable | None], float]:
        counts, given = _counted(answered), _texts(_weighed(answered))
        total = math.fsum(counts.values())
        shares = {a: count / total for a, count in counts.items() if a is not None and given[a] >= minimum}
        return lambda answer: shares.get(answer, 0.0)

    return _pooled(extract, pool, minimum, judged)


def _pooled(
    extract: Extract, pool: VotePool, minimum: int, judged: Callable[[Answered], Callable[[Hashable | None], float]]
) -> PooledReward:
    """A reward from `judged`, which maps the pooled answers to a function from an answer to its value."""
    if pool not in ("step", "chain"):
        raise InputError(f"pool is {pool!r}; choose 'step' or 'chain'")
    require_counts(minimum=minimum)
    return PooledReward(remembering(extract), pool, judged)


@dataclass(frozen=True)
class PooledReward:
    """A reward of the answers in a pool.

    Parameters
    ----------
    read : callable
        `(problem, text) -> answer or None`.
    pool : {"step", "chain"}
    judged : callable
        From the pooled answers to a function from an answer to its value.
    """

    read: Callable[[Problem, str], Hashable | None]
    pool: VotePool
    judged: Callable[[Answered], Callable[[Hashable | None], float]]

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        earlier = [step.rollouts for step in chain.trace] if self.pool == "chain" else []
        value = self._value(problem, voters([*earlier, [rollouts]]))
        return [value(self.read(problem, text.text)) for text in rollouts]

    def fixed(self, problem: Problem, texts: Sequence[Text]) -> Reward:
        """The reward with the votes of `texts` alone, a function of the text: what the moves of `ets.refined` need."""
        value = self._value(problem, texts)
        return lambda problem, rollouts, chain: [value(self.read(problem, text.text)) for text in rollouts]

    def _value(self, problem: Problem, texts: Sequence[Text]) -> Callable[[Hashable | None], float]:
        return self.judged([(self.read(problem, text.text), text) for text in texts])
