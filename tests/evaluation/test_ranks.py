"""Several processes: they give the journal that one gives, may be killed, and fail in one line without hanging."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import ets
from ets.cli import main
from ets.evaluation.journal import Journal, Record
from ets.evaluation.ranks import ALONE, Ranks, join, require_shareable
from ets.types import InputError
from tests.evaluation.test_kill import journal_of
from tests.ports import kept_port

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
ENVIRONMENT |= {"PYTHONPATH": str(Path(ets.__file__).parents[1]), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
SECONDS = 1200
"""A command that takes longer hangs; it takes a tenth of that where two processes share a slow machine."""
SHARED = """--shots 0 --methods plain,majority,ets --candidates 2 --rollouts 2 --lam 0.1 --pool chain
    --temperature 1.0 --seed 0"""
AUTOREGRESSIVE = f"eval --task arithmetic --model embedded-small {SHARED} --count 5 --block-size 16 --max-length 48"
DIFFUSION = f"""eval --engine masked-diffusion --task sums --model embedded {SHARED} --count 3 --gen-length 24
    --steps 12 --block-length 8 --guide-steps 3 --cfg 0 --remasking low_confidence"""


def command(words: str, folder: Path, width: int = 2) -> list[str]:
    return [*words.split(), "--width", str(width), "--out", str(folder)]


def launched(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TWO, *words], env=ENVIRONMENT, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert main(command(AUTOREGRESSIVE, folder)) == 0
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def counted(folder: Path) -> list[dict[str, Any]]:
    """The entries of a summary, without their seconds."""
    entries = json.loads((folder / "summary.json").read_text())["entries"]
    return [{**e, "cost": {**e["cost"], "seconds": 0, "reward_seconds": 0}} for e in entries]


def test_two_processes_give_the_journal_and_the_table_of_one(alone: Path, tmp_path: Path) -> None:
    """An odd number of problems; the others' number of samples is what ETS costs over all of them."""
    done = launched("-m", "ets", *command(AUTOREGRESSIVE, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("0 finished chains") == done.stdout.count("\n| ETS (M 2, K 2) ") == 1
    assert "ETS (M 2, K 2), process 1 of 2" in done.stderr and "3/3 problems" in done.stderr
    assert "process 2" not in done.stderr and "5 problems" not in done.stderr
    assert journal_of(tmp_path / "two") == journal_of(alone)
    assert names(tmp_path / "two") == names(alone)
    assert counted(tmp_path / "two") == counted(alone)


def pooled(record: Any) -> list[str]:
    """The texts of a pool's record."""
    return [each["text"] for each in record.get("texts", ())]


def test_masked_diffusion_gives_the_same_texts(tmp_path: Path) -> None:
    assert main(command(DIFFUSION, tmp_path / "one")) == 0
    done = launched("-m", "ets", *command(DIFFUSION, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    found = []
    for name in ("one", "two"):
        records = journal_of(tmp_path / name)
        kept = ("text", "answer", "correct", "guide_steps", "sample_tokens")
        found.append({key: [r.get(field) for field in kept] + pooled(r) for key, r in records.items() if key[2] >= 0})
    assert found[0] == found[1]


def problems(path: Path) -> set[str]:
    """Those in the whole lines of a file."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    return {json.loads(line)["problem"] for line in whole.splitlines()}


HALTING = """
import sys, time
from ets.cli import main
from ets.evaluation.journal import Journal

append = Journal.append
Journal.append = lambda *record: (append(*record), time.sleep(600))
main(sys.argv[1:])
"""


def test_one_process_goes_on_where_two_were_killed(alone: Path, tmp_path: Path) -> None:
    """Each of the two has written a line, and writes no other."""
    folder, script, quiet = tmp_path / "run", tmp_path / "halting.py", subprocess.DEVNULL
    journal, part = folder / "journal.jsonl", folder / "journal-1.jsonl"
    script.write_text(HALTING)
    words = [*TWO, str(script), *command(AUTOREGRESSIVE, folder, width=1)]
    with subprocess.Popen(words, env=ENVIRONMENT, stdout=quiet, stderr=quiet) as launcher:
        while launcher.poll() is None and not (problems(journal) and problems(part)):
            time.sleep(0.01)
        processes = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    for path in (journal, part):
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the process that wrote it is gone
    assert len(processes) >= 3 and problems(part) and not problems(journal) & problems(part)
    assert main(command(AUTOREGRESSIVE, folder)) == 0
    assert journal_of(folder) == journal_of(alone)
    assert names(folder) == names(alone)


def require_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]
    assert done.returncode != 0 and "interrupted" not in done.stderr
    assert "exitcode  : 2 " in done.stderr  # what the launcher says of the process that ended first


def test_a_bad_option_is_one_line(tmp_path: Path) -> None:
    """Found before they have joined."""
    require_one_line(launched("-m", "ets", *command(AUTOREGRESSIVE, tmp_path), "--nonsense"), "--nonsense is unknown")


def test_a_folder_in_use_stops_the_first_process_and_with_it_those_that_wait_for_it(tmp_path: Path) -> None:
    holder = Journal(tmp_path, {"seed": 0})
    done = launched("-m", "ets", *command(AUTOREGRESSIVE, tmp_path))
    holder.close()
    require_one_line(done, "another process is writing to")


SCRIPT = """
import atexit
import os
import sys
from torch import distributed
from ets.evaluation.ranks import join, reported_once
from ets.exits import exit_status
from ets.types import InputError

atexit.register(lambda: print("left" if not distributed.is_initialized() else "never left"))  # after join's

def command():
    ranks = join()
    said = ranks.gather({"rank": ranks.rank, "share": ranks.share("abcde")})
    ranks.say(f"{said} {ranks.device} {ranks.size}")
    if ranks.rank == 1:
        raise InputError("the second process alone fails")
    ranks.wait()

sys.exit(exit_status(reported_once(command)))
"""


def test_one_that_fails_alone_is_reported_once_and_the_others_do_not_wait_for_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launched(str(tmp_path / "script.py"))
    require_one_line(done, "the second process alone fails")
    said = [{"rank": 0, "share": "ace"}, {"rank": 1, "share": "bd"}]
    assert done.stdout.count(f"{said} cpu 2") == 1
    assert "left" in done.stdout and "never" not in done.stdout  # one whose threads outlive it may abort at its end


def without_a_launcher(folder: Path, *scripts: str) -> list[subprocess.CompletedProcess[str]]:
    """A process for each script, by rank."""
    with kept_port() as kept:
        place = {"WORLD_SIZE": str(len(scripts)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(kept.getsockname()[1])}
        started = []
        for rank, script in enumerate(scripts):
            path = folder / f"script-{rank}.py"
            path.write_text(script)
            environment = {**ENVIRONMENT, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            words, pipe = [sys.executable, str(path)], subprocess.PIPE
            started.append(subprocess.Popen(words, env=environment, stdout=pipe, stderr=pipe, text=True))
        printed = [process.communicate(timeout=SECONDS) for process in started]
    return [subprocess.CompletedProcess(p.args, p.returncode, *said) for p, said in zip(started, printed, strict=True)]


def test_without_a_launcher_a_process_notices_that_another_has_died(tmp_path: Path) -> None:
    dying = SCRIPT.replace('raise InputError("the second process alone fails")', "os._exit(3)")
    first, second = without_a_launcher(tmp_path, dying, dying)
    assert [first.returncode, second.returncode] == [2, 3]
    assert [line for line in first.stderr.splitlines() if not line.startswith("[")] == [
        "error: another process of this command has ended; start it again, it goes on where it was interrupted"
    ]


def test_a_process_waits_longer_for_a_slow_one_than_for_its_connection(tmp_path: Path) -> None:
    shorter = "import time\nimport ets.evaluation.ranks as ranks\nranks.CONNECTING = ranks.timedelta(seconds=2)\n"
    script = shorter + SCRIPT.replace("    said =", "    time.sleep(6 if ranks.rank == 0 else 0)\n    said =")
    first, second = without_a_launcher(tmp_path, script, script)
    assert "'rank': 1" in first.stdout
    assert second.stderr.splitlines()[-1] == "error: the second process alone fails"


NOT_JOINED = (
    "error: WORLD_SIZE is 2, but a process has not started within {} seconds, or has ended; start all of them again"
)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_process_ends_in_one_line_if_another_dies_before_they_are_connected(dead: int, tmp_path: Path) -> None:
    exiting = "distributed.init_process_group = lambda *_, **__: os._exit(3)"
    dying = SCRIPT.replace("def command():", f"{exiting}\n\ndef command():")
    shorter = f"import ets.evaluation.ranks as ranks\nranks.CONNECTING = ranks.timedelta(seconds=2)\n{SCRIPT}"
    done = without_a_launcher(tmp_path, *(dying if rank == dead else shorter for rank in range(2)))
    other = done[1 - dead]
    assert (done[dead].returncode, other.returncode) == (3, 2) and "Traceback" not in other.stderr
    assert other.stderr.splitlines()[-1] == NOT_JOINED.format(300)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_whose_others_never_start_ends_in_one_line(rank: str, tmp_path: Path) -> None:
    """The process of rank 0 has the store; without it the other process cannot connect."""
    shorter = "import ets.evaluation.ranks as ranks\nranks.JOINING = ranks.timedelta(seconds=2)\n"
    (tmp_path / "script.py").write_text(shorter + SCRIPT)
    with kept_port() as kept:
        place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(kept.getsockname()[1])}
        environment = {**ENVIRONMENT, **place, "RANK": rank, "LOCAL_RANK": rank}
        words = [sys.executable, str(tmp_path / "script.py")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr  # torch may write lines before ours
    assert done.stderr.splitlines()[-1] == NOT_JOINED.format(2)


def test_a_process_that_is_alone_waits_for_nobody() -> None:
    assert join() is ALONE and ALONE.gather("a") == ["a"] and ALONE.device is None and ALONE.share([1, 2]) == [1, 2]


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda:1"), (8, "cuda:1"), (1, None)])
def test_each_process_has_a_gpu_of_its_own(gpus: int, device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setenv("LOCAL_RANK", "1")
    if device is not None:
        assert Ranks(5, 8).device == device
        return
    with pytest.raises(InputError, match="1 GPUs for 2 or more processes on a machine; launch 1 on each"):
        _ = Ranks(5, 8).device


@pytest.mark.parametrize(("engine", "mend"), [("vllm", "use --replicas"), ("endpoint", "--data-parallel-size")])
def test_engines_that_share_their_own_work_take_one_process(engine: str, mend: str) -> None:
    with pytest.raises(InputError, match=f"the engine {engine} takes one process, not 2; .*{mend}"):
        require_shareable(engine, Ranks(0, 2))
    require_shareable(engine, ALONE)
    require_shareable("transformers", Ranks(0, 2))


def record(problem: str, **fields: Any) -> Record:
    return {"method": "ets", "problem": problem, "sample": 0, "text": "π", **fields}


def left(folder: Path, own: Sequence[Record], **parts: Sequence[Record]) -> None:
    """What a run of several processes leaves when it is killed."""
    with Journal(folder, {"seed": 0}) as journal:
        for each in own:
            journal.append(each)
    for name, records in parts.items():
        content = "".join(json.dumps(each) + "\n" for each in records)
        (folder / f"journal-{name.removeprefix('part')}.jsonl").write_text(content)


def stored(folder: Path) -> list[Record]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def test_what_several_processes_left_is_taken_in_once_and_removed(tmp_path: Path) -> None:
    """Also what stands in the run's file already: the first one was killed before it could remove it."""
    left(tmp_path, [record("a"), record("b")], part1=[record("b"), record("c")], part12=[record("d"), record("c")])
    (tmp_path / "journal-3.jsonl").write_text(json.dumps(record("e")) + "\n" + json.dumps(record("f"))[:-3])
    for _ in range(2):
        with Journal(tmp_path, {"seed": 0}) as journal:
            assert [each["problem"] for each in journal.of("ets")] == ["a", "b", "c", "d", "e"]
        assert stored(tmp_path) == [record(name) for name in "abcde"]
        assert names(tmp_path) == {"configuration.json", "journal.jsonl"}


def test_a_merge_that_was_torn_is_done_again(tmp_path: Path) -> None:
    left(tmp_path, [record("a")], part1=[record("b"), record("c")])
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write(json.dumps(record("b")) + "\n" + json.dumps(record("c"))[:20])
    Journal(tmp_path, {"seed": 0}).close()
    assert stored(tmp_path) == [record("a"), record("b"), record("c")]


def test_a_process_that_outlives_the_others_keeps_the_folder(tmp_path: Path) -> None:
    """Its launcher was killed, and it writes on: what it writes must not be lost."""
    left(tmp_path, [record("a")], part1=[record("b")])
    with (tmp_path / "journal-1.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is writing to"):
            Journal(tmp_path, {"seed": 0})
    Journal(tmp_path, {"seed": 0}).close()
    assert stored(tmp_path) == [record("a"), record("b")]


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    left(tmp_path, [record("a")])
    (tmp_path / "journal-2.jsonl").write_text('{"method": \n')
    with pytest.raises(InputError, match=r"journal-2\.jsonl, line 1 is damaged"):
        Journal(tmp_path, {"seed": 0})
    assert stored(tmp_path) == [record("a")] and (tmp_path / "journal-2.jsonl").exists()
