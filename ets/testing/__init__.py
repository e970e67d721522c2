"""Policies small enough to be enumerated, exact laws, and the tests that any new policy must pass.

A new policy is judged by `check_policy`, against an oracle that computes its laws some other way. A law test
says whether drawn outcomes follow an exact law, at a stated level: a correct sampler fails it with that
probability at most.
"""

from ets.testing.contract import check_policy
from ets.testing.judging import Verdict, check_law, judge_law
from ets.testing.laws import (
    AutoregressiveOracle,
    Law,
    Oracle,
    frequencies,
    optimal_law,
    total_variation,
)
from ets.testing.masked_laws import (
    CanvasSchedule,
    MaskedDiffusionOracle,
    closed_form_step,
    enumerated_step,
    position_term,
    scores_of,
)
from ets.testing.masked_tabular import TabularMaskedDiffusion
from ets.testing.tabular import TabularPolicy

__all__ = [
    "AutoregressiveOracle",
    "CanvasSchedule",
    "Law",
    "MaskedDiffusionOracle",
    "Oracle",
    "TabularMaskedDiffusion",
    "TabularPolicy",
    "Verdict",
    "check_law",
    "check_policy",
    "closed_form_step",
    "enumerated_step",
    "frequencies",
    "judge_law",
    "optimal_law",
    "position_term",
    "scores_of",
    "total_variation",
]
