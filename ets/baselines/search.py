"""Baselines that search for a probable generation instead of drawing one.

Each takes one step, to the end, and every chain of a problem ends alike. Log-probabilities in their traces are those of
the model's own untempered law, whatever the policy samples: what was searched for, and what can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ets.baselines.completions import keep_one, unweighed
from ets.randomness import Purpose
from ets.step import draw_for_chains, require_counts
from ets.types import BeamSearcher, Chain, GreedySearcher, InputError, Policy, StepFn


@runtime_checkable
class Particular(Protocol):
    """A policy whose beam search some of its laws have, and others not."""

    def require_searchable(self) -> None:
        """Raise `InputError` if this law has none."""
        ...


def greedy() -> StepFn:
    """The most probable token at each turn; for masked diffusion, its denoising rule at temperature 0."""

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        drawn = draw_for_chains(require_greedy(policy).greedy, chains, Purpose.COMPLETION, 1)
        return [keep_one(*row, 0.0, unweighed) for row in zip(chains, drawn, strict=True)]

    return step


def beam(beams: int) -> StepFn:
    """The engine's own beam search: the text with the highest log-probability among those that it finds.

    For masked diffusion, the denoising path with the highest log-probability.

    Parameters
    ----------
    beams : int
        Prefixes that are kept at each token, or paths at each denoising step, at least 1; for autoregressive models
        1 is greedy decoding.
    """
    require_counts(beams=beams)

    def step(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        found = require_beam(policy).beam([chain.state for chain in chains], beams)
        return [keep_one(chain, [draw], 0.0, unweighed) for chain, draw in zip(chains, found, strict=True)]

    return step


def require_greedy(policy: Policy) -> GreedySearcher:
    """The policy itself. Raises `InputError` if it has no greedy decoding."""
    if isinstance(policy, GreedySearcher):
        return policy
    raise InputError(f"{type(policy).__name__} has no greedy decoding; leave the method greedy out")


def require_beam(policy: Policy) -> BeamSearcher:
    """The policy itself. Raises `InputError` if it has no beam search, or none at its own law."""
    if isinstance(policy, Particular):
        policy.require_searchable()
    if isinstance(policy, BeamSearcher):
        return policy
    raise InputError(
        f"{type(policy).__name__} has no beam search, which autoregressive models have in transformers; leave beam out"
    )
