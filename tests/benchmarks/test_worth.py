"""docs/worth.md: the script of its tables runs, and its laws are laws."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from tests.documentation import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("worth")


def test_the_script_prints_its_tables() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "worth.py"), "--quick"], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("| refined |") == 4 and "nan" not in done.stdout


def test_every_kernel_has_a_law_and_refined_is_nearer_than_guide_steps(script: Any) -> None:
    tree = script.trees("steps", 2, 4, seed=0)
    laws = {name: law(tree, 64) for name, law in script.KERNELS.items()}
    assert all(law.sum() == pytest.approx(1, abs=1e-6) and law.min() >= 0 for law in laws.values())
    assert script.distance(laws["refined"], tree) < script.distance(laws["ETS, K = 1"], tree)
