"""A program that ends processes when the main process is gone, also after SIGKILL, which no process can handle.

vLLM's processes hold GPU memory, and wait for the main process without end. `watch` starts this file as a program,
which imports nothing of the package.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import partial

INTERVAL = 0.5
"""Seconds between two looks at the main process."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def watch(processes: Iterable[int]) -> subprocess.Popen[bytes]:
    """Start a program that ends processes, by their ids, with all descendants as soon as this process is gone.

    `terminate` ends the program. It runs in a session of its own, so that Ctrl-C does not reach it.
    """
    command = [sys.executable, "-I", __file__, *map(str, (os.getpid(), *processes))]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _main(owner: int, processes: Iterable[int]) -> None:
    import psutil  # type: ignore[import-untyped]  # vLLM requires it

    gone = partial(suppress, psutil.NoSuchProcess)  # a process may end at any time
    watched, ending = [], []
    for each in processes:
        with gone():
            watched.append(psutil.Process(each))
    while os.getppid() == owner:
        time.sleep(INTERVAL)
    for each in watched:
        with gone():  # also for a new process with the id of an old one
            ending += [each, *each.children(recursive=True)]
    for each in ending:
        with gone():
            each.terminate()
    for each in psutil.wait_procs(ending, timeout=GRACE)[1]:
        with gone():
            each.kill()


if __name__ == "__main__":
    _main(int(sys.argv[1]), map(int, sys.argv[2:]))
