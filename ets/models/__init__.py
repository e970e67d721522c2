"""Model families that transformers does not have; importing this package registers them with its Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ets.models.family import Family
from ets.models.llada import LLaDAConfig, LLaDAModelLM

__all__ = ["MASKED_DIFFUSION", "Family", "LLaDAConfig", "LLaDAModelLM", "register"]

MASKED_DIFFUSION: dict[str, Family] = {}
"""The families that unmask, by the `model_type` of their configuration."""


def register(config: type[PreTrainedConfig], model: type[PreTrainedModel], family: Family) -> None:
    """Make a masked-diffusion family known, here and to transformers' Auto classes.

    Parameters
    ----------
    config : type
        With a `model_type` of its own, and the mask token's id in the field that the family names.
    model : type
        `model.base_model(ids, mask)` gives `last_hidden_state` `[rows, length, width]`, for a mask `[rows, length]`
        that is 0 at padding on the left, or None; every position sees all others. `get_output_embeddings()` is the
        head, linear and without a bias. A cache (`ets.Caching`) also needs `position_ids` and `exchange`, as
        `ets.models.llada` takes them.
    family : Family
    """
    MASKED_DIFFUSION[config.model_type] = family
    AutoConfig.register(config.model_type, config)
    AutoModel.register(config, model)
    AutoModelForCausalLM.register(config, model)  # not causal, but published under this class


register(LLaDAConfig, LLaDAModelLM, Family(end_tokens=("<|eot_id|>",)))
