"""What is read off a finished chain, always by name: the text that was sampled (`last`), or the majority (`vote`)."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

from ets.rewards import Extract, remembering, votes
from ets.types import Chain, Text


@dataclass(frozen=True)
class Vote:
    """The answers with the most votes among all rollouts of a chain, each with one of its texts.

    More than one answer if they are tied, none if no rollout holds an answer.
    """

    answers: tuple[Hashable, ...]
    texts: tuple[Text, ...]


def vote(extract: Extract, chain: Chain) -> Vote:
    """The majority over every rollout of every step: an estimator, and no sample from any stated law.

    A candidate that has ended votes K times; a rollout that a proposal drew votes with its importance ratio.

    Parameters
    ----------
    extract : callable
        `text -> answer or None` or `(problem, text) -> answer or None`.
    chain : Chain
        With at least one step.
    """
    read = partial(remembering(extract), chain.problem)
    rollouts = [text for step in chain.trace for row in step.rollouts for text in row]
    counts = votes(read, rollouts)
    most = max(counts.values(), default=0.0)
    answers = tuple(answer for answer, count in counts.items() if count == most)
    first = {answer: next(text for text in rollouts if read(text.text) == answer) for answer in answers}
    return Vote(answers, tuple(first.values()))
