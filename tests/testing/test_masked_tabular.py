"""Masked diffusion in closed form against enumeration, its schedule, and what its states say."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ets.kernel import energy_guided
from ets.rewards import per_text
from ets.runner import run
from ets.testing import (
    CanvasSchedule,
    TabularMaskedDiffusion,
    check_law,
    check_policy,
    closed_form_step,
    enumerated_step,
    position_term,
    total_variation,
)
from ets.types import Cost, InputError, Problem
from tests.enumerable import PROBLEM
from tests.laws.kernel import kernel_law

RULES = ("low_confidence", "random", "margin", "entropy", "largest")
SHAPES: list[dict[str, Any]] = [
    {"vocabulary": 3, "gen_length": 4, "block_length": 4, "steps": 3, "guide_steps": 3, "temperature": 0.7},
    {"vocabulary": 3, "gen_length": 4, "block_length": 4, "steps": 2, "guide_steps": 1, "levels": 2},
    {"vocabulary": 4, "gen_length": 4, "block_length": 2, "steps": 4, "guide_steps": 2, "levels": 3},
]


def keys(count: int) -> Any:
    return np.arange(count, dtype=np.uint64)


def enumerated(policy: TabularMaskedDiffusion) -> Any:
    """The policy's laws without the closed form."""
    return policy.oracle_by(enumerated_step)


def reachable(oracle: Any) -> set[tuple[int, ...]]:
    """Every canvas that a guide boundary may show, from the empty one to the last."""
    canvases, fresh = set(), {oracle.root}
    while fresh:
        canvases |= fresh
        fresh = {following for canvas in fresh for following in oracle.extend_law(PROBLEM, canvas)} - canvases
    return canvases


FAST: list[dict[str, Any]] = [
    {"threshold": 0.6},
    {"remasking": "largest", "threshold": 0.8},
    {"factor": 1.4, "temperature": 0.7},
    {"refresh": 4},  # at the beginning of a block alone
    {"refresh": 2, "remasking": "entropy"},
    {"refresh": 3, "remasking": "random"},
    {"refresh": 4, "threshold": 0.6},
    {"steps": 2, "threshold": 0.6, "refresh": 2, "guide_steps": 2},  # two positions a step at least
    {"steps": 2, "factor": 1.4, "guide_steps": 2},
]
CANVASES: list[dict[str, Any]] = [
    {"vocabulary": 2, "gen_length": 4, "block_length": 4, "steps": 4, "guide_steps": 2},
    {"vocabulary": 2, "gen_length": 4, "block_length": 2, "steps": 4, "guide_steps": 2},  # guide steps are blocks
    {"vocabulary": 2, "gen_length": 4, "block_length": 2, "steps": 4, "guide_steps": 4},  # two in a block at most
]


def fast(setting: dict[str, Any], shape: dict[str, Any]) -> TabularMaskedDiffusion:
    return TabularMaskedDiffusion(seed=1, concentration=1.5, **(shape | setting))


@pytest.mark.parametrize("setting", FAST, ids=str)
@pytest.mark.parametrize("shape", CANVASES, ids=str)
def test_laws_1_2_and_4_of_fast_samplers(setting: dict[str, Any], shape: dict[str, Any]) -> None:
    """Level 0: parallel decoding and a cache's stand-in are laws of their own, whatever the guide steps."""
    policy = fast(setting, shape)
    check_policy(policy, enumerated(policy), [PROBLEM, Problem("q", (0, 1))], draws=20_000)


@pytest.mark.parametrize("setting", FAST, ids=str)
def test_fast_samplers_have_other_laws_than_the_exact_one(setting: dict[str, Any]) -> None:
    """Otherwise the test above would say nothing; the law sums to one."""
    policy = fast(setting, CANVASES[0])
    law, exact = Counter[Any](), Counter[Any]()
    for sums, of in ((law, policy), (exact, fast({k: v for k, v in setting.items() if k in RULE}, CANVASES[0]))):
        paths = of.oracle.by_path
        for (canvas, _), p in paths.finish_law(PROBLEM, paths.root).items():
            sums[canvas] += p
    assert sum(law.values()) == pytest.approx(1, abs=1e-12)
    assert total_variation(law, exact) > 0.01


RULE = ("remasking", "temperature")


@pytest.mark.parametrize("setting", [{"refresh": 4, "threshold": 0.6}, {"factor": 1.4}], ids=str)
def test_the_kernel_follows_its_exact_law_with_a_fast_sampler_as_its_reference(setting: dict[str, Any]) -> None:
    """Level 0: the weight of a rollout is exactly 1."""
    policy = fast(setting, CANVASES[1])
    paths = policy.oracle.by_path
    reward = energy_guided(per_text(lambda _, text: float(text.count("a"))), candidates=2, rollouts=2, lam=0.7)
    law = Counter[Any]()
    counted = kernel_law(paths, PROBLEM, lambda node: float(node[0].count(0)), lam=0.7, candidates=2, rollouts=2)
    for (canvas, _), p in counted.items():
        law[canvas] += p
    chains = run(policy, reward, [PROBLEM], width=10_000, seed=0, samples=10_000)
    check_law((chain.state.tokens for chain in chains), law, level=1e-4)


def test_a_cache_refreshed_at_every_step_is_the_exact_model() -> None:
    always, exact = (fast({"refresh": refresh}, CANVASES[0]).oracle.by_path for refresh in (1, None))
    assert always.finish_law(PROBLEM, always.root) == exact.finish_law(PROBLEM, exact.root)


def test_guide_steps_end_at_once_where_a_step_reveals_more() -> None:
    """M candidates have as many positions revealed, or more by what one step reveals; at blocks' ends just as many."""
    inside, blocks = (fast({"threshold": 0.6}, shape) for shape in CANVASES[:2])
    for policy, expected in ((inside, {2, 3}), (blocks, {2})):
        draws = policy.extend(policy.start([PROBLEM]) * 500, keys(500))
        assert {4 - draw.state.tokens.count(2) for draw in draws} == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
def test_the_closed_form_is_the_law_of_all_draws(rule: str, shape: dict[str, Any]) -> None:
    policy = TabularMaskedDiffusion(remasking=rule, **shape)
    for canvas in reachable(policy.oracle):
        law = policy.step_law(PROBLEM, canvas)
        brute = policy.step_law(PROBLEM, canvas, enumerated_step)
        assert set(law) == set(brute)
        assert not law or sum(law.values()) == pytest.approx(1, abs=1e-12)
        assert all(law[event] == pytest.approx(brute[event], abs=1e-12) for event in law)


def test_token_probabilities_alone_are_no_law() -> None:
    policy = TabularMaskedDiffusion(remasking="low_confidence")
    law = policy.step_law(PROBLEM, policy.oracle.root, _without_positions)
    assert abs(sum(law.values()) - 1) > 0.1


def _without_positions(p: Any, scores: Any, masked: Any, quota: int, bar: Any) -> Any:
    events = closed_form_step(p, scores, masked, quota, bar)
    return {(s, v): math.prod(p[i, token] for i, token in zip(s, v, strict=True)) for s, v in events}


def test_the_last_of_equal_scores_decides_which_draws_lose() -> None:
    """Positions 0 and 2 are revealed with equal scores: one at 1 must be lower, one at 3 may be as high."""
    p, scores = np.full((4, 2), 0.5), np.array([[1.0, 0.0]] * 4)
    assert position_term(p, scores, range(4), {0: 0, 2: 0}) == pytest.approx(math.log(0.5 * 1.0))
    assert position_term(p, scores, range(4), {0: 1, 2: 0}) == pytest.approx(math.log(0.25))  # as high as 0's
    assert position_term(p, scores, range(4), {2: 1, 3: 1}) == -math.inf  # 0 and 1 would have to be lower
    assert position_term(p, scores, range(4), dict.fromkeys(range(4), 0)) == 0.0  # nothing lost
    assert position_term(p, None, range(4), {0: 0, 2: 0}) == pytest.approx(-math.log(6))


@pytest.mark.parametrize("rule", ["low_confidence", "margin", "entropy"])
def test_ties_go_to_the_lower_position(rule: str) -> None:
    policy = TabularMaskedDiffusion(remasking=rule, levels=1)  # all logits are 0
    draws = policy.finish(policy.start([PROBLEM]) * 20, keys(20))
    assert {draw.state.path for draw in draws} == {(0, 1, 2)}


@pytest.mark.parametrize("rule", RULES)
def test_recorded_paths_to_a_canvas_sum_to_its_law(rule: str) -> None:
    """Law 2, on the policy's own numbers: 20,000 draws see every path."""
    policy = TabularMaskedDiffusion(remasking=rule, concentration=0.5, seed=2)
    paths = {
        draw.state.path + draw.state.tokens: draw
        for draw in policy.finish(policy.start([PROBLEM]) * 20_000, keys(20_000))
    }
    sums: Counter[Any] = Counter()
    for draw in paths.values():
        sums[draw.state.tokens] += math.exp(draw.logp)
    assert total_variation(sums, enumerated(policy).finish_law(PROBLEM, policy.oracle.root)) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_laws_over_paths_sum_to_laws_over_canvases(rule: str) -> None:
    policy = TabularMaskedDiffusion(vocabulary=2, gen_length=4, block_length=2, steps=4, guide_steps=2, remasking=rule)
    paths = policy.oracle.by_path
    sums: Counter[Any] = Counter()
    for (canvas, _), p in paths.finish_law(PROBLEM, paths.root).items():
        sums[canvas] += p
    law = enumerated(policy).finish_law(PROBLEM, policy.oracle.root)
    assert total_variation(sums, law) < 1e-12 and sum(law.values()) == pytest.approx(1, abs=1e-12)


def test_guide_steps_in_sequence_are_the_whole() -> None:
    policy = TabularMaskedDiffusion(vocabulary=2, gen_length=4, block_length=2, steps=4, guide_steps=4, levels=2)
    sums, oracle = Counter({policy.oracle.root: 1.0}), policy.oracle
    for _ in range(4):
        following: Counter[Any] = Counter()
        for canvas, p in sums.items():
            for end, q in oracle.extend_law(PROBLEM, canvas).items():
                following[end] += p * q
        sums = following
    assert total_variation(sums, oracle.finish_law(PROBLEM, oracle.root)) < 1e-12


def test_the_schedule_gives_even_shares_the_remainder_first() -> None:
    schedule = CanvasSchedule(gen_length=10, block_length=5, steps=6, guide_steps=2)
    assert schedule.quotas == [2, 2, 1, 2, 2, 1]
    assert [schedule.step(revealed) for revealed in (0, 2, 4, 5, 7, 9, 10)] == list(range(7))
    assert [schedule.boundary(revealed) for revealed in (0, 2, 4, 5, 7, 9)] == [5] * 3 + [10] * 3
    assert schedule.block(4) == range(5) and schedule.block(5) == range(5, 10)


@pytest.mark.parametrize(
    "wrong", [{"block_length": 3}, {"steps": 3}, {"steps": 8}, {"guide_steps": 3}, {"steps": 0}, {"gen_length": 5}]
)
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError):
        CanvasSchedule(**({"gen_length": 4, "block_length": 2, "steps": 4, "guide_steps": 2} | wrong))


@pytest.mark.parametrize("wrong", [{"remasking": "best"}, {"vocabulary": 5}, {"temperature": 0.0}])
def test_policies_that_cannot_be_enumerated_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        TabularMaskedDiffusion(**wrong)


def test_a_state_tells_its_canvas_its_path_and_its_text() -> None:
    policy = TabularMaskedDiffusion(vocabulary=3, gen_length=4, block_length=2, steps=4, guide_steps=4)
    (state,) = policy.start([PROBLEM])
    assert (state.tokens, state.path, state.text, state.done) == ((3, 3, 3, 3), (-1, -1, -1, -1), "", False)
    logp = 0.0
    for step in range(4):
        (draw,) = policy.extend([state], keys(1))
        new = [i for i in range(4) if draw.state.tokens[i] != state.tokens[i]]
        assert [draw.state.path[i] for i in new] == [step] and new[0] // 2 == step // 2
        logp += draw.logp
        assert draw.text.logp == draw.state.logp == pytest.approx(logp)
        assert draw.cost == Cost(candidate=4, generated=1, row_forwards=1)
        state = draw.state
    assert state.done and 3 not in state.tokens
    assert policy.ledger == Cost(candidate=16, generated=4, row_forwards=4)
    with pytest.raises(InputError, match="ended"):
        policy.extend([state], keys(1))


def test_a_text_shows_masks_only_between_letters() -> None:
    policy = TabularMaskedDiffusion(vocabulary=2, gen_length=4, block_length=4, steps=4, guide_steps=4)
    assert [policy.spelled(canvas) for canvas in ((2, 2, 2, 2), (2, 1, 2, 2), (0, 2, 2, 1))] == ["", "·b", "a··b"]
