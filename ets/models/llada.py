"""LLaDA (Nie et al., arXiv 2502.09992) as a transformers model, compatible with the published checkpoints.

LLaDA is a Llama decoder without the causal mask: rotary positions and norms in float32, SwiGLU, no biases. Parameters
and configuration fields have the publishers' names, so checkpoints load without conversion and without remote code.
The logits at a position are for the token at that position.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm, eager_attention_forward, rotate_half

from ets.models.bidirectional import Exchange, MaskPredictor, positions_of
from ets.models.configuration import require_fixed

# Fields of the publishers' configuration, with the value of every published checkpoint.
_FIXED = {
    "activation_type": "silu", "block_type": "llama", "block_group_size": 1, "alibi": False, "rope": True,
    "attention_layer_norm": False, "layer_norm_type": "rms", "include_bias": False, "include_qkv_bias": False,
    "bias_for_layer_norm": False, "scale_logits": False, "weight_tying": False, "tie_word_embeddings": False,
    "input_emb_norm": False, "layer_norm_with_affine": True, "multi_query_attention": False,
    "rope_full_precision": True, "rope_scaling": None,
}  # fmt: skip


class LLaDAConfig(PreTrainedConfig):
    """The publishers' configuration fields, also under transformers' standard names.

    Raises
    ------
    InputError
        For a variant of the architecture that no published checkpoint has.
    """

    model_type = "llada"
    attribute_map = {  # noqa: RUF012 (transformers reads it from the class)
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_sequence_length",
        "initializer_range": "init_std",
    }

    d_model: int = 4096
    n_heads: int = 32
    n_kv_heads: int | None = None
    n_layers: int = 32
    mlp_hidden_size: int = 12288
    max_sequence_length: int = 4096
    rope_theta: float = 5e5
    rms_norm_eps: float = 1e-5
    init_std: float = 0.02
    vocab_size: int = 126464
    mask_token_id: int = 126336
    eos_token_id: int | list[int] | None = 126081
    pad_token_id: int | None = 126081
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)  # first: also sets fields by transformers' names
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        require_fixed(self, "LLaDA", _FIXED)


Turns: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines `[rows, 1, length, head]` of the positions' angles."""


class _Block(nn.Module):
    """Attention and MLP, each with a norm before and a residual around."""

    def __init__(self, config: LLaDAConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = config, layer_idx, False
        self.head_dim = config.d_model // config.n_heads
        heads = config.n_kv_heads or config.n_heads
        self.num_key_value_groups = config.n_heads // heads
        self.attention_dropout = 0.0

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=False)

        self.q_proj = linear(config.d_model, config.d_model)
        self.k_proj = linear(config.d_model, heads * self.head_dim)
        self.v_proj = linear(config.d_model, heads * self.head_dim)
        self.attn_out = linear(config.d_model, config.d_model)
        self.ff_proj = linear(config.d_model, config.mlp_hidden_size)  # the gate
        self.up_proj = linear(config.d_model, config.mlp_hidden_size)
        self.ff_out = linear(config.mlp_hidden_size, config.d_model)
        self.attn_norm = LlamaRMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_norm = LlamaRMSNorm(config.d_model, config.rms_norm_eps)

    def forward(
        self, hidden: torch.Tensor, mask: Any, turns: Turns, exchange: Exchange | None = None, **options: Any
    ) -> torch.Tensor:
        hidden = hidden + self._attend(self.attn_norm(hidden), mask, turns, exchange, **options)
        normed = self.ff_norm(hidden)
        return hidden + self.ff_out(silu(self.ff_proj(normed)) * self.up_proj(normed))

    def _attend(
        self, hidden: torch.Tensor, mask: Any, turns: Turns, exchange: Exchange | None, **options: Any
    ) -> torch.Tensor:
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        query, key, value = (
            proj(hidden).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        query, key = rotated(query, turns), rotated(key, turns)
        if exchange is not None:
            key, value = exchange(self.layer_idx, key, value)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        scaling = self.head_dim**-0.5
        out, _ = attention(self, query, key, value, mask, scaling=scaling, is_causal=False, **options)
        return self.attn_out(out.reshape(*hidden.shape[:-1], -1))


def rotated(vectors: torch.Tensor, turns: Turns) -> torch.Tensor:
    """Queries or keys `[rows, heads, length, head]`, rotated by their positions' angles in float32 or wider."""
    cos, sin = turns
    wide = vectors.to(cos.dtype)
    return (wide * cos + rotate_half(wide) * sin).to(vectors.dtype)


class LLaDAModel(nn.Module):
    """The decoder without the head.

    With an `exchange`, `input_ids` may be a part of the sequences: `position_ids` then hold the positions of the part,
    and `attention_mask` `[rows, columns]`, required for padded rows, covers the keys that the exchange returns.
    """

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.d_model),
                "blocks": nn.ModuleList(_Block(config, n) for n in range(config.n_layers)),
                "ln_f": LlamaRMSNorm(config.d_model, config.rms_norm_eps),
                "ff_out": nn.Linear(config.d_model, config.vocab_size, bias=False),
            }
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        exchange: Exchange | None = None,
        **options: Any,
    ) -> BaseModelOutput:
        hidden = self.transformer["wte"](input_ids)
        if position_ids is None:
            position_ids = positions_of(input_ids, attention_mask)
        mask = create_bidirectional_mask(self.config, hidden, attention_mask)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        angles = self._angles(position_ids)[:, None].to(wide)
        turns = angles.cos(), angles.sin()
        for block in cast("nn.ModuleList", self.transformer["blocks"]):
            hidden = block(hidden, mask, turns, exchange, **options)
        return BaseModelOutput(last_hidden_state=self.transformer["ln_f"](hidden))

    def _angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        """`[rows, length, head]`: position times frequency, equal in both halves of a head; always float32."""
        width = self.config.d_model // self.config.n_heads
        exponents = torch.arange(0, width, 2, device=position_ids.device).float() / width
        angles = position_ids[..., None].float() * (1.0 / self.config.rope_theta**exponents)
        return torch.cat((angles, angles), dim=-1)


class LLaDAModelLM(MaskPredictor, PreTrainedModel):
    """LLaDA with its head, under the publishers' name."""

    config_class = LLaDAConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["_Block"]  # noqa: RUF012 (transformers reads it from the class)

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__(config)
        self.model = LLaDAModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def get_output_embeddings(self) -> nn.Module:
        return self.model.transformer["ff_out"]
