"""How commands end: policies are closed, however a run ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from ets.exits import Terminated, closed_after
from tests.laws.tabular import TabularModel


@pytest.mark.parametrize(
    ("category", "shown"),
    [("UserWarning", "warning: few texts; draw more\n"), ("FutureWarning", ": FutureWarning: few")],
)
def test_a_command_warns_in_one_line_without_a_place_in_the_source(category: str, shown: str) -> None:
    """In a process of its own: pytest records warnings in place of printing them."""
    warn = f"warnings.warn('few texts;\\ndraw more', {category}, stacklevel=1)"
    code = f"import warnings; from ets import cli; cli._execute = lambda words: {warn}; cli.main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == shown if category == "UserWarning" else shown in done.stderr


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
    with pytest.raises(Terminated), closed_after(policy):
        signal.raise_signal(signal.SIGTERM)
    assert policy.closed == 3 and signal.getsignal(signal.SIGTERM) == before
    with closed_after(TabularModel()):
        pass
