"""The closed form of a denoising step against enumeration; fast samplers against their laws over paths."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ets.kernel import energy_guided
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_law, check_policy, total_variation
from ets.testing.masked_laws import MaskedPathOracle
from ets.types import Problem
from tests.enumerable import PROBLEM
from tests.laws.fast import TabularFastDiffusion
from tests.laws.kernel import kernel_law
from tests.laws.masked import closed_form_step, position_term
from tests.laws.masked_tabular import TabularMaskedDiffusion

RULES = ("low_confidence", "random", "margin", "entropy", "largest", "sequential")


SHAPES: list[dict[str, Any]] = [
    {"vocabulary": 3, "gen_length": 4, "block_length": 4, "steps": 3, "guide_steps": 3, "temperature": 0.7},
    {"vocabulary": 3, "gen_length": 4, "block_length": 4, "steps": 2, "guide_steps": 1, "levels": 2},
    {"vocabulary": 4, "gen_length": 4, "block_length": 2, "steps": 4, "guide_steps": 2, "levels": 3},
]


def reachable(oracle: Any) -> set[tuple[int, ...]]:
    """Every canvas that a guide boundary may show, from the empty one to the last."""
    canvases, fresh = set(), {oracle.root}
    while fresh:
        canvases |= fresh
        fresh = {following for canvas in fresh for following in oracle.extend_law(PROBLEM, canvas)} - canvases
    return canvases


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rule", RULES)
def test_the_closed_form_is_the_law_of_all_draws(rule: str, shape: dict[str, Any]) -> None:
    policy = TabularMaskedDiffusion(remasking=rule, **shape)
    for canvas in reachable(policy.oracle):
        brute = policy.step_law(PROBLEM, canvas)
        law = closed_form_step(*policy.step_arguments(PROBLEM.prompt, canvas)) if brute else {}
        assert set(law) == set(brute)
        assert not law or sum(law.values()) == pytest.approx(1, abs=1e-12)
        assert all(law[event] == pytest.approx(brute[event], abs=1e-12) for event in law)


def test_token_probabilities_alone_are_no_law() -> None:
    policy = TabularMaskedDiffusion(remasking="low_confidence")
    law = _without_positions(*policy.step_arguments(PROBLEM.prompt, policy.oracle.root))
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


def keys(count: int) -> Any:
    return np.arange(count, dtype=np.uint64)


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


def fast(setting: dict[str, Any], shape: dict[str, Any]) -> TabularFastDiffusion:
    return TabularFastDiffusion(seed=1, concentration=1.5, **(shape | setting))


def closed_form_oracle(policy: TabularFastDiffusion) -> MaskedPathOracle:
    def step_law(problem: Problem, canvas: Any, path: Any) -> Any:
        return closed_form_step(*policy.fast_arguments(problem.prompt, canvas, path)) if policy.mask in canvas else {}

    return MaskedPathOracle(step_law, policy.schedule, policy.mask)


@pytest.mark.parametrize("setting", FAST, ids=str)
@pytest.mark.parametrize("shape", CANVASES, ids=str)
def test_laws_1_2_and_4_of_fast_samplers(setting: dict[str, Any], shape: dict[str, Any]) -> None:
    """Level 0: parallel decoding and a cache's stand-in are laws of their own, whatever the guide steps."""
    policy = fast(setting, shape)
    check_policy(policy, closed_form_oracle(policy), [PROBLEM, Problem("q", (0, 1))], draws=20_000)


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
