"""How a command ends: one line on standard error for bad input, no traceback; and how it warns."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

from ets.types import InputError, one_line

KEPT = "finished problems are kept, and the same command goes on"
NOTHING_KEPT = "nothing was kept, and the same command begins anew"


class Terminated(BaseException):
    """Raised at SIGTERM; unlike `SystemExit`, no code of a user raises it."""


def exit_status(command: Callable[[], None], interrupted: str = KEPT) -> int:
    """Run a command and return its exit status.

    The status is 0; 2 after bad input, an `OSError` or too little memory, with one line; 130 after an interrupt, with a
    line; 143 after SIGTERM; 141 after the reader of standard output has ended, without a line.
    """
    try:
        command()
        if sys.stdout is not None:  # None: closed
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _leave_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        _leave_stdout()
        place = "" if error.filename is None else f"{str(error.filename)!r}: "
        print(
            f"error: cannot read or write: {place}{error.strerror or one_line(error)}; {interrupted}", file=sys.stderr
        )
        return 2
    except MemoryError as error:
        reason = f" ({one_line(error)})" if str(error) else ""
        print(f"error: out of memory{reason}; choose smaller numbers, such as fewer candidates", file=sys.stderr)
        return 2
    except Terminated:
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print(f"\ninterrupted; {interrupted}", file=sys.stderr)
        return 130
    return 0


def _leave_stdout() -> None:
    """If standard output cannot be written, send its rest nowhere: the interpreter would fail again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # a stream in memory has no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    """Raise `Terminated` at SIGTERM, so that `finally` blocks run; for use in the main thread."""

    def terminated(number: int, frame: object) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def closed_after(*policies: Any) -> Iterator[None]:
    """Call `close()` of the policies that have it, at the end of the block or at SIGTERM; for the main thread."""
    closes = [policy.close for policy in policies if hasattr(policy, "close")]
    if not closes:
        yield
        return
    with exiting_at_sigterm(), ExitStack() as stack:
        for close in closes:
            stack.callback(close)
        yield
