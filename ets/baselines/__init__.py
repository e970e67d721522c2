"""Baselines: step functions of the kernel's type, so that the runner and the cost account treat all alike."""

from ets.baselines.adaptive import adaptive_majority
from ets.baselines.completions import (
    beam,
    best_of_n,
    confident_majority,
    greedy,
    majority_voting,
    one_step,
    plain,
    plain_by_steps,
    require_beam,
    require_greedy,
    weighted_majority,
)
from ets.baselines.particles import log_normaliser, lookahead, particle_filter
from ets.baselines.power import acceptance_rate, power_sampling
from ets.baselines.retained import iterated_sir, retained_rollouts

__all__ = [
    "acceptance_rate",
    "adaptive_majority",
    "beam",
    "best_of_n",
    "confident_majority",
    "greedy",
    "iterated_sir",
    "log_normaliser",
    "lookahead",
    "majority_voting",
    "one_step",
    "particle_filter",
    "plain",
    "plain_by_steps",
    "power_sampling",
    "require_beam",
    "require_greedy",
    "retained_rollouts",
    "weighted_majority",
]
