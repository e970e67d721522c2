"""An event loop in a thread of its own: threads that know nothing of it wait there for many things at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs coroutines on its own thread, for any number of others. Stop it when done; it ends with the program."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._awaited: dict[int, Future[Any]] = {}  # by thread
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What the coroutine returns or raises; it is cancelled there if the wait is interrupted here."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._awaited[threading.get_ident()] = future
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            del self._awaited[threading.get_ident()]

    def interrupt(self, thread: int | None = None) -> None:
        """Cancel what a thread waits for, by its identifier, or what all do: they get `CancelledError`."""
        for waiting, future in tuple(self._awaited.items()):
            if thread in (None, waiting):
                future.cancel()

    def stop(self) -> None:
        """End the event loop, and every wait for it."""
        self.interrupt()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_all())
        self._loop.close()


async def _cancel_all() -> None:
    """What is still under way ends before its loop does."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
