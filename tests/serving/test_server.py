"""`python -m ets serve` as a process: its address, its end, and what it prints."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ets.serving.server import bound
from ets.types import InputError
from tests.serving.serving import PROMPT

REWARD = """import time
from pathlib import Path

HERE = Path(__file__).parent

def brief(prompt, text):
    return -len(text) / 100

def held(prompt, text):
    (HERE / "begun").touch()
    while not (HERE / "go").exists():
        time.sleep(0.01)
    return brief(prompt, text)
"""
SMALL = ("--model", "embedded-small", "--candidates", "2", "--rollouts", "1", "--block-size", "8", "--max-length", "16")


@contextmanager
def process_of(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """A process of `ets serve` in a folder, its first line, and the address of this machine at its port."""
    command = [sys.executable, "-m", "ets", "serve", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = re.search(r":(\d+)/v1", line)
        assert port is not None, process.communicate(timeout=60)[1]
        yield process, line, f"http://127.0.0.1:{port[1]}"
    finally:
        process.kill()
        process.communicate()


def running(folder: Path, *words: str) -> AbstractContextManager[tuple[subprocess.Popen[str], str, str]]:
    """The small model with two rewards at a free port."""
    (folder / "own.py").write_text(REWARD)
    rewards = [word for name in ("brief", "held") for word in ("--reward", f"own.py:{name}")]
    return process_of(folder, *SMALL, *rewards, "--port", "0", *words)


def ask(address: str, reward: str) -> httpx2.Response:
    body = {"model": "embedded-small", "prompt": PROMPT, "ets": {"reward": reward}}
    return httpx2.post(f"{address}/v1/completions", json=body, timeout=60)


def signalled_under_way(process: subprocess.Popen[str], address: str, folder: Path, number: int) -> Any:
    """A request whose reward is held, in a thread; then the signal."""
    threads = ThreadPoolExecutor(1)
    asked = threads.submit(ask, address, "held")
    while not (folder / "begun").exists():
        time.sleep(0.01)
    process.send_signal(number)
    return asked


def test_a_signal_drains(tmp_path: Path) -> None:
    """The request under way is answered, no further connection is taken, and the process ends well."""
    with running(tmp_path) as (process, line, address):
        assert line == f"serving embedded-small at {address}/v1\n"
        assert httpx2.get(f"{address}/v1/models").json()["data"][0]["id"] == "embedded-small"
        assert ask(address, "brief").status_code == 200
        asked = signalled_under_way(process, address, tmp_path, signal.SIGTERM)
        while listens(address):
            time.sleep(0.01)
        assert not asked.done()
        (tmp_path / "go").touch()
        assert asked.result().status_code == 200 and asked.result().json()["choices"][0]["text"]
        printed, logged = process.communicate(timeout=30)
    assert process.returncode == 0 and printed == "" and "Traceback" not in logged
    records = [json.loads(each) for each in logged.splitlines() if each.startswith("{")]
    assert [(each["status"], each["reward"]) for each in records] == [(200, "brief"), (200, "held")]
    assert PROMPT.split("\n")[0] not in logged


def test_without_a_drain_a_signal_ends_the_requests_under_way(tmp_path: Path) -> None:
    """Also a reward that hangs; open to the network, it says that no key is needed."""
    with running(tmp_path, "--drain-seconds", "0", "--host", "0.0.0.0") as (process, line, address):
        assert line.startswith("serving embedded-small at http://0.0.0.0:")
        assert line.endswith("/v1; no key is needed: see --api-key-file\n")
        asked = signalled_under_way(process, address, tmp_path, signal.SIGINT)
        response = asked.result(timeout=10)
        assert response.status_code == 503 and response.json()["error"]["code"] == "ended"
        _, logged = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in logged


def listens(address: str) -> bool:
    with socket.socket() as there:
        return there.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0


def test_an_address_that_cannot_be_taken_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use; choose"):
            bound("127.0.0.1", port)
    with pytest.raises(InputError, match=r"cannot listen at no\.such\.host\.invalid:0"):
        bound("no.such.host.invalid", 0)
