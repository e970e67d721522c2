"""Model families that transformers lacks; the import of this package registers them with its Auto classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ets.models.fast_dllm import FastDLLMConfig, FastDLLMForCausalLM
from ets.models.llada import LLaDAConfig, LLaDAModelLM
from ets.models.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
from ets.models.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig, SDARMoeForCausalLM
from ets.types import InputError

__all__ = [
    "MASKED_DIFFUSION",
    "Family",
    "FastDLLMConfig",
    "FastDLLMForCausalLM",
    "LLaDA2MoeConfig",
    "LLaDA2MoeModelLM",
    "LLaDAConfig",
    "LLaDAModelLM",
    "SDARConfig",
    "SDARForCausalLM",
    "SDARMoeConfig",
    "SDARMoeForCausalLM",
    "register",
]


@dataclass(frozen=True)
class Family:
    """Conventions that the checkpoints of a masked-diffusion model family share.

    Parameters
    ----------
    mask_field : str
        The configuration's field with the mask token's id.
    end_tokens : tuple of str
        Tokens that end a text, in addition to the end tokens of the configuration and the tokenizer.
    block_length : int
        Default block of the semi-autoregressive order.
    shift : int
        The logits for a position stand `shift` positions to its left: 0, or 1 for models from autoregressive models.
    block_causal : bool
        A position attends to its block and the blocks before it, the prompt included, instead of to all positions.
        Blocks are aligned to absolute positions: see `ets.policies.diffusion.blocks`.
    block_field : str
        For block-causal models, the configuration's field with the block length of training, if it has one.
    sub_block : int
        For block-causal models, the tokens of a sub-block: the sub-blocks of a block are filled from left to right.
        The first token of a block is filled alone, from the logits at the last position of the block before. 0 for
        blocks without sub-blocks.
    threshold : float, optional
        The published threshold of parallel decoding, where the user sets neither `threshold` nor `factor`.

    Raises
    ------
    InputError
        For a block-causal family with a shift and without sub-blocks.
    """

    mask_field: str = "mask_token_id"
    end_tokens: tuple[str, ...] = ()
    block_length: int = 32
    shift: int = 0
    block_causal: bool = False
    block_field: str = ""
    sub_block: int = 0
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.block_causal and self.shift and not self.sub_block:
            raise InputError(
                f"shift is {self.shift}, but a block-causal family fills the first token of a block alone; "
                "set sub_block"
            )

    def block_length_of(self, config: Any) -> int:
        """The block length of a checkpoint, from its configuration, else the family's."""
        return int(getattr(config, self.block_field, None) or self.block_length)


MASKED_DIFFUSION: dict[str, Family] = {}
"""The masked-diffusion families, by the `model_type` of their configuration."""


def register(config: type[PreTrainedConfig], model: type[PreTrainedModel], family: Family) -> None:
    """Register a masked-diffusion family here and with transformers' Auto classes.

    Parameters
    ----------
    config : type
        With a distinct `model_type`, and the mask token's id in `family.mask_field`.
    model : type
        `model.base_model(ids, mask)` returns `last_hidden_state` `[rows, length, width]`, for a mask `[rows, length]`
        with 0 at padding on the left, or None; every position attends to all others. `get_output_embeddings()` is the
        head, linear without a bias. A cache (`ets.Caching`) also needs `position_ids` and `exchange`, as in
        `ets.models.llada`. A block-causal model takes `position_ids`, `past_key_values` and a mask of booleans
        `[rows, 1, columns, keys]`, as the decoders of transformers do.
    family : Family
    """
    MASKED_DIFFUSION[config.model_type] = family
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForCausalLM.register(config, model)  # not causal, but published under this class


register(LLaDAConfig, LLaDAModelLM, Family(end_tokens=("<|eot_id|>",)))
_SDAR = Family(end_tokens=("<|im_end|>",), block_length=4, block_causal=True, block_field="block_size", threshold=0.85)
register(SDARConfig, SDARForCausalLM, _SDAR)
register(SDARMoeConfig, SDARMoeForCausalLM, _SDAR)
register(LLaDA2MoeConfig, LLaDA2MoeModelLM, Family(block_length=32, block_causal=True, threshold=0.95))
register(
    FastDLLMConfig,
    FastDLLMForCausalLM,
    Family(end_tokens=("<|im_end|>",), shift=1, block_causal=True, block_field="bd_size", sub_block=8, threshold=0.9),
)
