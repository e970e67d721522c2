"""Stopping when it is decided: the law that is returned, within its bound; the vote's winner, exactly.

Each law test has level 1e-4: a right sampler fails it once in 10,000 seeds. Seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.readouts import vote
from ets.rewards import majority, per_text, voters, votes, winner
from ets.runner import run
from ets.step import spread
from ets.stopping import Decided, all_at_maximum, vote_decided
from ets.testing import Law, check_law, frequencies, optimal_law, total_variation
from ets.trace_view import trace_text
from ets.types import Chain, Cost, Floats, InputError, Policy, Problem, Step, StepFn, Text
from ets.weights import log_mean_exp
from tests.enumerable import PROBLEM, lifted
from tests.laws.kernel import kernel_law
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel
from tests.laws.voting import majority_law

LAM, LEVEL = 0.5, 1e-4
POLICY = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=4)
STEPS = 3


def right(text: str) -> float:
    return float(not text.endswith("b"))


def verified(decided: Decided | None = None, candidates: int = 2, rollouts: int = 1, **options: Any) -> StepFn:
    reward = lifted(right)
    return energy_guided(reward, candidates=candidates, rollouts=rollouts, lam=LAM, decided=decided, **options)


def chains_of(policy: Policy, step: StepFn, samples: int, width: int = 5000, seed: int = 0) -> list[Chain]:
    return list(run(policy, step, [PROBLEM], width=width, seed=seed, samples=samples))


def always(problem: Problem, rollouts: Sequence[Sequence[Text]], rewards: Floats, chain: Chain) -> bool:
    return True


def test_the_text_returned_is_one_of_the_rollouts_by_their_rewards_at_level_1e_4() -> None:
    """M = 2, K = 2, stopped at the first step: enumerated over all that it can draw."""
    oracle, cells = POLICY.oracle, dict[Any, float]()
    for x, p in oracle.extend_law(PROBLEM, ()).items():
        ends = oracle.finish_law(PROBLEM, x)
        pairs = {(x, x): 1.0} if len(ends) == 1 else {k: math.prod(ends[e] for e in k) for k in product(ends, repeat=2)}
        cells |= {(x, *pair): p * q for pair, q in pairs.items()}
    law: dict[Any, float] = dict.fromkeys(oracle.finish_law(PROBLEM, ()), 0.0)
    for one, other in product(cells, repeat=2):
        ends = [*one[1:], *other[1:]]
        weights = np.exp([right(POLICY.spelled(end)) / LAM for end in ends])
        for end, weight in zip(ends, weights / weights.sum(), strict=True):
            law[end] += cells[one] * cells[other] * weight
    assert total_variation(law, optimum(right)) > 0.02
    chains = chains_of(POLICY, verified(always, rollouts=2), 8_000)
    check_law((chain.state.tokens for chain in chains), law, level=LEVEL)
    assert all(len(chain.trace) == 1 and chain.state.done and chain.valid for chain in chains)


def optimum(reward: Any) -> Law:
    return optimal_law(POLICY.oracle.finish_law(PROBLEM, ()), lambda x: reward(POLICY.spelled(x)), LAM)


@pytest.mark.parametrize("policy", [POLICY, TabularMaskedDiffusion(guide_steps=3)])
def test_a_chain_that_stops_has_chosen_the_candidate_that_it_would_have_gone_on_from(policy: Any) -> None:
    stopped, going = chains_of(policy, verified(always, 3, 2), 100), chains_of(policy, verified(None, 3, 2), 100)
    by_sample = {chain.sample: chain.trace[0] for chain in going}
    for chain in stopped:
        (only,) = chain.trace
        other = by_sample[chain.sample]
        assert (only.choice, only.candidates) == (other.choice, other.candidates) and other.rollout is None
        assert only.rollout is not None and only.cost.generated == other.cost.generated
        assert only.rollouts[only.choice][only.rollout].tokens == chain.state.tokens


def test_a_candidates_weight_is_spread_over_its_rollouts_by_ratio_and_reward() -> None:
    log_rewards = np.array([[0.0, 1.0, -math.inf], [2.0, 0.0, 0.0], [-math.inf] * 3])
    log_ratios = np.array([[0.5, -1.0, 0.0], [0.0, 0.0, -math.inf], [0.0] * 3])
    log_weights = log_mean_exp(log_rewards + log_ratios, axis=1) + np.array([0.0, -0.7, 0.0])
    cells = np.exp(spread(log_weights, log_rewards + log_ratios))
    np.testing.assert_allclose(cells.mean(axis=1), np.exp(log_weights))
    terms = np.exp(log_rewards + log_ratios)
    np.testing.assert_allclose(cells[:2] / cells[:2, :1], terms[:2] / terms[:2, :1])


def test_with_a_proposal_the_stopped_law_is_proper() -> None:
    """M·K = 64 pairs by ratio · exp(r/λ) at the first step are near p*, though the proposal is far from p_ref."""
    proposal = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=9)
    q = proposal.oracle.finish_law(PROBLEM, ())
    assert total_variation(q, POLICY.oracle.finish_law(PROBLEM, ())) > 0.3
    step, pair = verified(always, 32, 2), ImportanceSampling(POLICY, proposal)
    drawn = frequencies(chain.state.tokens for chain in chains_of(pair, step, 1_000))
    assert total_variation(drawn, optimum(right)) < 0.1


EASY = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=5)


def passing(text: str) -> float:
    """A verifier that most texts pass: 91% of all, 90% of those that begin with the likeliest token, 1."""
    return float("bb" not in text)


def shortfall(node: tuple[int, ...]) -> float:
    """The mass of texts below the maximum, given a candidate."""
    return sum(p for x, p in EASY.oracle.finish_law(PROBLEM, node).items() if passing(EASY.spelled(x)) < 1)


def passed(candidates: int, rollouts: int, samples: int) -> list[Chain]:
    sizes = {"candidates": candidates, "rollouts": rollouts, "lam": LAM}
    step = energy_guided(lifted(passing), **sizes, decided=all_at_maximum(1.0))
    return chains_of(EASY, step, samples)


def test_the_text_that_is_stopped_with_follows_the_optimal_law_on_texts_at_the_maximum_at_level_1e_4() -> None:
    first = [chain for chain in passed(2, 2, 5_000) if len(chain.trace) == 1]
    ends = [chain.state.tokens for chain in first if chain.trace[0].candidates[chain.trace[0].choice].tokens == (1,)]
    assert len(ends) > 1_000
    law = EASY.oracle.finish_law(PROBLEM, (1,))
    best = {x: p / (1 - shortfall((1,))) for x, p in law.items() if passing(EASY.spelled(x)) == 1}
    check_law(ends, best, level=LEVEL)
    continuation = optimal_law(law, lambda x: passing(EASY.spelled(x)), LAM)
    assert 0.01 < total_variation(best, continuation) <= shortfall((1,)) < 0.1


@pytest.mark.parametrize(("candidates", "rollouts"), [(2, 1), (4, 2)])
def test_the_law_with_stopping_at_the_maximum_is_within_its_bound(candidates: int, rollouts: int) -> None:
    """Of the exact law without it, at the same M and K: (n + 1) · ε of the chosen candidate, over chains that stop."""
    tilted, samples = (lambda x: passing(EASY.spelled(x))), 4_000
    law = kernel_law(EASY.oracle, PROBLEM, tilted, lam=LAM, candidates=candidates, rollouts=rollouts)
    chains, bound = passed(candidates, rollouts, samples), 0.0
    for chain in chains:
        last = chain.trace[-1]
        stopped = 0 if last.rollout is None else STEPS - len(chain.trace) + 1
        bound += stopped * shortfall(last.candidates[last.choice].tokens) / samples
    noise = 0.5 * math.sqrt(len(law) / samples) + 2 / math.sqrt(samples)  # its mean, and four standard deviations
    distance = total_variation(frequencies(chain.state.tokens for chain in chains), law)
    assert 0.02 < bound < 0.3 and noise < 0.07
    assert distance < bound + noise


def exact_error(candidates: int, rollouts: int) -> float:
    """What stopping adds at most in one step: the mean of ε over steps that stop, by enumeration of M candidates."""
    extensions, total = EASY.oracle.extend_law(PROBLEM, ()), 0.0
    for drawn in product(extensions, repeat=candidates):
        short = [shortfall(x) for x in drawn]
        chance = math.prod(extensions[x] * (1 - e) ** rollouts for x, e in zip(drawn, short, strict=True))
        total += chance * float(np.mean(short))
    return total


@pytest.mark.parametrize(("candidates", "rollouts"), [(1, 1), (2, 1), (2, 3), (4, 2)])
def test_what_a_step_adds_is_below_its_bound_without_confidence(candidates: int, rollouts: int) -> None:
    assert 0 < exact_error(candidates, rollouts) < 1 / (math.e * candidates * rollouts)


def test_where_all_texts_are_at_the_maximum_stopping_changes_no_law_at_level_1e_4() -> None:
    step = energy_guided(
        per_text(lambda _, text: 0.75), candidates=3, rollouts=2, lam=0.1, decided=all_at_maximum(0.75)
    )
    chains = chains_of(POLICY, step, 5_000)
    check_law((chain.state.tokens for chain in chains), POLICY.oracle.finish_law(PROBLEM, ()), level=LEVEL)
    assert all(len(chain.trace) == 1 for chain in chains)


def test_equal_rewards_below_the_maximum_decide_nothing() -> None:
    rollouts, chain = tabled("a b a b"), Chain(PROBLEM, 0, 1, POLICY.start([PROBLEM])[0])
    equal = np.full((2, 2), 0.5)
    assert not all_at_maximum(1.0)(PROBLEM, rollouts, equal, chain)
    assert all_at_maximum(0.5)(PROBLEM, rollouts, equal, chain)
    below = equal.copy()
    below[1, 0] -= 1e-9
    assert not all_at_maximum(0.5)(PROBLEM, rollouts, below, chain)


@pytest.mark.parametrize("lam", [0.07, 0.1, 0.3, 3.7, 1e-9, 1e9])
@pytest.mark.parametrize("maximum", [1.0, 1 / 3, -0.7, 0.0, 123.456])
def test_a_rule_knows_no_lam_and_rewards_at_the_maximum_reach_it_at_any(lam: float, maximum: float) -> None:
    """Dividing by λ and multiplying rounds; what is below the maximum stays below."""

    def stops(value: float) -> bool:
        sizes = {"candidates": 2, "rollouts": 1, "lam": lam}
        step = energy_guided(lambda _, text: value, **sizes, decided=all_at_maximum(maximum))
        return any(guide.rollout is not None for chain in chains_of(POLICY, step, 3) for guide in chain.trace)

    assert stops(maximum)
    assert not stops(maximum - 1e-6)


def tabled(answers: str) -> list[list[Text]]:
    """`[2, K]` rollouts that hold these answers, - for none."""
    texts = [Text((1,), answer, 0.0, True) for answer in answers.split()]
    return [texts[: len(texts) // 2], texts[len(texts) // 2 :]]


def answer_of(text: str) -> str | None:
    return None if text == "-" else text[:1] or None


def test_equal_energies_with_different_answers_are_not_stopped() -> None:
    """Two votes for a, two for b, all of equal reward: nothing is decided while votes are to come."""
    decided, chain = vote_decided(answer_of, 2), Chain(PROBLEM, 0, 1, POLICY.start([PROBLEM])[0])
    assert not decided(PROBLEM, tabled("a b b a"), np.zeros((2, 2)), chain)
    assert not all_at_maximum(1.0)(PROBLEM, tabled("a b b a"), np.zeros((2, 2)), chain)
    step = energy_guided(
        per_text(lambda _, text: 0.0), candidates=2, rollouts=2, lam=1.0, decided=vote_decided(answer_of, STEPS)
    )
    for chain in chains_of(POLICY, step, 300):
        for number, guide in enumerate(chain.trace):
            answers = {answer_of(text.text) for row in guide.rollouts for text in row}
            if number == 0 and len(answers) > 1:
                assert guide.rollout is None and (len(chain.trace) > 1 or guide.candidates[guide.choice].done)


@pytest.mark.parametrize(
    ("answers", "steps", "expected"),
    [
        ("a a a a", 1, False),  # nothing is left to leave out
        ("a a a a", 2, True),  # 4 votes lead, 4 to come: in a tie the answer that has reached 4 already wins
        ("a a a a", 3, False),
        ("a a a b", 2, False),
        ("a a a -", 2, False),
        ("- - - -", 2, False),
    ],
)
def test_a_lead_must_reach_the_votes_to_come(answers: str, steps: int, expected: bool) -> None:
    chain = Chain(PROBLEM, 0, 1, POLICY.start([PROBLEM])[0])
    assert vote_decided(answer_of, steps)(PROBLEM, tabled(answers), np.zeros((2, 2)), chain) == expected


@pytest.mark.parametrize(("drawn", "steps"), [(2, 2), (2, 3), (4, 3), (4, 4)])
def test_a_vote_is_decided_exactly_where_no_continuation_changes_its_winner(drawn: int, steps: int) -> None:
    """All votes of 2 a step for a, b or none, and all continuations by votes for a, b, a new answer or none."""
    decided, start, stopped = vote_decided(answer_of, steps), POLICY.start([PROBLEM])[0], 0
    to_come = 2 * steps - drawn
    for letters in product("ab-", repeat=drawn):
        votes = [Text((1,), letter, 0.0, True) for letter in letters]
        rows = [((one,), (other,)) for one, other in zip(votes[::2], votes[1::2], strict=True)]
        trace = tuple(Step(tuple(votes[:2]), row, np.zeros((2, 1)), np.zeros(2), 0, Cost()) for row in rows[:-1])
        present = winner(answer_of, votes)
        kept = all(
            winner(answer_of, [*votes, *(Text((1,), letter, 0.0, True) for letter in later)]) == present
            for later in product("abc-", repeat=to_come)
        )
        assert decided(PROBLEM, rows[-1], np.zeros((2, 1)), Chain(PROBLEM, 0, 1, start, trace)) == kept
        stopped += kept
    assert (stopped > 0) == (drawn >= to_come)


def test_votes_of_earlier_steps_count_and_importance_ratios_decide_nothing() -> None:
    chain = chains_of(POLICY, verified(always), 1)[0]
    earlier = chain.trace[0]
    before = Chain(PROBLEM, 0, 1, chain.state, (type(earlier)(**{**vars(earlier), "rollouts": tabled("a a a a")}),))
    alone = Chain(PROBLEM, 0, 1, chain.state)
    rollouts = tabled("a a a b")  # with the earlier ones 7 to 1, and 4 to come
    assert vote_decided(answer_of, 3)(PROBLEM, rollouts, np.zeros((2, 2)), before)
    assert not vote_decided(answer_of, 4)(PROBLEM, rollouts, np.zeros((2, 2)), before)
    assert not vote_decided(answer_of, 3)(PROBLEM, rollouts, np.zeros((2, 2)), alone)
    rollouts[0][0] = Text((1,), "a", 0.0, True, log_ratio=0.1)
    assert not vote_decided(answer_of, 3)(PROBLEM, rollouts, np.zeros((2, 2)), before)


def test_a_chain_that_goes_beyond_the_steps_it_was_to_have_is_refused() -> None:
    """All texts tie, for none has an answer: nothing is decided, and the third step is one too many."""
    reward = per_text(lambda _, text: 0.0)
    step = energy_guided(reward, candidates=2, rollouts=1, lam=1.0, decided=vote_decided(lambda text: None, 2))
    with pytest.raises(InputError, match=r"^a chain takes guide step 3, but the steps of vote_decided are 2; give"):
        chains_of(POLICY, step, 20)


@pytest.mark.parametrize("policy", [POLICY, TabularMaskedDiffusion(concentration=2.0)])
def test_the_votes_winner_is_the_same_with_stopping_for_fewer_tokens(policy: Any) -> None:
    reward = majority(answer_of)
    make = partial(energy_guided, reward, candidates=3, rollouts=2, lam=0.3)
    saved = 0
    for seed in range(5):
        stopping = chains_of(policy, make(decided=vote_decided(answer_of, STEPS)), 60, seed=seed)
        going = {chain.sample: chain for chain in chains_of(policy, make(), 60, seed=seed)}
        for chain in stopping:
            whole = going[chain.sample]
            assert vote(answer_of, whole).winner == vote(answer_of, chain).winner
            assert [step.candidates for step in chain.trace] == [
                step.candidates for step in whole.trace[: len(chain.trace)]
            ]
            assert chain.cost.generated <= whole.cost.generated
            saved += chain.cost.generated < whole.cost.generated
    assert saved > 30


def last_letter(text: str) -> str | None:
    return text[-1:] or None


def test_with_the_majority_reward_a_decided_chain_returns_the_answer_in_proportion_to_its_rollouts() -> None:
    """The mean over stopped chains against h / (h + (M·K - h) · exp(-1/λ)): |z| below 4, level 1e-4."""
    step = energy_guided(
        majority(last_letter), candidates=3, rollouts=2, lam=LAM, decided=vote_decided(last_letter, STEPS)
    )
    found = []
    for chain in chains_of(POLICY, step, 1_500):
        if chain.trace[-1].rollout is not None:
            best = winner(last_letter, voters(guide.rollouts for guide in chain.trace))
            answers = [last_letter(text.text) for row in chain.trace[-1].rollouts for text in row]
            h = answers.count(best)
            p = h / (h + (len(answers) - h) * math.exp(-1 / LAM))
            found.append((p, (last_letter(chain.state.text) == best) - p))
    errors = np.array([error for _, error in found])
    spread_of_one = math.sqrt(sum(p * (1 - p) for p, _ in found))
    assert len(found) > 300 and spread_of_one > 3
    assert abs(errors.sum()) < 4 * spread_of_one


AGREEING = TabularModel(vocabulary=3, block_size=1, max_length=3, concentration=2.0, seed=14)


def test_stopping_where_all_have_the_majority_answer_is_within_its_bound() -> None:
    """Of the exact law without it, at M = 2, K = 1 and three guide steps: (n + 1 + n·M·K / (D + 1)) · ε."""
    sizes, samples = {"candidates": 2, "rollouts": 1, "lam": LAM}, 4_000
    oracle = AGREEING.oracle
    law = majority_law(oracle, PROBLEM, lambda x: last_letter(AGREEING.spelled(x)), **sizes)  # type: ignore[arg-type]
    step = energy_guided(majority(last_letter), **sizes, decided=all_at_maximum(1.0))  # type: ignore[arg-type]
    chains, bound, early = chains_of(AGREEING, step, samples), 0.0, 0
    for chain in chains:
        last, to_come = chain.trace[-1], STEPS - len(chain.trace)
        if last.rollout is None:
            continue
        counts = votes(last_letter, voters(guide.rollouts for guide in chain.trace))
        best = winner(last_letter, voters(guide.rollouts for guide in chain.trace))
        lead = counts.pop(best) - max(counts.values(), default=0.0)
        ends = oracle.finish_law(PROBLEM, last.candidates[last.choice].tokens)
        missed = sum(p for x, p in ends.items() if last_letter(AGREEING.spelled(x)) != best)
        bound += (to_come + 1 + to_come * 2 / (lead + 1)) * missed / samples
        early += to_come > 0
    noise = 0.5 * math.sqrt(len(law) / samples) + 2 / math.sqrt(samples)  # its mean, and four standard deviations
    distance = total_variation(frequencies(chain.state.tokens for chain in chains), law)
    assert early > samples / 2 and 0.02 < bound < 0.3
    assert distance < bound + noise


def test_votes_that_turn_after_all_had_the_majority_answer_are_within_their_bound() -> None:
    """Of chains whose first rollouts all agree (M = 2, K = 1), a share of n·M·K·ε / (D + 1) turns at most."""
    policy = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=1)
    step = energy_guided(majority(last_letter), candidates=2, rollouts=1, lam=LAM)
    turned, bounds = [], []
    for chain in chains_of(policy, step, 3_000):
        first = chain.trace[0]
        answers = {last_letter(row[0].text) for row in first.rollouts}
        if len(answers) == 1 and None not in answers and not first.candidates[first.choice].done:
            ends = policy.oracle.finish_law(PROBLEM, first.candidates[first.choice].tokens)
            missed = sum(p for x, p in ends.items() if last_letter(policy.spelled(x)) not in answers)
            bounds.append(2 * 2 * missed / 3)
            turned.append(winner(last_letter, voters(guide.rollouts for guide in chain.trace)) not in answers)
    assert len(turned) > 500 and 0.02 < np.mean(turned) < np.mean(bounds)


def test_stopping_depends_neither_on_the_width_nor_costs_it_anything() -> None:
    policy = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=4)
    step = verified(all_at_maximum(1.0), 2, 2)
    together = chains_of(policy, step, 60, width=64)
    spent = policy.ledger.generated
    assert Cost.total(chain.cost for chain in together).generated == spent
    by_sample = {chain.sample: chain for chain in together}
    for chain in chains_of(policy, step, 60, width=1):
        other = by_sample[chain.sample]
        assert chain.state.tokens == other.state.tokens
        assert [(s.choice, s.rollout) for s in chain.trace] == [(s.choice, s.rollout) for s in other.trace]


@pytest.mark.parametrize("sampler", ["causal", "masked"])
def test_a_real_network_stops_too_and_its_trace_tells_so(sampler: str, make_tiny: Any, tiny_llada: Any) -> None:
    from ets.policies.diffusion.denoise import Schedule
    from ets.policies.diffusion.policy import MaskedDiffusionPolicy
    from ets.policies.settings import Unmasking

    policy = make_tiny(block_size=1, max_length=4)
    if sampler == "masked":
        policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(), Schedule(3, 3, 3, 3))
    chains = list(run(policy, verified(always, 2, 2), [Problem("p", "abc")], width=4, seed=0, samples=4))
    for chain in chains:
        (only,) = chain.trace
        assert only.rollout is not None and chain.state.done
        assert only.rollouts[only.choice][only.rollout].text == chain.state.text
        told = f"chose {only.choice + 1} of 2, its rollout {only.rollout + 1} "
        assert told in trace_text(chain.state.text, None, chain.trace, chain.cost)


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(InputError, match=r"^maximum is inf"):
        all_at_maximum(math.inf)
    with pytest.raises(InputError, match=r"^steps is 0"):
        vote_decided(answer_of, 0)
    with pytest.raises(InputError, match=r"^extract is 3"):
        vote_decided(3, 2)  # type: ignore[arg-type]
