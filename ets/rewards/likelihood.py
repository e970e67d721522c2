"""Rewards without training from the policy's records of a text: log-probability, entropy and self-certainty.

And the ratio of the text's probability under another model to its probability under p_ref.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from ets.rewards.lifting import Same
from ets.step import RewardError, of_prefixes, require_positive
from ets.types import Certainty, Chain, InputError, Problem, Reward, Text

PROMPTS = 8
"""Prompts whose caches `LikelihoodRatio` keeps."""


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


def likelihood_ratio(model: str | Path | tuple[Any, Any] | Any, *, temperature: float = 1.0) -> LikelihoodRatio:
    """log p_other(text | prompt) - log p_ref(text | prompt), where p_other is another autoregressive model.

    The reward is a fixed function of the text, with p* ∝ p_ref^(1 - 1/λ) · p_other^(1/λ). At λ = 1 p* is p_other; at
    λ > 1 it lies between the models; at λ < 1 it goes beyond p_other, away from p_ref. For an unfinished text the value
    is the ratio so far, so the reward is declared informative for unfinished texts (`ets.of_prefixes`).

    p_other reads the same prompt and the same tokens, chat template included, so it needs p_ref's tokenizer: another
    size, a fine-tuned model, or an adapter of one family. p_ref must be autoregressive, because the value for masked
    diffusion is the log-probability of a path.

    Parameters
    ----------
    model : str, Path, (model, tokenizer) or Checkpoint
        p_other. Its weights load at the first score.
    temperature : float
        The temperature of p_other.

    Raises
    ------
    InputError
        For a missing checkpoint, or a model that is not autoregressive.
    RewardError
        At a score, for tokens that are not those of the model's tokenizer, and for texts beyond the model's context.
    """
    return LikelihoodRatio(model, temperature)


class LikelihoodRatio:
    """See `likelihood_ratio`; threads take turns."""

    of_prefixes = True

    def __init__(self, model: Any, temperature: float) -> None:
        from ets.policies.autoregressive.transformers import TransformersPolicy
        from ets.policies.checkpoint import Checkpoint
        from ets.policies.settings import Horizon, Sampling

        require_positive(temperature=temperature)
        if isinstance(model, tuple):
            self.checkpoint = Checkpoint.loaded(*model)
        else:
            self.checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(str(model))
        self._policy = TransformersPolicy(self.checkpoint, Sampling(temperature), Horizon(1, 1))
        self._starts = lru_cache(PROMPTS)(lambda same: self._policy.start([same.problem])[0])
        self._turn = threading.Lock()

    def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        with self._turn:
            start = self._starts(Same(problem))
            for text in rollouts:
                self._require_readable(start, text)
            drawn = [text for text in rollouts if text.tokens]
            scores = iter(self._policy.logp([start] * len(drawn), drawn) if drawn else ())
            return [next(scores).logp - text.logp if text.tokens else 0.0 for text in rollouts]

    def _require_readable(self, start: Any, text: Text) -> None:
        """Raise `RewardError` for foreign tokens, and for a text that is too long for the model."""
        name, context = start.problem.id, self.checkpoint.context
        known = max(text.tokens, default=0) < self.checkpoint.config.get_text_config().vocab_size
        if not known or not self._policy.endings.decode(text.tokens).startswith(text.text):
            raise RewardError(
                f"the tokens of problem {name!r} are not those of {self.checkpoint.name!r}; give a checkpoint with the "
                "tokenizer of the model that is sampled"
            )
        if context is not None and len(start.prompt) + len(text.tokens) > context:
            raise RewardError(
                f"a text of problem {name!r} has {len(start.prompt) + len(text.tokens)} tokens with its prompt, more "
                f"than the {context} of {self.checkpoint.name!r}; shorten the generation"
            )


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
