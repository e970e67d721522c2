"""Writes tiny GGUF files by the package `gguf`, as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

LETTERS = ("<unk>", "<s>", "</s>", "a", "b", "c", "d", "ab")
"""Tokens of the tiny models: the BOS token has the id 1, the end token the id 2."""


def write_gguf(
    path: Path, model: Any, architecture: str, *, keys: Mapping[str, Any] | None = None, tensors: Any = None
) -> Path:
    """A float32 GGUF file of a Llama-like model with the tokenizer of `LETTERS`.

    `keys` are added to the metadata, with the prefix of the architecture unless they begin with `tokenizer.`; `tensors`
    are added to the weights.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(LETTERS))
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1])  # 2: unknown, 3: control, 1: normal
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, value in (keys or {}).items():
        _add(writer, name if name.startswith("tokenizer.") else f"{architecture}.{name}", value)
    for name, weights in {**_named(model, architecture), **(tensors or {})}.items():
        writer.add_tensor(name, np.ascontiguousarray(weights, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: Any, name: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds[type(value)](name, value)


def _named(model: Any, architecture: str) -> dict[str, Any]:
    """The weights by GGUF's names, with the changes of llama.cpp's converter."""
    import gguf

    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    found = {}
    for name, weights in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = weights.float().numpy()
        stem, _, suffix = name.rpartition(".")
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = model.config.num_attention_heads if "q_proj" in name else model.config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        found[f"{names.get_name(stem)}.{suffix}"] = array
    return found
