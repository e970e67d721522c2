"""Models of stated shapes with random weights, made where they run: nothing is downloaded."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Lfm2Config, PreTrainedTokenizerFast, Qwen3Config

from ets.models import LLaDAConfig
from ets.policies.checkpoint import Checkpoint
from ets.policies.packed import pack


def qwen3(
    layers: int, width: int, heads: int, groups: int, head: int, mlp: int, vocabulary: int, *, tied: bool
) -> Qwen3Config:
    """A causal model that never ends a text."""
    return Qwen3Config(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head,
        intermediate_size=mlp,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )


def hybrid(layers: int, width: int, heads: int, groups: int, mlp: int, vocabulary: int) -> Lfm2Config:
    """A causal model with two convolutions before every layer of attention; it never ends a text."""
    return Lfm2Config(
        num_hidden_layers=layers,
        layer_types=[("conv", "conv", "full_attention")[number % 3] for number in range(layers)],
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=mlp,
        block_auto_adjust_ff_dim=False,
        vocab_size=vocabulary,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )


def llada(layers: int, width: int, heads: int, mlp: int, vocabulary: int) -> LLaDAConfig:
    """A masked-diffusion model; the mask is the last token."""
    return LLaDAConfig(
        n_layers=layers,
        d_model=width,
        n_heads=heads,
        mlp_hidden_size=mlp,
        vocab_size=vocabulary,
        mask_token_id=vocabulary - 1,
        eos_token_id=0,
        pad_token_id=0,
    )


def random_checkpoint(config: Any, device: torch.device, dtype: torch.dtype) -> Checkpoint:
    """The weights are drawn on the device, so that no copy of them stands on the host."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return Checkpoint.loaded(model, numbered_tokenizer(config.vocab_size, getattr(config, "mask_token_id", None)))


def as_ets_loads(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as `ets` loads its files: on a CPU with a packed copy of the weights."""
    if checkpoint.model.device.type != "cpu":
        return checkpoint
    model = deepcopy(checkpoint.model)
    pack(model)
    return Checkpoint.loaded(model, checkpoint.tokenizer)


def numbered_tokenizer(vocabulary: int, mask: int | None = None) -> PreTrainedTokenizerFast:
    """`<0>`, `<1>`, … and an end token that the model cannot draw; `mask` is the id of the mask token."""
    words = {f"<{number}>": number for number in range(vocabulary)} | {"<end>": vocabulary}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    tokenizer.decoder = decoders.Fuse()
    special = {} if mask is None else {"mask_token": f"<{mask}>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **special)


def described(model: Any) -> str:
    """A model's shape in words."""
    config, count = model.config, model.num_parameters()
    heads = f"{config.num_attention_heads} heads"
    if groups := getattr(config, "num_key_value_heads", None):
        heads += f" over {groups}" if groups != config.num_attention_heads else ""
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.3g}M"
    return (
        f"{size} random parameters: {config.num_hidden_layers} layers, width {config.hidden_size}, {heads}, "
        f"MLP {config.intermediate_size}, vocabulary {config.vocab_size:,}."
    )
