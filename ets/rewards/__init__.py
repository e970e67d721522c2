"""Rewards: what the sampler is steered towards. Any `ets.types.Reward` will do; these are ready-made."""

from ets.rewards.certainty import entropy, self_certainty
from ets.rewards.code import code_verifier
from ets.rewards.combining import Guarded, cached, guarded, weighted_sum
from ets.rewards.lifting import Extract, Scoring, TextReward, as_extract, as_reward, per_text, remembering
from ets.rewards.likelihood import likelihood
from ets.rewards.reward_model import reward_model
from ets.rewards.self_consistency import self_consistency, voters, votes
from ets.rewards.verifier import verifier

__all__ = [
    "Extract",
    "Guarded",
    "Scoring",
    "TextReward",
    "as_extract",
    "as_reward",
    "cached",
    "code_verifier",
    "entropy",
    "guarded",
    "likelihood",
    "per_text",
    "remembering",
    "reward_model",
    "self_certainty",
    "self_consistency",
    "verifier",
    "voters",
    "votes",
    "weighted_sum",
]
