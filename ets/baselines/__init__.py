"""Baselines: step functions of the same type as the kernel's, so that all are run and charged alike."""

from ets.baselines.completions import majority, one_step, plain

__all__ = ["majority", "one_step", "plain"]
