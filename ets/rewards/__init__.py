"""Rewards: what the sampler is steered towards. Any `ets.types.Reward` will do; these are ready-made."""

from ets.rewards.certainty import entropy, self_certainty
from ets.rewards.code import code_verifier
from ets.rewards.combining import Guarded, cached, guarded, weighted_sum
from ets.rewards.lifting import Extract, TextReward, as_extract, remembering
from ets.rewards.likelihood import likelihood
from ets.rewards.reward_model import reward_model
from ets.rewards.self_consistency import agreement_share, majority, voters, votes, winner
from ets.rewards.verifier import verifier
from ets.step import Scoring, as_reward, per_text

__all__ = [
    "Extract",
    "Guarded",
    "Scoring",
    "TextReward",
    "agreement_share",
    "as_extract",
    "as_reward",
    "cached",
    "code_verifier",
    "entropy",
    "guarded",
    "likelihood",
    "majority",
    "per_text",
    "remembering",
    "reward_model",
    "self_certainty",
    "verifier",
    "voters",
    "votes",
    "weighted_sum",
    "winner",
]
