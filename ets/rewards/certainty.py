"""How certain the policy's model was of a text: rewards without training, from what the policy records.

The policy must record it (`certainty=True` of `TransformersPolicy` and `MaskedDiffusionPolicy`). Both are of the
model's own distribution where each token was drawn, see `ets.types.Certainty`, and means over a text's tokens, so a
text's length is no advantage. They are fixed functions of the text for autoregressive models; for masked diffusion,
of the path that led to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ets.types import Certainty, Chain, InputError, Problem, Reward, Text


def entropy() -> Reward:
    """Minus the mean entropy of the distributions that a text's tokens were drawn from, in nats: 0 is certain.

    Raises `InputError`, when it is asked, for texts whose policy did not record it.
    """
    return _mean(lambda certainty: -certainty.mean_entropy)


def self_certainty() -> Reward:
    """The mean of KL(uniform ‖ p) over a text's tokens, in nats: 0 for guessing (Kang et al., arXiv 2502.18581).

    Raises `InputError`, when it is asked, for texts whose policy did not record it.
    """
    return _mean(lambda certainty: certainty.mean_self_certainty)


def _mean(of: Callable[[Certainty], float]) -> Reward:
    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [of(_recorded(problem, text)) for text in rollouts]

    return reward


def _recorded(problem: Problem, text: Text) -> Certainty:
    if text.certainty is None:
        raise InputError(
            f"nobody recorded how certain the model was of the rollouts of problem {problem.id!r}; make the policy "
            "with certainty=True (engines that draw by themselves, as vLLM, and proposals do not tell it)"
        )
    return text.certainty
