"""A program that ends processes when the main process is gone, also after SIGKILL, which no process can handle.

vLLM's processes hold GPU memory, and wait for the main process without end. `watch` starts this file as a program,
which imports nothing of the package.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

INTERVAL = 0.2
"""Seconds between two looks at the main process."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


def watch(processes: Iterable[int] | None = None) -> subprocess.Popen[bytes]:
    """Start a program that ends processes, by their ids, with all descendants as soon as this process is gone.

    Without ids it ends every process that this process starts from now on, once a look has found it: the ids of
    processes that vLLM starts are unknown until it has loaded the model.

    `terminate` ends the program. It runs in a session of its own, so that Ctrl-C does not reach it.
    """
    words = ["every"] if processes is None else map(str, processes)
    command = [sys.executable, "-I", __file__, str(os.getpid()), *words]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _main(owner: int, words: Sequence[str]) -> None:
    import psutil  # type: ignore[import-untyped]  # vLLM requires it

    gone = partial(suppress, psutil.NoSuchProcess)  # a process may end at any time
    every, begin = words == ["every"], psutil.Process().create_time()
    watched, ending = set(), []
    for each in [] if every else map(int, words):
        with gone():
            watched.add(psutil.Process(each))
    while os.getppid() == owner:
        with gone():
            if every:
                children = psutil.Process(owner).children()
                watched |= {child for child in children if child.create_time() > begin}
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
    _main(int(sys.argv[1]), sys.argv[2:])
