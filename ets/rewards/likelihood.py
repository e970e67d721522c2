"""How probable the policy finds a text: the reward of best-of-N sampling without a reward model."""

from __future__ import annotations

from collections.abc import Sequence

from ets.types import Chain, Problem, Reward, Text


def likelihood(*, per_token: bool = False) -> Reward:
    """The log-probability of a text given its prompt, under the distribution that was sampled.

    So it is that of the tempered and truncated policy, which is the model's own at temperature 1 alone, and for masked
    diffusion that of the path.

    Parameters
    ----------
    per_token : bool
        Divided by the number of tokens drawn, the end token included: without it, short texts are at an advantage. For
        masked diffusion, by the tokens of the canvas.
    """

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [text.logp / (len(text.tokens) if per_token else 1) for text in rollouts]

    return reward
