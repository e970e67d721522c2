"""The settings that belong to ETS-IS with masked diffusion, and the fast sampler that they make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from ets.evaluation.fast import FastSampling, opened_sampler
from ets.policies.making import policy_of

from ets import demo
from ets.path_weights import PathWeights
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.types import InputError, Policy

FAST = FastSampling("1", 4, temperature=2.4, remasking="largest", threshold=0.9, cache="dual")


def exact() -> Policy:
    checkpoint = Checkpoint(demo.model_path("diffusion"))
    return policy_of(lambda: checkpoint, max_length=24, block_length=8, guide_steps=4, temperature=2.4)


def test_every_setting_stands_in_the_words_of_the_journal() -> None:
    assert FAST.options == ("level1", "M4", "T2.4", "largest", "threshold0.9", "cachedual")
    changes: list[dict[str, Any]] = [
        {"level": "1F"}, {"candidates": 9}, {"temperature": 1.8}, {"remasking": "margin"}, {"threshold": 0.8},
        {"factor": 0.9, "threshold": None}, {"cache": "prefix"}, {"refresh": 2}, {"clip": (0.1, 10.0)},
        {"clip": (0.1, 20.0)},
    ]  # fmt: skip
    assert len({replace(FAST, **change).options for change in [{}, *changes]}) == len(changes) + 1


def test_what_is_left_out_is_the_policy_s_own() -> None:
    """So that a default and the same value given are one method in the journal."""
    short, policy = opened_sampler(FastSampling("0", 4, cache="dual", threshold=0.9), exact())
    whole, _ = opened_sampler(
        FastSampling("0", 4, cache="dual", threshold=0.9, temperature=2.4, remasking="low_confidence"), exact()
    )
    assert short == whole and short.target.startswith("the fast sampler itself")
    assert isinstance(policy, MaskedDiffusionPolicy) and not short.weighed
    assert short.label(2) == "ETS-IS at level 0 (M 4, K 2)"


def test_a_level_weighs_and_says_towards_what() -> None:
    fast, policy = opened_sampler(FAST, exact())
    assert isinstance(policy, PathWeights) and fast.weighed
    assert fast.target == policy.target and "the order and groups that the fast model chose" in fast.target
    assert fast.options == FAST.options and fast.label(2) == "ETS-IS at level 1 (M 4, K 2)"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"level": "0", "clip": (0.1, 10.0)}, "but at level 0 every weight is exactly 1"),
        ({"level": "0", "temperature": 0.0}, "at temperature 0 nothing is random"),
        ({"remasking": "low_confidence"}, "level 1 takes the positions as given"),
    ],
)
def test_what_a_level_cannot_use_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened_sampler(replace(FAST, **changed), exact())
