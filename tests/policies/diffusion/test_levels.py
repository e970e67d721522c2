"""Levels of weights between two samplers over a tiny network: ratios, their targets, and pairs that are refused.

Each law test has a fixed seed; its level is stated there.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest

from ets.kernel import energy_guided
from ets.path_weights import PathWeights
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.levels import LEVELS, weighed_sampler
from ets.policies.diffusion.path_probability import PathStep, path_steps
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_law, total_variation
from ets.testing.masked_laws import MaskedPathOracle
from ets.types import Cost, InputError
from tests.conftest import canvas_oracle, random_llada, whole_logits
from tests.laws.kernel import kernel_law
from tests.policies.diffusion.test_policy import MASK, PROBLEMS, keys, make, watching

SIZES = {"gen_length": 4, "steps": 4, "block_length": 4, "guide_steps": 2}
SHAPE = tuple(SIZES.values())
LARGEST = {"remasking": "largest"}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "1, a cache": ("1", LARGEST, LARGEST | {"caching": Caching("dual")}),
    "1, a cache and a threshold": ("1", LARGEST, LARGEST | {"caching": Caching("prefix"), "threshold": 0.3}),
    "1, another temperature": ("1", {"remasking": "random"}, {"remasking": "random", "temperature": 1.5}),
    "1F, a cache": ("1F", {}, {"caching": Caching("dual")}),
    "1F, another temperature": ("1F", {}, {"temperature": 2.0}),
    "1, a threshold and another temperature": ("1", LARGEST, LARGEST | {"threshold": 0.3, "temperature": 2.0}),
}


def samplers(checkpoint: Checkpoint, name: str, **both: Any) -> tuple[MaskedDiffusionPolicy, MaskedDiffusionPolicy]:
    _, exact, fast = CASES[name]
    return make(checkpoint, *SHAPE, **exact | both), make(checkpoint, *SHAPE, **fast | both)


def weighed(checkpoint: Checkpoint, name: str, **options: Any) -> PathWeights:
    policy = weighed_sampler(*samplers(checkpoint, name), CASES[name][0], **options)
    assert isinstance(policy, PathWeights)
    return policy


@cache
def exact_logps(policy: MaskedDiffusionPolicy, prompt: tuple[int, ...], canvas: tuple[int, ...]) -> Any:
    """log p_i(v | x) `[L, V]` by the whole model."""
    logits = whole_logits(policy.checkpoint.model, prompt, canvas) / policy.unmasking.temperature
    logits[:, MASK] = -np.inf
    return logits.log_softmax(-1)


def exact_tokens(policy: MaskedDiffusionPolicy, prompt: Any, canvas: Any, positions: Any, tokens: Any) -> float:
    """log Π p_i(v_i | x), canvas by canvas."""
    return float(exact_logps(policy, tuple(prompt), tuple(canvas))[list(positions), list(tokens)].sum())


def wanted(level: str, exact: MaskedDiffusionPolicy, problem: Any, step: Any) -> float:
    """The target's part of a step's ratio, from its definition."""
    if level == "1F":
        oracle = canvas_oracle(exact.checkpoint, exact.schedule, exact.unmasking)
        with np.errstate(divide="ignore"):  # the exact rule may never reveal what the fast one did
            return float(np.log(oracle.step_law(problem, step.canvas).get((step.positions, step.tokens), 0.0)))
    return exact_tokens(exact, step.prompt, step.canvas, step.positions, step.tokens)


@pytest.mark.parametrize("name", CASES)
def test_ratios_are_of_what_each_step_did_and_candidates_carry_their_own(tiny_llada: Checkpoint, name: str) -> None:
    level, policy = CASES[name][0], weighed(tiny_llada, name)
    exact: Any = policy.weigher.exact  # type: ignore[attr-defined]
    starts = [state for state in policy.start(PROBLEMS) for _ in range(3)]
    middle = policy.extend(starts, keys(len(starts)))
    ends = policy.finish([draw.state for draw in middle], keys(len(middle), 5))
    spread = []
    for start, candidate, end in zip(starts, middle, ends, strict=True):
        for before, after in ((start, candidate), (start, end)):
            origin, arrived = before.drawn, after.state.drawn  # type: ignore[attr-defined]
            steps = path_steps(origin, arrived, MASK)
            part = slice(0, 2 if level == "1F" else 1)
            drawn = sum(arrived.step_logps[step.step, part].sum() for step in steps)
            expected = sum(wanted(level, exact, origin.problem, step) for step in steps) - drawn
            assert after.text.log_ratio == pytest.approx(expected, abs=1e-6)
            spread.append(expected)
        assert end.text.logp == pytest.approx(end.state.drawn.logp + end.text.log_ratio, abs=1e-6)  # type: ignore[attr-defined]
    assert np.std([ratio for ratio in spread if np.isfinite(ratio)]) > 1e-3


def target_law(name: str, policy: PathWeights) -> dict[Any, float]:
    """Of (canvas, path): at level 1F the exact sampler's; at 1 the fast one's positions with exact tokens."""
    level, exact, fast = CASES[name][0], policy.weigher.exact, policy.sampler  # type: ignore[attr-defined]
    if level == "1F":
        law = canvas_oracle(exact.checkpoint, exact.schedule, exact.unmasking).by_path
        return dict(law.finish_law(PROBLEMS[0], law.root))
    drawn_by = canvas_oracle(fast.checkpoint, fast.schedule, fast.unmasking, fast.caching).by_path  # type: ignore[attr-defined]
    prompt = exact.start(PROBLEMS[:1])[0].prompt

    def step_law(problem: Any, canvas: Any, path: Any) -> Any:
        shares: dict[Any, float] = {}
        for (positions, _), p in drawn_by.step_law(problem, canvas, path).items():
            shares[positions] = shares.get(positions, 0.0) + p
        steps = [
            PathStep(prompt, canvas, 0, positions, tokens)
            for positions in shares
            for tokens in product(range(MASK), repeat=len(positions))
        ]
        return {
            (s.positions, s.tokens): shares[s.positions] * math.exp(wanted(level, exact, problem, s)) for s in steps
        }

    law = MaskedPathOracle(step_law, drawn_by.schedule, MASK)
    return dict(law.finish_law(PROBLEMS[0], law.root))


@pytest.mark.parametrize("name", CASES)
def test_weights_are_proper_towards_the_target(tiny_llada: Checkpoint, name: str) -> None:
    """E_q[w · 1{x}] = target(x) for every path: each w is exactly target / q, and the paths follow q at level 1e-4.

    (Every outcome, and the total, by enumeration: tests/test_path_weights.py.)
    """
    policy = weighed(tiny_llada, name)
    rollouts = policy.finish(policy.start(PROBLEMS[:1]) * 4_000, keys(4_000))
    ends = [(draw.state.tokens, draw.state.drawn.path) for draw in rollouts]  # type: ignore[attr-defined]
    fast = policy.sampler
    drawn_by = canvas_oracle(fast.checkpoint, fast.schedule, fast.unmasking, fast.caching).by_path  # type: ignore[attr-defined]
    q, target = drawn_by.finish_law(PROBLEMS[0], drawn_by.root), target_law(name, policy)
    assert sum(target.values()) == pytest.approx(1, abs=1e-9)
    check_law(ends, q, level=1e-4)
    weights = np.exp([draw.text.log_ratio for draw in rollouts])
    np.testing.assert_allclose(weights, [target.get(end, 0.0) / q[end] for end in ends], rtol=1e-9)
    assert total_variation(target, q) > 0.1  # so that w = 1 would be far off


def test_the_kernel_follows_its_exact_law_on_a_tiny_network(tiny_llada: Checkpoint) -> None:
    """Level 1F with a cache, at finite M and K, over paths; level 1e-4."""
    policy = weighed(tiny_llada, "1F, a cache")
    exact, fast = policy.weigher.exact, policy.sampler  # type: ignore[attr-defined]
    target = canvas_oracle(tiny_llada, exact.schedule, exact.unmasking).by_path
    drawn_by = canvas_oracle(tiny_llada, fast.schedule, fast.unmasking, fast.caching)  # type: ignore[attr-defined]

    def liking(tokens: Any) -> float:
        shown = list(tokens[: tokens.index(0)] if 0 in tokens else tokens)
        return 0.4 * shown.count(1) - 0.3 * shown.count(2)

    numbers: dict[str, Any] = {"lam": 0.5, "candidates": 3, "rollouts": 2}
    law = kernel_law(target, PROBLEMS[0], lambda node: liking(node[0]), **numbers, proposal=drawn_by,
                     proposed_candidates=True)  # fmt: skip
    letters = {letter: n for n, letter in enumerate("<ab")}
    reward = per_text(lambda _, text: liking([letters[c] for c in text]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chains = list(run(policy, energy_guided(reward, **numbers), PROBLEMS[:1], width=500, seed=0, samples=2_000))
    ends = [(chain.state.tokens, chain.state.drawn.path) for chain in chains]  # type: ignore[attr-defined]
    assert any(0 in tokens[:-1] for tokens, _ in ends)  # texts are cut there, and the reward is of texts
    check_law(ends, law, level=1e-4)


def test_steps_on_a_fresh_cache_add_nothing_and_are_not_read(tiny_llada: Checkpoint) -> None:
    exact, fast = (make(tiny_llada, *SHAPE, **LARGEST | o) for o in ({}, {"caching": Caching("dual", refresh=1)}))
    policy = weighed_sampler(exact, fast, "1")
    drawn = policy.finish(policy.start(PROBLEMS), keys(len(PROBLEMS)))
    assert exact.ledger == Cost() and all(draw.text.log_ratio == 0 for draw in drawn)


@pytest.mark.parametrize("differing", ["guidance", "checkpoint"])
def test_steps_of_another_guidance_or_checkpoint_have_a_ratio_without_a_cache_too(
    tiny_llada: Checkpoint, differing: str
) -> None:
    """`LevelWeigher` skips the steps on which both samplers have one law."""
    other = Checkpoint.loaded(random_llada(4, end=0, seed=48), tiny_llada.tokenizer)
    fast = make(tiny_llada, *SHAPE, **LARGEST)
    exact = make(tiny_llada, *SHAPE, **LARGEST, cfg=1.0) if differing == "guidance" else make(other, *SHAPE, **LARGEST)
    policy = weighed_sampler(exact, fast, "1")
    drawn = policy.finish(policy.start(PROBLEMS), keys(len(PROBLEMS)))
    assert exact.ledger.scored > 0 and all(abs(draw.text.log_ratio) > 1e-3 for draw in drawn)
    if differing == "checkpoint":
        start, (end, *_) = fast.start(PROBLEMS[:1])[0], drawn
        steps = path_steps(start, end.state.drawn, MASK)  # type: ignore[arg-type, attr-defined]
        expected = sum(wanted("1", exact, PROBLEMS[0], s) - wanted("1", fast, PROBLEMS[0], s) for s in steps)
        assert end.text.log_ratio == pytest.approx(expected, abs=1e-6)


def test_the_exact_forwards_are_batched_and_charged(tiny_llada: Checkpoint) -> None:
    policy = weighed(tiny_llada, "1, a cache")
    starts = policy.start(PROBLEMS[:1]) * 30
    drawn = policy.finish(starts, keys(30))
    exact: Any = policy.weigher.exact  # type: ignore[attr-defined]
    with watching(tiny_llada) as seen:
        policy.weigher.ratios([s.drawn for s in starts], [d.state.drawn for d in drawn])  # type: ignore[attr-defined]
    assert len(seen.rows) == 1 < sum(seen.rows)
    assert exact.ledger.scored == 2 * seen.positions
    assert Cost.total(draw.cost for draw in drawn).scored == seen.positions


def test_level_0_is_the_fast_sampler_itself(tiny_llada: Checkpoint) -> None:
    exact, fast = samplers(tiny_llada, "1F, a cache")
    assert weighed_sampler(exact, fast, "0") is fast
    assert "the order and groups that the fast model chose" in LEVELS["1"]


@pytest.mark.parametrize(
    ("level", "exact", "fast", "message"),
    [
        ("3", {}, {}, "unknown level '3'"),
        ("1", {"temperature": 0.0}, {}, "at temperature 0 a path has probability 0 or 1"),
        ("1", {}, {"temperature": 0.0}, "at temperature 0 a path has probability 0 or 1"),
        ("1", {}, {}, "chooses them by the drawn tokens; choose largest"),
        ("1", {}, {"threshold": 0.9}, "chooses them by the drawn tokens; choose largest"),
        ("1F", {"threshold": 0.9}, {"threshold": 0.9}, "support is lost and the weights do not average to 1"),
        ("1F", {}, {"threshold": 0.9}, "support is lost"),
        ("1F", {}, {"remasking": "random"}, "needs one rule on both sides"),
        ("1F", LARGEST, LARGEST, "where they differ no support is left"),
        ("1F", {"caching": Caching("dual")}, {}, "has a cache itself"),
        ("1F", {}, {"steps": 2}, "needs one schedule on both sides, not 4 and 2 steps"),
    ],
)
def test_pairs_without_a_ratio_are_refused_with_the_reason(
    tiny_llada: Checkpoint, level: str, exact: dict[str, Any], fast: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        weighed_sampler(make(tiny_llada, **SIZES | exact), make(tiny_llada, **SIZES | fast), level)


def test_another_canvas_is_refused(tiny_llada: Checkpoint) -> None:
    with pytest.raises(InputError, match="the canvas is 4 tokens in blocks of 4"):
        weighed_sampler(make(tiny_llada, *SHAPE), make(tiny_llada, 4, 4, 2, 2), "1F")


def test_level_1f_refuses_other_quotas_at_equally_many_steps(tiny_llada: Checkpoint) -> None:
    exact = make(tiny_llada, *SHAPE)
    fast = MaskedDiffusionPolicy(tiny_llada, exact.unmasking, replace(exact.schedule, quotas="time"))
    with pytest.raises(InputError, match="make quotas and eps equal"):
        weighed_sampler(exact, fast, "1F")
