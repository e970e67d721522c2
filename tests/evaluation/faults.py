"""Faults at random moments of `ets eval` with the embedded model: python -m tests.evaluation.faults --times 20

Each try breaks a run at a moment that the seed determines, lets the same command go on, and compares the folder with an
undisturbed one: no record is lost, changed or written twice, and the summary is the same. Runs are forks of one process
that has imported everything, so that moments fall into the run and not into imports.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from ets.cli import main
from ets.evaluation import ranks
from tests.evaluation.test_kill import journal_of
from tests.ports import kept_port

COMMAND = """eval --task arithmetic --model embedded-small --shots 0 --count 3 --methods plain,best-of-n,ets
    --candidates 2
    --rollouts 2 --lam 0.1 --pool chain --block-size 16 --max-length 32 --temperature 1.0 --seed 0 --width 2 --out"""
NOBODY = 65534


def begun(folder: Path, before: Callable[[], object] = lambda: None, **environment: str) -> int:
    """Start the command in a fork, which calls `before` first, and return the process's id."""
    if (pid := os.fork()) == 0:
        status = 99  # an exception, which prints its traceback
        try:
            ranks.join.cache_clear()
            os.environ.update(environment)
            with (folder.parent / f"{folder.name}.said").open("a") as said:
                for number in (1, 2):
                    os.dup2(said.fileno(), number)
            before()
            status = main([*COMMAND.split(), str(folder)])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """The exit status of a process, or minus the number of its signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def counted(folder: Path) -> Any:
    """The entries of the summary without their seconds."""
    entries = json.loads((folder / "summary.json").read_text())["entries"]
    return [{**e, "cost": {**e["cost"], "seconds": 0, "reward_seconds": 0}} for e in entries]


def whole_lines(folder: Path) -> set[bytes]:
    """The complete lines of the journal and of its parts."""
    contents = [path.read_bytes() for path in folder.glob("journal*.jsonl")]
    return {line for content in contents for line in content[: content.rfind(b"\n") + 1].splitlines()}


def killed(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    pid = begun(folder)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    return {ended(pid)} - {0, -signal.SIGKILL}


def interrupted(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    """By Ctrl-C or by SIGTERM."""
    number = signal.Signals(rng.choice([signal.SIGINT, signal.SIGTERM]))
    pid = begun(folder)
    time.sleep(moment)
    os.kill(pid, number)
    return {ended(pid)} - {0, 130, -signal.SIGTERM, 128 + signal.SIGTERM}


def short_files(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    """No file grows beyond a random size: the journal, or a table, a picture or a page at the end."""
    most = int(rng.uniform(0, 1.2 * (UNDISTURBED / "journal.jsonl").stat().st_size))
    pid = begun(folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)))
    return {ended(pid)} - {0, 2}


def full_disk(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    """The results lie on a disk of a random size, which is larger when the command goes on."""
    require_root()
    folder.mkdir()
    pages = int(rng.integers(1, 1.2 * sum(path.stat().st_size for path in UNDISTURBED.iterdir()) / 4096))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        raise NotTriedError("this machine mounts no disk")
    status = ended(begun(folder))
    with tempfile.TemporaryDirectory() as name:  # what the disk holds goes into the folder under it
        shutil.copytree(folder, name, dirs_exist_ok=True)
        subprocess.run(["umount", str(folder)], check=True)
        shutil.copytree(name, folder, dirs_exist_ok=True)
    return {status} - {0, 2}


def read_only(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    """From a random moment on, the folder takes no new file, and its files cannot be opened for writing."""
    require_root()
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    pid = begun(folder, lambda: (os.setgid(NOBODY), os.setuid(NOBODY)))
    time.sleep(moment)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    status = ended(pid)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777)
    return {status} - {0, 2}


def require_root() -> None:
    if os.geteuid() != 0:
        raise NotTriedError("it needs root")


class NotTriedError(Exception):
    """This machine cannot make the fault, for a reason."""


def clock(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    """The time of day jumps at a random moment by up to three years, forwards or backwards."""
    jump, true, begin = rng.uniform(-1e8, 1e8), time.time, time.monotonic()

    def jumping() -> float:
        return true() + (jump if time.monotonic() - begin > moment else 0.0)

    return {ended(begun(folder, lambda: setattr(time, "time", jumping)))} - {0}


def two_runs(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    """A second command on the folder of the first one: it is refused, or the first one has ended."""
    first = begun(folder)
    time.sleep(moment)
    second = begun(folder)
    statuses = [ended(first), ended(second)]
    return set(statuses) - {0, 2} or ({99} if statuses == [2, 2] else set())


def dead_rank(folder: Path, moment: float, rng: np.random.Generator) -> set[int]:
    """Two processes share the run, and one of them dies; the other one ends by itself."""
    with kept_port() as kept:
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(kept.getsockname()[1])}
        both = [begun(folder, impatient, **place, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
        time.sleep(moment)
        dead = int(rng.integers(2))
        os.kill(both[dead], signal.SIGKILL)
        return {ended(both[1 - dead]), ended(both[dead])} - {0, 2, -signal.SIGKILL}


def impatient() -> None:
    """Wait 20 seconds for processes to start, not minutes: forks start at once."""
    ranks.JOINING = ranks.CONNECTING = timedelta(seconds=20)


FAULTS = (killed, interrupted, short_files, full_disk, read_only, clock, two_runs, dead_rank)
UNDISTURBED = Path(tempfile.gettempdir())


def problems_of(fault: Callable[..., set[int]], folder: Path, moment: float, rng: np.random.Generator) -> list[str]:
    """What went wrong in one try, in words."""
    found = [f"ended with status {status}" for status in fault(folder, moment, rng)]
    kept = whole_lines(folder) if folder.exists() else set()
    if status := ended(begun(folder)):
        return [*found, f"the same command ended with status {status}"]
    if not kept <= whole_lines(folder):
        found.append("records were lost")
    if journal_of(folder) != journal_of(UNDISTURBED):
        found.append("other records")
    if counted(folder) != counted(UNDISTURBED):
        found.append("another summary")
    left = {path.name for path in folder.iterdir()} ^ {path.name for path in UNDISTURBED.iterdir()}
    found += [f"files: {', '.join(sorted(left))}"] * bool(left)
    said = (folder.parent / f"{folder.name}.said").read_text()
    return found + ["a traceback"] * ("Traceback" in said)


def went_wrong(fault: Callable[..., set[int]], number: int, seconds: float, home: Path) -> bool:
    """Try a fault once at a moment of a run that takes so many seconds; print what went wrong."""
    rng, name = np.random.default_rng([number, *fault.__name__.encode()]), fault.__name__
    folder, moment = home / f"{name}-{number}", float(rng.uniform(0, 1.1 * seconds))
    found = problems_of(fault, folder, moment, rng)
    for line in found:
        print(f"{name} {number} at {moment:.2f} s of {seconds:.2f} s: {line}", flush=True)
    shutil.rmtree(folder)
    return bool(found)


def series(times: int, names: list[str], home: Path) -> int:
    """Print a line for each fault, and return how many tries went wrong."""
    global UNDISTURBED
    UNDISTURBED = home / "undisturbed"
    main([*COMMAND.split(), str(home / "warm")])
    begin = time.monotonic()
    ended(begun(UNDISTURBED))
    seconds, wrong = time.monotonic() - begin, 0
    for fault in FAULTS:
        if fault.__name__ not in names:
            continue
        try:
            bad = sum(went_wrong(fault, number, seconds, home) for number in range(times))
        except NotTriedError as reason:
            print(f"{fault.__name__}: not tried, {reason}", flush=True)
            continue
        wrong += bad
        print(f"{fault.__name__}: {times} tries, {bad} went wrong", flush=True)
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--faults", default=",".join(fault.__name__ for fault in FAULTS))
    asked = parser.parse_args()
    if unknown := set(asked.faults.split(",")) - {fault.__name__ for fault in FAULTS}:
        parser.error(f"unknown fault {min(unknown)!r}; choose from {', '.join(fault.__name__ for fault in FAULTS)}")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        sys.exit(min(99, series(asked.times, asked.faults.split(","), Path(name))))
