"""Model families that transformers does not have; importing this package registers them with its Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from ets.models.family import Family
from ets.models.llada import LLaDAConfig, LLaDAModelLM

__all__ = ["MASKED_DIFFUSION", "Family", "LLaDAConfig", "LLaDAModelLM"]

MASKED_DIFFUSION = {LLaDAConfig.model_type: Family(end_tokens=("<|eot_id|>",))}
"""The families that unmask, by the `model_type` of their configuration."""

AutoConfig.register(LLaDAConfig.model_type, LLaDAConfig)
AutoModel.register(LLaDAConfig, LLaDAModelLM)
# Not causal, but published under this class.
AutoModelForCausalLM.register(LLaDAConfig, LLaDAModelLM)
