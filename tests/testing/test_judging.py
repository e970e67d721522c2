"""What the law test refuses, and what it sees."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ets.testing import check_law, judge_law
from ets.types import InputError

LAW = {"a": 0.5, "b": 0.3, "c": 0.2}
DRAWN = np.random.default_rng(0).choice(list(LAW), size=3_000, p=list(LAW.values())).tolist()


def test_draws_of_a_law_pass_it_and_a_law_beside_it_is_red() -> None:
    check_law(DRAWN, LAW)
    with pytest.raises(AssertionError, match="the draws do not follow the exact law"):
        check_law(DRAWN, {"a": 0.45, "b": 0.35, "c": 0.2})


def test_what_a_law_rules_out_is_red_however_rare() -> None:
    verdict = judge_law([*DRAWN, "d"], LAW | {"d": 0.0})
    assert verdict.impossible == {"d"} and not verdict.passed


@pytest.mark.parametrize("factor", [0.0, 0.99, 1 + 2e-6, 2.0, math.nan])
def test_a_law_that_does_not_add_up_to_one_is_refused(factor: float) -> None:
    """Its null would be scaled alike, and any such factor pass."""
    with pytest.raises(InputError, match=r"a law adds up to .*; list every outcome"):
        check_law(DRAWN, {outcome: factor * p for outcome, p in LAW.items()})


def test_rounding_in_a_law_is_no_fault() -> None:
    check_law(DRAWN, {outcome: (1 + 1e-9) * p for outcome, p in LAW.items()})
