"""Model families that transformers lacks; the import of this package registers them with its Auto classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ets.models.a2d import A2DQwen3Config, A2DQwen3LMHeadModel
from ets.models.dream import DreamConfig, DreamModel, DreamTokenizer
from ets.models.fast_dllm import FastDLLMConfig, FastDLLMForCausalLM
from ets.models.illada import ILLaDAConfig, ILLaDAForCausalLM
from ets.models.llada import LLaDAConfig, LLaDAModelLM
from ets.models.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM
from ets.models.sdar import SDARConfig, SDARForCausalLM, SDARMoeConfig, SDARMoeForCausalLM
from ets.types import InputError

__all__ = ["MASKED_DIFFUSION", "Family", "LLaDAConfig", "LLaDAModelLM", "mask_token_of", "register"]


UNIFORM_DIFFUSION = ("diffusion_gemma",)
"""The uniform-diffusion families, by the `model_type` of their configuration; transformers has their classes."""


def diffusion_engine(model_type: str) -> str | None:
    """The engine of a diffusion model in `ets.policies.registry`; None for any other model."""
    if model_type in UNIFORM_DIFFUSION:
        return "uniform-diffusion"
    return "masked-diffusion" if model_type in MASKED_DIFFUSION else None


@dataclass(frozen=True)
class Family:
    """Conventions that the checkpoints of a masked-diffusion model family share.

    Parameters
    ----------
    mask_field : str
        The configuration's field with the mask token's id, see `mask_token_of`.
    mask_tokens : tuple of str
        The mask token of the published tokenizers, which may not declare it as `mask_token`.
    mask_id : int, optional
        The mask token's id, where neither the configuration nor the tokenizer has it.
    end_tokens : tuple of str
        Tokens that end a text, in addition to the end tokens of the configuration and the tokenizer.
    block_length : int, optional
        Default block of the semi-autoregressive order; by default the whole canvas is one block.
    quotas : str
        Default of the tokens that each denoising step reveals: `even` or `time`.
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
    mask_tokens: tuple[str, ...] = ()
    mask_id: int | None = None
    end_tokens: tuple[str, ...] = ()
    block_length: int | None = 32
    quotas: str = "even"
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

    def block_length_of(self, config: Any) -> int | None:
        """The block length of a checkpoint, from its configuration, else the family's."""
        return getattr(config, self.block_field, None) or self.block_length


MASKED_DIFFUSION: dict[str, Family] = {}
"""The masked-diffusion families, by the `model_type` of their configuration."""


def mask_token_of(config: Any, tokenizer: Any) -> int:
    """The id of the mask token: of the configuration, else of the tokenizer, else of the family.

    Raises
    ------
    InputError
        For an id whose token is neither the tokenizer's mask token nor the family's, or without an embedding.
    """
    kind, family = config.model_type, MASKED_DIFFUSION[config.model_type]
    declared = getattr(tokenizer, "mask_token", None)
    ids = (getattr(config, family.mask_field, None), getattr(tokenizer, "mask_token_id", None), family.mask_id)
    found = next((number for number in ids if number is not None), None)
    known = [*dict.fromkeys((*([] if declared is None else [declared]), *family.mask_tokens))]
    if found is None:
        raise InputError(f"a {kind!r} model has no mask token: set {family.mask_field} in its configuration")
    token = tokenizer.convert_ids_to_tokens(int(found)) if 0 <= found < len(tokenizer) else None
    if token not in known:
        named = " or ".join(map(repr, known)) or "not known"
        raise InputError(
            f"the mask id {found} is the token {token!r}, but the mask token of a {kind!r} model is {named}; correct "
            f"{family.mask_field} in its configuration, or mask_token in its tokenizer"
        )
    if found >= config.vocab_size:
        raise InputError(
            f"the mask token of a {kind!r} model has the id {found}, and the model has embeddings of "
            f"{config.vocab_size}; call model.resize_token_embeddings, or correct the mask token"
        )
    return int(found)


def register(
    config: type[PreTrainedConfig],
    model: type[PreTrainedModel],
    family: Family,
    tokenizer: type[Any] | None = None,
) -> None:
    """Register a masked-diffusion family here and with transformers' Auto classes.

    Parameters
    ----------
    config : type
        With a distinct `model_type`.
    model : type
        `model.base_model(ids, mask)` returns `last_hidden_state` `[rows, length, width]`, for a mask `[rows, length]`
        with 0 at padding on the left, or None; every position attends to all others. `get_output_embeddings()` is the
        head, linear without a bias. A cache (`ets.Caching`) also needs `position_ids` and `exchange`, as in
        `ets.models.llada`. A block-causal model takes `position_ids`, `past_key_values` and a mask of booleans
        `[rows, 1, columns, keys]`, as the decoders of transformers do.
    family : Family
    tokenizer : type, optional
        For checkpoints whose tokenizer class transformers lacks; its name is the published `tokenizer_class`.
    """
    MASKED_DIFFUSION[config.model_type] = family
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForCausalLM.register(config, model)  # not causal, but published under this class
    if tokenizer is not None:
        AutoTokenizer.register(config, tokenizer_class=tokenizer)


register(LLaDAConfig, LLaDAModelLM, Family(mask_tokens=("<|mdm_mask|>",), end_tokens=("<|eot_id|>",)))
register(A2DQwen3Config, A2DQwen3LMHeadModel, Family(mask_tokens=("<|mask|>",)))
register(ILLaDAConfig, ILLaDAForCausalLM, Family(mask_tokens=("<[MASK]>",), mask_id=5))
register(
    DreamConfig,
    DreamModel,
    Family(
        mask_tokens=("<|mask|>",),
        end_tokens=("<|im_end|>", "<|dlm_pad|>"),
        block_length=None,
        quotas="time",
        shift=1,
    ),
    DreamTokenizer,
)
_SDAR = Family(
    mask_tokens=("<|MASK|>",),
    end_tokens=("<|im_end|>",),
    block_length=4,
    block_causal=True,
    block_field="block_size",
    threshold=0.85,
)
register(SDARConfig, SDARForCausalLM, _SDAR)
register(SDARMoeConfig, SDARMoeForCausalLM, _SDAR)
register(
    LLaDA2MoeConfig,
    LLaDA2MoeModelLM,
    Family(mask_tokens=("<|mask|>",), block_length=32, block_causal=True, threshold=0.95),
)
register(
    FastDLLMConfig,
    FastDLLMForCausalLM,
    Family(
        mask_tokens=("|<MASK>|",),
        end_tokens=("<|im_end|>",),
        shift=1,
        block_causal=True,
        block_field="bd_size",
        sub_block=8,
        threshold=0.9,
    ),
)
