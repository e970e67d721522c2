"""How a command ends: one line on standard error for bad input, no traceback."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ets.types import InputError

KEPT = "finished problems are kept, and the same command goes on"
NOTHING_KEPT = "nothing was kept, and the same command begins anew"


def exit_status(command: Callable[[], None], interrupted: str = KEPT) -> int:
    """Run a command: 0 if it ends, 2 and one line for bad input, 130 and what becomes of its work if interrupted."""
    try:
        command()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


@contextmanager
def exiting_at_sigterm() -> Iterator[None]:
    """At a signal to terminate, leave the block by `SystemExit`, so that clean-ups run; for use in the main thread."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


@contextmanager
def closed_after(policy: Any) -> Iterator[None]:
    """Close a policy's engine, such as its processes, however the block ends; for use in the main thread.

    A signal to terminate would end this process at once, and leave the others.
    """
    close = getattr(policy, "close", None)
    if close is None:
        yield
        return
    with exiting_at_sigterm():
        try:
            yield
        finally:
            close()
