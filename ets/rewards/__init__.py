"""Rewards: what the sampler is steered towards. Any `ets.types.Reward` will do; these are ready-made."""

from ets.rewards.lifting import Extract, Scoring, as_extract, as_reward, per_text, remembering
from ets.rewards.likelihood import likelihood
from ets.rewards.self_consistency import self_consistency, votes
from ets.rewards.verifier import verifier

__all__ = [
    "Extract",
    "Scoring",
    "as_extract",
    "as_reward",
    "likelihood",
    "per_text",
    "remembering",
    "self_consistency",
    "verifier",
    "votes",
]
