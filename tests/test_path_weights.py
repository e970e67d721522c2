"""Weights between two masked-diffusion samplers, on tables: the levels' targets by enumeration, and the kernel's law.

Each law test has level 1e-4 and a fixed seed.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ets.diagnostics import ratio_summary
from ets.kernel import energy_guided
from ets.path_weights import PathWeights
from ets.randomness import derive
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_law, total_variation
from ets.types import Chain, Cost, InputError, Step, Text
from ets.weights import log_run_weight
from tests.enumerable import PROBLEM, largest_error, lifted, liking
from tests.laws.fast import TabularFastDiffusion, TabularWeigher
from tests.laws.kernel import kernel_law
from tests.laws.masked_tabular import TabularMaskedDiffusion

LAM, LEVEL, DRAWS = 0.5, 1e-4, 16_000


SHAPE = {"gen_length": 3, "block_length": 3, "steps": 3, "guide_steps": 3}


def sampler(**changed: Any) -> TabularFastDiffusion:
    return TabularFastDiffusion(**SHAPE | changed)


CASES = {
    "1: a cache, largest first": ("1", {"remasking": "largest"}, {"remasking": "largest", "refresh": 3}),
    "1: a cache and a threshold": ("1", {"remasking": "largest"},
                                   {"remasking": "largest", "threshold": 0.9, "refresh": 3}),
    "1: a cache, random order": ("1", {"remasking": "random"}, {"remasking": "random", "refresh": 3}),
    "1: another temperature": ("1", {"remasking": "margin"}, {"remasking": "margin", "temperature": 1.5}),
    "1F: a cache": ("1F", {}, {"refresh": 3}),
    "1F: another temperature": ("1F", {}, {"temperature": 1.5}),
    "1: two a step": ("1", {"remasking": "entropy", "steps": 1, "guide_steps": 1},
                      {"remasking": "entropy", "steps": 1, "guide_steps": 1, "temperature": 1.5}),
}  # fmt: skip


def weigher(name: str) -> TabularWeigher:
    level, exact, fast = CASES[name]
    return TabularWeigher(TabularMaskedDiffusion(**SHAPE | exact), sampler(**fast), level)


def by_canvas(law: Any) -> dict[Any, float]:
    found: dict[Any, float] = {}
    for (canvas, _), p in law.items():
        found[canvas] = found.get(canvas, 0.0) + p
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_weights_average_to_the_target_at_every_outcome(name: str) -> None:
    """E_q[w · 1{path}] = target(path), and so for every text, by enumeration; from the start and on the way."""
    pair = weigher(name)
    fast = pair.fast.oracle.by_path
    laws = [by_canvas(oracle.finish_law(PROBLEM, fast.root)) for oracle in (fast, pair.oracle)]
    assert total_variation(*laws) > 1e-3
    for node in (fast.root, *list(fast.extend_law(PROBLEM, fast.root))[:2]):
        drawn, wanted = fast.finish_law(PROBLEM, node), pair.oracle.finish_law(PROBLEM, node)
        assert sum(wanted.values()) == pytest.approx(1, abs=1e-12)
        weighed = {end: q * math.exp(pair.log_ratio(PROBLEM, node, end)) for end, q in drawn.items()}
        for end, p in wanted.items():
            assert weighed.get(end, 0.0) == pytest.approx(p, abs=1e-12)


def test_at_level_1f_the_target_is_the_exact_sampler() -> None:
    pair = weigher("1F: a cache")
    exact = pair.exact.oracle
    law = by_canvas(pair.oracle.finish_law(PROBLEM, pair.oracle.root))
    assert total_variation(law, exact.finish_law(PROBLEM, exact.root)) < 1e-12


def test_at_level_1f_a_cache_may_lose_support_which_the_mean_ratio_tells() -> None:
    """Where no draw can lose at a position, the fast sampler never passes it by: such exact paths are missing."""
    pair = TabularWeigher(TabularMaskedDiffusion(**SHAPE, seed=5), sampler(seed=5, refresh=3), "1F")
    root, fast = pair.oracle.root, pair.fast.oracle.by_path
    drawn, wanted = fast.finish_law(PROBLEM, root), pair.oracle.finish_law(PROBLEM, root)
    weights = {end: q * math.exp(pair.log_ratio(PROBLEM, root, end)) for end, q in drawn.items()}
    missing = sum(p for end, p in wanted.items() if end not in drawn)
    assert sum(weights.values()) == pytest.approx(1 - missing) and missing == pytest.approx(0.172, abs=0.001)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = PathWeights(pair.fast, pair)
        ends = policy.finish(policy.start([PROBLEM]) * DRAWS, derive(np.arange(DRAWS, dtype=np.uint64), 1))
    start = Text((), "", 0.0, False)
    step = Step((start,), (tuple(end.text for end in ends),), np.zeros((1, DRAWS)), np.zeros(1), 0, Cost())
    assert ratio_summary([step]).mean == pytest.approx(1 - missing, abs=0.05)  # 4 standard errors


def test_an_impossible_candidate_keeps_the_warning_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = TabularWeigher(TabularMaskedDiffusion(**SHAPE, seed=5), sampler(seed=5, refresh=3), "1F")
    policy, seen = PathWeights(pair.fast, pair), []
    monkeypatch.setattr(policy, "_warn_of_noise", seen.extend)
    start = policy.start([PROBLEM])[0]
    going = [d.state for d in policy.extend([start] * 64, derive(np.arange(64, dtype=np.uint64), 2))]
    policy.finish([replace(state, log_ratio=-math.inf) for state in going], derive(np.arange(64, dtype=np.uint64), 3))  # type: ignore[type-var]
    assert seen == [-math.inf] * 64


def test_a_clip_bounds_each_ratio_by_itself_and_leaves_log_probabilities_as_they_are() -> None:
    """The ratio of a rollout is that of its candidate and that of the rest, each within the bounds."""
    pair, clip, low, high = weigher("1F: another temperature"), (0.9, 1.1), math.log(0.9), math.log(1.1)
    drawn = []
    for policy in (PathWeights(pair.fast, pair), PathWeights(pair.fast, pair, clip)):
        rows = derive(np.arange(64, dtype=np.uint64), 2)
        middle = policy.extend(policy.start([PROBLEM]) * 64, rows)
        drawn.append((middle, policy.finish([draw.state for draw in middle], rows)))
    clipped = 0
    for candidate, end, candidate_within, within in zip(*drawn[0], *drawn[1], strict=True):
        first, rest = candidate.text.log_ratio, end.text.log_ratio - candidate.text.log_ratio
        bounded = [min(max(part, low), high) for part in (first, rest)]
        assert candidate_within.text.log_ratio == pytest.approx(bounded[0])
        assert within.text.log_ratio == pytest.approx(sum(bounded))
        assert (candidate_within.text.logp, within.text.logp) == (candidate.text.logp, end.text.logp)
        clipped += bounded != [first, rest] and not low <= sum(bounded) <= high
    assert clipped > 5


def test_a_hard_threshold_on_drawn_tokens_loses_support() -> None:
    """The trap: at the full ratio, exact paths that the fast sampler can never take are missing from the average."""
    exact, fast = sampler(threshold=0.85), sampler(threshold=0.85, refresh=3)
    pair = TabularWeigher(exact, fast, "1F")
    node = fast.oracle.by_path.root
    drawn = fast.oracle.by_path.finish_law(PROBLEM, node)
    total = sum(q * math.exp(pair.log_ratio(PROBLEM, node, end)) for end, q in drawn.items())
    assert total == pytest.approx(0.26, abs=0.01)


def chains(pair: TabularWeigher, candidates: int, rollouts: int, draws: int) -> list[Chain]:
    step = energy_guided(lifted(liking), candidates=candidates, rollouts=rollouts, lam=LAM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = PathWeights(pair.fast, pair)
        return list(run(policy, step, [PROBLEM], width=5_000, seed=0, samples=draws))


def kernel_target(pair: TabularWeigher, candidates: int, rollouts: int) -> Any:
    return kernel_law(
        pair.oracle,
        PROBLEM,
        lambda outcome: liking(pair.fast.spelled(outcome[0])),
        lam=LAM,
        candidates=candidates,
        rollouts=rollouts,
        proposal=pair.fast.oracle.by_path,
        proposed_candidates=True,
    )


def outcomes(found: list[Chain]) -> list[Any]:
    return [(chain.state.tokens, chain.state.drawn.path) for chain in found]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in CASES if "two a step" not in name])
def test_the_kernel_follows_its_exact_law_at_finite_m_and_k_with_that_target(name: str) -> None:
    pair = weigher(name)
    law = kernel_target(pair, 3, 2)
    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    check_law(outcomes(chains(pair, 3, 2, 4_000)), law, level=LEVEL)


def test_candidates_without_their_own_ratio_turn_the_law_red(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = weigher("1F: another temperature")
    law = kernel_target(pair, 4, 2)
    true = PathWeights.extend

    def without(self: PathWeights, states: Any, keys: Any) -> Any:
        return [
            replace(d, text=replace(d.text, log_ratio=0.0), state=replace(d.state, log_ratio=0.0))  # type: ignore[type-var]
            for d in true(self, states, keys)
        ]

    monkeypatch.setattr(PathWeights, "extend", without)
    with pytest.raises(AssertionError, match="exact law"):
        check_law(outcomes(chains(pair, 4, 2, 1_250)), law, level=LEVEL)


def test_a_dropped_position_term_turns_the_law_red(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = weigher("1F: another temperature")
    law = kernel_target(pair, 4, 2)
    tokens_only = TabularWeigher(pair.exact, pair.fast, "1")
    found = chains(tokens_only, 4, 2, 1_250)
    with pytest.raises(AssertionError, match="exact law"):
        check_law(outcomes(found), law, level=LEVEL)


def test_run_weights_are_proper_towards_the_target() -> None:
    """Law 5, with the candidates' own ratios: |z| below 5.5, at level 1e-4 in all."""
    pair = weigher("1F: another temperature")
    found = chains(pair, 3, 2, 6_000)
    weights = np.array([math.exp(log_run_weight(chain.trace)) for chain in found])
    law = by_canvas(pair.oracle.finish_law(PROBLEM, pair.oracle.root))
    targets = {x: p * math.exp(liking(pair.fast.spelled(x)) / LAM) for x, p in law.items()}
    assert largest_error([chain.state.tokens for chain in found], weights, targets) < 5.5


def test_the_costs_are_the_samplers_and_a_foreign_state_is_refused() -> None:
    pair = weigher("1: a cache, largest first")
    policy = PathWeights(pair.fast, pair)
    found = list(run(policy, energy_guided(per_text(lambda _, t: 0.0), candidates=2, rollouts=2, lam=1.0),
                     [PROBLEM], width=2, seed=0, samples=3))  # fmt: skip
    assert Cost.total(chain.cost for chain in found).generated == policy.ledger.generated > 0
    with pytest.raises(InputError, match="belongs to another policy"):
        policy.extend(pair.fast.start([PROBLEM]), np.zeros(1, np.uint64))
