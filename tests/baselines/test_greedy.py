"""Greedy decoding against the exact laws: the most probable token at each turn, and the untempered log-probability."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from ets.baselines import greedy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Sampling, Unmasking
from ets.runner import run
from ets.types import Chain, GreedySearcher, InputError, Policy, Problem
from tests.conftest import canvas_oracle, causal_oracle
from tests.hooks import what_is_read
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel

PROBLEMS = [
    Problem("p", "abc"),
    Problem("q", (1, 3, 3, 2, 1)),
    Problem("r", "b"),
    Problem("s", "cab", stop=("ab", "c")),
]
RULES = ("low_confidence", "random", "margin", "entropy")


def chains_of(policy: Policy, problems: list[Problem], samples: int = 1, width: int = 8) -> list[Chain]:
    return list(run(policy, greedy(), problems, width=width, seed=0, samples=samples))


def best_turns(oracle: Any, problem: Problem) -> tuple[int, ...]:
    tokens: tuple[int, ...] = ()
    while len(tokens) < oracle.max_length and not (tokens and oracle.ended(problem, tokens)):
        tokens = (*tokens, int(np.argmax(oracle.next_token(problem, tokens))))
    return tokens


def test_a_tabular_policy_takes_the_most_probable_token_at_each_turn() -> None:
    policy = TabularModel(vocabulary=4, max_length=5, seed=2)
    problems = [Problem(str(n), f"prompt {n}") for n in range(30)]
    found = {chain.problem.id: chain for chain in chains_of(policy, problems)}
    for problem in problems:
        tokens = best_turns(policy.oracle, problem)
        assert found[problem.id].state.tokens == tokens
        text = found[problem.id].trace[0].candidates[0]
        assert text.logp == pytest.approx(np.log(policy.oracle.finish_law(problem, ())[tokens]))
    assert len({len(chain.state.tokens) for chain in found.values()}) > 2


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.3), Sampling(1.7, top_k=2, top_p=0.4), Sampling(0)])
def test_a_network_does_so_whatever_it_samples_and_tells_the_untempered_log_probability(
    make_tiny: Any, sampling: Sampling
) -> None:
    policy = make_tiny(sampling, max_length=5)
    oracle = causal_oracle(policy)
    found = {chain.problem.id: chain for chain in chains_of(policy, PROBLEMS)}
    for problem in PROBLEMS:
        chain, tokens = found[problem.id], best_turns(oracle, problem)
        assert chain.state.done and chain.state.tokens == tokens
        assert chain.trace[0].candidates[0].logp == pytest.approx(np.log(oracle.finish_law(problem, ())[tokens]))
    assert found["s"].state.text != "cab"


def test_a_network_is_charged_for_what_it_computed(make_tiny: Any) -> None:
    policy = make_tiny()
    with what_is_read(policy.checkpoint.model) as seen:
        chains = chains_of(policy, PROBLEMS)
    assert (
        sum(rows * columns for rows, columns in seen)
        == policy.ledger.positions
        == sum(chain.cost.positions for chain in chains)
    )
    assert len(seen) == policy.ledger.forwards
    assert policy.ledger.prompt == 3 + 5 + 1 + 3
    assert policy.ledger.generated == sum(len(chain.state.tokens) for chain in chains)


def masked(checkpoint: Checkpoint, **rule: Any) -> MaskedDiffusionPolicy:
    return MaskedDiffusionPolicy(checkpoint, Unmasking(**rule), Schedule(4, 4, 2, 2))


@pytest.mark.parametrize("cfg", [0.0, 1.5])
@pytest.mark.parametrize("remasking", RULES)
def test_masked_diffusion_does_what_its_rule_does_at_temperature_zero(
    tiny_llada: Checkpoint, remasking: Any, cfg: float
) -> None:
    """And the log-probability is that of the path at temperature 1, by the exact law."""
    rule = {"remasking": remasking, "cfg": cfg}
    keys = np.arange(3, dtype=np.uint64)
    problems = [dataclasses.replace(problem, id=str(n)) for n, problem in enumerate([Problem("p", "abbab")] * 3)]
    cold, policy = masked(tiny_llada, temperature=0, **rule), masked(tiny_llada, temperature=2.4, **rule)
    expected = cold.finish(cold.start(problems), keys)
    found = policy.greedy(policy.start(problems), keys)
    oracle = canvas_oracle(tiny_llada, policy.schedule, Unmasking(1.0, **rule)).by_path
    law = oracle.finish_law(problems[0], oracle.root)
    for draw, other in zip(found, expected, strict=True):
        assert (draw.state.tokens, draw.state.path) == (other.state.tokens, other.state.path)
        assert draw.logp == pytest.approx(np.log(law[oracle.outcome(draw.state)]), abs=1e-4)
    assert policy.ledger.positions == cold.ledger.positions > 0


def test_the_trace_has_one_candidate_of_weight_one_that_all_samples_share(make_tiny: Any) -> None:
    chains = chains_of(make_tiny(), PROBLEMS[:1], samples=3)
    assert len({chain.state.tokens for chain in chains}) == 1
    for chain in chains:
        (step,) = chain.trace
        assert step.log_weights.tolist() == [0.0] and step.log_rewards.tolist() == [[0.0]] and step.choice == 0
        assert step.rollouts == (step.candidates,) and chain.valid and chain.cost.rewarded == 0
        assert (step.candidates[0].tokens, step.candidates[0].text) == (chain.state.tokens, chain.state.text)
    assert sorted(chain.cost.prompt for chain in chains) == [0, 0, 3]


def test_a_policy_without_greedy_decoding_is_refused_in_one_line() -> None:
    policy = TabularMaskedDiffusion()
    assert not isinstance(policy, GreedySearcher)
    with pytest.raises(InputError, match=r"^TabularMaskedDiffusion has no greedy decoding; leave"):
        chains_of(policy, PROBLEMS[:1])
