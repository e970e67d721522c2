"""Model families that transformers lacks; the import of this package registers them with its Auto classes."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ets.models.llada import LLaDAConfig, LLaDAModelLM

__all__ = ["MASKED_DIFFUSION", "Family", "LLaDAConfig", "LLaDAModelLM", "register"]


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
        The configuration's field with the mask token's id.
    end_tokens : tuple of str
        Tokens that end a text, in addition to the end tokens of the configuration and the tokenizer.
    block_length : int
        Default block of the semi-autoregressive order.
    shift : int
        The logits for a position stand `shift` positions to its left: 0, or 1 for models from autoregressive models.
    """

    mask_field: str = "mask_token_id"
    end_tokens: tuple[str, ...] = ()
    block_length: int = 32
    shift: int = 0


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
        `ets.models.llada`.
    family : Family
    """
    MASKED_DIFFUSION[config.model_type] = family
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForCausalLM.register(config, model)  # not causal, but published under this class


register(LLaDAConfig, LLaDAModelLM, Family(end_tokens=("<|eot_id|>",)))
