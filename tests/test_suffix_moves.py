"""`ets.refined` against its exact law at finite budgets, and the invariance of its moves.

Each law test has level 1e-4: a right sampler fails it once in 10,000 seeds. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ets import suffix_moves as module
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Unmasking
from ets.runner import run
from ets.step import as_reward, of_prefixes, reads_prefixes
from ets.suffix_moves import log_acceptance, refined
from ets.testing import Law, check_law, optimal_law, total_variation
from ets.types import Chain, InputError, Policy, StepFn
from ets.walk import lengths_of
from tests.conftest import canvas_oracle, causal_oracle
from tests.enumerable import PROBLEM, Tabular, lifted, reference, spelled
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.suffix_moves import BudgetedWalk, by_outcome, merged
from tests.laws.tabular import TabularModel

LEVEL, DRAWS, LAM = 1e-4, 2_500, 0.5
LETTERS = TabularModel(concentration=0.7, seed=1)
"""15 texts of one to three tokens, which are its guide steps."""
CANVAS = TabularMaskedDiffusion(gen_length=3, block_length=3, steps=3, guide_steps=3, concentration=0.4)
"""48 paths to 8 texts."""


def liking(text: str) -> float:
    return 0.6 * text.count("a") - 0.5 * text.count("b")


def forbidding(text: str) -> float:
    """No text without an a."""
    return liking(text) if "a" in text else -math.inf


def drawn_in(policy: Tabular) -> Any:
    """The tokens drawn up to an outcome."""
    if isinstance(policy, TabularModel):
        return len
    return lambda outcome: policy.gen_length - outcome[0].count(policy.mask)


def walk_of(policy: Tabular, reward: Any = liking, *, budget: int, start: float = 0.25, tries: int = 1, **rules: Any):
    oracle = policy.oracle.by_path
    valued = spelled_by_path(policy, reward)
    return BudgetedWalk(
        oracle,
        PROBLEM,
        lambda x: math.exp(valued(x) / LAM),
        drawn_in(policy),
        lengths_of(policy),
        budget,
        start,
        tries,
        **rules,
    )


def spelled_by_path(policy: Tabular, reward: Any) -> Any:
    value = spelled(policy, reward)
    return value if isinstance(policy, TabularModel) else lambda outcome: value(outcome[0])


def chains_of(policy: Policy, step: StepFn, samples: int = DRAWS, width: int = 5000) -> list[Chain]:
    return list(run(policy, step, [PROBLEM], width=width, seed=0, samples=samples))


def outcomes(policy: Tabular, chains: Sequence[Chain]) -> list[Any]:
    return [policy.oracle.by_path.outcome(chain.state) for chain in chains]


SHAPES: list[Any] = [
    (LETTERS, liking, {"budget": 12}),
    (LETTERS, liking, {"budget": 14, "start": 0.5}),
    (LETTERS, liking, {"budget": 16, "start": 0.0, "tries": 2}),
    (LETTERS, forbidding, {"budget": 10}),
    (TabularModel(vocabulary=3, block_size=2, max_length=3, seed=3), liking, {"budget": 12}),
    (CANVAS, liking, {"budget": 10}),
    (CANVAS, liking, {"budget": 12, "tries": 2, "start": 0.0}),
]


@pytest.mark.parametrize(("policy", "reward", "shape"), SHAPES)
def test_it_follows_its_exact_law_at_a_finite_budget(policy: Tabular, reward: Any, shape: dict[str, Any]) -> None:
    law = by_outcome(walk_of(policy, reward, **shape).law())
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    chains = chains_of(policy, refined(lifted(reward), lam=LAM, **shape))
    check_law(outcomes(policy, chains), law, level=LEVEL)


def test_a_reward_of_prefixes_begins_with_a_particle_filter_and_follows_its_exact_law(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four particles of two tokens, then two cycles; without resampling the law is another one."""
    policy = TabularMaskedDiffusion(gen_length=2, block_length=2, steps=2, guide_steps=2, concentration=0.4)
    monkeypatch.setattr(module, "FEWEST_PARTICLES", 1)
    walk = walk_of(policy, strongly, budget=16)
    law, unfiltered = (by_outcome(walk.law(walk.filtered(4, threshold))) for threshold in (0.5, 0.0))
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    found = outcomes(policy, chains_of(policy, refined(of_prefixes(lifted(strongly)), lam=LAM, budget=16)))
    check_law(found, law, level=LEVEL)
    with pytest.raises(AssertionError):
        check_law(found, unfiltered, level=LEVEL)


def strongly(text: str) -> float:
    return 2 * liking(text)


def test_a_declaration_of_prefixes_survives_lifting_and_costs_nothing_else() -> None:
    declared = of_prefixes(lambda prompt, text: liking(text))
    assert reads_prefixes(as_reward(declared)) and not reads_prefixes(as_reward(lambda prompt, text: 0.0))
    chains = chains_of(CANVAS, refined(declared, lam=LAM, budget=30), samples=20)
    assert max(chain.cost.generated for chain in chains) <= 30


@pytest.mark.parametrize("policy", [LETTERS, CANVAS])
@pytest.mark.parametrize("tries", [1, 2])
def test_a_move_at_any_cut_leaves_the_optimal_law_invariant(policy: Tabular, tries: int) -> None:
    """With the sampler's own rule of acceptance, exactly."""

    def accept(new: float, old: float, fresh: float) -> float:
        rest = fresh - new
        weights = [old, new, *([rest] if tries > 1 else [])]
        with np.errstate(divide="ignore"):
            return math.exp(log_acceptance(np.log(weights), 1))

    walk = walk_of(policy, budget=1000, tries=tries, accept=accept)
    target = weighed(walk.texts, walk.weight)
    for t in range(max(len(x) for x in target) - 1):
        moved = [(p, walk.move(x, t, 0) if t < len(x) - 1 else {(x, 0): 1.0}) for x, p in target.items()]
        assert without_spent(moved) == pytest.approx(target, abs=1e-12)
    cycle = without_spent([(p, walk.cycle(x, 0, 0)) for x, p in target.items()])
    assert cycle == pytest.approx(target, abs=1e-12)


def test_a_cut_that_is_uniform_over_the_steps_of_a_text_needs_a_correction() -> None:
    """Longer texts have more cuts: without a correction such moves change p*, which the scan over all cuts does not."""
    walk = walk_of(LETTERS, budget=1000)
    target = weighed(walk.texts, walk.weight)
    uncorrected = without_spent(
        [(p / (len(x) - 1), walk.move(x, t, 0)) for x, p in target.items() for t in range(len(x) - 1)]
    )
    assert total_variation(uncorrected, target) > 0.01


def without_spent(parts: Any) -> Law:
    return merged([(p * q, {x: 1.0}) for p, law in parts for (x, _), q in law.items()])


def weighed(law: Law, weight: Any) -> Law:
    total = sum(p * weight(x[-1]) for x, p in law.items())
    return {x: p * weight(x[-1]) / total for x, p in law.items()}


def from_target(walk: BudgetedWalk) -> Law:
    """The law of the text that a walk returns which begins with a text of p*."""
    return by_outcome(walk.law({(x, 0, 2.5): p for x, p in weighed(walk.texts, walk.weight).items()}))


def test_the_law_tends_to_the_optimal_law_as_the_budget_grows() -> None:
    target = optimal_law(reference(LETTERS), spelled(LETTERS, liking), LAM)
    laws = [by_outcome(walk_of(LETTERS, budget=budget, start=0.0).law()) for budget in (3, 9, 18)]
    distances = [total_variation(law, target) for law in laws]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.5 and distances[-1] < 0.3


def test_a_walk_from_the_optimal_law_stays_there_where_all_texts_have_one_length() -> None:
    """With texts of different lengths the number of cycles depends on the texts, and a small error is left."""
    assert total_variation(from_target(walk_of(CANVAS, budget=9)), spelled_target(CANVAS)) < 1e-12
    assert 0.001 < total_variation(from_target(walk_of(LETTERS, budget=12)), spelled_target(LETTERS)) < 0.05


def spelled_target(policy: Tabular) -> Law:
    walk = walk_of(policy, budget=9)
    return by_outcome(weighed(walk.texts, walk.weight))


def without_lam(log_weights: Any, proposed: int) -> float:
    return log_acceptance(log_weights * LAM, proposed)


def always(log_weights: Any, proposed: int) -> float:
    return 0.0


@pytest.mark.parametrize("wrong", [without_lam, always])
def test_a_wrong_acceptance_turns_the_law_red(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    law = by_outcome(walk_of(LETTERS, budget=9, start=0.0).law())
    monkeypatch.setattr(module, "log_acceptance", wrong)
    chains = chains_of(LETTERS, refined(lifted(liking), lam=LAM, budget=9, start=0.0))
    with pytest.raises(AssertionError):
        check_law(outcomes(LETTERS, chains), law, level=LEVEL)


def test_the_randomness_of_the_prefix_again_turns_the_law_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suffixes by the keys of the text that they replace are that text again."""
    law = by_outcome(walk_of(LETTERS, budget=9, start=0.0).law())
    monkeypatch.setattr(module, "row_keys", lambda chains, purpose, *shape: first_keys(chains, shape))
    chains = chains_of(LETTERS, refined(lifted(liking), lam=LAM, budget=9, start=0.0))
    with pytest.raises(AssertionError):
        check_law(outcomes(LETTERS, chains), law, level=LEVEL)


def first_keys(chains: Sequence[Chain], shape: tuple[int, ...]) -> Any:
    keys = np.array([chain.key for chain in chains], np.uint64)
    return np.broadcast_to(keys.reshape(-1, *[1] * len(shape)), (len(chains), *shape)).copy()


def test_a_rejected_text_that_is_lost_turns_the_law_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejected move that goes on from the start instead of from x."""
    law = by_outcome(walk_of(LETTERS, budget=9, start=0.0).law())
    keep = module._moved

    def lost(chain: Chain, fresh: Any, *rest: Any) -> Chain:
        return keep(replace(chain, state=replace(chain.state, path=fresh[0][0])), fresh, *rest)

    monkeypatch.setattr(module, "_moved", lost)
    chains = chains_of(LETTERS, refined(lifted(liking), lam=LAM, budget=9, start=0.0))
    with pytest.raises(AssertionError):
        check_law(outcomes(LETTERS, chains), law, level=LEVEL)


def test_an_unfinished_cycle_that_counts_turns_the_law_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that returns the text at which the tokens ran out."""
    law = by_outcome(walk_of(LETTERS, budget=9, start=0.0).law())
    returned = module._returned

    def counted(chain: Chain, numbers: Any) -> Chain:
        return returned(replace(chain, state=replace(chain.state, ends=(chain.state.end,) * 2)), numbers)

    monkeypatch.setattr(module, "_returned", counted)
    chains = chains_of(LETTERS, refined(lifted(liking), lam=LAM, budget=9, start=0.0), samples=5_000)
    with pytest.raises(AssertionError):
        check_law(outcomes(LETTERS, chains), law, level=LEVEL)


def test_chains_are_equal_at_any_width_and_spend_the_budget() -> None:
    step = refined(lifted(liking), lam=LAM, budget=60, tries=2)
    alone, together = (chains_of(LETTERS, step, samples=40, width=width) for width in (1, 40))
    states = [
        {chain.sample: (chain.state.tokens, chain.cost.generated) for chain in found} for found in (alone, together)
    ]
    assert states[0] == states[1]
    spent = [chain.cost.generated for chain in together]
    assert max(spent) <= 60 and np.mean(spent) > 0.9 * 60  # a text has up to 3 tokens


def test_the_trace_shows_every_move() -> None:
    (chain,) = chains_of(LETTERS, refined(lifted(liking), lam=LAM, budget=40), samples=1)
    begun, *moves, last = chain.trace
    assert begun.cut is None and len(begun.candidates) >= 3
    text = begun.candidates[begun.choice]
    for move in moves:
        assert move.candidates[0] is text and move.cut is not None
        assert move.log_rewards[0, 0] == pytest.approx(liking(text.text) / LAM)
        text = move.candidates[move.choice]
    assert last.candidates[last.choice].tokens == chain.state.tokens and last.candidates[-1] is text
    assert {move.choice for move in moves} == {0, 1}


def test_the_text_is_that_of_a_cycle_that_is_uniform_over_the_last_half() -> None:
    """At a level of 1e-4 for each number of candidates."""
    chains = chains_of(LETTERS, refined(lifted(liking), lam=LAM, budget=40, start=0.0), samples=400)
    choices: dict[int, list[int]] = {}
    for chain in chains:
        *moves, last = chain.trace
        cycles = sum(after.cut is None or after.cut <= move.cut for move, after in pairwise([*moves[1:], last]))
        cycles -= len(moves[-1].candidates) == 1  # the budget ended the last cycle
        assert len(last.candidates) == cycles - cycles // 2
        choices.setdefault(len(last.candidates), []).append(last.choice)
    assert choices.keys() >= {4, 5, 6}
    for count, found in choices.items():
        check_law(found, dict.fromkeys(range(count), 1 / count), level=LEVEL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": 2}, "the budget is 2 tokens, and a text may have 3"),
        ({"budget": 12, "start": 1.5}, "start is 1.5"),
        ({"budget": 12, "tries": 0}, "tries is 0"),
        ({"budget": 12, "lam": 0}, "lam is 0"),
    ],
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chains_of(LETTERS, refined(lifted(liking), **{"lam": LAM, **wrong}), samples=1)


def test_a_policy_without_its_lengths_is_refused() -> None:
    class Endless:
        deterministic, ledger, weighed = False, None, False

    with pytest.raises(InputError, match="Endless has no attribute lengths"):
        refined(lifted(liking), lam=LAM, budget=12)(Endless(), [])  # type: ignore[arg-type]


def network_walk(policy: Any, oracle: Any, reward: Any, budget: int, drawn: Any) -> BudgetedWalk:
    return BudgetedWalk(oracle, PROBLEM, lambda x: math.exp(reward(x) / LAM), drawn, lengths_of(policy), budget, 0.0, 1)


def test_a_real_network_follows_its_exact_law_and_reads_the_prompt_once(make_tiny: Any) -> None:
    policy = make_tiny(block_size=1, max_length=2)
    step = refined(lifted(liking), lam=LAM, budget=8, start=0.0)
    chains = chains_of(policy, step, samples=1_500)
    decode = policy.endings.decode
    walk = network_walk(policy, causal_oracle(policy), lambda x: liking(decode([t for t in x if t])), 8, len)
    law = by_outcome(walk.law())
    assert len(law) == 13 and sum(law.values()) == pytest.approx(1)
    check_law([chain.state.tokens for chain in chains], law, level=LEVEL)
    assert policy.ledger.prompt == 1
    for name in ("prompt", "candidate", "generated"):
        assert sum(getattr(chain.cost, name) for chain in chains) == getattr(policy.ledger, name)


def test_a_masked_diffusion_network_follows_its_exact_law(tiny_llada: Any) -> None:
    """Suffixes begin at the recorded canvas of a guide boundary."""
    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(), Schedule(2, 2, 2, 2))
    oracle = canvas_oracle(tiny_llada, policy.schedule, policy.unmasking)
    step = refined(lifted(liking), lam=LAM, budget=8, start=0.0)
    chains = chains_of(policy, step, samples=1_500)

    def reward(canvas: Any) -> float:
        tokens = list(canvas)
        return liking(policy.endings.decode(tokens[: tokens.index(0)] if 0 in tokens else tokens))

    walk = network_walk(policy, oracle, reward, 8, lambda canvas: sum(t != policy.mask_id for t in canvas))
    check_law([chain.state.tokens for chain in chains], by_outcome(walk.law()), level=LEVEL)
    for name in ("candidate", "generated", "row_forwards", "vocabulary"):
        assert sum(getattr(chain.cost, name) for chain in chains) == getattr(policy.ledger, name) > 0
