"""Rules of all autoregressive engines: the sampled distribution, the states, and the end of a generation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from ets.models import diffusion_engine
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon
from ets.thinking import Tags, begun, cut_at, is_thinking
from ets.types import Certainty, Cost, Draw, InputError, Problem, State, Text

MOST_BYTES = 4
"""Of a character in UTF-8; as many tokens are enough for any character."""
INCOMPLETE = "\ufffd"
"""The place of an incomplete character in a text."""


@dataclass(frozen=True, eq=False)
class TokenState:
    """A generation so far. `memory` holds an engine's work, such as a cache; states may share a memory.

    `certainty` is None unless the policy records certainty, and for tokens of another policy. `logps` holds the
    natural-log probability of each token under the sampled distribution, the terms of `logp`. It is empty after tokens
    of another policy or of beam search, and if a server returns text alone.
    """

    problem: Problem
    prompt: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    text: str = ""
    logp: float = 0.0
    done: bool = False
    memory: Any = field(default=None, repr=False)
    certainty: Certainty | None = None
    logps: tuple[float, ...] = field(default=(), repr=False)

    @property
    def final_tokens(self) -> tuple[int, ...]:
        """The tokens that no later step changes: all."""
        return self.tokens


class Endings:
    """The end of a generation: an end token, or the first stop string in the generated text.

    Stop strings do not count in a thinking section, between the tags of `Problem.thinking`.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
    end_ids : iterable of int
        Tokens that end a generation; the text excludes end tokens.
    vocabulary : int
        Number of ids that the model can draw, which may exceed the number of ids of the tokenizer.
    """

    def __init__(self, tokenizer: Any, end_ids: Iterable[int], vocabulary: int) -> None:
        self.tokenizer = tokenizer
        self.end_ids = frozenset(end_ids)
        self.vocabulary = vocabulary
        self._completing = lru_cache(maxsize=64)(self._completing_tokens)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def text(
        self, tokens: Sequence[int], stop: tuple[str, ...], thinking: Tags | None = None, prompt: Sequence[int] = ()
    ) -> str:
        """The decoded generation `tokens`, without a final end token, cut at the first stop string."""
        if tokens and tokens[-1] in self.end_ids:
            tokens = tokens[:-1]
        return self.cut(self.decode(tokens), stop, thinking, prompt)

    def cut(self, text: str, stop: tuple[str, ...], thinking: Tags | None = None, prompt: Sequence[int] = ()) -> str:
        """The text up to the first stop string outside of thinking sections, which may begin in the prompt."""
        return cut_at(text, stop, thinking, self._begun(prompt, thinking)) if stop else text

    def is_thinking(self, tokens: Sequence[int], thinking: Tags | None, prompt: Sequence[int]) -> bool:
        """Whether the last token is within a thinking section."""
        return thinking is not None and is_thinking(self._begun(prompt, thinking) + self.decode(tokens), thinking)

    def _begun(self, prompt: Sequence[int], thinking: Tags | None) -> str:
        # A token holds at least one byte, so these tokens cover the tag and some line breaks.
        return begun(self.decode(prompt[-len(thinking[0].encode()) - 8 :]), thinking) if thinking else ""

    def reached(
        self, tokens: Sequence[int], stop: tuple[str, ...], thinking: Tags | None = None, prompt: Sequence[int] = ()
    ) -> bool:
        """Whether the last of `tokens` ends the generation; a stop string may cross the borders of tokens.

        Only a token with the last character of a stop string, or with part of a character, can complete a stop string.
        For all other tokens nothing is decoded.
        """
        if tokens[-1] in self.end_ids:
            return True
        if not stop or not self._completing(stop)[tokens[-1]]:
            return False
        # A token holds at least one byte (special ones aside), so this tail covers the longest stop string.
        window = max(len(string.encode()) for string in stop) + 8
        # Some tokenizers decode a tail that begins within a character to replacement characters alone.
        tails = [self.decode(tokens[-window:])]
        if INCOMPLETE in tails[0]:
            tails += [self.decode(tokens[-window - further :]) for further in range(1, MOST_BYTES)]
        if not any(string in tail for tail in tails for string in stop):
            return False
        text = self.decode(tokens)
        return len(self.cut(text, stop, thinking, prompt)) < len(text)

    def _completing_tokens(self, stop: tuple[str, ...]) -> Any:
        pieces = self.tokenizer.batch_decode(
            [[i] for i in range(self.vocabulary)], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        last = {string[-1] for string in stop}
        # Some tokenizers drop the leading space of the first decoded token, so a space is added.
        return np.array([bool(last & set(f" {piece}")) or INCOMPLETE in piece for piece in pieces])


_SHARED: dict[int, int] = {}
"""Token ids, each one object: Python makes a new object for every number above 256."""


def draw_of(
    before: TokenState,
    tokens: tuple[int, ...],
    logp: float,
    memory: Any,
    cost: Cost,
    endings: Endings,
    certainty: Certainty | None = None,
    logps: Sequence[float] = (),
) -> Draw:
    """The draw of a row from `before` to `tokens`; without a memory the row has ended.

    `logps` holds the log-probability of each new token, or nothing.
    """
    problem, total, done = before.problem, before.logp + logp, memory is None
    tokens = tuple(map(_SHARED.setdefault, tokens, tokens))  # a trace holds each token id in many texts
    text = endings.text(tokens, problem.stop, problem.thinking, before.prompt)
    each = (*before.logps, *logps)
    each = each if len(each) == len(tokens) else ()
    state = TokenState(problem, before.prompt, tokens, text, total, done, memory, certainty, each)
    return Draw(state, Text(tokens, text, total, done, certainty=certainty), logp, cost)


def longest(horizon: Horizon, problem: Problem) -> int:
    """The most tokens of a problem's text: `Problem.max_length`, or the policy's."""
    return horizon.max_length if problem.max_length is None else problem.max_length


def as_token_states(states: Sequence[State]) -> list[TokenState]:
    """The states as `TokenState`; raises `InputError` for another type, and for an ended state."""
    checked = [state for state in states if isinstance(state, TokenState)]
    if len(checked) != len(states) or any(state.done for state in checked):
        raise InputError("a state is of another policy or has ended; draw from this policy's own open states")
    return checked


PathKey: TypeAlias = tuple[Any, tuple[int, ...]]
"""The memory of a path's start, and its tokens."""


@dataclass(frozen=True, eq=False)
class ForeignPath:
    """The tokens between a start state of this policy and an end state of another policy."""

    start: TokenState
    end: State
    tokens: tuple[int, ...]

    @property
    def key(self) -> PathKey:
        """Equal for paths that share their work."""
        return self.start.memory, self.tokens

    def followed(self, memory: Any) -> TokenState:
        """The start state after the tokens; `logp` is NaN."""
        start, end = self.start, self.end
        return TokenState(start.problem, start.prompt, end.tokens, end.text, math.nan, end.done, memory)


def paths_between(starts: Iterable[TokenState], ends: Iterable[State]) -> list[ForeignPath]:
    """The paths from states of this policy to states of another policy.

    Raises
    ------
    InputError
        For an end state that does not continue the start state.
    """
    paths = [ForeignPath(start, end, end.tokens[len(start.tokens) :]) for start, end in zip(starts, ends, strict=True)]
    for path in paths:
        start, end = path.start, path.end
        if end.tokens != start.tokens + path.tokens or getattr(end, "prompt", start.prompt) != start.prompt:
            raise InputError(
                f"the proposal's tokens for problem {start.problem.id!r} do not go on from the model's; "
                "both must read the same prompt in the same way"
            )
    return paths


def require_vocabulary(paths: Iterable[ForeignPath], vocabulary: int) -> None:
    """Raise `InputError` for a token of a path that a model of so many ids does not have."""
    largest = max((token for path in paths for token in path.tokens), default=0)
    if largest >= vocabulary:
        raise InputError(
            f"token {largest} is beyond the {vocabulary} that the proposal knows; choose one of the same family"
        )


def require_same_tokens(reference: Any, proposal: Any) -> None:
    """Raise `InputError` unless two autoregressive policies have the same tokens, endings and longest text.

    Then rules of the tokens alone, such as stop strings, are equal for both policies and cancel in a ratio.
    """
    if not isinstance(getattr(proposal, "endings", None), Endings):
        raise InputError(f"a {type(proposal).__name__} draws no tokens; choose an autoregressive proposal")
    engine: Any = getattr(proposal, "engine", None)
    if reason := getattr(engine, "approximate", ""):
        raise InputError(
            f"{engine.name} is approximate ({reason}), so its ratios would be wrong; choose another proposal"
        )
    require_same_vocabulary(reference.endings, proposal.endings)
    ends, others = sorted(reference.endings.end_ids), sorted(proposal.endings.end_ids)
    if ends != others:
        raise InputError(f"the model ends at the tokens {ends} and the proposal at {others}; give both the same")
    length, longest = reference.horizon.max_length, proposal.horizon.max_length
    if length != longest:
        raise InputError(f"max_length is {length} for the model and {longest} for the proposal; make them equal")


def require_same_vocabulary(reference: Endings, proposal: Endings) -> None:
    """Raise `InputError` for the first token that two models number differently.

    The heads may be padded to different sizes: an id beyond the smaller head has no token.
    """
    mine, other = (endings.tokenizer.get_vocab() for endings in (reference, proposal))
    for _, token in sorted((id, token) for token, id in {**other, **mine}.items()):
        if mine.get(token) != other.get(token):
            raise InputError(
                f"the token {token!r} is {mine.get(token, 'missing')} in the model's vocabulary and "
                f"{other.get(token, 'missing')} in the proposal's; choose a proposal of the same family"
            )


def require_autoregressive(checkpoint: Checkpoint, engine: str) -> None:
    """Raise `InputError` for a checkpoint of a diffusion model, which the engine cannot run."""
    if found := diffusion_engine(checkpoint.config.model_type):
        raise InputError(
            f"{checkpoint.name!r} is a {found} model, which the engine {engine} does not have; see llada/eval.sh"
        )
