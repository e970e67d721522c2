"""What tests share that hold a step function against exact laws of policies so small that they can be enumerated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from ets.rewards import per_text
from ets.testing import Law, TabularMaskedDiffusion, TabularPolicy
from ets.types import Problem, Reward

Tabular: TypeAlias = TabularPolicy | TabularMaskedDiffusion

PROBLEM = Problem("p", (1,))


def liking(text: str) -> float:
    return 0.3 * text.count("a") - 0.5 * text.count("b")


def lifted(function: Callable[[str], float]) -> Reward:
    """A function of the text as a reward."""
    return per_text(lambda _, text: function(text))


def spelled(policy: Tabular, function: Callable[[str], Any]) -> Callable[[tuple[int, ...]], Any]:
    """A function of the text as one of outcomes."""
    return lambda outcome: function(policy.spelled(outcome))


def reference(policy: Tabular) -> Law:
    """p_ref over complete outcomes."""
    return policy.oracle.finish_law(PROBLEM, policy.oracle.root)
