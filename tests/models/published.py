"""Decoders from their equations, on tensors with the publishers' names: a reference for logits.

Each checkpoint is written tensor by tensor, so that names and shapes are the published ones, whatever our classes say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM

from tests.block_causal import block_causal_logits

Weights: TypeAlias = Mapping[str, torch.Tensor]
IDS = torch.tensor([2, 5, 11, 3, 7, 19, 19, 4, 19, 13])
"""A text with masks, where the mask token has the id 19."""


def write_checkpoint(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Weights:
    """A folder with a configuration and random tensors of the given names and shapes."""
    generator = torch.Generator().manual_seed(5)
    weights = {name: _random(name, shape, generator) for name, shape in shapes.items()}
    save_file(dict(weights), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return {name: weight.double() for name, weight in weights.items()}


def loaded_logits(folder: Path, expected: type, ids: torch.Tensor, block: int) -> torch.Tensor:
    """Block-causal logits `[length, V]` of a folder's model, which is of the expected class and has all its tensors."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=False, dtype=torch.float64, output_loading_info=True
    )
    assert type(model) is expected and not any(report.values())
    return block_causal_logits(model.eval(), ids.tolist(), block)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    around = 1.0 if "norm" in name else 0.0
    return around + 0.3 * torch.randn(shape, generator=generator)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def rotated(x: torch.Tensor, theta: float, width: int) -> torch.Tensor:
    """`[length, heads, head]` with the first `width` dimensions of a head rotated: dimension i with i + width / 2."""
    half = width // 2
    angles = torch.arange(len(x))[:, None] / theta ** (torch.arange(half).double() * 2 / width)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    one, two, rest = x[..., :half], x[..., half:width], x[..., width:]
    return torch.cat((one * cos - two * sin, two * cos + one * sin, rest), -1)


def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block: int) -> torch.Tensor:
    """`[length, heads · head]`, from `[length, heads, head]`: block b attends to blocks 0 to b."""
    of, groups = torch.arange(len(q)) // block, q.shape[1] // k.shape[1]
    out = []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // groups].T / q.shape[-1] ** 0.5
        out.append(scores.masked_fill(of[None] > of[:, None], -torch.inf).softmax(-1) @ v[:, head // groups])
    return torch.cat(out, -1)


def gated(x: torch.Tensor, weights: Weights, name: str) -> torch.Tensor:
    """SwiGLU of the tensors `name.gate_proj`, `name.up_proj` and `name.down_proj`."""
    gate, up, down = (weights[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
    return (silu(x @ gate.T) * (x @ up.T)) @ down.T


def decoder_logits(
    weights: Weights,
    ids: torch.Tensor,
    layers: int,
    eps: float,
    embedding: str,
    attention: Callable[[torch.Tensor, str], torch.Tensor],
    mlp: Callable[[torch.Tensor, str], torch.Tensor],
) -> torch.Tensor:
    """Logits `[length, V]` of a decoder with norms before attention and MLP, and residuals around them."""
    x = weights[f"model.{embedding}.weight"][ids]
    for n in range(layers):
        name = f"model.layers.{n}"
        x = x + attention(rms_norm(x, weights[f"{name}.input_layernorm.weight"], eps), name)
        x = x + mlp(rms_norm(x, weights[f"{name}.post_attention_layernorm.weight"], eps), name)
    head = weights.get("lm_head.weight", weights[f"model.{embedding}.weight"])
    return rms_norm(x, weights["model.norm.weight"], eps) @ head.T
