"""How commands end: policies are closed, however a run ends."""

from __future__ import annotations

import signal

import pytest

from ets.exits import closed_after
from tests.laws.tabular import TabularModel


def test_an_engine_is_closed_however_the_run_ends() -> None:
    class Open(TabularModel):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    policy = Open()
    with closed_after(policy):
        pass
    with pytest.raises(KeyboardInterrupt), closed_after(policy):
        raise KeyboardInterrupt
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), closed_after(policy):
        signal.raise_signal(signal.SIGTERM)
    assert policy.closed == 3 and signal.getsignal(signal.SIGTERM) == before
    with closed_after(TabularModel()):
        pass
