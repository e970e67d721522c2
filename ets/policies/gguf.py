"""GGUF files: corrects the tokenizer, the configuration and the weights that transformers reads from a file.

transformers' reader ignores several keys and tensors that change the logits. This module applies them; a file with
other such keys or tensors is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ets.policies.prompts import adds_bos
from ets.types import InputError

BOS_BY_DEFAULT = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "chameleon"),
)
"""Pre-tokenizers whose files ask llama.cpp for a BOS token unless `add_bos_token` is in the file."""
GEMMA_27B = {"gemma2": 46, "gemma3_text": 62}
"""Layers of the models of 27B, whose attention scale no key of the file holds; 1/sqrt(head width) in other models."""
BLOCK = re.compile(r"blk\.(\d+)\.")
SCALING = ("type", "factor", "original_context_length", "finetuned")
"""Keys of `rope.scaling` that `correct_config` applies."""


class GGUFFile:
    """The metadata and the names of the tensors of a GGUF file.

    Raises
    ------
    ValueError, IndexError, OSError, struct.error
        For a damaged file.
    """

    def __init__(self, path: Path) -> None:
        from transformers.integrations.gguf import read_gguf_metadata

        self.path = path
        self.metadata, self.tensors = read_gguf_metadata(str(path))

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end a text or a turn of a conversation."""
        found = [self.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        return [each for each in found if each is not None]

    @property
    def wants_bos(self) -> bool | None:
        """Whether texts begin with the BOS token, as in llama.cpp; None if the file does not decide it."""
        if (written := self.metadata.get("tokenizer.ggml.add_bos_token")) is not None:
            return bool(written)
        if self.metadata.get("tokenizer.ggml.model") == "llama":
            return True
        return True if self.metadata.get("tokenizer.ggml.pre") in BOS_BY_DEFAULT else None

    def correct_tokenizer(self, tokenizer: Any) -> Any:
        """The tokenizer, which adds a BOS token if and only if the file asks for it."""
        if self.wants_bos is not None and adds_bos(tokenizer) != self.wants_bos:
            tokenizer.add_bos_token = self.wants_bos
        return tokenizer

    def correct_config(self, config: Any) -> Any:
        """The configuration with the file's scaling of the rotary embedding, and the scale of Gemma's attention.

        Raises
        ------
        InputError
            For a scaling other than linear and YaRN, or with unknown keys.
        """
        if (layers := GEMMA_27B.get(config.model_type)) is not None:
            wide = config.num_hidden_layers == layers
            width = config.hidden_size // config.num_attention_heads if wide else config.head_dim
            config.query_pre_attn_scalar = width
        architecture, ropes = self.metadata["general.architecture"], getattr(config, "rope_parameters", None) or {}
        prefix = f"{architecture}.rope.scaling."
        found = {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}
        if (factor := self.metadata.get(f"{architecture}.rope.scale_linear")) is not None:  # of older files
            found = {"factor": factor, **found}
        kind = found.get("type", "linear" if "factor" in found else "none")
        rope = ropes.get("full_attention", ropes)
        if kind == "none" or rope.get("rope_type", "default") != "default":  # "none", or transformers has applied it
            return config
        unknown = sorted(found.keys() - set(SCALING))
        if kind not in ("linear", "yarn") or unknown or "factor" not in found or not rope:
            raise InputError(
                f"the rotary embedding of {self.path.name!r} is scaled by {', '.join([kind, *unknown])}, which is not "
                "read from GGUF files; give the checkpoint's folder of safetensors"
            )
        rope |= {"rope_type": kind, "factor": float(found["factor"])}
        if kind == "yarn":
            default = config.max_position_embeddings
            rope["original_max_position_embeddings"] = found.get("original_context_length", default)
        return config

    def correct_model(self, model: Any) -> Any:
        """The model with the file's factors of the rotary frequencies (Llama 3.1 and later).

        Raises
        ------
        InputError
            For tensors that transformers left out of the model.
        """
        layers, parameters = model.config.get_text_config().num_hidden_layers, model.state_dict(keep_vars=True)
        wanted = [name for name in self.tensors if not (name.startswith("rope_freqs.") or "_exps." in name)]
        wanted = [name for name in wanted if (block := BLOCK.match(name)) is None or int(block[1]) < layers]
        tied = getattr(model.config, "tie_word_embeddings", False) and "output.weight" in wanted
        loaded = {id(each) for name, each in parameters.items() if ".experts." not in name}  # a tied tensor once
        if (missing := len(wanted) - tied - len(loaded)) > 0:
            raise InputError(
                f"transformers leaves out {missing} of the {len(self.tensors)} tensors of {self.path.name!r}, so its "
                "model would be another one; give the checkpoint's folder of safetensors"
            )
        if "rope_freqs.weight" in self.tensors and self.metadata["general.architecture"] != "gemma4":  # it has its own
            self._divide_frequencies(model)
        return model

    def _divide_frequencies(self, model: Any) -> None:
        from gguf import GGUFReader

        tensor = next(each for each in GGUFReader(self.path).tensors if each.name == "rope_freqs.weight")
        factors = torch.tensor(tensor.data, dtype=torch.float32).flatten()
        rotary = [each for each in model.modules() if isinstance(getattr(each, "inv_freq", None), torch.Tensor)]
        if [each.inv_freq.shape for each in rotary] != [factors.shape]:
            raise InputError(
                f"the factors of the rotary frequencies in {self.path.name!r} do not fit the model; give the "
                "checkpoint's folder of safetensors"
            )
        rotary[0].inv_freq.div_(factors.to(rotary[0].inv_freq.device))
