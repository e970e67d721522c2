"""Kernels that keep what they have chosen: against their exact laws, and the optimal law that they never leave.

Each law test has level 1e-4: a right sampler fails it once in 10,000 seeds. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ets.baselines import iterated_sir, one_step, retained_rollouts
from ets.baselines.retained import RetainedPath, RetainedState, draw_paths, log_law_of_last
from ets.kernel import energy_guided
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Unmasking
from ets.randomness import chain_key, derive
from ets.runner import run
from ets.testing import Law, TabularPolicy, check_law, optimal_law, total_variation
from ets.types import Chain, Cost, InputError, Policy, Problem, StepFn
from tests.enumerable import PROBLEM, Tabular, lifted, liking, reference, spelled
from tests.laws.kernel import kernel_law
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.retained import iterated_sir_law, path_law, retained_law

LAM, LEVEL, DRAWS = 0.2, 1e-4, 3_000
DEEP = TabularPolicy(vocabulary=2, block_size=1, max_length=3)
WIDE = TabularPolicy(vocabulary=3, block_size=1, max_length=3)
CANVAS = TabularMaskedDiffusion(gen_length=2, block_length=2, steps=2, guide_steps=2, remasking="random")


def forbidding(text: str) -> float:
    """Forbids every text with an a: whole steps may have no weight at all."""
    return -math.inf if "a" in text else 0.2 * len(text)


def optimum(policy: Tabular, reward: Callable[[str], float] = liking) -> Law:
    return optimal_law(reference(policy), spelled(policy, reward), LAM)


def chains_of(policy: Policy, step: StepFn, samples: int = DRAWS, width: int = 5000) -> list[Chain]:
    return list(run(policy, step, [PROBLEM], width=width, seed=0, samples=samples))


def retaining(candidates: int, rollouts: int, reward: Callable[[str], float] = liking) -> StepFn:
    return retained_rollouts(lifted(reward), candidates=candidates, rollouts=rollouts, lam=LAM)


@pytest.mark.parametrize(
    ("policy", "candidates", "rollouts", "reward"),
    [
        (DEEP, 2, 2, liking),
        (DEEP, 3, 2, forbidding),
        (WIDE, 2, 2, liking),
        (WIDE, 2, 2, forbidding),
        (DEEP, 2, 3, liking),  # more rollouts than candidates: one sibling is left out
        (DEEP, 1, 3, liking),  # the retained rollout's block is the only candidate
        (TabularPolicy(vocabulary=3, block_size=2, max_length=3, seed=1), 2, 1, liking),
        (CANVAS, 2, 2, liking),
        (CANVAS, 3, 1, forbidding),
    ],
)
def test_retained_rollouts_follow_their_exact_law_at_level_1e_4(
    policy: Tabular, candidates: int, rollouts: int, reward: Callable[[str], float]
) -> None:
    sizes = {"lam": LAM, "candidates": candidates, "rollouts": rollouts}
    law = retained_law(policy.oracle, PROBLEM, spelled(policy, reward), **sizes)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    drawn = chains_of(policy, retaining(candidates, rollouts, reward))
    check_law((chain.state.tokens for chain in drawn), law, level=LEVEL)


@pytest.mark.parametrize(
    ("policy", "candidates", "rollouts"), [(DEEP, 3, 2), (WIDE, 2, 2), (DEEP, 1, 3), (DEEP, 2, 4), (CANVAS, 2, 2)]
)
def test_started_from_the_optimal_law_the_exact_law_is_the_optimal_law(
    policy: Tabular, candidates: int, rollouts: int
) -> None:
    """The argument of the docstring, by enumeration: at M and K where the kernel's own law is far off."""
    oracle, tilted = policy.oracle, spelled(policy, liking)
    paths = path_law(oracle, PROBLEM, oracle.root)
    retained = optimal_law(paths, lambda path: tilted(path[-1]), LAM)
    begun: Any = {(path,): p for path, p in retained.items()}
    for _ in range(min(candidates, rollouts) - 1):
        begun = {(*kept, path): p * q for kept, p in begun.items() for path, q in paths.items()}
    sizes = {"lam": LAM, "candidates": candidates, "rollouts": rollouts}
    law = retained_law(oracle, PROBLEM, tilted, **sizes, begun=begun)
    assert total_variation(law, optimum(policy)) < 1e-12
    assert total_variation(kernel_law(oracle, PROBLEM, tilted, **sizes), optimum(policy)) > 0.1
    assert total_variation(retained_law(oracle, PROBLEM, tilted, **sizes), optimum(policy)) > 0.05


def optimal_starts(policy: Tabular, kept: int, count: int) -> list[Chain]:
    """Chains at the root with some kept rollouts: the retained one follows p*, its siblings the reference policy."""
    (root,), rng = policy.start([PROBLEM]), np.random.default_rng(1)
    pool = draw_paths(policy, [root] * 2000, derive(np.arange(2000, dtype=np.uint64), 77))
    known = {tuple(draw.state.tokens for draw in path): path for path in pool}
    law = path_law(policy.oracle, PROBLEM, policy.oracle.root)
    retained = optimal_law(law, lambda path: spelled(policy, liking)(path[-1]), LAM)

    def some(law: Law, number: int) -> list[RetainedPath]:
        names = list(law)
        return [known[names[n]] for n in rng.choice(len(names), number, p=list(law.values()))]

    siblings = some(law, count * (kept - 1))
    starts = [RetainedState(root, (path, *siblings[n::count])) for n, path in enumerate(some(retained, count))]
    return [Chain(PROBLEM, n, chain_key(0, PROBLEM.id, n), start) for n, start in enumerate(starts)]


def retained_end(chain: Chain) -> tuple[int, ...]:
    state = chain.state
    return state.rollouts[0][-1].state.tokens if isinstance(state, RetainedState) else state.tokens


@pytest.mark.parametrize(
    ("policy", "candidates", "rollouts"), [(DEEP, 2, 2), (WIDE, 3, 2), (DEEP, 2, 3), (CANVAS, 2, 2)]
)
def test_every_step_leaves_the_optimal_law_invariant_at_level_1e_4(
    policy: Tabular, candidates: int, rollouts: int
) -> None:
    sizes = {"lam": LAM, "candidates": candidates, "rollouts": rollouts}
    plain = kernel_law(policy.oracle, PROBLEM, spelled(policy, liking), **sizes)
    assert total_variation(plain, optimum(policy)) > 0.1  # what is not invariant is seen
    chains, step = optimal_starts(policy, min(candidates, rollouts), DRAWS), retaining(candidates, rollouts)
    check_law(map(retained_end, chains), optimum(policy), level=LEVEL, what="the starts")
    for number in range(1, 4):
        running = [n for n, chain in enumerate(chains) if not chain.state.done]
        for n, chain in zip(running, step(policy, [chains[n] for n in running]) if running else (), strict=True):
            chains[n] = chain
        check_law(map(retained_end, chains), optimum(policy), level=LEVEL, what=f"retained after step {number}")
    assert all(chain.state.done for chain in chains)


def test_the_first_step_draws_what_the_kernel_draws() -> None:
    kernel = energy_guided(lifted(liking), candidates=4, rollouts=3, lam=LAM)
    ours, others = chains_of(WIDE, retaining(4, 3), 50), chains_of(WIDE, kernel, 50)
    by_sample = {chain.sample: chain.trace[0] for chain in others}
    for chain in ours:
        first, other = chain.trace[0], by_sample[chain.sample]
        for row, expected in zip((first.candidates, *first.rollouts), (other.candidates, *other.rollouts), strict=True):
            assert [text.tokens for text in row] == [text.tokens for text in expected]
        np.testing.assert_allclose(first.log_weights, other.log_weights)


def check_the_trace(chains: list[Chain], candidates: int, rollouts: int) -> int:
    """Kept rollouts come again as the first cells of the next step's candidates; returns how many did."""
    again = 0
    for chain in chains:
        for before, after in zip(chain.trace, chain.trace[1:], strict=False):
            row, k = before.rollouts[before.choice], before.rollout
            assert k is not None
            kept = (*row[k:], *row[:k])[:candidates]
            assert all(new[0] is old for new, old in zip(after.rollouts, kept, strict=False))
            again += len(kept)
        last = chain.trace[-1]
        assert last.candidates[last.choice].done and last.candidates[last.choice].tokens == chain.state.tokens
        assert all(np.shape(step.log_rewards) == (candidates, rollouts) for step in chain.trace)
    return again


def drawn_tokens(chain: Chain) -> int:
    """Tokens of a chain's trace, each text once: what the blocks and rollouts that were drawn anew add."""
    known, total, begun = set[int](), 0, 0
    for step in chain.trace:
        blocks = 0 if len(known) == 0 else sum(id(row[0]) in known for row in step.rollouts)
        for m, (candidate, row) in enumerate(zip(step.candidates, step.rollouts, strict=True)):
            total += 0 if m < blocks else len(candidate.tokens) - begun
            for text in {id(text): text for text in row if text is not candidate and id(text) not in known}.values():
                total += len(text.tokens) - len(candidate.tokens)
        known |= {id(text) for row in step.rollouts for text in row}
        begun = len(step.candidates[step.choice].tokens)
    return total


def counted(cost: Cost) -> list[int]:
    return [getattr(cost, name) for name in ("prompt", "candidate", "rollout", "generated", "row_forwards")]


@pytest.mark.parametrize(("candidates", "rollouts"), [(3, 2), (2, 3)])
def test_no_token_is_drawn_twice_and_costs_add_up(candidates: int, rollouts: int) -> None:
    policy = TabularPolicy(vocabulary=3, block_size=1, max_length=4)
    chains = chains_of(policy, retaining(candidates, rollouts), 200)
    assert check_the_trace(chains, candidates, rollouts) > 200
    assert [chain.cost.generated for chain in chains] == [drawn_tokens(chain) for chain in chains]
    assert counted(Cost.total(chain.cost for chain in chains)) == counted(policy.ledger)
    kernel = energy_guided(lifted(liking), candidates=candidates, rollouts=rollouts, lam=LAM)
    before = policy.ledger.generated
    chains_of(policy, kernel, 200)
    assert before < 0.9 * (policy.ledger.generated - before)


STEPS = {
    "retained": retaining(3, 2),
    "iterated": iterated_sir(lifted(liking), samples=3, iterations=4, lam=LAM),
}


@pytest.mark.parametrize("name", list(STEPS))
@pytest.mark.parametrize("policy", [WIDE, CANVAS])
def test_chains_are_the_same_whatever_advances_beside_them(policy: Tabular, name: str) -> None:
    alone, together = (chains_of(policy, STEPS[name], 40, width) for width in (1, 64))
    by_sample = {chain.sample: chain for chain in together}
    for chain in alone:
        other = by_sample[chain.sample]
        assert chain.state.tokens == other.state.tokens
        assert [(s.choice, s.rollout) for s in chain.trace] == [(s.choice, s.rollout) for s in other.trace]
        assert [s.rollouts for s in chain.trace] == [s.rollouts for s in other.trace]


@pytest.mark.parametrize("name", ["retained", "iterated"])
def test_a_chain_is_valid_unless_all_that_it_met_was_forbidden(name: str) -> None:
    step = {
        "retained": retaining(2, 2, forbidding),
        "iterated": iterated_sir(lifted(forbidding), samples=2, iterations=2, lam=LAM),
    }[name]
    chains = chains_of(WIDE, step, 500)
    assert [chain.valid for chain in chains] == ["a" not in chain.state.text for chain in chains]
    assert {chain.valid for chain in chains} == {True, False}
    for chain in chains:
        allowed = any("a" not in text.text for text in sum(chain.trace[-1].rollouts, ()))
        assert chain.valid == allowed != chain.trace[-1].uninformed


@pytest.mark.parametrize("family", ["causal", "masked"])
def test_both_methods_run_on_a_real_network(family: str, make_tiny: Any, tiny_llada: Any) -> None:
    policy: Any = make_tiny(block_size=1, max_length=4)
    if family == "masked":
        policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(), Schedule(3, 3, 3, 3))
    problems = [Problem("p", "abc"), Problem("q", "b")]
    step = retaining(3, 2)
    chains = list(run(policy, step, problems, width=8, seed=0, samples=4))
    assert check_the_trace(chains, 3, 2) > 4
    assert counted(Cost.total(chain.cost for chain in chains)) == counted(policy.ledger)
    again = {(c.problem.id, c.sample): c for c in run(policy, step, problems, width=1, seed=0, samples=4)}
    assert all(chain.state.text == again[chain.problem.id, chain.sample].state.text for chain in chains)
    for chain in run(policy, STEPS["iterated"], problems, width=8, seed=0, samples=4):
        (only,) = chain.trace
        assert len(only.candidates) == 3 + 3 * 2 and only.candidates[only.choice].text == chain.state.text


SIZES = [(2, 1), (2, 3), (3, 2), (1, 5)]


@pytest.mark.parametrize(("policy", "reward"), [(DEEP, liking), (DEEP, forbidding), (CANVAS, liking)])
@pytest.mark.parametrize(("samples", "iterations"), SIZES)
def test_iterated_sir_follows_its_exact_law_at_level_1e_4(
    policy: Tabular, reward: Callable[[str], float], samples: int, iterations: int
) -> None:
    sizes = {"samples": samples, "iterations": iterations, "lam": LAM}
    law = iterated_sir_law(reference(policy), spelled(policy, reward), **sizes)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    drawn = chains_of(policy, iterated_sir(lifted(reward), **sizes))
    check_law((chain.state.tokens for chain in drawn), law, level=LEVEL)


def test_iterated_sir_tends_to_the_optimal_law_at_least_as_fast_as_stated() -> None:
    tilted, prior = spelled(WIDE, liking), reference(WIDE)
    weights = {outcome: math.exp(tilted(outcome) / LAM) for outcome in prior}
    largest = max(weights.values()) / sum(p * weights[outcome] for outcome, p in prior.items())
    distances = [
        total_variation(iterated_sir_law(prior, tilted, lam=LAM, samples=3, iterations=n), optimum(WIDE))
        for n in (1, 2, 5, 40)
    ]
    delta = 2 / (2 * largest + 1)
    for n, distance in zip((2, 5, 40), distances[1:], strict=True):
        assert distance <= (1 - delta) ** (n - 1) * distances[0]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.5 and distances[3] < 0.05


def test_each_iteration_leaves_the_optimal_law_invariant() -> None:
    """A kept text of p* and one more choice: the exact law, from the conditional law of the text kept last."""
    policy, tilted = DEEP, spelled(DEEP, liking)
    target, law = optimum(policy), dict.fromkeys(reference(policy), 0.0)
    for kept, p in target.items():
        for fresh, q in reference(policy).items():
            met = np.array([tilted(kept) / LAM, -math.inf, tilted(fresh) / LAM])  # so that the first choice is `kept`
            chances = np.exp(log_law_of_last(met, 2))
            law[kept] += p * q * chances[0]
            law[fresh] += p * q * chances[2]
    assert total_variation(law, target) < 1e-12


def test_one_iteration_is_one_step_of_ets() -> None:
    iterated = chains_of(WIDE, iterated_sir(lifted(liking), samples=4, iterations=1, lam=LAM), 200)
    single = chains_of(WIDE, one_step(lifted(liking), samples=4, lam=LAM), 200)
    assert [chain.state.tokens for chain in iterated] == [chain.state.tokens for chain in single]


def test_the_text_kept_last_is_chosen_by_its_law_and_charged_with_all_texts() -> None:
    policy = TabularPolicy(vocabulary=3, block_size=1, max_length=3)
    chains = chains_of(policy, STEPS["iterated"], 100)
    for chain in chains:
        (only,) = chain.trace
        np.testing.assert_allclose(only.log_rewards[:, 0], [liking(text.text) / LAM for text in only.candidates])
        np.testing.assert_allclose(only.log_weights, log_law_of_last(only.log_rewards[:, 0], 3))
        assert np.exp(only.log_weights).sum() == pytest.approx(1) and chain.cost.rewarded == 9
        assert chain.cost.generated == sum(len(text.tokens) for text in only.candidates)
    assert counted(Cost.total(chain.cost for chain in chains)) == counted(policy.ledger)


@pytest.mark.parametrize(
    ("make", "options", "wrong"),
    [
        (retained_rollouts, {"candidates": 2, "rollouts": 2, "lam": 1.0}, {"candidates": 0}),
        (retained_rollouts, {"candidates": 2, "rollouts": 2, "lam": 1.0}, {"rollouts": 1.5}),
        (retained_rollouts, {"candidates": 2, "rollouts": 2, "lam": 1.0}, {"lam": 0.0}),
        (iterated_sir, {"samples": 2, "iterations": 2, "lam": 1.0}, {"samples": 0}),
        (iterated_sir, {"samples": 2, "iterations": 2, "lam": 1.0}, {"iterations": True}),
        (iterated_sir, {"samples": 2, "iterations": 2, "lam": 1.0}, {"lam": math.nan}),
    ],
)
def test_values_out_of_range_are_named(make: Any, options: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{next(iter(wrong))} is "):
        make(lifted(liking), **options | wrong)
