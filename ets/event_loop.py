"""Coroutines from synchronous code: an event loop in a background thread."""

from __future__ import annotations

import asyncio
import atexit
import inspect
import threading
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, TypeVar

T = TypeVar("T")


class EventLoop:
    """An event loop in a background thread; other threads wait for coroutines there, until they are interrupted.

    `stop` ends the thread; otherwise the thread ends with the program.
    """

    def __init__(self, name: str) -> None:
        from anyio.from_thread import start_blocking_portal

        self._running = ExitStack()
        self._portal = self._running.enter_context(start_blocking_portal(name=name))
        self._awaited: dict[int, Future[Any]] = {}  # by thread

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns or raises as the coroutine does; an exception in the waiting thread cancels the coroutine."""
        future: Future[T] = self._portal.start_task_soon(lambda: work)
        self._awaited[threading.get_ident()] = future
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del self._awaited[threading.get_ident()]

    def wait_for_all(self, works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """The results of concurrent coroutines in their order; the first error cancels the others."""
        return self.wait(_gather(works))

    def interrupt(self, thread: int | None = None) -> None:
        """Cancel the wait of a thread, by its identifier, or all waits: they raise `CancelledError`."""
        for waiting, future in tuple(self._awaited.items()):
            if thread in (None, waiting):
                future.cancel()

    def stop(self) -> None:
        """Cancel all waits and end the thread."""
        self.interrupt()
        self._running.close()


async def _gather(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


_ONE_AT_A_TIME = threading.Lock()


@lru_cache(maxsize=1)
def _shared_loop() -> EventLoop:
    loop = EventLoop("rewards")
    atexit.register(loop.stop)
    return loop


def awaited(values: Iterable[Any]) -> list[Any]:
    """The values in their order, with the results of awaitables in their places.

    The awaitables run concurrently, in one event loop for the whole program: a client with connections belongs to a
    loop.
    """
    found = list(values)
    places = [n for n, value in enumerate(found) if inspect.isawaitable(value)]
    if places:
        with _ONE_AT_A_TIME:
            loop = _shared_loop()
        results = loop.wait_for_all([_coroutine(found[n]) for n in places])
        for n, result in zip(places, results, strict=True):
            found[n] = result
    return found


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
