"""Beam search as a baseline, against brute force on tables (engines: policies/autoregressive/test_beam_search.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ets.baselines import beam, greedy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Unmasking
from ets.runner import run
from ets.types import Chain, InputError, Policy, Problem
from tests.conftest import best_of_beams
from tests.laws.tabular import TabularModel

PROBLEMS = [Problem(str(n), f"prompt {n}") for n in range(30)]


def chains_of(policy: Policy, beams: int, samples: int = 1) -> dict[str, Chain]:
    chains = run(policy, beam(beams), PROBLEMS, width=8, seed=0, samples=samples)
    return {chain.problem.id: chain for chain in chains}


def new_policy() -> TabularModel:
    return TabularModel(vocabulary=4, max_length=5, concentration=1.5, seed=3)


def test_with_a_beam_for_every_prefix_it_finds_the_most_probable_text() -> None:
    policy = new_policy()
    found = chains_of(policy, 4**5)
    for problem in PROBLEMS:
        law = policy.oracle.finish_law(problem, ())
        tokens = max(law, key=lambda outcome: law[outcome])
        assert found[problem.id].state.tokens == tokens and found[problem.id].state.done
        assert found[problem.id].trace[0].candidates[0].logp == pytest.approx(np.log(law[tokens]))


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_with_few_beams_it_finds_what_the_definition_says(beams: int) -> None:
    policy = new_policy()
    found = chains_of(policy, beams)
    expected = {problem.id: best_of_beams(policy.oracle, problem, beams) for problem in PROBLEMS}
    assert {name: chain.state.tokens for name, chain in found.items()} == expected
    most = {problem.id: best_of_beams(policy.oracle, problem, 4**5) for problem in PROBLEMS}
    assert expected != most  # so that finding the best would fail


def test_one_beam_is_greedy_decoding() -> None:
    policy = new_policy()
    chains = run(policy, greedy(), PROBLEMS, width=8, seed=0)
    found = {name: chain.state.tokens for name, chain in chains_of(policy, 1).items()}
    assert {chain.problem.id: chain.state.tokens for chain in chains} == found


def test_the_trace_has_one_candidate_of_weight_one_and_the_costs_add_up() -> None:
    policy = new_policy()
    found = chains_of(policy, 3)
    for chain in found.values():
        (step,) = chain.trace
        assert step.log_weights.tolist() == [0.0] and step.rollouts == (step.candidates,) and chain.valid
        assert (step.candidates[0].tokens, step.candidates[0].text) == (chain.state.tokens, chain.state.text)
        assert chain.cost.generated == chain.cost.rollout <= 1 + 3 * 4
    for part in ("generated", "rollout", "prompt"):
        assert sum(getattr(chain.cost, part) for chain in found.values()) == getattr(policy.ledger, part)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, None])
def test_a_bad_number_of_beams_is_refused_at_once(value: Any) -> None:
    with pytest.raises(InputError, match=r"^beams is "):
        beam(value)


def test_a_law_without_beam_search_says_so_in_one_line(tiny_llada: Checkpoint) -> None:
    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(remasking="random"), Schedule(4, 4, 4, 4))
    with pytest.raises(InputError, match=r"^remasking 'random' draws positions, which beam search cannot do; choose"):
        list(run(policy, beam(2), [Problem("p", "ab")], width=1, seed=0))
    assert policy.ledger.forwards == 0
