"""How a command ends: one line on standard error for bad input, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

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
