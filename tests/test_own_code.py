"""The digest of a user's code is of the file that was named, whatever the object in it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ets.own_code import code_digest, named_object
from ets.types import InputError

CODE = """
from functools import lru_cache, partial


def plain(text): return 0.0
cached = lru_cache(plain)
bound = partial(plain)
"""


@pytest.mark.parametrize("name", ["plain", "cached", "bound"])
def test_the_digest_changes_with_the_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(CODE)
    before = code_digest(f"{file}:{name}", "reward")
    assert before == code_digest(f"{file}:{name}", "reward")
    file.write_text(CODE.replace("0.0", "1.0"))
    assert code_digest(f"{file}:{name}", "reward") != before


def test_code_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the reward"):
        code_digest(f"{tmp_path}/absent.py:reward", "reward")


@pytest.mark.parametrize("name", ["masked-diffusion", ":reward", "file.py:"])
def test_a_name_without_code_is_one_line(name: str) -> None:
    with pytest.raises(InputError, match=f"^the engine '{name}' names no code; give file.py:name or module:name"):
        code_digest(name, "engine")


def test_a_file_that_exits_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(InputError, match="SystemExit: 3; give code that can be imported"):
        named_object(f"{file}:reward", "reward")


def test_a_file_runs_once_for_each_of_its_versions(tmp_path: Path) -> None:
    """A reward may load a model where its file is imported."""
    file = tmp_path / "loads.py"
    file.write_text(
        "from pathlib import Path\nruns = Path(__file__).with_suffix('.log')\nruns.open('a').write('x')\na = b = 1\n"
    )
    for name in ("a", "b", "a"):
        named_object(f"{file}:{name}", "reward")
    assert file.with_suffix(".log").read_text() == "x"
    file.write_text(file.read_text() + "c = 2\n")
    assert named_object(f"{file}:c", "reward") == 2
    assert file.with_suffix(".log").read_text() == "xx"
