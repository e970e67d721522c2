"""Checkpoints: the constructor finds and checks the files; the first use loads the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import ets.models  # noqa: F401 (registers the model families that transformers does not have)
from ets.hub import require_checkpoint
from ets.policies.autoregressive.attention import use_grouped_sdpa
from ets.types import InputError, one_line

NEUTRAL = {
    **dict.fromkeys(("repetition_penalty", "typical_p"), 1),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"), 0),
}
"""Settings of transformers' `generate` that change the law of a token, with the neutral value of each setting."""


@dataclass
class Checkpoint:
    """A language model and its tokenizer, by path or hub name; the weights load on first use.

    The Python code of a checkpoint never runs.

    Parameters
    ----------
    name : str
        A folder, or a name on the model hub.
    dtype : torch.dtype, optional
        By default the checkpoint's dtype on a GPU, float32 on a CPU.
    device : str, optional
        By default the GPU, or the CPU on a machine without a GPU.

    Raises
    ------
    InputError
        For a missing checkpoint, and for a tokenizer without an end token.
    """

    name: str
    dtype: torch.dtype | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if Path(self.name).expanduser().is_dir():
            self.name = str(Path(self.name).expanduser())
        require_checkpoint(self.name)
        if not self.tokenizer.get_vocab():
            raise InputError(f"the tokenizer of {self.name!r} has no vocabulary; are its files complete?")
        if self.tokenizer.eos_token_id is None:
            raise InputError(
                f"the tokenizer of {self.name!r} has no end token; set its eos_token, so that texts can end"
            )

    @classmethod
    def loaded(cls, model: Any, tokenizer: Any) -> Checkpoint:
        """The checkpoint of a model and a tokenizer in memory; the model stays on its device, in evaluation mode.

        `ets.policies.autoregressive.attention` replaces SDPA in the model, and computes the same.
        """
        if not hasattr(tokenizer, "eos_token_id") or not hasattr(model, "config"):
            raise InputError("the pair is not (model, tokenizer); pass a transformers model first, then its tokenizer")
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end token; set its eos_token, so that texts can end")
        self = cls.__new__(cls)
        self.name = str(getattr(model, "name_or_path", "") or "loaded")
        generation = getattr(model, "generation_config", None)
        use_grouped_sdpa(model)
        self.__dict__.update(model=model.eval(), tokenizer=tokenizer, config=model.config, generation_config=generation)
        return self

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return self._loading("tokenizer", AutoTokenizer.from_pretrained)

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        return self._loading("configuration", AutoConfig.from_pretrained)

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        from ets.models import UNIFORM_DIFFUSION

        uniform = self.config.model_type in UNIFORM_DIFFUSION
        auto = AutoModelForImageTextToText if uniform else AutoModelForCausalLM
        model = self._loading("weights", auto.from_pretrained, dtype=self._dtype, device_map=self._device)
        use_grouped_sdpa(model)
        return model.eval()

    @property
    def _device(self) -> str:
        return self.device or ("auto" if torch.cuda.is_available() else "cpu")

    @property
    def _dtype(self) -> torch.dtype | str:
        return self.dtype or (torch.float32 if self._device == "cpu" else "auto")

    @property
    def placement(self) -> str:
        """Kind of device and dtype of the model, as far as results depend on them: "cpu float32"."""
        return f"{'cpu' if self._device == 'cpu' else 'gpu'} {str(self._dtype).removeprefix('torch.')}"

    def _loading(self, part: str, load: Callable[..., Any], **options: Any) -> Any:
        """Load a part; every error of a damaged or unsuitable checkpoint becomes one line."""
        try:
            return load(self.name, trust_remote_code=False, **options)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise
        except Exception as error:
            raise InputError(
                f"cannot load the {part} of {self.name!r}: {one_line(error)}; give a complete checkpoint"
            ) from error

    @cached_property
    def generation_config(self) -> Any:
        """The source of `truncation`, `unapplied` and some end tokens; None for a checkpoint without the file."""
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.name)
        except OSError:
            return None

    @property
    def end_ids(self) -> frozenset[int]:
        """The end tokens of the tokenizer, the configuration and the generation configuration."""
        named = [getattr(s, "eos_token_id", None) for s in (self.tokenizer, self.config, self.generation_config)]
        lists = [ids if isinstance(ids, list) else [ids] for ids in named if ids is not None]
        return frozenset(i for ids in lists for i in ids)

    @property
    def truncation(self) -> dict[str, Any]:
        """`top_k` and `top_p` as `model.generate(do_sample=True)` applies them; None keeps all tokens.

        The checkpoint's generation configuration holds the values. Transformers' defaults, such as 50 for `top_k`,
        replace missing values. The paper's code leaves both values to `generate`.
        """
        from transformers import GenerationConfig

        top_k, top_p = (getattr(self.generation_config, name, None) for name in ("top_k", "top_p"))
        default = GenerationConfig._get_default_generation_params()
        top_k, top_p = default["top_k"] if top_k is None else top_k, default["top_p"] if top_p is None else top_p
        return {"top_k": top_k or None, "top_p": None if top_p == 1 else top_p}

    @property
    def unapplied(self) -> dict[str, Any]:
        """Settings of the generation configuration that change the law of `generate`, and that no policy applies.

        An example is `repetition_penalty` of Qwen2.5's Instruct models.
        """
        found = {name: getattr(self.generation_config, name, None) for name in NEUTRAL}
        return {name: value for name, value in found.items() if value not in (None, NEUTRAL[name])}

    @property
    def context(self) -> int | None:
        """`max_position_embeddings` of the configuration, if set."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @cached_property
    def revision(self) -> str:
        """The hub's commit, or a hash over the folder's files (of a large file, over the first and the last MiB)."""
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
