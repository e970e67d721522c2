"""Tests for a policy, a reward or a step function: tabular policies, their exact laws, and tests at a stated level.

`check_policy` judges a policy against an oracle that computes the policy's laws another way. `check_law` tests whether
drawn outcomes follow an exact law; a correct sampler fails with a probability of at most `level`.
"""

from ets.testing.contract import check_policy
from ets.testing.judging import Verdict, check_law, judge_law
from ets.testing.laws import AutoregressiveOracle, Law, Oracle, frequencies, optimal_law, total_variation
from ets.testing.masked_laws import CanvasSchedule, MaskedDiffusionOracle, MaskedPathOracle, StepLaw, enumerated_step
from ets.testing.tabular import TabularPolicy

__all__ = [
    "AutoregressiveOracle",
    "CanvasSchedule",
    "Law",
    "MaskedDiffusionOracle",
    "MaskedPathOracle",
    "Oracle",
    "StepLaw",
    "TabularPolicy",
    "Verdict",
    "check_law",
    "check_policy",
    "enumerated_step",
    "frequencies",
    "judge_law",
    "optimal_law",
    "total_variation",
]
