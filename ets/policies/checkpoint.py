"""Checkpoints: found and checked at once, loaded when first needed."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch

from ets.types import InputError

HUB_SECONDS = 3.0
"""How long to wait for the model hub before saying that it cannot be reached."""


@dataclass
class Checkpoint:
    """A causal language model and its tokenizer, by path or hub name; the weights load on first use.

    Parameters
    ----------
    name : str
        A folder, or a name on the model hub.
    dtype : torch.dtype, optional
        By default the checkpoint's own on a GPU, float32 on a CPU.
    device : str, optional
        By default the GPU if there is one.

    Raises
    ------
    InputError
        If it does not exist, or its tokenizer has no end token.
    """

    name: str
    dtype: torch.dtype | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        _require_checkpoint(self.name)
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {self.name!r} has no end token; set its eos_token, so that texts can end"
            )

    @classmethod
    def loaded(cls, model: Any, tokenizer: Any) -> Checkpoint:
        """From a model and a tokenizer that are in memory; the model is used where and as it is."""
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end token; set its eos_token, so that texts can end")
        self = cls.__new__(cls)
        self.name = str(getattr(model, "name_or_path", "") or "loaded")
        generation = getattr(model, "generation_config", None)
        self.__dict__.update(model=model.eval(), tokenizer=tokenizer, config=model.config, generation_config=generation)
        return self

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.name)

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        return AutoConfig.from_pretrained(self.name)

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForCausalLM

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = self.dtype or ("auto" if device.startswith("cuda") else torch.float32)
        return AutoModelForCausalLM.from_pretrained(self.name, dtype=dtype).to(device).eval()

    @cached_property
    def generation_config(self) -> Any:
        """Read for its end tokens only; None if there is none."""
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.name)
        except OSError:
            return None

    @property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends a text, by the tokenizer, the configuration or the generation configuration."""
        named = [getattr(s, "eos_token_id", None) for s in (self.tokenizer, self.config, self.generation_config)]
        lists = [ids if isinstance(ids, list) else [ids] for ids in named if ids is not None]
        return frozenset(i for ids in lists for i in ids)

    @property
    def context(self) -> int | None:
        """Positions that the model was made for, if it says so."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def revision(self) -> str:
        """Which weights these are: the hub's commit, or a hash over the folder's files (their ends, if large)."""
        folder = Path(self.name).expanduser()
        if not folder.is_dir():
            return str(getattr(self.config, "_commit_hash", None))
        digest = hashlib.sha256()
        for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
            size = path.stat().st_size
            with path.open("rb") as file:
                digest.update(f"{path.name} {size}".encode() + file.read(2**20))
                file.seek(max(0, size - 2**20))
                digest.update(file.read())
        return digest.hexdigest()[:16]


def _require_checkpoint(name: str) -> None:
    """Raise `InputError` within seconds for a checkpoint that can be found neither here nor on the hub."""
    if Path(name).expanduser().is_dir():
        if not (Path(name).expanduser() / "config.json").is_file():
            raise InputError(f"the folder {name!r} holds no config.json; give a checkpoint's folder")
        return
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise InputError(
            f"no checkpoint at {name!r}; give an existing folder, or a name on the hub such as Qwen/Qwen3-8B"
        )
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise InputError(
            f"the checkpoint {name!r} is neither a folder nor in the local cache, and the model hub cannot be "
            "reached; download it on another machine and give its folder"
        )


def _reachable(address: str) -> bool:
    parts = urlsplit(address)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=HUB_SECONDS).close()
    except OSError:
        return False
    return True
