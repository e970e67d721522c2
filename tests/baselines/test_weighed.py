"""Methods that reckon with no importance ratios refuse policies whose draws carry some."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ets import baselines
from ets.importance import ImportanceSampling
from ets.path_weights import PathWeights
from ets.runner import run
from ets.types import InputError, Policy, StepFn
from tests.enumerable import PROBLEM, lifted, liking
from tests.laws.fast import TabularFastDiffusion, TabularWeigher
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel

REWARD = lifted(liking)


def of_levels() -> Policy:
    exact, fast = TabularMaskedDiffusion(remasking="largest"), TabularFastDiffusion(remasking="largest", refresh=2)
    return PathWeights(fast, TabularWeigher(exact, fast, "1"))


WEIGHED: dict[str, Callable[[], Policy]] = {
    "proposal": lambda: ImportanceSampling(TabularModel(), TabularModel(seed=1)),
    "level": of_levels,
}
METHODS: dict[str, StepFn] = {
    "plain": baselines.plain(),
    "majority": baselines.majority_voting(lambda text: text, samples=2),
    "one_step": baselines.one_step(REWARD, samples=2, lam=1.0),
    "retained_rollouts": baselines.retained_rollouts(REWARD, candidates=2, rollouts=2, lam=1.0),
    "iterated_sir": baselines.iterated_sir(REWARD, samples=2, iterations=2, lam=1.0),
    "lookahead": baselines.lookahead(REWARD, particles=2, rollouts=2, lam=1.0),
    "particle_filter": baselines.particle_filter(REWARD, particles=2, lam=1.0),
    "power_sampling": baselines.power_sampling(alpha=2.0, moves=2),
}


@pytest.mark.parametrize("policy", WEIGHED)
@pytest.mark.parametrize("method", METHODS)
def test_ratios_are_not_left_out_in_silence(method: str, policy: str) -> None:
    with pytest.raises(InputError, match="carry importance ratios, which this method would ignore"):
        list(run(WEIGHED[policy](), METHODS[method], [PROBLEM], width=1, seed=0))
