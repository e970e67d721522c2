"""`ets eval --engine endpoint`: vLLM's own server, and faults to order through the whole command.

Everything goes over the loopback address. A tiny server draws by each request's seed, so a run that met faults must
leave the records of an undisturbed one.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from ets.cli import main
from ets.policies.autoregressive.server import SEEDS, TEXT_ONLY, Endpoint
from tests.evaluation.test_kill import journal_of
from tests.tiny_server import FOREVER, HANG_UP, TinyServer

SHARED = {
    "--task": "arithmetic",
    "--shots": "0",
    "--lam": "0.1",
    "--pool": "chain",
    "--seed": "0",
}
DEMONSTRATION = SHARED | {
    "--model": "embedded",
    "--count": "40",
    "--methods": "plain,majority,ets",
    "--samples": "8",
    "--candidates": "4",
    "--rollouts": "2",
    "--block-size": "16",
    "--max-length": "96",
    "--temperature": "1.9",
    "--width": "40",
}
TINY = SHARED | {
    "--engine": "endpoint",
    "--count": "6",
    "--methods": "plain,ets",
    "--samples": "2",
    "--candidates": "2",
    "--rollouts": "2",
    "--block-size": "2",
    "--max-length": "6",
    "--temperature": "0.7",
    "--width": "2",
}


def words(options: dict[str, str]) -> list[str]:
    return ["eval", *(word for option in options.items() for word in option)]


def rows_of(folder: Path) -> dict[str, Any]:
    """The entries of sampled texts, by method."""
    entries = json.loads((folder / "summary.json").read_text())["entries"]
    return {entry["method"]: entry for entry in entries if entry["readout"] == "last"}


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts within a moment; by default there are seven within a minute."""
    assert "waits" in Endpoint.__init__.__kwdefaults__
    monkeypatch.setitem(Endpoint.__init__.__kwdefaults__, "waits", (0.01, 0.02))


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")
def test_the_demonstration_through_vllms_server_agrees_with_transformers(vllm_address: str, tmp_path: Path) -> None:
    """Each method's accuracy at a level of 1e-4; that some samples share a problem makes |z| smaller, not larger."""
    served, here = tmp_path / "served", tmp_path / "here"
    ours = {"--engine": "endpoint", "--endpoint": vllm_address, "--out": str(served)}
    command = [sys.executable, "-m", "ets", *words(DEMONSTRATION | ours)]
    done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(words(DEMONSTRATION | {"--out": str(here)})) == 0
    found, expected = rows_of(served), rows_of(here)
    for method, samples in (("plain", 40 * 8), ("majority", 40), ("ets", 40)):
        shares = [fmean(rows[method]["scores"].values()) for rows in (found, expected)]
        assert abs(z_of(*shares, samples)) < 3.9, (method, shares)
    assert 0.2 < fmean(found["plain"]["scores"].values()) < fmean(found["ets"]["scores"].values())
    configuration = json.loads((served / "configuration.json").read_text())
    assert configuration["approximate"] == "" and configuration["served_model"]
    assert "approximate" not in done.stdout and vllm_address not in json.dumps(configuration)


def z_of(first: float, second: float, samples: int) -> float:
    """Of the difference between two proportions over equally many samples."""
    share = (first + second) / 2
    return (first - second) / math.sqrt(max(2 * share * (1 - share) / samples, 1e-9))


@pytest.fixture(scope="module")
def tiny(tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The options of a short run with the tiny checkpoint, which needs a folder for that."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint.config.save_pretrained(folder)
    tiny_checkpoint.tokenizer.save_pretrained(folder)
    return TINY | {"--model": str(folder)}


@pytest.fixture
def server(tiny_checkpoint: Any) -> Iterator[TinyServer]:
    with TinyServer(tiny_checkpoint) as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(tiny: dict[str, str], tiny_checkpoint: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run's records, and how many completions it asked for."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with TinyServer(tiny_checkpoint) as server:
        assert main(words(tiny | {"--endpoint": server.address, "--out": str(folder)})) == 0
        return journal_of(folder), len(server.seen)


def require_fault(error: str, server: TinyServer, said: str) -> None:
    """One line that names the address, whatever bars stand before it, and no traceback."""
    lines = error.strip().splitlines()
    assert lines[-1].startswith(f"error: the server at {server.address} ") and said in lines[-1]
    assert sum("error" in line.lower() for line in lines) == 1 and "Traceback" not in error


@pytest.mark.usefixtures("_impatient")
def test_a_server_that_is_killed_in_the_middle_leaves_a_run_that_goes_on(
    tiny: dict[str, str],
    tiny_checkpoint: Any,
    undisturbed: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected, asked = undisturbed
    mortal = TinyServer(tiny_checkpoint)
    mortal.lives = asked // 2
    command = words(tiny | {"--endpoint": mortal.address, "--out": str(tmp_path)})
    assert main(command) == 2
    require_fault(capsys.readouterr().err, mortal, "tried 3 times; start it again, or correct the address, and repeat")
    kept, chains = journal_of(tmp_path), len((tmp_path / "journal.jsonl").read_text().splitlines())
    assert 0 < len(kept) < len(expected)
    assert all(expected[key] == record for key, record in kept.items())
    assert not (tmp_path / "summary.json").exists()
    with TinyServer(tiny_checkpoint, port=mortal.port) as again:
        assert main(command) == 0
        assert len(again.seen) < asked
    assert journal_of(tmp_path) == expected and list(rows_of(tmp_path)) == ["plain", "ets"]
    assert f"{chains} finished chains in " in capsys.readouterr().out


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("before", [0, 20], ids=["at the start", "in the middle"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [(500, "answers 500 (as told)"), (FOREVER, "has not answered within 1 seconds"), (HANG_UP, "cannot be reached")],
    ids=["500", "slow", "hang up"],
)
def test_a_fault_that_stays_ends_the_command_with_one_line(
    server: TinyServer,
    tiny: dict[str, str],
    before: int,
    fault: Any,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.faults = [None] * before + [fault] * 1000
    options = tiny | {"--endpoint": server.address, "--out": str(tmp_path / "run")}
    assert main(words(options | ({"--seconds": "1"} if fault == FOREVER else {}))) == 2
    require_fault(capsys.readouterr().err, server, said)
    assert (tmp_path / "run").exists() == bool(before)


def test_faults_that_pass_leave_no_trace(
    server: TinyServer, tiny: dict[str, str], undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more attempts than faults, since one row may meet several."""
    monkeypatch.setitem(Endpoint.__init__.__kwdefaults__, "waits", (0.01,) * 9)
    server.faults = [500, 500, *[None] * 20, 500, 500, FOREVER, *[None] * 20, HANG_UP, 429]
    assert main(words(tiny | {"--endpoint": server.address, "--out": str(tmp_path), "--seconds": "2"})) == 0
    assert not server.faults and journal_of(tmp_path) == undisturbed[0]


@pytest.mark.usefixtures("_impatient")
def test_a_dead_server_is_one_line(
    server: TinyServer, tiny: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.die()
    assert main(words(tiny | {"--endpoint": server.address, "--out": str(tmp_path / "run")})) == 2
    error = capsys.readouterr().err
    require_fault(error, server, "cannot be reached")
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_two_groups_of_problems_share_a_server(server: TinyServer, tiny: dict[str, str], tmp_path: Path) -> None:
    """At a width of 1 each has one problem: two candidates, which are complete. One group alone asks for two rows."""
    meeting = threading.Barrier(4, timeout=60)
    server.faults = [*[None] * (SEEDS + 1), *[meeting.wait] * 4]
    options = {"--methods": "ets", "--width": "2", "--max-length": "2"}
    assert main(words(tiny | options | {"--endpoint": server.address, "--out": str(tmp_path)})) == 0
    assert server.busiest >= 4


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_command_waits_for_no_row(
    server: TinyServer, tiny: dict[str, str], undisturbed: Any, tmp_path: Path, number: int, status: int
) -> None:
    """It ends while the server is silent, with both groups' requests under way; and goes on later.

    Each group draws the two samples of a problem, twice, and meets the other both times: none is ahead at the silence.
    """
    server.faults = [*[None] * (SEEDS + 1), *[threading.Barrier(4, timeout=60).wait] * 8, *[120.0] * 1000]
    options = tiny | {"--endpoint": server.address, "--out": str(tmp_path)}
    journal, over = tmp_path / "journal.jsonl", threading.Event()

    def interrupt() -> None:
        while not over.wait(0.01):
            if len(server.faults) <= 996 and server.busy >= 4 and len(journal.read_bytes().splitlines()) == 4:
                os.kill(os.getpid(), number)
                return

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    watching = threading.Thread(target=interrupt, daemon=True)
    watching.start()
    try:
        ended = main(words(options | {"--methods": "plain"}))
    except SystemExit as exit:
        ended = int(exit.code or 0)
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGINT, before)
    assert ended == status and server.busy >= 4
    server.faults = []
    assert main(words(options)) == 0 and journal_of(tmp_path) == undisturbed[0]


def test_an_approximate_server_is_named_wherever_results_are(
    tiny_checkpoint: Any, server: TinyServer, tiny: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what it drew is not mixed with what an exact one draws."""
    options = tiny | {"--out": str(tmp_path)}
    with TinyServer(tiny_checkpoint, text_only=True) as other:
        assert main(words(options | {"--endpoint": other.address})) == 0
    shown, line = capfd.readouterr(), f"approximate: {TEXT_ONLY}"
    assert shown.out.count(f"{line}\n") == 2 and "Warning" not in shown.err
    assert (tmp_path / "table.md").read_text().endswith(f"|\n\n{line}\n")
    assert json.loads((tmp_path / "summary.json").read_text())["setting"]["notes"] == [line]
    assert json.loads((tmp_path / "configuration.json").read_text())["approximate"] == TEXT_ONLY
    assert main(words(options | {"--endpoint": server.address})) == 2
    assert "is of another configuration: approximate (" in capfd.readouterr().err


def test_results_do_not_depend_on_how_the_server_is_reached(
    server: TinyServer, tiny: dict[str, str], undisturbed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another port, fewer connections and another time-out: the same folder, in which everything is found."""
    options = tiny | {"--out": "", "--results": str(tmp_path)}
    del options["--out"]
    assert main(words(options | {"--endpoint": server.address})) == 0
    (folder,) = tmp_path.iterdir()
    assert journal_of(folder) == undisturbed[0]
    with TinyServer(server.checkpoint) as other:
        reached = {"--endpoint": f"{other.address}/", "--connections": "3", "--seconds": "9", "--served-model": "tiny"}
        assert main(words(options | reached)) == 0
        assert len(other.seen) == SEEDS + 1  # to know it
    assert list(tmp_path.iterdir()) == [folder]
    configuration = json.loads((folder / "configuration.json").read_text())
    assert (configuration["served_model"], configuration["placement"]) == ("tiny", "the server's")
    assert not configuration.keys() & {"endpoint", "connections", "seconds", "key_variable"}


def test_a_key_goes_to_the_server_and_nowhere_else(
    tiny_checkpoint: Any,
    tiny: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with TinyServer(tiny_checkpoint, key="sk-right") as server:
        command = words(tiny | {"--endpoint": server.address, "--key-variable": "TINY_KEY", "--out": str(tmp_path)})
        monkeypatch.setenv("TINY_KEY", "sk-wrong")
        assert main(command) == 2
        refused = capfd.readouterr().err
        assert "put the API key into TINY_KEY" in refused and refused.count("\n") == 1
        monkeypatch.setenv("TINY_KEY", "sk-right")
        assert main(command) == 0
    shown = capfd.readouterr()
    written = [path.read_text() for path in tmp_path.iterdir() if path.suffix != ".png"]
    assert len(written) == 8 and not any("sk-" in text for text in (refused, shown.out, shown.err, *written))
