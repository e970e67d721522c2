"""Readouts of a finished chain: the majority of its rollouts (`vote`), and a choice among them by weight (`weighted`).

Without a readout the result is the text of the chain itself.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ets.rewards import Extract, remembering, voters, votes, winner
from ets.step import choice_uniforms, choose, spread
from ets.types import Chain, Floats, InputError, Step, Text
from ets.weights import log_mean_exp


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
    rollouts = [text for text in voters(step.rollouts for step in chain.trace) if text.done]
    counts = votes(read, rollouts)
    total = math.fsum(counts.values())
    shares = {answer: count / total for answer, count in sorted(counts.items(), key=lambda item: -item[1])}
    first: dict[Hashable, Text] = {}
    for text in rollouts:
        if text.log_ratio > -math.inf:  # the reference policy can draw it
            first.setdefault(read(text.text), text)
    return Vote(shares, {answer: first[answer] for answer in shares}, winner(read, rollouts))


def weighted(chain: Chain, steps: int) -> Text:
    """A text among all rollouts of all guide steps of `ets.kernel.energy_guided`, in proportion to their weights.

    It chooses among I · M · K complete texts instead of the M of the last guide step, at no further token. For a fixed
    finite reward its law tends to p* as M and K grow. At a finite K an error remains for any M, where the rollouts of
    some candidates vary more than those of others: the weights of later steps are then noisy. (In a table of two guide
    steps, rewards of 0 to 6 λ and K = 1 the distance tends to 0.10 in total variation, that of the chain's own text to
    0.) In a chain that ends before
    step I its text, with the weight of the run, stands for the rollouts of the missing steps. Without it texts of many
    steps would be too likely.

    Parameters
    ----------
    chain : Chain
    steps : int
        I, the most guide steps of a chain.

    Raises
    ------
    InputError
        For a chain with suffix moves, whose text follows p* more closely than its trace.
    """
    if any(step.cut is not None for step in chain.trace):
        raise InputError("the chain has suffix moves, and weighted reads guide steps alone; take the chain's text")
    weights = [each.ravel() for each in rollout_weights(chain.trace)]
    texts = [text for step in chain.trace for row in step.rollouts for text in row]
    missing = max(0, steps - len(chain.trace)) * len(weights[-1])
    if missing:
        run_weight = float(log_mean_exp(weights[-1], axis=0))
        weights.append(np.array([run_weight + math.log(missing)]))
        texts.append(_last_text(chain.trace[-1]))
    return texts[choose(np.concatenate(weights), choice_uniforms([chain])[0])]


def _last_text(step: Step) -> Text:
    """The text of a chain that ended with a step."""
    return step.candidates[step.choice] if step.rollout is None else step.rollouts[step.choice][step.rollout]


def rollout_weights(trace: Sequence[Step]) -> list[Floats]:
    """The log-weights `[M, K]` of the rollouts of each guide step i: r/λ + log W_{<i}, with the ratios of a proposal.

    W_{<i} = Π_{j<i} mean_m Ê_jm / Ê_j,chosen, as in `ets.weights.log_run_weight`, under whose conditions each step is
    proper at any M and K: E[mean_mk exp(w_mk) f(text_mk)] = E_ref[exp(r/λ) f]. Proof: given the prefix, the mean of
    Ê f over the candidates is unbiased, and a choice in proportion to Ê_m, times mean Ê / Ê_m, is the mean over the
    candidates on average.
    """
    found, before = [], 0.0
    for step in trace:
        log_terms = step.log_rewards + np.array([[text.log_ratio for text in row] for row in step.rollouts])
        found.append(spread(step.log_weights, log_terms) + before)
        chosen = step.log_weights[step.choice] - step.candidates[step.choice].log_ratio
        before += float(log_mean_exp(step.log_weights, axis=0)) - float(chosen) if np.isfinite(chosen) else -math.inf
    return found
