"""One test judges every tabular policy; faults that it must see."""

from __future__ import annotations

from typing import Any

import pytest

from ets.randomness import uniform
from ets.testing import TabularMaskedDiffusion, TabularPolicy, check_policy, masked_tabular, scores_of
from ets.types import Problem

PROBLEMS = [Problem("p", (1,)), Problem("q", "two"), Problem("r", (2, 3))]
RULES = ("low_confidence", "random", "margin", "entropy")
DRAWS, LEVEL = 50_000, 1e-4


def diffusion(**options: Any) -> TabularMaskedDiffusion:
    """At this temperature and seed, tempered scores would often rank the draws otherwise."""
    shape = {"vocabulary": 3, "gen_length": 3, "block_length": 3, "steps": 3, "guide_steps": 3}
    return TabularMaskedDiffusion(**(shape | {"temperature": 2.0, "seed": 3} | options))


UNEVEN = {"vocabulary": 2, "gen_length": 4, "block_length": 4, "steps": 3, "guide_steps": 3}  # reveals 2, 1, 1
BLOCKS = {"vocabulary": 2, "gen_length": 4, "block_length": 2, "steps": 4}


@pytest.mark.parametrize(
    "policy",
    [
        TabularPolicy(),
        TabularPolicy(vocabulary=4, block_size=2, max_length=4, temperature=0.7, seed=3),
        *(diffusion(remasking=rule) for rule in RULES),
        *(diffusion(remasking=rule, levels=2, **UNEVEN) for rule in RULES),  # scores tie
        diffusion(guide_steps=4, **BLOCKS),  # guide steps end inside a block
        diffusion(guide_steps=2, **BLOCKS),
        diffusion(guide_steps=2, **BLOCKS | {"block_length": 1}),  # they go across blocks
    ],
)
def test_every_tabular_policy_keeps_the_contract(policy: TabularPolicy | TabularMaskedDiffusion) -> None:
    check_policy(policy, policy.oracle, PROBLEMS, draws=DRAWS, level=LEVEL)


@pytest.mark.parametrize("make", [TabularPolicy, TabularMaskedDiffusion])
def test_a_wrong_temperature_turns_the_law_red(make: Any) -> None:
    with pytest.raises(AssertionError, match="exact law"):
        check_policy(make(temperature=1.05), make().oracle, PROBLEMS)


def without_the_step(keys: Any, *absorbed: Any) -> Any:
    """A position's number is the same at every step."""
    return uniform(keys, *absorbed[:-2], absorbed[-1])


# A draw that is used again does no harm under the other rules: there it was thrown away whatever it was.
FAULTS: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "no position term": ({}, "position_term", lambda *of: 0.0, "logp"),
    "no position term, random": ({"remasking": "random"}, "position_term", lambda *of: 0.0, "logp"),
    "a draw used again": ({}, "uniform", without_the_step, "exact law"),
    "tempered scores": ({}, "scores_of", lambda logits, rule: scores_of(logits / 2.0, rule), "exact law"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_masked_diffusion_turns_the_contract_red(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, name, faulty, message = FAULTS[fault]
    right, wrong = diffusion(**options), diffusion(**options)
    right.oracle.finish_law(PROBLEMS[0], right.oracle.root)
    monkeypatch.setattr(masked_tabular, name, faulty)
    with pytest.raises(AssertionError, match=message):
        check_policy(wrong, right.oracle, PROBLEMS, draws=DRAWS, level=LEVEL)
