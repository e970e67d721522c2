"""The mark of tests that need the sandbox: they are skipped, with the reason, where it is missing."""

from __future__ import annotations

import pytest

from ets.sandbox.process import require_sandbox
from ets.types import InputError


def _missing() -> str | None:
    try:
        require_sandbox()
    except InputError as error:
        return str(error)
    return None


MISSING = _missing()
needs_sandbox = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
