"""`ets.exact` against its exact law. Each law test has level 1e-4, with fixed seeds."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ets import rejection as module
from ets.rejection import exact
from ets.step import RewardError
from ets.testing import check_law, optimal_law
from ets.types import InputError
from tests.enumerable import Tabular, lifted, reference, spelled
from tests.laws.suffix_moves import by_outcome
from tests.test_suffix_moves import (
    CANVAS,
    LAM,
    LETTERS,
    chains_of,
    forbidding,
    liking,
    outcomes,
    spelled_target,
    walk_of,
)

LEVEL, HIGHEST, LIMIT = 1e-4, 1.8, 9
SHAPES: list[Any] = [(LETTERS, liking), (LETTERS, forbidding), (CANVAS, liking)]


@pytest.mark.parametrize(("policy", "reward"), SHAPES)
def test_it_follows_its_exact_law(policy: Tabular, reward: Any) -> None:
    """The law of accepted texts and of the texts of the moves after the limit, together and apart."""
    budget = 15 if policy is LETTERS else 12
    walk = walk_of(policy, reward, budget=budget, start=0.0)
    accepted, rejected = walk.searched(math.exp(HIGHEST / LAM), LIMIT)
    whole = {(True, x): p for x, p in by_outcome(accepted).items()}
    whole |= {(False, x): p for x, p in by_outcome(walk.law(rejected)).items()}
    assert sum(whole.values()) == pytest.approx(1, abs=1e-9)
    step = exact(lifted(reward), lam=LAM, highest=HIGHEST, limit=LIMIT, budget=budget)
    chains = chains_of(policy, step)
    found = zip((chain.exact for chain in chains), outcomes(policy, chains), strict=True)
    check_law(list(found), whole, level=LEVEL)


@pytest.mark.parametrize("policy", [LETTERS, CANVAS])
def test_accepted_texts_are_samples_of_the_optimal_law(policy: Tabular) -> None:
    target = spelled_target(policy)
    chains = chains_of(policy, exact(lifted(liking), lam=LAM, highest=HIGHEST, limit=60, budget=60), samples=1_200)
    certain = [chain for chain in chains if chain.exact]
    assert 0.1 * len(chains) < len(certain) < len(chains)
    check_law(outcomes(policy, certain), target, level=LEVEL)


def test_an_acceptance_without_lam_turns_the_law_red(monkeypatch: pytest.MonkeyPatch) -> None:
    target = optimal_law(reference(LETTERS), spelled(LETTERS, liking), LAM)
    keep = module.score

    def unscaled(reward: Any, lam: float, *rest: Any) -> Any:
        scaled, cost = keep(reward, lam, *rest)
        return (scaled - HIGHEST / lam) * lam + HIGHEST / lam, cost

    monkeypatch.setattr(module, "score", unscaled)
    step = exact(lifted(liking), lam=LAM, highest=HIGHEST, limit=60, budget=60)
    chains = chains_of(LETTERS, step, samples=1_200)
    with pytest.raises(AssertionError):
        check_law(outcomes(LETTERS, [chain for chain in chains if chain.exact]), target, level=LEVEL)


def test_several_tries_are_exact_too_and_width_changes_nothing() -> None:
    target = spelled_target(LETTERS)
    step = exact(lifted(liking), lam=LAM, highest=HIGHEST, limit=60, budget=60, tries=3)
    chains = chains_of(LETTERS, step, samples=1_200)
    check_law(outcomes(LETTERS, [chain for chain in chains if chain.exact]), target, level=LEVEL)
    alone = chains_of(LETTERS, step, samples=20, width=1)
    assert [c.state.tokens for c in alone] == [c.state.tokens for c in sorted(chains, key=lambda c: c.sample)[:20]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limit": 2}, "limit is 2 tokens, and 1 text may have up to 3 each; raise the limit"),
        ({"highest": math.inf}, "highest is inf"),
        ({"budget": 3}, "budget 3 is less than limit 9"),
        ({"lam": -1}, "lam is -1"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    options = {"lam": LAM, "highest": HIGHEST, "limit": LIMIT, **wrong}
    with pytest.raises(InputError, match=message):
        chains_of(LETTERS, exact(lifted(liking), **options), samples=1)


def test_a_reward_above_the_highest_is_refused() -> None:
    with pytest.raises(RewardError, match=r"the reward gave .* and highest is 0.1; raise highest"):
        chains_of(LETTERS, exact(lifted(liking), lam=LAM, highest=0.1, limit=30), samples=20)
