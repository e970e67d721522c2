"""Power sampling against its exact law at a finite number of moves, and against the law that it tends to.

Each law test has level 1e-4: a right sampler fails it once in 10,000 seeds. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import pytest

from ets.baselines import acceptance_rate, one_step, power, power_sampling
from ets.baselines.power import WalkPath, log_acceptance
from ets.randomness import chain_key
from ets.rewards import likelihood
from ets.runner import run
from ets.testing import Law, check_law, total_variation
from ets.testing.tabular import TabularState
from ets.types import Chain, InputError, Policy, Problem, StepFn, Text
from tests.conftest import causal_oracle
from tests.enumerable import PROBLEM, Tabular
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel

Nodes: TypeAlias = tuple[Any, ...]
"""A text as the outcomes at all its guide boundaries, the root first."""

LEVEL, DRAWS, ALPHA = 1e-4, 4_000, 3.0
LETTERS = TabularModel(concentration=0.7, seed=1)
"""15 texts of one to three tokens, which are its guide steps."""
CANVAS = TabularMaskedDiffusion(gen_length=3, block_length=3, steps=3, guide_steps=3, concentration=0.4)
"""48 paths to 8 texts."""


def drawn_on(oracle: Any, nodes: Nodes, limit: float = math.inf) -> Law:
    """The reference law of going on to the end, or to a number of guide steps."""
    step = oracle.extend_law(PROBLEM, nodes[-1])
    if len(nodes) > limit or set(step) == {nodes[-1]}:
        return {nodes: 1.0}
    return {y: p * q for node, p in step.items() for y, q in drawn_on(oracle, (*nodes, node), limit).items()}


def ended(oracle: Any, nodes: Nodes) -> bool:
    return set(oracle.extend_law(PROBLEM, nodes[-1])) == {nodes[-1]}


def powered(law: Law, alpha: float) -> Law:
    total = sum(p**alpha for p in law.values())
    return {outcome: p**alpha / total for outcome, p in law.items()}


def target_law(oracle: Any, alpha: float, limit: float = math.inf) -> Law:
    """p_ref^α over complete texts, or over those that are open after so many guide steps."""
    law = drawn_on(oracle, (oracle.root,), limit)
    return powered({x: p for x, p in law.items() if ended(oracle, x) == (limit == math.inf)}, alpha)


Accept: TypeAlias = Callable[[Nodes, Nodes, int], float]
"""The probability of accepting x' for x when a boundary j was chosen, `(x, x', j)`."""


def transitions(oracle: Any, support: Sequence[Nodes], limit: float, accept: Accept) -> Any:
    """The matrix `[x, x']` of one move: for every boundary of x, every way to go on from it."""
    number = {nodes: n for n, nodes in enumerate(support)}
    matrix = np.zeros((len(support), len(support)))
    for x, row in number.items():
        boundaries = len(x) - 1
        for j in range(boundaries):
            for other, q in drawn_on(oracle, x[: j + 1], limit).items():
                p = q / boundaries
                accepted = accept(x, other, j) if other in number else 0.0
                matrix[row, number.get(other, row)] += p * accepted
                matrix[row, row] += p * (1 - accepted)
    return matrix


def by_definition(oracle: Any, target: Law, limit: float) -> Accept:
    """π(x') q(x' → x) / (π(x) q(x → x')), both proposals by way of the boundary j."""

    @cache
    def proposed(x: Nodes, j: int) -> Law:
        return {other: q / (len(x) - 1) for other, q in drawn_on(oracle, x[: j + 1], limit).items()}

    def accept(x: Nodes, other: Nodes, j: int) -> float:
        return min(1.0, target[other] * proposed(other, j)[x] / (target[x] * proposed(x, j)[other]))

    return accept


def moved(oracle: Any, law: Law, alpha: float, moves: int, limit: float) -> Law:
    """A law over texts after some moves."""
    target = target_law(oracle, alpha, limit)
    support = list(target)
    matrix = transitions(oracle, support, limit, by_definition(oracle, target, limit))
    after = np.array([law.get(x, 0.0) for x in support]) @ np.linalg.matrix_power(matrix, moves)
    return dict(zip(support, after.tolist(), strict=True))


def exact_law(oracle: Any, alpha: float, moves: int) -> Law:
    """The law of the text, as nodes, that power sampling ends with."""
    law: dict[Nodes, float] = {}
    under_way: Law = {(oracle.root,): 1.0}
    for limit in range(1, 10):
        longer = {y: p * q for x, p in under_way.items() for y, q in drawn_on(oracle, x, limit).items()}
        complete = {x: p for x, p in longer.items() if ended(oracle, x)}
        for x, p in moved(oracle, complete, alpha, moves, math.inf).items():
            law[x] = law.get(x, 0.0) + p
        under_way = {x: p for x, p in longer.items() if x not in complete}
        if not under_way:
            return law
        under_way = moved(oracle, under_way, alpha, moves, limit)
    raise AssertionError("texts of the tests end within ten guide steps")


def by_outcome(law: Law) -> Law:
    merged: dict[Any, float] = {}
    for nodes, p in law.items():
        merged[nodes[-1]] = merged.get(nodes[-1], 0.0) + p
    return merged


def chains_of(
    policy: Policy, step: StepFn, samples: int = DRAWS, width: int = 5000, problem: Problem = PROBLEM
) -> list[Chain]:
    return list(run(policy, step, [problem], width=width, seed=0, samples=samples))


def outcomes(policy: Tabular, chains: Sequence[Chain]) -> list[Any]:
    return [policy.oracle.by_path.outcome(chain.state) for chain in chains]


SHAPES: list[Any] = [
    (LETTERS, 3.0, 3),
    (LETTERS, 0.4, 1),
    (TabularModel(vocabulary=3, block_size=2, max_length=3, seed=3), 4.0, 2),
    (TabularModel(block_size=3), 2.0, 3),
    (CANVAS, 2.0, 2),
    (TabularMaskedDiffusion(4, 2, 2, 2, guide_steps=2, remasking="random", concentration=0.5), 3.0, 2),
]


@pytest.mark.parametrize(("policy", "alpha", "moves"), SHAPES)
def test_it_follows_its_exact_law_at_a_finite_number_of_moves(policy: Tabular, alpha: float, moves: int) -> None:
    law = by_outcome(exact_law(policy.oracle.by_path, alpha, moves))
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    chains = chains_of(policy, power_sampling(alpha=alpha, moves=moves))
    check_law(outcomes(policy, chains), law, level=LEVEL)


def test_the_exact_law_tends_to_the_powered_law_of_complete_texts_as_moves_grow() -> None:
    oracle = LETTERS.oracle
    target = powered(drawn_on(oracle, (oracle.root,)), ALPHA)
    lengths = {len(nodes) for nodes in target}
    assert lengths == {2, 3, 4}  # texts that end early among them
    distances = [total_variation(exact_law(oracle, ALPHA, moves), target) for moves in (1, 4, 16, 64, 256)]
    assert distances[0] > 0.1 and distances == sorted(distances, reverse=True) and distances[-1] < 1e-6


def test_with_many_moves_it_draws_from_the_powered_law() -> None:
    policy = TabularModel(max_length=2, concentration=0.5, seed=1)
    oracle = policy.oracle
    target = powered(oracle.finish_law(PROBLEM, ()), ALPHA)
    assert total_variation(by_outcome(exact_law(oracle, ALPHA, 20)), target) < 1e-4
    assert total_variation(oracle.finish_law(PROBLEM, ()), target) > 0.2
    chains = chains_of(policy, power_sampling(alpha=ALPHA, moves=20), samples=1_000)
    check_law(outcomes(policy, chains), target, level=LEVEL)


def test_one_step_ets_by_likelihood_has_the_same_target() -> None:
    policy = TabularModel(max_length=2, concentration=0.5, seed=1)
    target = powered(policy.oracle.finish_law(PROBLEM, ()), ALPHA)
    chains = chains_of(policy, one_step(likelihood(), samples=128, lam=1 / (ALPHA - 1)), samples=500)
    check_law(outcomes(policy, chains), target, level=LEVEL)


def path_of(policy: TabularModel, nodes: Nodes) -> WalkPath:
    """A text as a chain carries it."""
    (start,) = policy.start([PROBLEM])
    wanted = [TabularState(PROBLEM, node, "", 0.0, False) for node in nodes[1:]]
    states = (start, *(followed.state for followed in policy.follow([start] * len(wanted), wanted)))
    texts = tuple(Text(state.tokens, state.text, state.logp, state.done) for state in states)
    return WalkPath(states, texts, tuple(len(state.tokens) for state in states))


@pytest.mark.parametrize("limit", [math.inf, 1, 2])
def test_a_move_keeps_detailed_balance_exactly(limit: float) -> None:
    """With the sampler's own rule of acceptance, over complete texts and over open ones, 2 or 4 of them."""
    target = target_law(LETTERS.oracle, ALPHA, limit)
    path = cache(lambda nodes: path_of(LETTERS, nodes))
    support = list(target)
    assert {path(nodes).done for nodes in support} == {limit == math.inf}

    def accept(x: Nodes, other: Nodes, j: int) -> float:
        return math.exp(log_acceptance(path(x), path(other), ALPHA))

    flow = np.array(list(target.values()))[:, None] * transitions(LETTERS.oracle, support, limit, accept)
    assert flow == pytest.approx(flow.T, abs=1e-15) and flow.sum() == pytest.approx(1)
    assert len(support) == 2**limit if limit < math.inf else len(support) == 15


def test_a_text_that_has_ended_is_not_accepted_for_an_open_one() -> None:
    short, long = path_of(LETTERS, ((), (1,), (1, 0))), path_of(LETTERS, ((), (1,), (1, 1)))
    assert short.done and not long.done
    assert log_acceptance(long, short, ALPHA) == log_acceptance(short, long, ALPHA) == -math.inf


def after_one_move(step: StepFn) -> list[Any]:
    """Complete texts drawn from the target, after the moves of one step."""
    target = target_law(LETTERS.oracle, ALPHA)
    paths = [path_of(LETTERS, nodes) for nodes in target]
    chosen = np.random.default_rng(0).choice(len(paths), size=20_000, p=list(target.values()))
    chains = [Chain(PROBLEM, n, chain_key(0, "p", n), paths[number]) for n, number in enumerate(chosen.tolist())]
    return [chain.state.tokens for chain in step(LETTERS, chains) if chain.state.done]


ONE_MOVE = power_sampling(alpha=ALPHA, moves=1)


def test_a_move_leaves_the_powered_law_as_it_is() -> None:
    check_law(after_one_move(ONE_MOVE), by_outcome(target_law(LETTERS.oracle, ALPHA)), level=LEVEL)


def without_count(now: WalkPath, proposed: WalkPath, alpha: float) -> float:
    return min(0.0, (alpha - 1) * (proposed.texts[-1].logp - now.texts[-1].logp))


def count_upside_down(now: WalkPath, proposed: WalkPath, alpha: float) -> float:
    log_ratio = proposed.texts[-1].logp - now.texts[-1].logp
    return min(0.0, (alpha - 1) * log_ratio + math.log(proposed.steps / now.steps))


FAULTS: dict[str, Callable[[WalkPath, WalkPath, float], float]] = {
    "α, not α - 1": lambda now, proposed, alpha: log_acceptance(now, proposed, alpha + 1),
    "no count of boundaries": without_count,
    "counts upside down": count_upside_down,
    "always accepted": lambda now, proposed, alpha: 0.0,
    "never accepted": lambda now, proposed, alpha: -math.inf,
}


@pytest.mark.parametrize("fault", [*FAULTS][:-1])
def test_a_fault_in_the_acceptance_changes_the_law_that_a_move_should_leave(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "log_acceptance", FAULTS[fault])
    with pytest.raises(AssertionError, match="exact law"):
        check_law(after_one_move(ONE_MOVE), by_outcome(target_law(LETTERS.oracle, ALPHA)), level=LEVEL)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_acceptance_turns_the_law_of_a_run_red(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    law = by_outcome(exact_law(LETTERS.oracle, ALPHA, 2))
    monkeypatch.setattr(power, "log_acceptance", FAULTS[fault])
    chains = chains_of(LETTERS, power_sampling(alpha=ALPHA, moves=2), samples=3_000)
    with pytest.raises(AssertionError, match="exact law"):
        check_law(outcomes(LETTERS, chains), law, level=LEVEL)


def test_at_alpha_1_the_law_is_the_reference_with_any_number_of_moves() -> None:
    oracle = LETTERS.oracle
    reference = oracle.finish_law(PROBLEM, ())
    assert total_variation(by_outcome(exact_law(oracle, 1.0, 1)), reference) < 1e-12
    check_law(outcomes(LETTERS, chains_of(LETTERS, power_sampling(alpha=1.0, moves=2))), reference, level=LEVEL)


def test_at_alpha_1_every_text_of_the_same_length_is_accepted() -> None:
    for chain in chains_of(LETTERS, power_sampling(alpha=1.0, moves=3), samples=200):
        for step in chain.trace:
            now = step.candidates[0]
            for proposed, log_accepted in zip(step.candidates[1:], step.log_weights[1:], strict=True):
                if now.done != proposed.done:
                    assert log_accepted == -math.inf
                elif len(now.tokens) >= len(proposed.tokens):
                    assert log_accepted == 0.0
                    now = proposed
                else:
                    assert log_accepted == pytest.approx(math.log(len(now.tokens) / len(proposed.tokens)))
                    break  # the trace tells its probability, not whether it was accepted
    assert acceptance_rate(chain.trace) > 0


def described(chain: Chain) -> Any:
    steps = [(step.choice, step.candidates, step.log_weights.tolist()) for step in chain.trace]
    return chain.state.tokens, chain.state.text, steps


def test_chains_do_not_depend_on_the_width() -> None:
    for policy in (LETTERS, CANVAS):
        one, many = (
            {c.sample: described(c) for c in chains_of(policy, power_sampling(alpha=2, moves=3), 100, width)}
            for width in (1, 64)
        )
        assert one == many
        assert len({text for text, *_ in one.values()}) > 2  # of 8 or 15


def test_a_chain_is_the_text_that_its_last_moves_ended_with() -> None:
    lengths = set()
    for chain in chains_of(LETTERS, power_sampling(alpha=2, moves=3), samples=300):
        kept = [step.candidates[step.choice] for step in chain.trace]
        assert [text.done for text in kept] == [False] * (len(kept) - 1) + [True]
        assert (kept[-1].tokens, kept[-1].text) == (chain.state.tokens, chain.state.text) and chain.state.done
        assert isinstance(chain.state, TabularState) and chain.valid
        for number, step in enumerate(chain.trace):
            assert len(step.candidates) == 4 and step.rollouts == tuple((text,) for text in step.candidates)
            assert step.log_rewards[:, 0].tolist() == [text.logp for text in step.candidates]  # α - 1 = 1
            assert step.log_weights[0] == 0 and max(step.log_weights) <= 0 and not step.uninformed
            assert all(len(text.tokens) <= number + 1 for text in step.candidates) or step is chain.trace[-1]
        lengths.add(len(chain.trace))
        assert 0 < acceptance_rate(chain.trace) <= 1
    assert lengths == {1, 2, 3}


def test_the_acceptance_rate_is_that_of_the_moves() -> None:
    """Over chains of one block, where a move is accepted exactly if the choice is not the beginning; |z| < 4."""
    chains = chains_of(TabularModel(block_size=3), power_sampling(alpha=3, moves=1))
    expected = np.mean([acceptance_rate(chain.trace) for chain in chains])
    accepted = np.mean([chain.trace[0].choice for chain in chains])
    assert 0.2 < expected < 0.9
    assert abs(accepted - expected) < 4 * math.sqrt(expected * (1 - expected) / len(chains))


class Counted:
    """A table that counts its draws and the calls in which they come."""

    def __init__(self, policy: TabularModel) -> None:
        self.policy, self.rows, self.tokens = policy, [0], 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    def extend(self, states: Sequence[Any], keys: Any) -> Any:
        draws = self.policy.extend(states, keys)
        self.rows.append(len(draws))
        self.tokens += sum(
            len(draw.state.tokens) - len(state.tokens) for state, draw in zip(states, draws, strict=True)
        )
        return draws


def test_every_draw_is_charged_once_the_rejected_ones_too_and_chains_advance_together() -> None:
    policy = Counted(TabularModel())
    chains = chains_of(policy, power_sampling(alpha=8, moves=3), samples=50, width=50)
    assert sum(chain.cost.generated for chain in chains) == policy.ledger.generated == policy.tokens
    assert sum(chain.cost.candidate for chain in chains) == policy.ledger.candidate == policy.tokens
    assert any(step.choice == 0 for chain in chains for step in chain.trace)
    kept = sum(len(chain.state.tokens) for chain in chains)
    assert policy.tokens > 3 * kept
    # Three guide steps of one call for the block, and three moves of at most three blocks.
    assert len(policy.rows) - 1 <= 3 * (1 + 3 * 3) and max(policy.rows) == 50
    assert all(chain.cost.rewarded == 0 for chain in chains)


def test_a_real_network_follows_its_exact_law_and_reads_the_prompt_once(make_tiny: Any) -> None:
    policy = make_tiny(block_size=1, max_length=2)
    chains = chains_of(policy, power_sampling(alpha=3.0, moves=2), samples=1_000)
    law = by_outcome(exact_law(causal_oracle(policy), 3.0, 2))
    assert len(law) == 13
    check_law([chain.state.tokens for chain in chains], law, level=LEVEL)
    assert policy.ledger.prompt == 1
    for name in ("prompt", "candidate", "generated"):
        assert sum(getattr(chain.cost, name) for chain in chains) == getattr(policy.ledger, name)


def test_a_masked_diffusion_network_goes_on_from_its_boundaries(tiny_llada: Any) -> None:
    from ets.policies.diffusion.denoise import Schedule
    from ets.policies.diffusion.policy import MaskedDiffusionPolicy
    from ets.policies.settings import Unmasking

    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(), Schedule(4, 2, 4, 2))
    chains = chains_of(policy, power_sampling(alpha=2.0, moves=2), samples=20)
    for chain in chains:
        assert len(chain.trace) == 2 and chain.state.done and policy.mask_id not in chain.state.tokens
        last = chain.trace[-1]
        assert last.candidates[last.choice].tokens == chain.state.tokens and all(t.done for t in last.candidates)
    assert len({chain.state.tokens for chain in chains}) > 5
    for name in ("candidate", "generated", "row_forwards", "vocabulary"):
        assert sum(getattr(chain.cost, name) for chain in chains) == getattr(policy.ledger, name) > 0


def test_it_draws_as_many_texts_as_the_docstring_says() -> None:
    """Where all texts have I guide steps: 1 + moves (I + 3) / 4, a mean over 500 chains."""
    chains = chains_of(CANVAS, power_sampling(alpha=2.0, moves=2), samples=500)
    assert np.mean([chain.cost.generated for chain in chains]) == pytest.approx(3 * (1 + 2 * (3 + 3) / 4), rel=0.02)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "2", None])
def test_a_bad_alpha_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^alpha is "):
        power_sampling(alpha=value, moves=1)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_a_bad_number_of_moves_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^moves is "):
        power_sampling(alpha=2.0, moves=value)


def test_a_policy_that_always_draws_the_same_is_refused(make_tiny: Any) -> None:
    from ets.policies.settings import Sampling

    with pytest.raises(InputError, match="temperature 0"):
        chains_of(make_tiny(Sampling(temperature=0)), power_sampling(alpha=2.0, moves=1), samples=1)
