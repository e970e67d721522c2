"""Readouts of a finished chain, by name: the sampled text (`last`), or the majority of its rollouts (`vote`)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import partial

from ets.rewards import Extract, remembering, voters, votes, winner
from ets.types import Chain, Text


@dataclass(frozen=True)
class Vote:
    """The votes of the rollouts of a chain.

    Parameters
    ----------
    shares : mapping of hashable to float
        The share of the votes by answer, the largest first. Empty if no rollout holds an answer.
    texts : mapping of hashable to Text
        The first rollout with each answer.
    winner : hashable or None
        The majority answer, by `ets.rewards.winner`; None if no rollout holds an answer.
    """

    shares: Mapping[Hashable, float]
    texts: Mapping[Hashable, Text]
    winner: Hashable | None

    @property
    def text(self) -> Text | None:
        """The first rollout with the majority answer: the readout of the authors' script for LLaDA."""
        return None if self.winner is None else self.texts[self.winner]


def vote(extract: Extract, chain: Chain) -> Vote:
    """The votes of every rollout of every step. Their majority is an estimator, not a sample of a known law.

    A complete candidate votes K times. A rollout that later steps retain votes once. A rollout of a proposal votes with
    its importance ratio.

    Parameters
    ----------
    extract : callable
        `text -> answer or None` or `(problem, text) -> answer or None`. Texts without an answer do not vote.
    chain : Chain
        With at least one step.
    """
    read = partial(remembering(extract), chain.problem)
    rollouts = voters(step.rollouts for step in chain.trace)
    counts = votes(read, rollouts)
    total = math.fsum(counts.values())
    shares = {answer: count / total for answer, count in sorted(counts.items(), key=lambda item: -item[1])}
    first: dict[Hashable, Text] = {}
    for text in rollouts:
        if text.log_ratio > -math.inf:  # the reference policy can draw it
            first.setdefault(read(text.text), text)
    return Vote(shares, {answer: first[answer] for answer in shares}, winner(read, rollouts))
