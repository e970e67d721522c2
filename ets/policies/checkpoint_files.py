"""Finds the files of a checkpoint: a folder, a GGUF file, the folder of an adapter, or a name on the model hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ets.hub import require_checkpoint
from ets.policies.packaged import file_of
from ets.types import InputError, one_line

ADAPTER = "adapter_config.json"
FOLDER_FILES = ("*.json", "*.safetensors")
GGUF_FILES = ("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
"""Files that transformers reads before the metadata of a GGUF file in the same folder."""
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
HUB_FILE = re.compile(r"([\w-][\w.-]*/[\w.-]+)/([^/]+\.gguf)", re.IGNORECASE)
PROMPT_LEARNING = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
"""Adapters of PEFT that put vectors or keys before the prompt."""


@dataclass(frozen=True)
class CheckpointFiles:
    """Where the parts of a checkpoint are.

    Attributes
    ----------
    name : str
        Folder or hub name that `from_pretrained` loads the model from.
    gguf : str or None
        Name of the GGUF file in the folder, which holds the weights, the configuration and the tokenizer.
    adapter : Path or None
        Folder of a PEFT adapter, whose base model is `name`.
    """

    name: str
    gguf: str | None = None
    adapter: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of `from_pretrained` for the configuration, the tokenizer and the weights."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    @property
    def gguf_path(self) -> Path | None:
        return None if self.gguf is None else Path(self.name) / self.gguf

    @property
    def tokenizer(self) -> CheckpointFiles:
        """The adapter's folder if it holds a tokenizer, otherwise the files of the model."""
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return CheckpointFiles(str(self.adapter))
        return self

    def local(self) -> list[Path]:
        """The files that results depend on, without those of a model on the hub."""
        folder = Path(self.name).expanduser()
        patterns = FOLDER_FILES if self.gguf is None else (re.sub(r"([*?[])", r"[\1]", self.gguf), *GGUF_FILES)
        found = [path for pattern in patterns for path in folder.glob(pattern)] if folder.is_dir() else []
        if self.adapter is not None and self.adapter != folder:
            found += [path for pattern in FOLDER_FILES for path in self.adapter.glob(pattern)]
        return sorted(found)


def find_files(name: str) -> CheckpointFiles:
    """The files of a checkpoint by its name.

    A name of `ets.policies.packaged` is the file of a pip package. A folder with weights is a checkpoint of
    transformers, although it may hold GGUF files. A folder with the file
    `adapter_config.json` is an adapter of the base model that the file names.

    Raises
    ------
    InputError
        For a missing checkpoint, a part of a split GGUF file, a folder with several GGUF files and no other weights,
        an adapter that no policy can use, and a GGUF file without the package `gguf`.
    """
    name = file_of(name)
    path = Path(name).expanduser()
    name = str(path) if path.is_dir() else name
    if path.suffix.lower() == ".gguf":
        return _gguf_files(path if path.is_file() else _from_hub(name))
    if (path / ADAPTER).is_file():
        return _adapter_files(path)
    if path.is_dir() and not any(path.glob("*.safetensors")):
        if files := sorted(path.glob("*.gguf")):
            return _gguf_files(_only(files, name))
        if any(path.glob("pytorch_model*.bin")):
            raise InputError(f"the weights in {name!r} are a pickle, which is never read; save them as safetensors")
    require_checkpoint(name)
    return CheckpointFiles(name)


def _only(files: Sequence[Path], name: str) -> Path:
    if len(files) > 1 and not SPLIT.search(files[0].name):
        listed = ", ".join(file.name for file in files[:8]) + (", …" if len(files) > 8 else "")
        raise InputError(f"the folder {name!r} holds {len(files)} GGUF files ({listed}); give the path of one file")
    return files[0]


def _from_hub(name: str) -> Path:
    """The local copy of `owner/name/file.gguf`."""
    found = HUB_FILE.fullmatch(name)
    if found is None:
        raise InputError(f"no file at {name!r}; give an existing GGUF file, or owner/name/file.gguf on the hub")
    from transformers.utils import cached_file

    repository, file = found.groups()
    require_checkpoint(repository, file)
    try:
        return Path(cached_file(repository, file))
    except Exception as error:
        raise InputError(f"cannot load {name!r}: {one_line(error)}; give the path of a GGUF file") from error


def _gguf_files(path: Path) -> CheckpointFiles:
    if (part := SPLIT.search(path.name)) and int(part[2]) > 1:
        raise InputError(
            f"{path.name!r} is part {int(part[1])} of {int(part[2])} of a split GGUF file, which transformers cannot "
            "read; join the parts by `llama-gguf-split --merge`"
        )
    require_package("gguf", f"{path.name!r} is a GGUF file")
    return CheckpointFiles(str(path.parent), path.name)


def _adapter_files(folder: Path) -> CheckpointFiles:
    """The base model's files with the adapter's folder; a folder with a config.json holds its base model, too."""
    name = str(folder)
    try:
        config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
        kind, base = config["peft_type"], config.get("base_model_name_or_path")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read {ADAPTER} of {name!r}: {one_line(error)}; give a complete adapter") from error
    require_token_ids(kind, name)
    if config.get("alora_invocation_tokens"):
        raise InputError(f"{name!r} is an activated LoRA, which transformers applies nowhere; give a plain LoRA")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise InputError(f"{name!r} is an adapter for {config['task_type']}; give one for CAUSAL_LM")
    if (folder / "adapter_model.bin").is_file() and not any(folder.glob("adapter_model*.safetensors")):
        raise InputError(
            f"the weights of the adapter {name!r} are a pickle, which is never read; save them as safetensors"
        )
    if (folder / "config.json").is_file():
        return CheckpointFiles(name, adapter=folder)
    if not base:
        raise InputError(f"the adapter {name!r} names no base model; set base_model_name_or_path in its {ADAPTER}")
    try:
        files = find_files(base)
    except InputError as error:
        raise InputError(f"the base model of the adapter {name!r} is missing: {error}") from error
    if files.adapter is not None:
        raise InputError(f"the adapter {name!r} has the adapter {base!r} as its base; merge that one into its model")
    return replace(files, adapter=folder)


def require_token_ids(kind: str, name: str) -> None:
    """Raise `InputError` for an adapter that puts vectors before the prompt, which have no token ids."""
    if str(kind).upper() in PROMPT_LEARNING:
        raise InputError(
            f"{name!r} is an adapter of the kind {kind}, whose virtual tokens have no token ids; give a LoRA, or "
            "another adapter of the weights"
        )


def require_package(package: str, subject: str) -> None:
    """Raise `InputError` if an optional package is missing; the extra has the package's name."""
    if find_spec(package) is None:
        raise InputError(
            f"{subject}, which needs the package {package}; run `pip install {package}` "
            f"(`bash scripts/setup.sh {package}` in a clone)"
        )
