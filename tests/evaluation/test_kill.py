"""Runs that are killed, at random moments that are the same every time, and go on where they were killed."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ets
from ets.cli import main

SERVER = '''
"""For each line of input, runs a comparison in a forked process, and prints how the process ended.

It may die, or stop, after so many bytes of journal, in the middle of a line; or die after so many seconds.
"""

import json, os, signal, sys, time
from pathlib import Path

from ets.evaluation.comparison import Comparison
from ets.evaluation.journal import Journal
from ets.evaluation.methods import METHODS
from ets.evaluation.run import Run
from ets.types import InputError
from tests.evaluation.letters import SETTINGS, Letters, certain, policies


class Mortal:
    def __init__(self, file, left, ending):
        self.file, self.left, self.ending = file, left, ending

    def write(self, data):
        self.file.write(data[: self.left])
        if self.left <= len(data):
            self.file.flush()
            os.kill(os.getpid(), self.ending)
        self.left -= len(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def evaluate(folder, bytes, ending):
    journal = Journal(Path(folder), {"seed": 0})
    if bytes is not None:
        journal._file = Mortal(journal._file, bytes, ending)
    run = Run(Letters(), Letters().problems(16, 0), journal, 5, 0, progress=False)
    Comparison(run, policies(certain()), METHODS, SETTINGS).entries([3], against="majority")


def child(order):
    try:
        evaluate(order["folder"], order.get("bytes"), order.get("ending", signal.SIGKILL))
    except InputError as error:
        print(error, flush=True)
        os._exit(2)
    os._exit(0)


print("ready", flush=True)
for line in sys.stdin:
    order, begun = json.loads(line), time.monotonic()
    pid = order.get("kill") or os.fork()
    if pid == 0:
        child(order)
    if "seconds" in order or "kill" in order:
        time.sleep(order.get("seconds", 0))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, os.WUNTRACED)
    print(json.dumps({"pid": pid, "status": status, "seconds": time.monotonic() - begun}), flush=True)
'''


class Server:
    """The script above."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process that runs evaluations has ended with {self.process.wait(60)}"
        return line.strip()

    def run(self, folder: Path | None = None, **order: Any) -> dict[str, Any]:
        """How the run ended, and what it said before, if anything."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"folder": str(folder)} | order) + "\n")
        self.process.stdin.flush()
        said = [self._line()]
        while not said[-1].startswith("{"):
            said.append(self._line())
        return json.loads(said[-1]) | {"said": said[:-1]}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    environment = os.environ | {"PYTHONPATH": str(Path(ets.__file__).parents[1])}
    command, pipe = [sys.executable, "-c", SERVER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def journal_of(folder: Path) -> dict[tuple[str, str, int], Any]:
    """Its records, without what depends on the clock and on the neighbours in a batch; every line is one, and new.

    The samples of a problem share its prompt, and one that is read again after a kill is charged again.
    """
    lines = (folder / "journal.jsonl").read_bytes().splitlines()
    records = {(r["method"], r["problem"], r["sample"]): r for r in map(json.loads, lines)}
    assert len(records) == len(lines)
    result, prompts = copy.deepcopy(records), dict[tuple[str, str], int]()
    for (method, problem, _), record in result.items():
        for text in record.get("texts", ()):
            text["logp"] = round(text["logp"], 3)  # of a batch with other rows
        for name in ("seconds", "reward_seconds", "forwards"):
            del record["cost"][name]
        record.pop("scoring", None)
        prompts[method, problem] = max(prompts.get((method, problem), 0), record["cost"].pop("prompt"))
    return result | {(*name, -1): prompt for name, prompt in prompts.items()}


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = server.run(folder)
    assert ended["status"] == 0
    return folder, ended["seconds"]


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_was_killed_ends_with_what_an_undisturbed_one_ends_with(
    server: Server, undisturbed: tuple[Path, float], tmp_path: Path, seed: int
) -> None:
    """Killed at a byte of the journal, then at any moment, then twice more while it lasts."""
    rng, (folder, seconds) = np.random.default_rng(seed), undisturbed
    size = (folder / "journal.jsonl").stat().st_size
    first = int(rng.integers(1, int(0.9 * size)))
    assert server.run(tmp_path, bytes=first)["status"] == signal.SIGKILL
    assert (tmp_path / "journal.jsonl").stat().st_size == first
    assert server.run(tmp_path, seconds=rng.uniform(0, seconds * (1 - first / size)))["status"] in (0, signal.SIGKILL)
    for _ in range(2):
        assert server.run(tmp_path, bytes=int(rng.integers(1, size - first)))["status"] in (0, signal.SIGKILL)
    assert server.run(tmp_path)["status"] == 0
    assert journal_of(tmp_path) == journal_of(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"configuration.json", "journal.jsonl"}


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_was_killed_while_it_began_goes_on_too(
    server: Server, undisturbed: tuple[Path, float], tmp_path: Path, seed: int
) -> None:
    """Within a few milliseconds: before the folder, the lock, the configuration or the first line."""
    folder = tmp_path / "new"
    server.run(folder, seconds=np.random.default_rng(seed).uniform(0, 0.003))
    assert server.run(folder)["status"] == 0
    assert journal_of(folder) == journal_of(undisturbed[0])


def test_a_second_process_is_refused_while_the_first_lives_and_welcome_when_it_was_killed(
    server: Server, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    first = server.run(tmp_path, bytes=500, ending=signal.SIGSTOP)
    assert os.WIFSTOPPED(first["status"])
    second = server.run(tmp_path)
    assert os.waitstatus_to_exitcode(second["status"]) == 2
    refusal = f"another process is writing to {str(tmp_path)!r}; wait for it, or choose another folder"
    assert second["said"] == [refusal]
    assert (tmp_path / "journal.jsonl").stat().st_size == 500
    assert server.run(kill=first["pid"])["status"] == signal.SIGKILL
    assert server.run(tmp_path)["status"] == 0
    assert journal_of(tmp_path) == journal_of(undisturbed[0])


OPTIONS = {
    "--task": "arithmetic",
    "--model": "embedded-small",
    "--count": "4",
    "--shots": "0",
    "--methods": "plain,best-of-n,greedy,ets,refined",
    "--candidates": "2",
    "--rollouts": "2",
    "--lam": "0.1",
    "--pool": "chain",
    "--block-size": "16",
    "--max-length": "48",
    "--temperature": "1.0",
    "--seed": "0",
    "--width": "2",
}
COMMAND = ["eval", *(word for option in OPTIONS.items() for word in option), "--out"]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedded")
    assert main([*COMMAND, str(folder)]) == 0
    return folder


MORTAL = """
import os, signal, sys
from ets.cli import main
from ets.evaluation.journal import Journal

enough, append = float(sys.argv[1]), Journal.append

def append_or_die(journal, record):
    append(journal, record)
    if os.fstat(journal._file.fileno()).st_size >= enough:
        os.kill(os.getpid(), signal.SIGKILL)

Journal.append = append_or_die
main(sys.argv[2:])
"""


@pytest.mark.parametrize("seed", [0, 1])
def test_ets_eval_with_the_embedded_model_can_be_killed(embedded: Path, tmp_path: Path, seed: int) -> None:
    size, journal = (embedded / "journal.jsonl").stat().st_size, tmp_path / "journal.jsonl"
    enough = np.random.default_rng(seed).uniform(0.05, 0.6) * size
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(ets.__file__).parents[1])}
    command = [sys.executable, "-c", MORTAL, str(enough), *COMMAND, str(tmp_path)]
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    assert enough <= journal.stat().st_size < size
    assert main([*COMMAND, str(tmp_path)]) == 0
    assert journal_of(tmp_path) == journal_of(embedded)
    assert [(tmp_path / name).exists() for name in ("summary.json", "table.md")] == [True, True]
