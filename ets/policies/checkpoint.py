"""Checkpoints: the constructor finds and checks the files; the first use loads the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import ets.models  # noqa: F401 (registers the model families that transformers does not have)
from ets.policies.autoregressive.attention import use_grouped_sdpa
from ets.policies.checkpoint_files import CheckpointFiles, find_files, require_package, require_token_ids
from ets.policies.gguf import GGUFFile
from ets.policies.loading import without_bars
from ets.policies.packed import pack
from ets.policies.threads import choose_threads
from ets.types import InputError, one_line

NEUTRAL = {
    **dict.fromkeys(("repetition_penalty", "typical_p"), 1),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size"), 0),
}
"""Settings of transformers' `generate` that change the law of a token, with the neutral value of each setting."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The types of the weights by name."""


@dataclass
class Checkpoint:
    """A language model and its tokenizer, by path or hub name; the weights load on first use.

    The Python code of a checkpoint never runs, and its weights are read from safetensors or GGUF files alone: PyTorch's
    own format is a pickle.

    Parameters
    ----------
    name : str
        A folder, a GGUF file, a folder with one GGUF file, the folder of a PEFT adapter, or a name on the model hub
        (`owner/name` or `owner/name/file.gguf`). The weights of a GGUF file are converted to `dtype`.
    dtype : torch.dtype or str, optional
        A name is one of `DTYPES`. By default float32 on a CPU; on a GPU the checkpoint's dtype, or bfloat16 for a GGUF
        file.
    device : str, optional
        By default the GPU, or the CPU on a machine without a GPU.

    Raises
    ------
    InputError
        For an unknown dtype, a missing checkpoint, a checkpoint that no policy can use
        (`ets.policies.checkpoint_files.find_files`), and a tokenizer without an end token.
    """

    name: str
    dtype: torch.dtype | str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dtype, str):
            if self.dtype not in DTYPES:
                raise InputError(f"dtype is {self.dtype!r}; choose from {', '.join(DTYPES)}")
            self.dtype = DTYPES[self.dtype]
        if Path(self.name).expanduser().is_dir():
            self.name = str(Path(self.name).expanduser())
        self.files = find_files(self.name)
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
        adapters = getattr(model, "peft_config", None) or {}
        self.name = "loaded" if adapters else str(getattr(model, "name_or_path", "") or "loaded")
        for adapter in adapters.values():
            require_token_ids(getattr(adapter.peft_type, "value", adapter.peft_type), self.name)
        model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT has changed its layers
        self.files = CheckpointFiles(self.name)
        generation = getattr(model, "generation_config", None)
        use_grouped_sdpa(model)
        self.__dict__.update(model=model.eval(), tokenizer=tokenizer, config=model.config, generation_config=generation)
        return self

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._loading("tokenizer", AutoTokenizer.from_pretrained, self.files.tokenizer)
        if set(tokenizer.get_vocab().values()) <= set(tokenizer.all_special_ids):  # so transformers fills in for a file
            raise InputError(
                f"the tokenizer of {self.name!r} has special tokens alone; give a folder with its tokenizer.json"
            )
        return self._gguf.correct_tokenizer(tokenizer) if self._gguf and self.files.tokenizer.gguf else tokenizer

    @cached_property
    def config(self) -> Any:
        from transformers import AutoConfig

        config = self._loading("configuration", AutoConfig.from_pretrained, self.files)
        return self._gguf.correct_config(config) if self._gguf else config

    @cached_property
    def _gguf(self) -> GGUFFile | None:
        path = self.files.gguf_path
        return None if path is None else self._loaded("metadata", lambda: GGUFFile(path))

    def load(self) -> None:
        """Load the weights, unless they are loaded."""
        self.model  # noqa: B018

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        from ets.models import UNIFORM_DIFFUSION

        self.require_packages()
        options: dict[str, Any] = {"dtype": self._dtype, "device_map": self._device, "output_loading_info": True}
        if self._gguf:  # packed weights would need kernels, which are code from the hub
            from transformers import GgufConfig

            options["quantization_config"] = GgufConfig(dequantize=True)
        else:
            options["use_safetensors"] = True
        uniform = self.config.model_type in UNIFORM_DIFFUSION
        auto = AutoModelForImageTextToText if uniform else AutoModelForCausalLM
        model, found = self._loading("weights", auto.from_pretrained, self.files, config=self.config, **options)
        if getattr(self.config, "quantization_config", None) is None:  # quantised layers have other weights
            self._require_complete(found["missing_keys"], self.name)
        if self._gguf:
            model = self._gguf.correct_model(model)
        choose_threads(model)  # packed weights are no parameters
        if self.files.adapter is not None:
            self._add_adapter(model)
        elif self._device == "cpu":
            pack(model)
        use_grouped_sdpa(model)
        return model.eval()

    def _add_adapter(self, model: Any) -> None:
        """Add the adapter's weights, unless transformers has found them in the model's folder."""
        if getattr(model, "_hf_peft_config_loaded", False):
            return
        found = self._loaded("adapter", lambda: model.load_adapter(str(self.files.adapter)))
        self._require_complete(found.missing_keys | found.unexpected_keys, f"{self.files.name!r} with {self.name!r}")

    def _require_complete(self, keys: Collection[str], name: str) -> None:
        """Raise `InputError` for weights that transformers would draw at random, or of an adapter for another model."""
        if keys:
            raise InputError(
                f"weights of {name!r} are missing or do not fit: {min(keys)} and {len(keys) - 1} more; give a complete "
                "checkpoint"
            )

    def require_packages(self) -> None:
        """Raise `InputError` if a package is missing that the weights need; no weights are loaded."""
        from transformers.quantizers import AutoHfQuantizer

        if self.files.adapter is not None:
            require_package("peft", f"{self.name!r} is an adapter")
        written = getattr(self.config, "quantization_config", None)
        if written is None or "model" in self.__dict__:
            return
        kind = written.get("quant_method") if isinstance(written, dict) else written.quant_method
        try:
            quantizer = AutoHfQuantizer.from_config(deepcopy(written), pre_quantized=True)
            quantizer.validate_environment(device_map=self._device, weights_only=True)
        except Exception as error:
            raise InputError(
                f"{self.name!r} is quantised by {getattr(kind, 'value', kind)}, which this machine cannot read: "
                f"{one_line(error)}; install the package, or give another checkpoint"
            ) from error

    @property
    def _device(self) -> str:
        return self.device or ("auto" if torch.cuda.is_available() else "cpu")

    @property
    def _dtype(self) -> torch.dtype | str:
        if self._device == "cpu":
            return self.dtype or torch.float32
        return self.dtype or ("auto" if self.files.gguf is None else torch.bfloat16)

    @property
    def placement(self) -> str:
        """Kind of device and dtype of the model, as far as results depend on them: "cpu float32"."""
        return f"{'cpu' if self._device == 'cpu' else 'gpu'} {str(self._dtype).removeprefix('torch.')}"

    def _loading(self, part: str, load: Callable[..., Any], files: CheckpointFiles, **options: Any) -> Any:
        return self._loaded(part, lambda: load(files.name, trust_remote_code=False, **files.options, **options))

    def _loaded(self, part: str, load: Callable[[], Any]) -> Any:
        """A part of the checkpoint; every error of a damaged or unsuitable checkpoint becomes one line."""
        try:
            with without_bars():
                return load()
        except (torch.OutOfMemoryError, KeyboardInterrupt, InputError):
            raise
        except ImportError as error:
            raise InputError(
                f"cannot load the {part} of {self.name!r}: {one_line(error)}; install the package"
            ) from error
        except Exception as error:
            raise InputError(
                f"cannot load the {part} of {self.name!r}: {one_line(error)}; give a complete checkpoint"
            ) from error

    @cached_property
    def generation_config(self) -> Any:
        """The source of `truncation`, `unapplied` and some end tokens; None for a checkpoint without the file."""
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(self.files.name)
        except OSError:
            return None

    @property
    def end_ids(self) -> frozenset[int]:
        """The end tokens of the tokenizer, the configuration, the generation configuration and a GGUF file."""
        named = [getattr(s, "eos_token_id", None) for s in (self.tokenizer, self.config, self.generation_config)]
        lists = [ids if isinstance(ids, list) else [ids] for ids in named if ids is not None]
        return frozenset([*(i for ids in lists for i in ids), *(self._gguf.end_ids if self._gguf else ())])

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
        length = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return length if length and length > 0 else None  # XLNet's -1 is no limit

    @cached_property
    def revision(self) -> str:
        """The hub's commit, or a hash over the local files (of a large file, over the first and the last MiB).

        The files of an adapter count beside those of its base model.
        """
        files = self.files.local()
        if not files:
            return str(getattr(self.config, "_commit_hash", None))
        digest = hashlib.sha256()
        for path in files:
            size = path.stat().st_size
            with path.open("rb") as file:
                digest.update(f"{path.name} {size}".encode() + file.read(2**20))
                file.seek(max(0, size - 2**20))
                digest.update(file.read())
        if self.files.adapter is not None and not Path(self.files.name).is_dir():
            digest.update(str(getattr(self.config, "_commit_hash", None)).encode())
        return digest.hexdigest()[:16]
