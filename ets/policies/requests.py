"""Autoregressive models behind an engine that draws by itself: one request per row, each with a seed of its own.

Nothing is kept on our side, so a state is its tokens. Where a generation ends is decided here, on the tokens, by the
rule that transformers' texts end by.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np

from ets.policies.autoregressive import Endings, Horizon, Sampling, TokenState, as_token_states, draw_of
from ets.policies.checkpoint import Checkpoint
from ets.policies.drawing import require_finite
from ets.policies.prompts import encode_prompt
from ets.policies.reading import Path, paths_between
from ets.randomness import derive
from ets.types import Cost, Draw, Followed, InputError, Keys, Problem, State

COLDEST, HOTTEST = 0.01, 2.0
"""Temperatures that vLLM samples at, beside 0: lower ones it raises silently, higher ones it refuses."""
OPEN = "open"
"""The memory of a state that can be gone on from: the engine finds what it knows of it by its tokens."""


@dataclass(frozen=True)
class Request:
    """One row for the engine: token ids to go on from, the row's seed, at most `room` more tokens, and stop strings."""

    tokens: tuple[int, ...]
    seed: int
    room: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the engine drew for a row.

    Parameters
    ----------
    tokens : list of int
    logps : list of float
        Natural-log probabilities of the tokens under the sampled distribution; at temperature 0, under the model's.
    cached : int
        How many of the row's first tokens came from the prefix cache.
    """

    tokens: list[int]
    logps: list[float]
    cached: int


class Engine(Protocol):
    """What draws for a `RequestPolicy`; any number of threads may ask it at once."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The model's tokenizer and configuration; its weights are not looked at."""
        ...

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    @property
    def context(self) -> int | None:
        """Positions of the longest row, if known."""
        ...

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """Go on from each row, up to one of the end tokens; returns when the last row has ended."""
        ...

    def load(self) -> None:
        """Make ready to draw, unless it is; else the first draw does."""
        ...

    def interrupt(self, thread: int) -> None:
        """End the draw that the thread with this identifier waits for, if any: it raises there."""
        ...

    def close(self) -> object:
        """End all that it has started; it draws no more."""
        ...


class RequestPolicy:
    """p_ref as a causal language model in an engine under a sampling rule; a guide step is `block_size` tokens.

    Cheap to make: several policies, of different rules or in different threads, can share an engine. Draws depend on
    their row's key, and in the last bits of the logits on the rows beside it: results are the same in law, not text for
    text.

    Positions are counted from what the engine reports of each row: the tokens that its prefix cache did not hold, and
    those drawn but the last. Work that it throws away when its cache is full and repeats later is not in them.

    Parameters
    ----------
    engine : Engine
    sampling : Sampling
        The distribution that is sampled, and whose log-probabilities are recorded.
    horizon : Horizon
        Block size and longest generation, in tokens.
    end_ids : collection of int, optional
        Tokens that end a generation. By default the checkpoint's; a proposal takes its reference policy's.

    Raises
    ------
    InputError
        For a temperature that the engine does not sample at.
    """

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        horizon: Horizon,
        *,
        end_ids: Collection[int] | None = None,
    ) -> None:
        if sampling.temperature and not COLDEST <= sampling.temperature <= HOTTEST:
            raise InputError(
                f"temperature is {sampling.temperature}, and {engine.name} samples at 0 and at {COLDEST} to "
                f"{HOTTEST:g}; choose one of these"
            )
        self.engine, self.sampling, self.horizon = engine, sampling, horizon
        self.checkpoint = engine.checkpoint
        ends = self.checkpoint.end_ids if end_ids is None else end_ids
        vocabulary = self.checkpoint.config.get_text_config().vocab_size
        self.endings = Endings(self.checkpoint.tokenizer, ends, vocabulary)
        self.ledger = Cost()

    @property
    def deterministic(self) -> bool:
        return self.sampling.temperature == 0

    def beside(self) -> Self:
        """Another policy of the same law over the same engine, for a thread of its own."""
        return type(self)(self.engine, self.sampling, self.horizon, end_ids=self.endings.end_ids)

    def load(self) -> None:
        """Make the engine ready, unless it is; else the first draw does."""
        self.engine.load()

    def interrupt(self, thread: int) -> None:
        """End the draw that the thread with this identifier waits for, if any: it raises there."""
        self.engine.interrupt(thread)

    def close(self) -> None:
        """Close the engine, and with it all policies over it."""
        self.engine.close()

    def start(self, problems: Sequence[Problem]) -> list[State]:
        """Empty generations; prompts are checked now and read when first needed."""
        tokenizer, context = self.checkpoint.tokenizer, self.engine.context
        prompts = [encode_prompt(tokenizer, problem, self.horizon.max_length, context) for problem in problems]
        return [TokenState(*pair, memory=OPEN) for pair in zip(problems, prompts, strict=True)]

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.block_size, "candidate", self.sampling)

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._draw(states, keys, self.horizon.max_length, "rollout", self.sampling)

    def greedy(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        """The most probable token at each turn, whatever the sampling rule; logp is the untempered model's."""
        return self._draw(states, keys, self.horizon.max_length, "rollout", Sampling(0.0), untempered=True)

    def follow(self, own: Sequence[State], foreign: Sequence[State]) -> list[Followed]:
        """Take over another policy's tokens; the engine reads them, and charges for them, when it goes on from them.

        Raises
        ------
        InputError
            For foreign states that do not go on from my own, and under a truncated law: the engine does not tell which
            tokens it could not have drawn, and a ratio needs to know.
        """
        if self.sampling.truncated:
            raise InputError(
                f"{self.sampling} leaves tokens out, and {self.engine.name} does not tell which; a proposal there "
                "needs a temperature above 0, top_p 1 and no top_k"
            )
        return [Followed(_arrived(path), Cost()) for path in paths_between(as_token_states(own), foreign)]

    def _draw(
        self,
        states: Sequence[State],
        keys: Keys,
        block: int,
        kind: str,
        sampling: Sampling,
        *,
        untempered: bool = False,
    ) -> list[Draw]:
        rows = [
            _Row(state, np.asarray(key), min(len(state.tokens) + block, self.horizon.max_length), list(state.tokens))
            for state, key in zip(as_token_states(states), keys, strict=True)
        ]
        going = rows
        while going:  # once, unless the engine sees a stop string where the whole text has none
            answers = self.engine.draw(
                [row.request(self.endings) for row in going], sampling, sorted(self.endings.end_ids)
            )
            for row, answer in zip(going, answers, strict=True):
                row.append(answer, kind, self.endings)
            going = [row for row in going if not row.ended and len(row.tokens) < row.target]
        require_finite([row.state.problem for row in rows], [row.logp for row in rows])
        certain = sampling.temperature == 0 and not untempered
        draws = [self._draw_of(row, 0.0 if certain else row.logp) for row in rows]
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _draw_of(self, row: _Row, logp: float) -> Draw:
        memory = None if row.ended or len(row.tokens) >= self.horizon.max_length else OPEN
        return draw_of(row.state, tuple(row.tokens), logp, memory, row.cost, self.endings)


def _arrived(path: Path) -> TokenState:
    """Where a path leads; its log-probability is not computed."""
    start, end = path.start, path.end
    memory = None if end.done else OPEN
    return TokenState(start.problem, start.prompt, end.tokens, end.text, math.nan, end.done, memory)


@dataclass
class _Row:
    """One row while it is drawn: from a state, by its key, to `target` tokens or where the generation ends."""

    state: TokenState
    key: Keys
    target: int
    tokens: list[int]
    logp: float = 0.0
    ended: bool = False
    cost: Cost = field(default_factory=Cost)

    def request(self, endings: Endings) -> Request:
        # The position is absorbed too: a row that goes on with the same key must not repeat its noise.
        seed = int(derive(self.key, len(self.tokens))) >> 1
        room, problem = self.target - len(self.tokens), self.state.problem
        thinking = problem.stop and endings.is_thinking(self.tokens, problem.thinking, self.state.prompt)
        stop = () if thinking else problem.stop
        return Request((*self.state.prompt, *self.tokens), seed, room, stop)

    def append(self, answer: Answer, kind: str, endings: Endings) -> None:
        """Take the tokens up to where the generation ends, by the whole text; charge all that was computed."""
        prompt, before = len(self.state.prompt), len(self.tokens)
        unread = prompt + before - answer.cached
        of_prompt = max(0, prompt - answer.cached)
        counts = {"prompt": of_prompt, kind: unread - of_prompt + len(answer.tokens) - 1}
        self.cost += Cost(generated=len(answer.tokens), **counts)
        for token, logp in zip(answer.tokens, answer.logps, strict=True):
            self.tokens.append(token)
            self.logp += logp
            problem = self.state.problem
            if endings.reached(self.tokens, problem.stop, problem.thinking, self.state.prompt):
                self.ended = True
                return
