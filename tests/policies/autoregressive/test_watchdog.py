"""vLLM's processes end with the main process, also when SIGKILL ends it; here with plain processes in their place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

MAIN = """
import subprocess, sys, time
from ets.policies.autoregressive.watchdog import watch
SLEEP = "import time; time.sleep(600)"
CHILD = f"import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
CHILD += f"print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True)\\n{SLEEP}"
child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
other = subprocess.Popen([sys.executable, "-c", SLEEP])
grandchild = int(child.stdout.readline())
print(child.pid, grandchild, other.pid, watch([child.pid]).pid, flush=True)
sys.stdin.read()
"""

LOADING = """
import subprocess, sys, time
from ets.policies.autoregressive.watchdog import watch
SLEEP = "import time; time.sleep(600)"
CHILD = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
earlier = subprocess.Popen([sys.executable, "-c", SLEEP])
watchdog = watch()
time.sleep(0.1)  # more than the resolution of the time at which a process began
child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True)
grandchild = int(child.stdout.readline())
time.sleep(5)  # until the watchdog has looked
print(child.pid, grandchild, earlier.pid, watchdog.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def started(request: pytest.FixtureRequest) -> Any:
    """The main process; its child, which ignores SIGTERM, a grandchild, a child that is not watched, the watchdog."""
    code = getattr(request, "param", MAIN)
    main = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert main.stdout is not None
    others = [psutil.Process(int(word)) for word in main.stdout.readline().split()]
    yield main, *others
    main.kill()
    main.wait()
    for each in others:
        if each.is_running():
            each.kill()


def _ended(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=60)[1]


@pytest.mark.parametrize("end", [subprocess.Popen.kill, subprocess.Popen.terminate], ids=["SIGKILL", "SIGTERM"])
def test_the_watched_end_with_the_main_process_and_no_others(started: Any, end: Callable[[Any], None]) -> None:
    main, child, grandchild, other, watchdog = started
    end(main)
    main.wait()
    assert _ended([child, grandchild, watchdog]) and other.is_running()


@pytest.mark.parametrize("started", [LOADING], indirect=True)
def test_without_ids_the_processes_that_start_later_are_watched(started: Any) -> None:
    main, child, grandchild, earlier, watchdog = started
    main.kill()
    main.wait()
    assert _ended([child, grandchild, watchdog]) and earlier.is_running()


def test_a_watchdog_that_is_ended_ends_nothing(started: Any) -> None:
    main, child, grandchild, _, watchdog = started
    watchdog.terminate()
    psutil.wait_procs([watchdog], timeout=0.1)
    main.kill()
    main.wait()
    assert not _still_gone([child, grandchild])


def _still_gone(processes: list[psutil.Process]) -> bool:
    """Whether one of them ends within the time in which a watchdog would have looked twice."""
    return bool(psutil.wait_procs(processes, timeout=1.5)[0])
