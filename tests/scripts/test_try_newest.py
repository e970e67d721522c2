"""scripts/try_newest.sh on packages that a folder holds: no index is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.documentation import ROOT

TESTS = "import tiny\ndef test_value(): assert tiny.VALUE == 1\ndef test_other(): assert True\n"


def wheel(folder: Path, name: str, version: str, value: int) -> Path:
    """A wheel of one module with the constant VALUE."""
    path, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"VALUE = {value}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An environment with pytest, and version 1 of the packages `tiny` and `still`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "base"], check=True)
    packages = next((tmp_path / "base").glob("lib/python3*/site-packages"))
    (packages / "pytest.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    (tmp_path / "wheels").mkdir()
    for name in ("tiny", "still"):
        zipfile.ZipFile(wheel(tmp_path / "wheels", name, "1.0", 1)).extractall(packages)
    return tmp_path / "base" / "bin" / "python"


def tried(base: Path, *words: str) -> subprocess.CompletedProcess[str]:
    folder = base.parents[2]
    (folder / "test_tiny.py").write_text(TESTS)
    environment = {**os.environ, "BASE": str(base), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder / "wheels")}
    command = ["bash", ROOT / "scripts" / "try_newest.sh", *words, "--", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", folder, folder / "test_tiny.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


def test_a_line_says_what_broke_with_both_versions(base: Path) -> None:
    wheel(base.parents[2] / "wheels", "tiny", "2.0", 2)
    done = tried(base, "still", "tiny", "missing")
    still, tiny, missing = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert still == "still 1.0: there is nothing newer"
    assert tiny.startswith("tiny 1.0 -> 2.0: BROKEN: 1 failed, 1 passed") and "test_tiny.py::test_value" in tiny
    assert missing.startswith("missing none: the newest release cannot be installed: ERROR: ")
    assert not any("test_other" in line for line in done.stdout.splitlines())


def test_a_release_that_breaks_nothing_says_so_and_the_base_stays(base: Path) -> None:
    wheel(base.parents[2] / "wheels", "tiny", "1.5", 1)
    done = tried(base, "tiny")
    assert (done.returncode, done.stdout.split(" in ")[0]) == (0, "tiny 1.0 -> 1.5: 2 passed"), done.stderr
    version = "from importlib.metadata import version; print(version('tiny'))"
    assert subprocess.run([base, "-c", version], capture_output=True, text=True).stdout == "1.0\n"
