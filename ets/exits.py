"""How a command ends: one line on standard error for bad input, no traceback; and how it warns."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ets.types import InputError

KEPT = "finished problems are kept, and the same command goes on"
NOTHING_KEPT = "nothing was kept, and the same command begins anew"


def exit_status(command: Callable[[], None], interrupted: str = KEPT) -> int:
    """Run a command and return 0, 2 after `InputError` with its line, or 130 with a line after an interrupt."""
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
def plain_warnings() -> Iterator[None]:
    """Format a `UserWarning` as one line, `warning: …`, without the place in our source; other warnings keep theirs."""
    before = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if issubclass(category, UserWarning):
            return f"warning: {' '.join(str(message).split())}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextmanager
def exiting_at_sigterm() -> Iterator[None]:
    """Raise `SystemExit` at SIGTERM, so that `finally` blocks run; for use in the main thread."""

    def terminated(number: int, frame: object) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def closed_after(policy: Any) -> Iterator[None]:
    """Call `policy.close()`, if the policy has one, at the end of the block or at SIGTERM; for the main thread."""
    close = getattr(policy, "close", None)
    if close is None:
        yield
        return
    with exiting_at_sigterm():
        try:
            yield
        finally:
            close()
