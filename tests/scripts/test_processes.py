"""PROCESSES of the scripts: the same command in several processes, which share the problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.scripts.test_eval_sh import EVAL, LLADA, ROOT, bash

LAUNCHED = "python -P -m torch.distributed.run --standalone --nproc-per-node 3 --no-python"


@pytest.mark.parametrize("script", [EVAL, LLADA, ROOT / "aime24" / "eval_aime.sh"])
def test_the_command_is_the_same_for_any_number(script: Path, tmp_path: Path) -> None:
    one, two = (bash(str(script), folder=tmp_path, PRINT_ONLY="1", PROCESSES=n).stdout for n in ("1", "3"))
    assert one.startswith("python -P -m ets eval ") and two == f"{LAUNCHED} {one}"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"PROCESSES": "two"}, "PROCESSES is 'two'; set it to how many processes share the problems"),
        ({"PROCESSES": "0"}, "PROCESSES is '0'"),
        ({"PROCESSES": "2", "ENGINE": "vllm"}, "vLLM has copies of its own; leave it out, and set GEN_DP"),
        ({"PROCESSES": "2", "ENDPOINT": "http://x/v1"}, "the server has copies of its own"),
    ],
)
def test_other_values_and_other_engines_are_refused(variables: dict[str, str], message: str, tmp_path: Path) -> None:
    done = bash(str(EVAL), folder=tmp_path, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_the_demonstration_runs_in_two_processes_beside_a_folder_named_like_the_package(tmp_path: Path) -> None:
    (tmp_path / "ets").mkdir()
    (tmp_path / "tqdm.py").write_text("raise ImportError")
    small = {"NUM_PROBLEMS": "2", "M_CANDIDATES": "2", "K_MONTE_CARLO": "1", "BLOCK_SIZE": "48", "METHODS": "ets"}
    done = bash(str(EVAL), folder=tmp_path, PROCESSES="2", MODEL_PATH="embedded-small", OUT="out", **small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n| ETS (M 2, K 1) ") == 1 and "process 1 of 2" in done.stderr
    found = [json.loads(line)["problem"] for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    assert len(found) == len(set(found)) == 2
