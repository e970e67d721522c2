"""Model families that transformers lacks; the import of this package registers them with its Auto classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from ets.models.dream import DreamConfig, DreamModel, DreamTokenizer
from ets.models.illada import ILLaDAConfig, ILLaDAForCausalLM
from ets.models.llada import LLaDAConfig, LLaDAModelLM
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
    """

    mask_field: str = "mask_token_id"
    mask_tokens: tuple[str, ...] = ()
    mask_id: int | None = None
    end_tokens: tuple[str, ...] = ()
    block_length: int | None = 32
    quotas: str = "even"
    shift: int = 0


MASKED_DIFFUSION: dict[str, Family] = {}
"""The masked-diffusion families, by the `model_type` of their configuration."""


def mask_token_of(config: Any, tokenizer: Any) -> int:
    """The id of the mask token: of the configuration, else of the tokenizer, else of the family.

    Raises
    ------
    InputError
        For an id whose token is neither the tokenizer's mask token nor the family's.
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
        `ets.models.llada`.
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
