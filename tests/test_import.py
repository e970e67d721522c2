"""Importing is instant: what is heavy loads when it is first used."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import pytest

import ets

HEAVY = ("torch", "transformers", "matplotlib", "tokenizers")
CORE = {
    "ets",
    *(f"ets.{name}" for name in ("event_loop", "kernel", "randomness", "step", "thinking", "types", "weights")),
}


@pytest.mark.parametrize(
    "code",
    [
        "import ets",
        "import ets.kernel, ets.runner, ets.baselines, ets.rewards, ets.testing",
        "import ets.cli; ets.cli.main(['eval', '--nonsense'])",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    check = f"{code}\nimport sys\nprint([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_the_kernel_imports_the_core_alone() -> None:
    check = "import sys, ets.kernel\nprint(*(name for name in sys.modules if name.split('.')[0] in ('ets', 'torch')))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert "ets.kernel" in done.stdout.split() and set(done.stdout.split()) <= CORE


def test_every_public_name_is_there() -> None:
    for name in ets.__all__:
        assert getattr(ets, name) is not None
    assert callable(ets.sample)
    assert callable(ets.run)


def test_no_module_of_the_package_hides_a_public_name() -> None:
    modules = {each.name for each in pkgutil.iter_modules(ets.__path__)}
    assert not modules & set(ets._HOMES)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ets.nonsense  # type: ignore[attr-defined]
