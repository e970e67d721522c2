"""Rewards without training from the policy's records of a text: log-probability, entropy and self-certainty."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ets.step import of_prefixes
from ets.types import Certainty, Chain, InputError, Problem, Reward, Text


def likelihood(*, per_token: bool = False) -> Reward:
    """The log-probability of a text given its prompt, under the law that the policy samples.

    The law is the tempered and truncated law; at temperature 1 without truncation, the model's law. For masked
    diffusion the value is the log-probability of the path.

    Parameters
    ----------
    per_token : bool
        Divide by the number of tokens, the end token included, or for masked diffusion by the tokens of the canvas.
        The undivided value favours short texts. It is a reward of prefixes (`ets.of_prefixes`): every token adds its
        term.
    """

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [text.logp / (len(text.tokens) if per_token else 1) for text in rollouts]

    return reward if per_token else of_prefixes(reward)


def entropy() -> Reward:
    """Minus the mean entropy of the model's distributions at a text's tokens, in nats; 0 is certain.

    The policy must record `ets.types.Certainty` (`certainty=True`); for a text without the record the reward raises
    `InputError`. It is a fixed function of the text for autoregressive models, and of the path for masked diffusion.
    """
    return _mean(lambda certainty: -certainty.mean_entropy)


def self_certainty() -> Reward:
    """The mean of KL(uniform ‖ p) over a text's tokens, in nats; 0 is guessing (Kang et al., arXiv 2502.18581).

    The requirements are those of `entropy`.
    """
    return _mean(lambda certainty: certainty.mean_self_certainty)


def _mean(of: Callable[[Certainty], float]) -> Reward:
    def value(problem: Problem, text: Text) -> float:
        if text.certainty is None:
            raise InputError(
                f"the rollouts of problem {problem.id!r} have no recorded certainty; make the policy with "
                "certainty=True (vLLM, servers and proposals do not record it)"
            )
        return of(text.certainty)

    def reward(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [value(problem, text) for text in rollouts]

    return reward
