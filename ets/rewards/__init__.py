"""Ready-made rewards; every function of the type `ets.types.Reward` is a reward."""

from ets.rewards.combining import Guarded, cached, guarded, weighted_sum
from ets.rewards.judge import judge, verdict
from ets.rewards.lifting import Extract, TextReward, as_extract, remembering
from ets.rewards.likelihood import entropy, likelihood, likelihood_ratio, self_certainty
from ets.rewards.process_reward import process_reward
from ets.rewards.remote import endpoint
from ets.rewards.reward_model import reward_model
from ets.rewards.rows import RowReward
from ets.rewards.self_consistency import agreement_share, majority, voters, votes, winner
from ets.rewards.verifier import code_verifier, verifier
from ets.step import Scoring, as_reward, per_text

__all__ = [
    "Extract",
    "Guarded",
    "RowReward",
    "Scoring",
    "TextReward",
    "agreement_share",
    "as_extract",
    "as_reward",
    "cached",
    "code_verifier",
    "endpoint",
    "entropy",
    "guarded",
    "judge",
    "likelihood",
    "likelihood_ratio",
    "majority",
    "per_text",
    "process_reward",
    "remembering",
    "reward_model",
    "self_certainty",
    "verdict",
    "verifier",
    "voters",
    "votes",
    "weighted_sum",
    "winner",
]
