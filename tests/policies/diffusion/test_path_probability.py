"""Log-probabilities of recorded paths: of a policy's own, and under the exact model of a faster sampler's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.canvas import CanvasState
from ets.policies.diffusion.path_probability import PathProbability, PathStep, path_probabilities, path_steps
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching
from ets.types import Cost, InputError
from tests.conftest import canvas_oracle
from tests.policies.diffusion.test_policy import MASK, PROBLEMS, keys, make, watching

RULES: list[dict[str, Any]] = [
    {},
    {"remasking": "random", "temperature": 0.7},
    {"remasking": "entropy", "cfg": 1.5},
    {"threshold": 0.3},
    {"remasking": "largest", "factor": 2.0},
]


def drawn(policy: MaskedDiffusionPolicy, copies: int = 6, guide_steps: int = 0) -> list[tuple[Any, Any]]:
    """Paths of all problems: what they start from, after so many guide steps, and their ends."""
    states: list[Any] = [state for state in policy.start(PROBLEMS) for _ in range(copies)]
    for step in range(guide_steps):
        states = [draw.state for draw in policy.extend(states, keys(len(states), 1000 * step))]
    return list(zip(states, [d.state for d in policy.finish(states, keys(len(states), 77))], strict=True))


def scored(
    policy: MaskedDiffusionPolicy, pairs: list[tuple[CanvasState, CanvasState]], **options: Any
) -> list[PathProbability]:
    return path_probabilities(policy, [path_steps(*pair, policy.mask_id) for pair in pairs], **options)


@pytest.mark.parametrize("guide_steps", [0, 1])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_policys_own_paths_have_the_log_probabilities_that_it_recorded(
    tiny_llada: Checkpoint, rule: dict[str, Any], guide_steps: int
) -> None:
    policy = make(tiny_llada, 6, 4, 3, 4, **rule)  # quotas 2 and 1
    pairs = drawn(policy, guide_steps=guide_steps)
    for (start, end), found in zip(pairs, scored(policy, pairs), strict=True):
        made = sorted({step for step in end.path if step >= start.step})
        assert np.column_stack([found.tokens, found.positions]) == pytest.approx(end.step_logps[made], abs=1e-9)
        assert found.tokens.sum() + found.positions.sum() == pytest.approx(end.logp - start.logp, abs=1e-9)


@pytest.mark.parametrize("rule", [{}, {"remasking": "margin"}, {"remasking": "random"}], ids=str)
@pytest.mark.parametrize("caching", [Caching("dual"), Caching("prefix", refresh=2)], ids=str)
def test_a_fast_samplers_paths_have_the_exact_models_log_probabilities(
    tiny_llada: Checkpoint, caching: Caching, rule: dict[str, Any]
) -> None:
    """By the exact law of each step; -inf where its rule never reveals those positions. Fresh steps are exact."""
    fast, exact = make(tiny_llada, 4, 4, 4, 2, caching=caching, **rule), make(tiny_llada, 4, 4, 4, 2, **rule)
    oracle = canvas_oracle(tiny_llada, exact.schedule, exact.unmasking)
    pairs, stale = drawn(fast), 0
    for (start, end), found in zip(pairs, scored(exact, pairs), strict=True):
        for n, step in enumerate(path_steps(start, end, MASK)):
            law = oracle.step_law(start.problem, step.canvas)
            with np.errstate(divide="ignore"):
                expected = np.log(law.get((step.positions, step.tokens), 0.0))
            assert found.tokens[n] + found.positions[n] == pytest.approx(expected, abs=1e-6)
            recorded = end.step_logps[step.step]
            if fast.last_refresh(step.step) == step.step:
                assert (found.tokens[n], found.positions[n]) == pytest.approx(recorded, abs=1e-9)
            else:
                stale += abs(found.tokens[n] - recorded[0]) > 1e-3
    assert stale > 20


@pytest.mark.parametrize("positions", [True, False])
def test_each_different_canvas_is_read_once_and_charged_as_scored(tiny_llada: Checkpoint, positions: bool) -> None:
    fast, exact = make(tiny_llada, 6, 6, 3, 3, caching=Caching()), make(tiny_llada, 6, 6, 3, 3, memory_gib=1e-4)
    pairs = drawn(fast, copies=40)
    steps = [step for pair in pairs for step in path_steps(*pair, MASK)]
    with watching(tiny_llada) as seen:
        found = scored(exact, pairs, positions=positions)
    canvases = {(step.prompt, step.canvas) for step in steps}
    assert sum(seen.rows) == len(canvases) < len(steps)
    assert exact.ledger == Cost(forwards=len(seen.rows)) + Cost.total(path.cost for path in found)
    assert (exact.ledger.scored, exact.ledger.vocabulary) == (seen.positions, seen.vocabulary)
    assert exact.ledger.candidate == exact.ledger.rollout == exact.ledger.generated == 0
    at = {(step.prompt, step.canvas, place) for step in steps for place in step.positions}
    assert seen.vocabulary == len(at) if not positions else seen.vocabulary > len(at)
    assert all((path.positions == 0).all() for path in found) == (not positions)


def test_what_was_read_of_a_canvas_is_let_go_when_it_is_scored(
    tiny_llada: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, exact = make(tiny_llada, 6, 6, 3, 3), make(tiny_llada, 6, 6, 3, 3, memory_gib=1e-4)
    canvases, held, read = list[Any](), list[int](), exact.reader.read

    def reading(chunk: Any) -> None:
        read(chunk)
        canvases.extend(chunk)
        held.append(sum(canvas.memory.hidden is not None for canvas in canvases) - len(chunk))

    monkeypatch.setattr(exact.reader, "read", reading)
    scored(exact, drawn(fast, copies=20))
    assert len(held) > 1 and not any(held)
    assert all(canvas.memory.hidden is None for canvas in canvases)


def test_both_ways_of_reading_give_the_same_token_probabilities(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, 6, 4, 3, 2)
    pairs = drawn(policy)
    for one, other in zip(scored(policy, pairs), scored(policy, pairs, positions=False), strict=True):
        assert one.tokens == pytest.approx(other.tokens, abs=1e-9)


def test_no_paths_and_empty_ones_cost_nothing(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada)
    assert path_probabilities(policy, []) == []
    (found,) = path_probabilities(policy, [[]])
    assert (found.tokens.tolist(), found.positions.tolist(), found.cost) == ([], [], Cost())


def test_what_has_no_ratio_or_no_path_is_refused(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, 4, 4, 2, 4)
    (start, end), (_, other), *_ = drawn(policy, copies=1)
    with pytest.raises(InputError, match="at temperature 0 a path has"):
        path_probabilities(make(tiny_llada, temperature=0), [])
    for pair in ((start, other), (end, start)):
        with pytest.raises(InputError, match="no path leads from canvas"):
            path_steps(*pair, MASK)
    outside = PathStep(start.prompt, (MASK,) * 4, 0, (3,), (1,))
    with pytest.raises(InputError, match=r"revealed positions \[3\], of which not all are masked in the active block"):
        path_probabilities(policy, [[outside]])
