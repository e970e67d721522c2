"""One try of each fault; `python -m tests.evaluation.faults --times 20` makes the series.

A rank that dies before the ranks have joined leaves the other one waiting for minutes, so that fault is the series'
alone; `test_ranks.py` has a dying rank under a launcher.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ets
from tests.evaluation.faults import FAULTS, dead_rank


def test_no_fault_loses_a_record_or_counts_one_twice() -> None:
    root = Path(ets.__file__).parents[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    faults = [fault.__name__ for fault in FAULTS if fault is not dead_rank]
    words = [sys.executable, "-m", "tests.evaluation.faults", "--times", "1", "--faults", ",".join(faults)]
    done = subprocess.run(words, env=environment, cwd=root, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": 1 tries, 0 went wrong") + done.stdout.count(": not tried, ") == len(faults)
