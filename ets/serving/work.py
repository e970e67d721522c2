"""The chains of one request, in a thread of their own, and the queue of requests in front of the threads."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from ets.groups import Interruptible
from ets.runner import run
from ets.serving.batches import Ended, ModelError, RequestPolicy
from ets.serving.offer import Order
from ets.serving.requests import RequestError
from ets.step import RewardError
from ets.types import Chain, InputError, Policy, StepFn

LOOK = 0.25
"""Seconds between two looks at the time limits of a request."""


def ending() -> RequestError:
    """The answer to requests while the server ends."""
    return RequestError(503, "the server ends; send the request again later", code="ended")


@dataclass(frozen=True)
class Advanced:
    """The chains of a request after a guide step, or at the end."""

    chains: tuple[Chain, ...]
    done: bool


Update: TypeAlias = "Advanced | RequestError"


class Work:
    """Runs an order in a thread.

    Parameters
    ----------
    order : Order
    policy : RequestPolicy
        Used by this thread alone.
    share : context manager
        The thread's share in the model, entered in the thread.
    tell : callable
        Gets an update from the thread: after each guide step if the order's text is final there, and at the end.
    """

    def __init__(
        self, order: Order, policy: RequestPolicy, share: AbstractContextManager[None], tell: Callable[[Update], None]
    ) -> None:
        self.order, self.policy, self._share, self._tell = order, policy, share, tell
        self.answered = False
        """Whether the request has been answered: the thread is to end."""
        self._thread = threading.Thread(target=self._run, name="ets-request", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still runs; a reward that hangs keeps it."""
        return self._thread.is_alive()

    @property
    def rewarding(self) -> float:
        """Seconds since the thread's last draw; 0 during a draw."""
        return 0.0 if self.policy.drawing else time.monotonic() - self.policy.since

    def end(self) -> None:
        """End the thread at its next draw, and a draw of an engine at once."""
        self.policy.ended = self.answered = True
        if isinstance(self.policy.policy, Interruptible) and self._thread.ident is not None:
            self.policy.policy.interrupt(self._thread.ident)

    def _run(self) -> None:
        with self._share:
            last = self._last()
        self._tell(last)

    def _last(self) -> Update:
        """Runs the chains, and returns the last update."""
        order = self.order
        seed = secrets.randbits(63) if order.seed is None else order.seed
        width = len(order.problems) * order.samples
        try:
            found = run(
                self.policy, self._watched(order.step), order.problems, width=width, seed=seed, samples=order.samples
            )
            chains = sorted(found, key=lambda chain: (int(chain.problem.id), chain.sample))
            return Advanced(tuple(chains), True)
        except BaseException as error:
            return ending() if self.policy.ended else _as_answer(error, order)

    def _watched(self, step: StepFn) -> StepFn:
        """The step function, which tells of the chains after each step, and raises after the end of the request."""

        def watched(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
            advanced = step(policy, chains)
            if self.policy.ended:
                raise Ended
            if self.order.final:
                self._tell(Advanced(tuple(advanced), False))
            return advanced

        return watched


def _as_answer(error: BaseException, order: Order) -> RequestError:
    """The answer to a request whose thread raised."""
    if isinstance(error, Ended):
        return ending()
    if isinstance(error, RewardError):
        answer = RequestError(500, f"the reward {order.reward!r} failed: {error}", code="reward_error")
    elif isinstance(error, ModelError):
        answer = RequestError(502, f"the model failed: {error}", code="model_error")
    elif isinstance(error, InputError):
        answer = RequestError(400, str(error))
    elif not isinstance(error, Exception):
        ended = f"the reward {order.reward!r}, or the engine, raised {error!r}; raise an Exception in place of it"
        answer = RequestError(500, ended, code="reward_error")
    else:
        answer = RequestError(500, f"{type(error).__name__}: {error}", code="internal_error")
    answer.__cause__ = error
    return answer


class Desk:
    """Admits requests: so many at once, and so many that wait.

    Parameters
    ----------
    width : int
        Requests that are worked on at once.
    queue : int
        Requests that wait; a further request is refused with status 429.
    """

    def __init__(self, width: int, queue: int) -> None:
        self._free, self._queue, self._width = asyncio.Semaphore(width), queue, width
        self.waiting = self.working = 0
        self._mean = 1.0

    @asynccontextmanager
    async def place(self, until: float) -> AsyncIterator[None]:
        """A place, after the requests before this one. Raises `RequestError` for a full queue, and at a time."""
        if self._free.locked() and self.waiting >= self._queue:
            wait = max(1, round(self._mean * self.waiting / self._width))
            full = f"{self.working} requests are worked on and {self.waiting} wait; send it again in {wait} s"
            raise RequestError(429, full, code="queue_full", wait=wait)
        self.waiting += 1
        try:
            async with asyncio.timeout(until - time.monotonic()):  # not wait_for, which waits for a free place too
                await self._free.acquire()
        except TimeoutError:
            raise RequestError(
                504, "the request waited too long for its turn; send it again later", code="timeout"
            ) from None
        finally:
            self.waiting -= 1
        self.working, begun = self.working + 1, time.monotonic()
        try:
            yield
        finally:
            self.working -= 1
            self._mean += 0.1 * (time.monotonic() - begun - self._mean)
            self._free.release()
