"""The laws and the states of the tabular masked-diffusion policy."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from ets.testing import total_variation
from ets.types import Cost, InputError
from tests.enumerable import PROBLEM
from tests.laws.masked_tabular import TabularMaskedDiffusion

RULES = ("low_confidence", "random", "margin", "entropy", "largest", "sequential")


def keys(count: int) -> Any:
    return np.arange(count, dtype=np.uint64)


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
    assert total_variation(sums, policy.oracle.finish_law(PROBLEM, policy.oracle.root)) < 1e-12


@pytest.mark.parametrize("rule", RULES)
def test_laws_over_paths_sum_to_laws_over_canvases(rule: str) -> None:
    policy = TabularMaskedDiffusion(vocabulary=2, gen_length=4, block_length=2, steps=4, guide_steps=2, remasking=rule)
    paths = policy.oracle.by_path
    sums: Counter[Any] = Counter()
    for (canvas, _), p in paths.finish_law(PROBLEM, paths.root).items():
        sums[canvas] += p
    law = policy.oracle.finish_law(PROBLEM, policy.oracle.root)
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
