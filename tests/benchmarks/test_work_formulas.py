"""The formulas of work against the ledgers of runs: equal for texts of full length, else never exceeded."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ets import demo
from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching, Horizon, Sampling, Unmasking
from ets.randomness import derive
from ets.rewards import per_text
from ets.runner import run
from ets.types import Chain, Policy, Problem, StepFn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
formulas = importlib.import_module("work_formulas")
sys.path.pop(0)
PROMPTS = ("Question: 1", "Question: 2 + 2 =", "Q: 17", "Question: how many?")
PROBLEMS = [Problem(str(number), prompt) for number, prompt in enumerate(PROMPTS)]
REWARD = per_text(lambda prompt, text: float(len(text) % 3))
SHAPES = [(3, 2, 4, 12), (2, 3, 5, 13), (4, 1, 6, 6), (1, 2, 1, 3), (2, 2, 20, 40)]


@cache
def checkpoint(model: Any) -> Checkpoint:
    return Checkpoint(demo.model_path(model))


def policy(block: int, longest: int, *, ends: bool, model: str = "small") -> TransformersPolicy:
    """At a temperature at which no two texts are equal."""
    end_ids = range(20) if ends else ()
    return TransformersPolicy(checkpoint(model), Sampling(8.0), Horizon(block, longest), end_ids=end_ids)


def pair(block: int, longest: int, *, ends: bool) -> ImportanceSampling:
    two = (policy(block, longest, ends=ends, model=model) for model in ("reference", "small"))
    return ImportanceSampling(*two)


def chains(policy: Policy, step: StepFn, width: int) -> list[Chain]:
    return list(run(policy, step, PROBLEMS, width=width, seed=3))


def guided(candidates: int, rollouts: int) -> StepFn:
    return energy_guided(REWARD, candidates=candidates, rollouts=rollouts, lam=0.5)


def prompts_of(policy: Any) -> dict[str, int]:
    policy = getattr(policy, "reference", policy)
    return {problem.id: len(policy.start([problem])[0].prompt) for problem in PROBLEMS}


def amounts(cost: Any) -> list[float]:
    return [cost.prompt, cost.candidate, cost.rollout, cost.scored, cost.generated, cost.row_forwards]


def compared(
    formula: Any, policy: Policy, found: Sequence[Chain], **shape: Any
) -> list[tuple[list[float], list[float]]]:
    """The amounts of every guide step, measured and by formula."""
    prompts, pairs = prompts_of(policy), []
    for chain in found:
        steps = formula.steps(prompts[chain.problem.id], **shape)
        pairs += [(amounts(step.cost), amounts(work)) for step, work in zip(chain.trace, steps, strict=False)]
    return pairs


@pytest.mark.parametrize("make", [policy, pair])
@pytest.mark.parametrize(("candidates", "rollouts", "block", "longest"), SHAPES)
def test_where_no_text_ends_the_formula_for_tokens_is_exact(
    make: Callable[..., Policy], candidates: int, rollouts: int, block: int, longest: int
) -> None:
    never = make(block, longest, ends=False)
    found = chains(never, guided(candidates, rollouts), width=3)
    assert {len(chain.trace) for chain in found} == {-(-longest // block)}
    formula = formulas.TokenWork(block, longest, proposed=make is pair)
    shape = {"candidates": candidates, "rollouts": rollouts, "lengths": [longest]}
    for measured, expected in compared(formula, never, found, **shape):
        assert measured == pytest.approx(expected)


@pytest.mark.parametrize("make", [policy, pair])
def test_where_texts_end_the_formula_for_tokens_is_never_exceeded(make: Callable[..., Policy]) -> None:
    ending = make(8, 40, ends=True)
    found = chains(ending, guided(3, 2), width=2)
    assert min(len(chain.trace) for chain in found) < 5
    formula = formulas.TokenWork(8, 40, proposed=make is pair)
    pairs = compared(formula, ending, found, candidates=3, rollouts=2, lengths=[40])
    assert all(t <= s for taken, said in pairs for t, s in zip(taken, said, strict=True))
    assert any(taken[-2] < said[-2] for taken, said in pairs)


def test_the_expected_work_is_the_mean_over_chains_that_are_not_steered() -> None:
    """At level 1e-4: the mean of 200 chains is within 3.9 standard errors of the formula, with 1000 lengths."""
    ending = policy(8, 40, ends=True)
    start = ending.start(PROBLEMS[:1])[0]
    keys = derive(np.array(7, np.uint64), np.arange(1000))
    lengths = [len(draw.text.tokens) for draw in ending.finish([start] * len(keys), keys)]
    said = sum(formulas.TokenWork(8, 40).steps(len(start.prompt), 2, 2, lengths), formulas.Work())
    found = list(run(ending, guided_nowhere(2, 2), PROBLEMS[:1], width=100, seed=1, samples=200))
    for name in ("generated", "candidate", "rollout"):
        taken = np.array([getattr(chain.cost, name) for chain in found], float)
        error = taken.std() * np.sqrt(1 / len(taken) + 1 / len(lengths))
        assert abs(taken.mean() - getattr(said, name)) < 3.9 * error
        assert 3.9 * error < 0.4 * getattr(said, name)


def guided_nowhere(candidates: int, rollouts: int) -> StepFn:
    return energy_guided(per_text(lambda prompt, text: 0.0), candidates=candidates, rollouts=rollouts, lam=1.0)


def canvases(**options: Any) -> MaskedDiffusionPolicy:
    rule = {name: options.pop(name) for name in ("cfg", "stop_at_end", "threshold") if name in options}
    schedule = options.pop("schedule", Schedule(16, 8, 8, 4))
    return MaskedDiffusionPolicy(checkpoint("diffusion"), Unmasking(8.0, "random", **rule), schedule, **options)


CANVASES = {
    "plain": {},
    "guided": {"cfg": 0.5},
    "dual cache": {"caching": Caching("dual")},
    "prefix cache, refreshed": {"caching": Caching("prefix", 3)},
    "one guide step": {"schedule": Schedule(16, 8, 8, 1)},
    "uneven quotas": {"schedule": Schedule(15, 6, 5, 3)},
}


@pytest.mark.parametrize("options", CANVASES.values(), ids=CANVASES)
@pytest.mark.parametrize(("candidates", "rollouts"), [(3, 2), (2, 1), (1, 3)])
def test_where_no_canvases_are_equal_the_formula_for_canvases_is_exact(
    options: dict[str, Any], candidates: int, rollouts: int
) -> None:
    drawn = canvases(**options)
    found = chains(drawn, guided(candidates, rollouts), width=1)
    assert {len(chain.trace) for chain in found} == {drawn.schedule.guide_steps}
    for measured, expected in compared(
        formulas.CanvasWork(drawn), drawn, found, candidates=candidates, rollouts=rollouts
    ):
        assert measured == expected
