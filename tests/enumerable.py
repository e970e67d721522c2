"""What tests share that hold a step function against exact laws of policies so small that they can be enumerated."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

from ets.rewards import per_text
from ets.testing import Law, TabularPolicy
from ets.types import Floats, Problem, Reward
from tests.laws.masked_tabular import TabularMaskedDiffusion

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


def largest_error(outcomes: Sequence[Hashable], weights: Floats, targets: Law) -> float:
    """The largest |z| over outcomes x of: mean of W · 1{x} against its target, in errors of the draws' own spread.

    Such a z is normal only where enough draws count: the rarest outcomes are one, of 5% of all targets or more.
    Below 5.5 is level 1e-4 in all: of 100,000 times 3,000 draws of a right sampler, whose weights spread as
    far as their mean, one reached it (10 reached 5, and 47 reached 4.5). Weights
    that spread over twice their mean reach it in 1 of 150.
    """
    rare, share = set(), 0.05 * math.fsum(targets.values())
    for outcome in sorted(targets, key=lambda x: targets[x]):
        if min(targets[outcome], math.fsum(targets[x] for x in rare)) < share:
            rare.add(outcome)
    errors = []
    for group in (rare, *({x} for x in targets if x not in rare)):
        terms = weights * [outcome in group for outcome in outcomes]
        error = terms.mean() - math.fsum(targets[x] for x in group)
        errors.append(abs(error) / (terms.std() / math.sqrt(len(terms))))
    return max(errors)
