"""The data that flows through the house: problems, states, texts, steps, chains and costs.

Shape letters, used everywhere: B chains that advance together, M candidates per guide step, K rollouts per
candidate, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter, sub
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ets.thinking import THINKING, Tags

Floats: TypeAlias = NDArray[np.float64]
Keys: TypeAlias = NDArray[np.uint64]


Message: TypeAlias = Mapping[str, Any]
"""A turn of a conversation: `role` (system, user or assistant) and `content`."""


class InputError(ValueError):
    """Bad input: one line that names the value, the problem and the mend."""


def one_line(said: object) -> str:
    """What an error says, to stand within an `InputError`: without line breaks, and its first 200 characters."""
    return " ".join(str(said).split())[:200]


@dataclass(frozen=True)
class Problem:
    """What is asked.

    Parameters
    ----------
    id : str
        Unique in a run; all randomness of the problem's chains hangs on it.
    prompt : str or tuple of int
        Text, or token ids that are used as they are.
    stop : tuple of str
        Strings that end a generation as soon as they appear in it; they are cut off its text.
    doc : mapping
        Whatever a reward or a grader wants to know, for example the true answer.
    messages : tuple of Message
        The conversation that a chat template has written as `prompt`; no special token is added to that text. A task
        may give messages and an empty prompt: `ets.chat.ChatTemplate` then writes the prompt.
    thinking : (str, str), optional
        The tags around thinking sections, within which no stop string counts; None if it counts everywhere.

    Raises
    ------
    InputError
        For an id that is no text.
    """

    id: str
    prompt: str | tuple[int, ...]
    stop: tuple[str, ...] = ()
    doc: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    thinking: Tags | None = THINKING

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise InputError(f"the id of a problem is {self.id!r}; it must be text, such as {str(self.id)!r}")


class State(Protocol):
    """A partial generation `x_t`. The rest (caches, logits, paths) is the policy's own."""

    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def text(self) -> str: ...
    @property
    def done(self) -> bool: ...


@dataclass(frozen=True)
class Certainty:
    """How sure a model was where it drew: sums over the tokens drawn since the prompt.

    They are of the model's own distribution p there, untempered and untruncated, whatever was sampled. For masked
    diffusion, of each position when it was revealed, without the mask token.

    Parameters
    ----------
    tokens : int
        How many were drawn.
    entropy : float
        Of -Σ_v p_v log p_v, in nats.
    self_certainty : float
        Of KL(uniform ‖ p) = -1/V Σ_v log(V p_v), in nats (Kang et al., arXiv 2502.18581).
    """

    tokens: int = 0
    entropy: float = 0.0
    self_certainty: float = 0.0

    @property
    def mean_entropy(self) -> float:
        return self.entropy / self.tokens

    @property
    def mean_self_certainty(self) -> float:
        return self.self_certainty / self.tokens

    def __add__(self, other: Certainty) -> Certainty:
        sums = self.entropy + other.entropy, self.self_certainty + other.self_certainty
        return Certainty(self.tokens + other.tokens, *sums)


@dataclass(frozen=True)
class Text:
    """What the trace keeps of a state: never the state itself, so no cache outlives its step.

    Parameters
    ----------
    tokens : tuple of int
        Every token drawn since the prompt: the end token and those trimmed with a stop string included. For
        masked diffusion the whole canvas, the mask id where nothing has been revealed.
    text : str
        The decoded generation, without the end token and cut at the first stop string.
    logp : float
        Natural-log probability of `tokens` given the prompt, under the reference policy's sampled distribution. For
        masked diffusion that of the path: of the tokens and of the order in which they were revealed.
    done : bool
        Whether the generation has ended.
    log_ratio : float
        log p_ref - log q of all that a proposal q drew since the guide step began: 0 where nothing, -inf where the
        reference policy cannot draw it.
    certainty : Certainty, optional
        Where the policy records it, and has drawn every token itself.
    """

    tokens: tuple[int, ...]
    text: str
    logp: float
    done: bool
    log_ratio: float = 0.0
    certainty: Certainty | None = None


@dataclass(frozen=True)
class Cost:
    """What something cost. Costs add up.

    Parameters
    ----------
    prompt, candidate, rollout, scored : int
        Token positions that the model computed: for prompts, while drawing candidates, while completing
        them, and while scoring tokens that were drawn elsewhere.
    generated : int
        Tokens drawn.
    row_forwards, vocabulary : int
        For masked diffusion: rows that went through the model, and positions whose logits were computed. An
        autoregressive policy leaves them 0.
    forwards : float
        Forward passes; where several chains shared one, their shares by token positions.
    rewarded : int
        Texts that a reward was asked about; a complete candidate counts once, however often it votes.
    reward_seconds, seconds : float
        Wall-clock seconds in the reward, and in all. Shared seconds are split by token positions.
    """

    prompt: int = 0
    candidate: int = 0
    rollout: int = 0
    scored: int = 0
    generated: int = 0
    row_forwards: int = 0
    vocabulary: int = 0
    forwards: float = 0.0
    rewarded: int = 0
    reward_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def positions(self) -> int:
        """Token positions computed in all."""
        return self.prompt + self.candidate + self.rollout + self.scored

    def __add__(self, other: Cost) -> Cost:
        return Cost.total((self, other))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*map(sub, _columns(self), _columns(other)))

    @staticmethod
    def total(costs: Iterable[Cost]) -> Cost:
        return Cost(*map(sum, zip(*map(_columns, costs), strict=True)))


_columns: Callable[[Cost], tuple[Any, ...]] = attrgetter(*(f.name for f in fields(Cost)))


@dataclass(frozen=True)
class Draw:
    """What a policy returns for one row; lives within a step.

    Parameters
    ----------
    state : State
        Where the row has arrived.
    text : Text
        What the trace may keep of it.
    logp : float
        Natural-log probability of the tokens drawn in this call, given the state it began from.
    cost : Cost
        Positions and tokens of this row. Work that rows shared is charged to the first of them.
    """

    state: State
    text: Text
    logp: float
    cost: Cost


@dataclass(frozen=True, eq=False)
class Step:
    """One guide step of one chain.

    Parameters
    ----------
    candidates : tuple of Text
        `[M]`.
    rollouts : tuple of tuple of Text
        `[M, K]`. A candidate that had ended fills its row with itself.
    log_rewards : array
        `[M, K]`, r/λ: the log of what the energy averages.
    log_weights : array
        `[M]`, the logarithm of each candidate's estimated energy; of a candidate that a proposal drew, times its own
        ratio.
    choice : int
        The candidate that the chain went on from.
    cost : Cost
    rollout : int, optional
        Which of the candidate's rollouts was chosen with it, where a step chooses pairs: the one that is retained, or
        the one that a chain ended with that stopped because it was decided (`ets.stopping`).
    """

    candidates: tuple[Text, ...]
    rollouts: tuple[tuple[Text, ...], ...]
    log_rewards: Floats
    log_weights: Floats
    choice: int
    cost: Cost
    rollout: int | None = None

    @property
    def candidate_log_ratios(self) -> Floats:
        """`[M]`, log p_ref - log q of the candidates; zeros where the reference policy drew them."""
        return np.array([candidate.log_ratio for candidate in self.candidates])

    @property
    def log_ratios(self) -> Floats:
        """`[M, K]`, log p_ref - log q of what a proposal drew after the candidate; zeros for a complete candidate."""
        return rollout_log_ratios(self.candidates, self.rollouts)

    @property
    def uninformed(self) -> bool:
        """Whether every weight was zero, so that the choice was uniform."""
        return bool(np.all(np.isneginf(self.log_weights)))


def rollout_log_ratios(candidates: Sequence[Text], rollouts: Sequence[Sequence[Text]]) -> Floats:
    """`[M, K]`, the part of the rollouts' ratios that came after their candidates; -inf for an impossible candidate."""
    ratios = np.array([[text.log_ratio for text in row] for row in rollouts])
    before = np.array([candidate.log_ratio for candidate in candidates])[:, None]
    return ratios - np.where(np.isneginf(before), 0.0, before)


@dataclass(frozen=True, eq=False)
class Chain:
    """One sampled generation on its way, or, once `state.done`, a result.

    Parameters
    ----------
    problem : Problem
    sample : int
        Which of the problem's samples this is.
    key : int
        64 bits, hashed from (seed, problem id, sample): the chain's source of randomness.
    state : State
        Whatever the step function carries.
    trace : tuple of Step
    """

    problem: Problem
    sample: int
    key: int
    state: State
    trace: tuple[Step, ...] = ()

    def advance(self, state: State, step: Step) -> Chain:
        return replace(self, state=state, trace=(*self.trace, step))

    def charged(self, cost: Cost) -> Chain:
        """The chain, whose last step cost so much more."""
        last = replace(self.trace[-1], cost=self.trace[-1].cost + cost)
        return replace(self, trace=(*self.trace[:-1], last))

    @property
    def cost(self) -> Cost:
        return Cost.total([step.cost for step in self.trace])

    @property
    def valid(self) -> bool:
        """False for a chain that ended at a reward of -inf, or went through what p_ref cannot draw: no sample of p*."""
        if not (self.state.done and self.trace):
            return True
        last = self.trace[-1]
        possible = all(step.candidates[step.choice].log_ratio > -math.inf for step in self.trace)
        return possible and not math.isinf(last.log_weights[last.choice])


@runtime_checkable
class Policy(Protocol):
    """A frozen model behind a sampling rule. It sees rows only and knows neither M nor K.

    Rows that share a `State` object share its work: `[s] * M` costs one prefill and one first forward.
    """

    @property
    def ledger(self) -> Cost:
        """All that was computed since the policy was made."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether every draw from a state is the same, so that several candidates would be equal."""
        ...

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """The empty generations. Raises `InputError` for a prompt that cannot be continued."""
        ...

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """x_s ~ p_ref(. | x_t): one guide step for each row, with the row's own key."""
        ...

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """x_0 ~ p_ref(. | x_s): to the end; in law, `extend` repeated until done."""
        ...


@dataclass(frozen=True)
class Followed:
    """Where a policy arrived by reading tokens that another one drew, and what that cost."""

    state: State
    cost: Cost


@dataclass(frozen=True)
class Scored:
    """What a policy says of a path that another one drew.

    Parameters
    ----------
    logp : float
        Natural-log probability under this policy's sampled distribution; -inf if it cannot draw the path.
    cost : Cost
    """

    logp: float
    cost: Cost


@runtime_checkable
class Proposal(Policy, Protocol):
    """A policy that can stand in for another one: it goes on from where that one has arrived."""

    def follow(self, own: Sequence[State], foreign: Sequence[State]) -> list[Followed]:
        """My own states advanced to another policy's: by their tokens, never by text.

        Raises `InputError` for a foreign state that does not go on from the own one.
        """
        ...


@runtime_checkable
class Scorer(Policy, Protocol):
    """A policy that can tell the probability of what a proposal drew."""

    def require_proposal(self, proposal: Policy) -> None:
        """Raise `InputError` unless a proposal's draws can be weighed: other tokens, other endings, no overlap."""
        ...

    def logp(self, starts: Sequence[State], ends: Sequence[State]) -> list[Scored]:
        """Of each path from one of my states to a proposal's."""
        ...


@runtime_checkable
class GreedySearcher(Protocol):
    """A policy that can take the most probable instead of drawing; the log-probabilities are the untempered model's."""

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """Each row to the end by the most probable token at each turn; keys, for rules that leave something open."""
        ...


@runtime_checkable
class BeamSearcher(Protocol):
    """A policy whose engine has a beam search; the log-probabilities are the untempered model's."""

    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """Each row to the end: the most probable text that beam search finds, by the sum of its tokens' logp."""
        ...


class Reward(Protocol):
    """Scores one problem's rollouts of this step, seeing the chain so far."""

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
        """One number per rollout, higher is better. -inf is allowed, NaN and +inf are not."""
        ...


StepFn: TypeAlias = Callable[[Policy, Sequence[Chain]], list[Chain]]
