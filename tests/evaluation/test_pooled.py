"""Methods that choose among samples that were drawn once are what they would be by themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from ets.evaluation.pooled import chosen, costs_by_size, mean_cost_curve, noted_texts, pool

from ets.baselines import best_of_n, majority, one_step
from ets.rewards import per_text
from ets.runner import run
from ets.testing import TabularPolicy
from ets.types import Policy, StepFn
from tests.evaluation.test_evaluate import Letters
from tests.laws.masked_tabular import TabularMaskedDiffusion

TASK = Letters()
PROBLEMS = TASK.problems(6, 0)
LIKING = per_text(lambda prompt, text: text.count("a"))
METHODS: dict[str, Callable[[int], StepFn]] = {
    "majority": lambda n: majority(lambda text: text[:1] or None, samples=n),
    "one-step": lambda n: one_step(LIKING, samples=n, lam=0.5),
    "best-of-n": lambda n: best_of_n(LIKING, samples=n),
}


def policy(kind: str = "autoregressive") -> Policy:
    if kind == "autoregressive":
        return TabularPolicy(vocabulary=4, block_size=1, max_length=4, seed=4)
    return TabularMaskedDiffusion(vocabulary=3, gen_length=4, block_length=2, steps=4, guide_steps=2, seed=4)


def records(policy: Policy, samples: int) -> dict[str, dict[str, Any]]:
    """By problem, as a journal holds them."""
    chains = run(policy, pool(samples), PROBLEMS, width=1, seed=0)
    return {
        chain.problem.id: json.loads(json.dumps({"sample": 0, "cost": vars(chain.cost), **noted_texts(TASK, chain)}))
        for chain in chains
    }


@pytest.mark.parametrize("method", METHODS)
def test_a_choice_has_the_weights_and_the_cost_that_the_method_has_by_itself(method: str) -> None:
    pooled = records(policy(), 7)
    for problem in PROBLEMS:
        step = METHODS[method](5)
        alone = next(iter(run(policy(), step, [problem], width=1, seed=0)))
        weights = np.exp(alone.trace[0].log_weights - alone.trace[0].log_weights.max())
        right = [TASK.grade(problem, text.text) for text in alone.trace[0].candidates]
        choice = chosen(step, problem, pooled[problem.id], seed=0)
        assert choice.score == pytest.approx(float(weights @ right / weights.sum())) and choice.samples == 5
        assert (choice.cost.generated, choice.cost.positions) == (alone.cost.generated, alone.cost.positions)


def test_ties_count_fractionally() -> None:
    problem = PROBLEMS[0]
    text = {"tokens": [1], "logp": -1.0, "cost": {"generated": 1}}
    record = {"sample": 0, "cost": {"seconds": 0.0}, "texts": [
        {**text, "text": "a", "correct": 1.0}, {**text, "text": "b", "correct": 0.0}
    ]}  # fmt: skip
    assert chosen(METHODS["majority"](2), problem, record, seed=0).score == 0.5


def test_plain_sampling_is_the_mean_over_the_texts() -> None:
    record = records(policy(), 5)[PROBLEMS[1].id]
    mean = fmean(each["correct"] for each in record["texts"][:3])
    assert chosen(pool(3), PROBLEMS[1], record, seed=0).score == pytest.approx(mean)


def test_the_first_texts_of_a_larger_pool_cost_what_a_smaller_one_does() -> None:
    """Canvases that are equal share forward passes, and the first of them pays."""
    for kind in ("autoregressive", "masked diffusion"):
        small, large = (list(records(policy(kind), n).values()) for n in (3, 8))
        expected = [costs_by_size(record)[-1] for record in small]
        found = [costs_by_size(record)[2] for record in large]
        names = ("generated", "prompt", "rollout", "row_forwards")
        assert [[getattr(c, n) for n in names] for c in found] == [[getattr(c, n) for n in names] for c in expected]


def test_the_curve_of_mean_costs_grows_with_the_samples() -> None:
    curve = mean_cost_curve(list(records(policy(), 6).values()), "generated")
    assert len(curve) == 6 and np.all(np.diff(curve) > 0)
    assert costs_by_size({"texts": [], "cost": {"seconds": 1.0}}) == []
