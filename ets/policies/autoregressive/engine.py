"""A policy over an engine that draws whole rows, such as vLLM or a server: one seeded request per row.

The policy keeps no caches, so a state is its tokens. The policy decides where a generation ends, by `Endings`, as the
transformers policy does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from ets.policies.autoregressive.law import (
    MOST_BYTES,
    Endings,
    TokenState,
    as_token_states,
    draw_of,
    longest,
    paths_between,
    require_vocabulary,
)
from ets.policies.checkpoint import Checkpoint
from ets.policies.prompts import encode_prompt
from ets.policies.settings import Horizon, Sampling
from ets.policies.token_draws import require_finite
from ets.randomness import derive
from ets.types import Cost, Draw, Followed, InputError, Keys, Problem, State

COLDEST, HOTTEST = 0.01, 2.0
"""Range of vLLM's temperatures, without 0: vLLM raises lower temperatures silently and refuses higher ones."""
OPEN = "open"
"""The memory of a state that has not ended; the engine recognises the state's tokens in its prefix cache."""


@dataclass(frozen=True)
class Request:
    """One row for the engine: token ids so far, the row's seed, at most `room` further tokens, and stop strings.

    An engine that returns text alone may draw up to `further` tokens more, to complete a character.
    """

    tokens: tuple[int, ...]
    seed: int
    room: int
    stop: tuple[str, ...] = ()
    further: int = 0


@dataclass(frozen=True)
class Answer:
    """The tokens that an engine drew for a row, and natural-log probabilities under the sampled distribution.

    At temperature 0 the probabilities are the model's. The first `cached` tokens of the row were in the prefix cache.
    `dropped` tokens were drawn too. A `whole` row has no room for the next character.
    """

    tokens: list[int]
    logps: list[float]
    cached: int
    dropped: int = 0
    whole: bool = False


class Engine:
    """Draws rows for an `EnginePolicy`, for any number of threads at once.

    A subclass defines `draw` and two attributes: `checkpoint` with the model's tokenizer and configuration, and `name`
    for error messages. The other methods do nothing by default. `approximate` is empty for an engine that returns the
    drawn tokens, and else the reason why the tokens are approximate.
    """

    checkpoint: Checkpoint
    name: str
    approximate: str = ""

    @property
    def context(self) -> int | None:
        """Positions of the longest row, if known."""
        return None

    def require_law(self, sampling: Sampling) -> None:
        """Raise `InputError` for a distribution that the engine does not sample."""

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """Continue each row up to an end token, a stop string or its `room`; returns when the last row has ended."""
        raise NotImplementedError

    def load(self) -> None:
        """Load the model, unless loaded; otherwise the first draw loads the model."""

    def interrupt(self, thread: int) -> None:
        """Cancel the draw of a thread, by its identifier: `draw` raises `CancelledError` there."""

    def close(self) -> None:
        """Free all resources; later draws raise."""

    def __enter__(self) -> Self:
        self.load()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EnginePolicy:
    """p_ref as a causal language model in an engine under a sampling rule; a guide step is `block_size` tokens.

    Policies are cheap: several policies, with different rules or in different threads, share an engine. A draw depends
    on its row's key, and in the last bits of the logits on the other rows of its batch. Results are therefore equal in
    law, not token for token.

    Each row is charged the tokens that the prefix cache did not hold, and the drawn tokens but the last. Work that the
    engine discards when its cache is full, and repeats later, is not charged.

    Parameters
    ----------
    engine : Engine
    sampling : Sampling
        The sampled distribution, which log-probabilities refer to.
    horizon : Horizon
        Block size and longest generation, in tokens.
    end_ids : collection of int, optional
        Tokens that end a generation; by default the checkpoint's.

    Raises
    ------
    InputError
        For a distribution that the engine does not sample.
    """

    def __init__(
        self, engine: Engine, sampling: Sampling, horizon: Horizon, *, end_ids: Collection[int] | None = None
    ) -> None:
        engine.require_law(sampling)
        self.engine, self.sampling, self.horizon = engine, sampling, horizon
        self.checkpoint = engine.checkpoint
        ends = self.checkpoint.end_ids if end_ids is None else end_ids
        vocabulary = self.checkpoint.config.get_text_config().vocab_size
        self.endings = Endings(self.checkpoint.tokenizer, ends, vocabulary)
        self.ledger = Cost()
        self.load, self.interrupt, self.close = engine.load, engine.interrupt, engine.close

    @property
    def lengths(self) -> tuple[int, ...]:
        """The least tokens of an open text at each guide boundary, and the most of a complete text."""
        return self.horizon.lengths

    @property
    def step_length(self) -> int:
        """The most tokens of a guide step."""
        return self.horizon.block_size

    @property
    def deterministic(self) -> bool:
        return self.sampling.temperature == 0

    def beside(self) -> Self:
        """Another policy of the same law over the same engine, for another thread."""
        return self.at_law(self.sampling)

    def at_law(self, sampling: Sampling, horizon: Horizon | None = None) -> Self:
        """A policy over the same engine with another law, and optionally another horizon."""
        return type(self)(self.engine, sampling, horizon or self.horizon, end_ids=self.endings.end_ids)

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Empty generations; the prompts are encoded and checked, and read by the first draw."""
        tokenizer, context = self.checkpoint.tokenizer, self.engine.context
        length, known = self.horizon.max_length, self.endings.vocabulary
        prompts = [encode_prompt(tokenizer, problem, length, context, known) for problem in problems]
        return [TokenState(*pair, memory=OPEN) for pair in zip(problems, prompts, strict=True)]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.block_size, "candidate")

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.max_length, "rollout")

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The most probable token at each turn, whatever the sampling rule; logp is the untempered model's."""
        return self._draw(states, keys, self.horizon.max_length, "rollout", greedy=True)

    def follow(self, own: Sequence[State], foreign: Sequence[State]) -> list[Followed]:
        """The states after the tokens of the foreign states, at no cost: the engine reads them with the next draw."""
        paths = paths_between(as_token_states(own), foreign)
        require_vocabulary([path for path in paths if not path.end.done], self.endings.vocabulary)
        return [Followed(path.followed(None if path.end.done else OPEN), Cost()) for path in paths]

    def _draw(self, states: Sequence[State], keys: Keys, block: int, kind: str, *, greedy: bool = False) -> list[Draw]:
        sampling = Sampling(0.0) if greedy else self.sampling
        ends = sorted(self.endings.end_ids)
        rows = [self._begun(*pair, block) for pair in zip(as_token_states(states), keys, strict=True)]
        going = rows
        while going:  # one turn, unless the engine stops a row before its target and its end
            answers = self.engine.draw([row.request(self.endings) for row in going], sampling, ends)
            for row, answer in zip(going, answers, strict=True):
                row.append(answer, kind, self.endings)
            going = [row for row in going if not (row.ended or row.whole or len(row.tokens) >= row.target)]
        require_finite([row.state.problem for row in rows], [sum(row.logps) for row in rows])
        draws = [self._draw_of(row, certain=self.deterministic and not greedy) for row in rows]
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _begun(self, state: TokenState, key: Keys, block: int) -> _Row:
        most, tokens = longest(self.horizon, state.problem), list(state.tokens)
        return _Row(state, np.asarray(key), min(len(tokens) + block, most), most, tokens)

    def _draw_of(self, row: _Row, *, certain: bool) -> Draw:
        """The draw of a row; the engine reports the model's log-probabilities where the sampled ones are 0."""
        logps = [0.0] * len(row.logps) if certain else row.logps
        full = row.whole or row.target >= row.most
        memory = None if row.ended or full else OPEN
        each = () if self.engine.approximate else logps
        return draw_of(row.state, tuple(row.tokens), sum(logps), memory, row.cost, self.endings, logps=each)


@dataclass
class _Row:
    """A row under way: from a state, by its key, to `target` tokens or to the end; a text has at most `most` tokens."""

    state: TokenState
    key: Keys
    target: int
    most: int
    tokens: list[int]
    logps: list[float] = field(default_factory=list)  # of the new tokens
    ended: bool = False
    whole: bool = False
    cost: Cost = field(default_factory=Cost)

    def request(self, endings: Endings) -> Request:
        # The seed absorbs the position: a row that continues with the same key must not repeat its noise.
        seed = int(derive(self.key, len(self.tokens))) >> 1
        problem = self.state.problem
        thinking = problem.stop and endings.is_thinking(self.tokens, problem.thinking, self.state.prompt)
        stop = () if thinking else problem.stop
        further = min(MOST_BYTES, self.most - self.target)
        return Request((*self.state.prompt, *self.tokens), seed, self.target - len(self.tokens), stop, further)

    def append(self, answer: Answer, kind: str, endings: Endings) -> None:
        """Append the tokens up to the end of the generation; charge all tokens of the answer."""
        prompt, before = len(self.state.prompt), len(self.tokens)
        unread = prompt + before - answer.cached
        of_prompt = max(0, prompt - answer.cached)
        drawn = len(answer.tokens) + answer.dropped
        counts = {"prompt": of_prompt, kind: unread - of_prompt + max(0, drawn - 1)}
        self.cost += Cost(generated=drawn, **counts)
        self.whole = answer.whole
        problem = self.state.problem
        for token, logp in zip(answer.tokens, answer.logps, strict=True):
            self.tokens.append(token)
            self.logps.append(logp)
            if endings.reached(self.tokens, problem.stop, problem.thinking, self.state.prompt):
                self.ended = True
                return


def parameters(request: Request, sampling: Sampling, end_ids: Sequence[int]) -> dict[str, Any]:
    """Every parameter that changes the distribution, by vLLM's names, whatever the engine's defaults are."""
    return {
        "max_tokens": request.room,
        "seed": request.seed,
        "temperature": sampling.temperature,
        "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": list(end_ids),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


def require_temperature(name: str, sampling: Sampling) -> None:
    """Raise `InputError` for a temperature outside of vLLM's range."""
    if sampling.temperature and not COLDEST <= sampling.temperature <= HOTTEST:
        raise InputError(
            f"temperature is {sampling.temperature}, and {name} samples at 0 and at {COLDEST} to {HOTTEST:g}; "
            "choose another temperature"
        )


def tempered(plain: Mapping[Any, float], halved: Mapping[Any, float]) -> bool:
    """Whether an engine reports log-probabilities of the sampled distribution, not of the model at temperature 1.

    At temperature 0.5 the tempered log-probabilities of a position differ twice as much as at temperature 1.
    """
    shared = sorted(plain.keys() & halved.keys())
    spread, doubled = (np.ptp([logps[token] for token in shared]) if shared else 0.0 for logps in (plain, halved))
    return len(shared) > 1 and bool(np.isclose(doubled, 2 * spread, rtol=0.05))
