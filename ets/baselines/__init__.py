"""Baselines: step functions of the same type as the kernel's, so that all are run and charged alike."""

from ets.baselines.completions import best_of_n, majority, one_step, plain, weighted_majority
from ets.baselines.particles import log_normaliser, lookahead, particle_filter
from ets.baselines.power import acceptance_rate, power_sampling
from ets.baselines.retained import iterated_sir, retained_rollouts
from ets.baselines.search import beam, greedy, require_beam, require_greedy

__all__ = [
    "acceptance_rate",
    "beam",
    "best_of_n",
    "greedy",
    "iterated_sir",
    "log_normaliser",
    "lookahead",
    "majority",
    "one_step",
    "particle_filter",
    "plain",
    "power_sampling",
    "require_beam",
    "require_greedy",
    "retained_rollouts",
    "weighted_majority",
]
