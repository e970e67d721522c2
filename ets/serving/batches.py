"""One model for many requests: every request runs in its own thread, and the draws of all threads share forward passes.

A draw waits until the model is free. Then all waiting draws of one kind and one policy form a batch. Threads that run
guide steps stay together, as the chains of `ets.runner.run` do: a new request joins at the next guide step. A reward
runs in the thread of its request, so a reward that raises or hangs stops no other request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeAlias

import numpy as np

from ets.types import Cost, Draw, InputError, Keys, Policy, Problem, State

Kind: TypeAlias = Literal["start", "finish", "extend"]
ORDER: dict[Kind, int] = {"start": 0, "finish": 1, "extend": 2}
"""Which calls go first. Rollouts go before candidates, so that all chains meet at the beginning of a guide step."""
OVERTAKEN = 2
"""Batches of other calls after which a call goes first."""
PATIENCE = 0.1
"""How long a batch waits for the next thread, as a share of the last batch's seconds."""
LEAST, MOST = 0.005, 0.1
"""Bounds of that wait, in seconds."""


class Ended(Exception):
    """Raised in the thread of a request that has been ended."""


class ModelError(Exception):
    """Raised in place of the error of a draw: the model, or the server behind it, failed."""


class RequestPolicy:
    """The policy of one request, over a model that other requests use too.

    Parameters
    ----------
    policy : Policy
        The policy of the law, which requests with the same law share.
    draw : callable
        `(kind, rows, keys) -> results and forward passes`: calls the policy's method of this name.
    """

    def __init__(self, policy: Policy, draw: Callable[[Kind, Sequence[Any], Keys | None], Results]) -> None:
        self.policy, self._draw = policy, draw
        self.ledger, self.deterministic = Cost(), policy.deterministic
        self.prompt_tokens = 0
        """Tokens of the prompts that were started."""
        self.drawing = False
        """Whether the thread waits for the model; else it computes a reward, or rests."""
        self.since = time.monotonic()
        """The time of the last change of `drawing`."""
        self.ended = False
        """Whether the next draw raises `Ended`."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)  # lengths, weighed and the like

    def start(self, problems: Sequence[Problem]) -> list[State]:
        states = self._through("start", problems, None)
        self.prompt_tokens += sum(len(getattr(state, "prompt", ())) for state in states)
        return states

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._charged(self._through("extend", states, keys))

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        return self._charged(self._through("finish", states, keys))

    def _charged(self, draws: list[Draw]) -> list[Draw]:
        self.ledger += Cost.total(draw.cost for draw in draws)
        return draws

    def _through(self, kind: Kind, rows: Sequence[Any], keys: Keys | None) -> list[Any]:
        if self.ended:
            raise Ended
        self._turn(True)
        try:
            results, forwards = self._draw(kind, rows, keys)
        except InputError as error:
            if kind == "start":  # a prompt that cannot be continued
                raise
            raise ModelError(str(error)) from error
        finally:
            self._turn(False)
        self.ledger += Cost(forwards=forwards)
        return results

    def _turn(self, drawing: bool) -> None:
        self.drawing, self.since = drawing, time.monotonic()


Results: TypeAlias = tuple[list[Any], float]
"""What a method returned for some rows, and their share of its forward passes."""


def alone(policy: Policy) -> RequestPolicy:
    """The policy of a request over an engine that threads may share: its draws go to the engine at once."""

    def draw(kind: Kind, rows: Sequence[Any], keys: Keys | None) -> Results:
        call = _Call(0, policy, kind, rows, keys)
        _answer([call])
        return call.outcome()

    return RequestPolicy(policy, draw)


@dataclass(eq=False)
class _Call:
    """A draw of a thread, and an event for its results."""

    thread: int
    policy: Policy
    kind: Kind
    rows: Sequence[Any]
    keys: Keys | None
    number: int = 0
    overtaken: int = 0
    results: list[Any] = field(default_factory=list)
    forwards: float = 0.0
    error: BaseException | None = None
    answered: threading.Event = field(default_factory=threading.Event)

    def outcome(self) -> Results:
        if self.error is not None:
            raise self.error
        return self.results, self.forwards


class Batches:
    """Answers the draws of several threads in batches, in one thread, which `close` ends. Usable as a context."""

    def __init__(self) -> None:
        self._changed, self._numbers = threading.Condition(), count()
        self._waiting: list[_Call] = []
        self._computing: set[int] = set()  # threads that are expected to draw soon
        self._seconds, self._closed = 0.0, False
        self.calls = self.batches = 0
        """The draws, and the batches that answered them."""
        self._thread = threading.Thread(target=self._work, name="ets-model", daemon=True)
        self._thread.start()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; waiting and later draws raise `Ended`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def policy(self, policy: Policy) -> RequestPolicy:
        """The policy of a request, whose draws join the batches.

        One thread uses it. The thread may call `join` before its first draw, and calls `leave` after its last.
        """

        def draw(kind: Kind, rows: Sequence[Any], keys: Keys | None) -> Results:
            return self._draw(_Call(threading.get_ident(), policy, kind, rows, keys, next(self._numbers)))

        return RequestPolicy(policy, draw)

    def join(self) -> None:
        """Batches wait a moment for this thread's first draw, as for the next draws of threads that have results."""
        with self._changed:
            self._computing.add(threading.get_ident())
            self._changed.notify_all()

    def leave(self) -> None:
        """No batch waits for this thread any longer."""
        with self._changed:
            self._computing.discard(threading.get_ident())
            self._changed.notify_all()

    def _draw(self, call: _Call) -> Results:
        """The results for a thread's rows; raises what the policy raises for these rows alone."""
        with self._changed:
            if self._closed:
                raise Ended
            self._computing.discard(call.thread)
            self._waiting.append(call)
            self._changed.notify_all()
        call.answered.wait()
        return call.outcome()

    def _work(self) -> None:
        while batch := self._next():
            begun = time.monotonic()
            _answer(batch)
            self._seconds = time.monotonic() - begun
            self.calls, self.batches = self.calls + len(batch), self.batches + 1
            with self._changed:
                self._computing |= {call.thread for call in batch}
            for call in batch:
                call.answered.set()

    def _next(self) -> list[_Call]:
        """The calls of the next batch; none after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._gather()
            if self._closed:
                for call in self._waiting:
                    call.error = Ended()
                    call.answered.set()
                return []
            first = min(self._waiting, key=_turn)
            batch = [call for call in self._waiting if call.policy is first.policy and call.kind == first.kind]
            self._waiting = [call for call in self._waiting if call not in batch]
            for call in self._waiting:
                call.overtaken += 1
            return batch

    def _gather(self) -> None:
        """Wait for the threads that have results, while one of them comes back in time; then expect them no longer."""
        patience = min(max(PATIENCE * self._seconds, LEAST), MOST)
        while self._computing and not self._closed:
            if not self._changed.wait(patience):
                self._computing.clear()


def _turn(call: _Call) -> tuple[int, int]:
    """The order of calls: overtaken calls before others, and by age, so that none starves."""
    return (-1 if call.overtaken >= OVERTAKEN else ORDER[call.kind], call.number)


def _answer(batch: Sequence[_Call]) -> None:
    """Fill in the results of calls of one policy and one kind. Where a batch fails, each call is tried alone."""
    try:
        _fill(batch)
    except BaseException as error:  # a policy of own code may raise SystemExit, which must not end the thread
        if len(batch) == 1:
            batch[0].error = error
        else:
            for call in batch:
                _answer([call])


def _fill(batch: Sequence[_Call]) -> None:
    policy, kind = batch[0].policy, batch[0].kind
    before, rows = policy.ledger.forwards, [row for call in batch for row in call.rows]
    if kind == "start":
        found: list[Any] = policy.start(rows)
    else:
        keys = batch[0].keys if len(batch) == 1 else np.concatenate([call.keys for call in batch])
        found = getattr(policy, kind)(rows, keys)
    if len(found) != len(rows):
        raise ModelError(f"the policy returned {len(found)} results for {len(rows)} rows")
    forwards, at = policy.ledger.forwards - before, 0
    for call in batch:
        call.results, at = found[at : at + len(call.rows)], at + len(call.rows)
    positions = [0 if kind == "start" else sum(draw.cost.positions for draw in call.results) for call in batch]
    total = sum(positions)
    for call, share in zip(batch, positions, strict=True):
        call.forwards = forwards * share / total if total else forwards / len(batch)
