"""The data of a run: problems, states, texts, steps, chains and costs; and the protocols of policies and rewards.

Shape letters, in all modules: B chains that advance together, M candidates per guide step, K rollouts per candidate,
V vocabulary.
"""

from __future__ import annotations

import math
import re
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


SURROGATE = re.compile("[\ud800-\udfff]")


class InputError(ValueError):
    """Bad input. The message is one line that names the value, the problem and the remedy."""


def one_line(error: object) -> str:
    """The message of an error without line breaks, cut after 200 characters, for use within an `InputError`."""
    return " ".join(str(error).split())[:200]


def not_installed(package: str, extra: str) -> InputError:
    """The error for a package that an extra of this repository installs."""
    return InputError(f"{package} is not installed; in the folder of ets, run: pip install -e '.[{extra}]'")


def require_text(what: str, text: object) -> None:
    """Raise `InputError` for text with half of a surrogate pair, which bytes that are no UTF-8 are read as."""
    if isinstance(text, str) and (found := SURROGATE.search(text)):
        raise InputError(f"{what} has {found[0]!r} at character {found.start() + 1}, which is no text; give UTF-8 text")


def counted(count: int, noun: str) -> str:
    """A number with its noun: "1 text", "1,200 texts"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Problem:
    """A prompt with its id, its stop strings, and the data for rewards and graders.

    Parameters
    ----------
    id : str
        Unique in a run. The keys of the problem's chains are hashes of it.
    prompt : str or tuple of int
        Text, or token ids that are used as they are.
    stop : tuple of str
        Strings that end a generation as soon as they appear in it; they are cut off its text.
    doc : mapping
        Data for a reward or a grader, for example the right answer.
    messages : tuple of Message
        The conversation that a chat template has written as `prompt`; no special token is added to that text. A task
        may give messages and an empty prompt: `ets.chat.ChatTemplate` then writes the prompt.
    user_text : str, optional
        The text that `messages` holds as the user's turn, if the prompt was given as text, not as messages.
    max_length : int, optional
        The most tokens of this problem's text, at most the policy's max_length, which is the default. The canvas of a
        diffusion policy is part of its law, and has one length for all problems.
    thinking : (str, str), optional
        The tags around thinking sections. A stop string counts only outside of them; with None it counts everywhere.
    place : str
        Where the problem was read, for errors: "line 2 of 'vowels.jsonl'".

    Raises
    ------
    InputError
        For an id that is no text, for text that UTF-8 cannot write, and for a `max_length` that is no whole number of
        at least 1.
    """

    id: str
    prompt: str | tuple[int, ...]
    stop: tuple[str, ...] = ()
    doc: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    thinking: Tags | None = THINKING
    user_text: str | None = None
    max_length: int | None = None
    place: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise InputError(f"the id of a problem is {self.id!r}; it must be text, such as {str(self.id)!r}")
        for what, text in (
            ("the id", self.id),
            ("the prompt", self.prompt),
            *(("a stop string", s) for s in self.stop),
        ):
            require_text(f"{what} of problem {self.id!r}", text)
        most = self.max_length
        if most is not None and (isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1):
            raise InputError(f"max_length of {self.called} is {most!r}; give a whole number of at least 1")

    @property
    def called(self) -> str:
        """The problem in an error: its id, and where it was read."""
        return f"problem {self.id!r}" + (f" ({self.place})" if self.place else "")

    @property
    def raw_prompt(self) -> str | tuple[int, ...] | tuple[Message, ...]:
        """The prompt as it was given, before a chat template: text, token ids, or messages.

        Rewards of (prompt, text) get this prompt. With ``chat=True`` the text "2 + 3?" has the raw prompt "2 + 3?", and
        the `prompt` ``<|im_start|>user\\n2 + 3?<|im_end|>…``.
        """
        return self.user_text if self.user_text is not None else self.messages or self.prompt


class State(Protocol):
    """A partial generation `x_t`. A policy may keep further data in its states: caches, logits, paths."""

    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def text(self) -> str: ...
    @property
    def done(self) -> bool: ...


@dataclass(frozen=True)
class Certainty:
    """How certain the model was of a text: sums over the tokens that were drawn since the prompt.

    Every term is of the model's distribution p where the token was drawn, untempered and untruncated. For masked
    diffusion p is that of a position when it was revealed, without the mask token.

    Parameters
    ----------
    tokens : int
        The number of tokens.
    entropy : float
        The sum of -Σ_v p_v log p_v, in nats.
    self_certainty : float
        The sum of KL(uniform ‖ p) = -1/V Σ_v log(V p_v), in nats (Kang et al., arXiv 2502.18581).
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
    """The part of a state that the trace keeps. A trace holds no state, so no cache outlives its step.

    Parameters
    ----------
    tokens : tuple of int
        Every token drawn since the prompt, with the end token and the tokens of a stop string. For masked diffusion
        the whole canvas, with the mask id where no token has been revealed.
    text : str
        The decoded generation, without the end token and cut at the first stop string.
    logp : float
        Natural-log probability of `tokens` given the prompt, under the reference policy's sampled distribution. For
        masked diffusion the log-probability of the path: of the tokens and of the order in which they were revealed.
    done : bool
        Whether the generation has ended.
    log_ratio : float
        log p_ref - log q of the tokens that a proposal q drew since the guide step began. It is 0 where q drew no
        token, and -inf where the reference policy cannot draw the tokens.
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
    """Work of the model and of the reward. Costs add up.

    Parameters
    ----------
    prompt, candidate, rollout, scored : int
        Token positions that the model computed: for prompts, for candidates, for rollouts, and for scoring tokens that
        another policy drew.
    generated : int
        Tokens drawn.
    row_forwards, vocabulary : int
        For masked diffusion: rows that went through the model, and positions whose logits were computed. An
        autoregressive policy leaves them 0.
    forwards : float
        Forward passes. Chains that share a pass have shares of it, by token positions.
    rewarded : int
        Texts that the reward scored. A complete candidate counts once, however often it votes.
    reward_seconds, seconds : float
        Wall-clock seconds of the reward, and of everything. Shared seconds are split by token positions.
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
        """Token positions of all four kinds."""
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
    """A policy's result for one row. It lives within a step.

    Parameters
    ----------
    state : State
        The state that the row has reached.
    text : Text
        The part of the state that the trace may keep.
    logp : float
        Natural-log probability of the tokens drawn in this call, given the state that the call began from.
    cost : Cost
        Positions and tokens of this row. Shared work is charged to the first of the rows that share it.
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
        `[M, K]`. A complete candidate fills its row with itself.
    log_rewards : array
        `[M, K]`, r/λ.
    log_weights : array
        `[M]`, log Ê of each candidate. The ratio of a candidate that a proposal drew is a factor of its weight.
    choice : int
        The candidate that the chain went on from.
    cost : Cost
    rollout : int, optional
        The rollout of the candidate that was chosen with it, where a step chooses pairs: a retained rollout, or the
        last text of a chain that stopped early (`ets.stopping`).
    cut : int, optional
        In a suffix move of `ets.refined`, the guide boundary after which the text was redrawn. Candidate 0 is then the
        text before the move, and `choice` 0 a rejected move.
    exact : bool
        Whether the chosen text is an exact sample of p* (`ets.exact`).
    """

    candidates: tuple[Text, ...]
    rollouts: tuple[tuple[Text, ...], ...]
    log_rewards: Floats
    log_weights: Floats
    choice: int
    cost: Cost
    rollout: int | None = None
    cut: int | None = None
    exact: bool = False

    @property
    def candidate_log_ratios(self) -> Floats:
        """`[M]`, log p_ref - log q of the candidates; zeros where the reference policy drew them."""
        return np.array([candidate.log_ratio for candidate in self.candidates])

    @property
    def log_ratios(self) -> Floats:
        """`[M, K]`, log p_ref - log q of the tokens after the candidate; zeros for a complete candidate."""
        return rollout_log_ratios(self.candidates, self.rollouts)

    @property
    def uninformed(self) -> bool:
        """Whether every weight is zero, so that the choice was uniform."""
        return bool(np.all(np.isneginf(self.log_weights)))


def rollout_log_ratios(candidates: Sequence[Text], rollouts: Sequence[Sequence[Text]]) -> Floats:
    """`[M, K]`, the part of the rollouts' log-ratios after their candidates; -inf for an impossible candidate."""
    ratios = np.array([[text.log_ratio for text in row] for row in rollouts])
    before = np.array([candidate.log_ratio for candidate in candidates])[:, None]
    return ratios - np.where(np.isneginf(before), 0.0, before)


@dataclass(frozen=True, eq=False)
class Chain:
    """One sampled generation under way; a result as soon as `state.done`.

    Parameters
    ----------
    problem : Problem
    sample : int
        The number of this chain among the problem's chains.
    key : int
        64 bits, hashed from (seed, problem id, sample): the source of the chain's randomness.
    state : State
        The state that the step function carries: a generation, a population, a beam.
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
        """The chain with a cost added to its last step."""
        last = replace(self.trace[-1], cost=self.trace[-1].cost + cost)
        return replace(self, trace=(*self.trace[:-1], last))

    @property
    def cost(self) -> Cost:
        return Cost.total([step.cost for step in self.trace])

    @property
    def exact(self) -> bool:
        """Whether the text is an exact sample of p*, by rejection (`ets.exact`)."""
        return bool(self.trace) and self.trace[-1].exact

    @property
    def valid(self) -> bool:
        """False for a chain that ended at a reward of -inf or passed tokens that p_ref cannot draw: no sample of p*."""
        if not (self.state.done and self.trace):
            return True
        last = self.trace[-1]
        possible = all(step.candidates[step.choice].log_ratio > -math.inf for step in self.trace)
        return possible and not math.isinf(last.log_weights[last.choice])


@runtime_checkable
class Policy(Protocol):
    """A frozen model under a sampling rule. A policy sees rows only, and knows neither M nor K.

    Rows that share a `State` object share its work: `[s] * M` costs one prefill and one first forward. Every row of a
    call gets a new `Draw` with a new `Text`, also where tokens are equal: votes and costs count objects. A policy that
    returned one `Text` object for two draws would lose the vote of the second. A text has at
    most `Problem.max_length` tokens, and `start` refuses a problem whose limit the policy cannot keep. A budget of
    tokens (`ets.refined`, `ets.exact`) also needs the attribute `lengths`: the least tokens that an open text has
    generated at each guide boundary, and the most of a complete text, such as (0, 16, 32, 40) for blocks of 16 and 40
    tokens in all. With `step_length`, the most tokens of a guide step, a budget is spent more fully.
    """

    @property
    def ledger(self) -> Cost:
        """Everything that was computed since the policy was made."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether all draws from a state are equal."""
        ...

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """The empty generations. Raises `InputError` for a prompt that cannot be continued."""
        ...

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """x_s ~ p_ref(. | x_t): one guide step for each row, with the key of the row."""
        ...

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """x_0 ~ p_ref(. | x_s): to the end. In law it is `extend`, repeated until done."""
        ...


@dataclass(frozen=True)
class Followed:
    """The state that a policy reached by reading another policy's tokens, and the cost of reading them."""

    state: State
    cost: Cost


@dataclass(frozen=True)
class Scored:
    """The log-probability of a path that another policy drew.

    Parameters
    ----------
    logp : float
        Natural-log probability under this policy's sampled distribution; -inf for a path that it cannot draw.
    cost : Cost
    """

    logp: float
    cost: Cost


@runtime_checkable
class Proposal(Policy, Protocol):
    """A policy that can continue from another policy's states."""

    def follow(self, own: Sequence[State], foreign: Sequence[State]) -> list[Followed]:
        """This policy's states, advanced to another policy's states by tokens, never by text.

        Raises `InputError` for a foreign state that does not continue this policy's state.
        """
        ...


@runtime_checkable
class Scorer(Policy, Protocol):
    """A policy that computes the probability of another policy's paths."""

    def require_proposal(self, proposal: Policy) -> None:
        """Raise `InputError` for a proposal without ratios: other tokens, other ends, or no common support."""
        ...

    def logp(self, starts: Sequence[State], ends: Sequence[State]) -> list[Scored]:
        """The log-probability of each path from a state of this policy to a state of the proposal."""
        ...


@runtime_checkable
class GreedySearcher(Protocol):
    """A policy with greedy decoding; the log-probabilities are the untempered model's."""

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """Each row to the end by the most probable token; the keys are for rules that leave a choice."""
        ...


@runtime_checkable
class BeamSearcher(Protocol):
    """A policy with beam search; the log-probabilities are the untempered model's."""

    def beam(self, states: Sequence[State], beams: int) -> list[Draw]:
        """Each row to the end: the text of the largest log-probability that beam search finds."""
        ...


class Reward(Protocol):
    """Scores the rollouts of one problem in one step; it sees the chain before the step."""

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> Sequence[float]:
        """One number per rollout, higher is better. -inf is allowed, NaN and +inf are not."""
        ...


StepFn: TypeAlias = Callable[[Policy, Sequence[Chain]], list[Chain]]
