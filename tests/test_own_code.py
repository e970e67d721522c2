"""The digest of a user's code is of the file that was named, whatever the object in it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ets.own_code import code_digest
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
