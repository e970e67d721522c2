"""Whatever takes a reward takes a plain function of (prompt, text), as `ets.sample` does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ets import baselines, energy_guided
from ets.rewards import per_text
from ets.runner import run
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, StepFn


def first_letter(text: str) -> str | None:
    return text[:1] or None


TAKING = {
    "energy_guided": partial(energy_guided, candidates=2, rollouts=2, lam=0.3),
    "particle_filter": partial(baselines.particle_filter, particles=2, lam=0.3),
    "lookahead": partial(baselines.lookahead, particles=2, rollouts=2, lam=0.3),
    "retained_rollouts": partial(baselines.retained_rollouts, candidates=2, rollouts=2, lam=0.3),
    "iterated_sir": partial(baselines.iterated_sir, samples=2, iterations=2, lam=0.3),
    "weighted_majority": partial(baselines.weighted_majority, first_letter, samples=2, lam=0.3),
    "best_of_n": partial(baselines.best_of_n, samples=2),
    "one_step": partial(baselines.one_step, samples=2, lam=0.3),
}


def asked(prompt: object, text: str) -> float:
    """It sees the prompt as it was given, and the text alone."""
    assert prompt == "a prompt" and isinstance(text, str)
    return text.count("a") - text.count("b")


def chains_of(step: StepFn) -> list[Chain]:
    policy = TabularPolicy(vocabulary=3, block_size=1, max_length=3, seed=4)
    return list(run(policy, step, [Problem("p", "a prompt")], width=8, seed=0, samples=8))


@pytest.mark.parametrize("make", TAKING.values(), ids=TAKING.keys())
def test_a_function_of_prompt_and_text_is_a_reward(make: Callable[[Any], StepFn]) -> None:
    plain, lifted = chains_of(make(asked)), chains_of(make(per_text(asked)))
    assert [chain.state.tokens for chain in plain] == [chain.state.tokens for chain in lifted]
    for one, other in zip(plain, lifted, strict=True):
        assert [step.log_weights.tolist() for step in one.trace] == [step.log_weights.tolist() for step in other.trace]
    assert len({value for chain in plain for step in chain.trace for value in step.log_rewards.ravel()}) > 1


@pytest.mark.parametrize("make", TAKING.values(), ids=TAKING.keys())
def test_what_cannot_be_a_reward_is_refused_when_the_step_is_made(make: Callable[[Any], StepFn]) -> None:
    with pytest.raises(InputError, match=r"^the reward is 3, which is no function"):
        make(3)
    with pytest.raises(InputError, match=r"^the reward takes \(text\)"):
        make(lambda text: 1.0)
