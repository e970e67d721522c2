"""Rewards: what the sampler is steered towards. Any `ets.types.Reward` will do; these are ready-made."""

from ets.rewards.lifting import Scoring, as_reward, per_text
from ets.rewards.self_consistency import Extract, self_consistency, votes
from ets.rewards.verifier import verifier

__all__ = ["Extract", "Scoring", "as_reward", "per_text", "self_consistency", "verifier", "votes"]
