"""The policy's certainty as a reward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ets import Horizon, Sampling, TransformersPolicy, sample
from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.registry import proposal_of
from ets.rewards import entropy, self_certainty
from ets.runner import run
from ets.types import Certainty, Chain, InputError, Problem, Text
from tests.laws.tabular import TabularModel

PROBLEM = Problem("p", "abc")


@pytest.mark.parametrize(("reward", "expected"), [(entropy(), [-0.5, -2.0]), (self_certainty(), [1.5, 0.25])])
def test_they_are_means_over_tokens_and_higher_for_a_surer_model(reward: Any, expected: list[float]) -> None:
    sure, guessing = Certainty(4, 2.0, 6.0), Certainty(8, 16.0, 2.0)
    texts = [Text((1,), "a", -1.0, True, certainty=certainty) for certainty in (sure, guessing)]
    assert list(reward(PROBLEM, texts, Chain(PROBLEM, 0, 1, TabularModel().start([PROBLEM])[0]))) == expected


@pytest.mark.parametrize("reward", [entropy(), self_certainty()])
def test_a_policy_that_did_not_record_it_is_told_in_one_line(reward: Any) -> None:
    step = energy_guided(reward, candidates=2, rollouts=2, lam=1.0)
    with pytest.raises(InputError, match="have no recorded certainty; make the policy with certainty=True") as caught:
        list(run(TabularModel(seed=1), step, [PROBLEM], width=1, seed=0))
    assert "\n" not in str(caught.value)


def test_a_proposal_s_rollouts_have_none(make_tiny: Any) -> None:
    """Its candidates are read, not drawn: how sure it would have been is not known."""
    reference = make_tiny(certainty=True)
    proposal = proposal_of(reference, lambda: reference.checkpoint, temperature=1.3)
    pair = ImportanceSampling(reference, proposal)
    (candidate,) = pair.extend(pair.start([PROBLEM]), np.zeros(1, np.uint64))
    assert candidate.text.certainty is not None
    (rollout,) = pair.finish([candidate.state], np.ones(1, np.uint64))
    assert rollout.text.certainty is None


def test_they_guide_in_one_call(tiny_checkpoint: Any) -> None:
    options: dict[str, Any] = {"model": tiny_checkpoint, "candidates": 6, "rollouts": 2, "lam": 0.01, "seed": 3}
    options |= {"block_size": 2, "max_length": 4, "certainty": True, "reward": self_certainty()}
    result = sample("abc", **options)
    step = result.trace[0]
    best = int(np.argmax(step.log_weights))
    assert step.choice == best  # at so low a temperature
    rewards = [[text.certainty.mean_self_certainty / 0.01 for text in row] for row in step.rollouts]  # type: ignore[union-attr]
    assert np.allclose(step.log_rewards, rewards)


def test_recording_it_changes_no_draw(tiny_checkpoint: Any) -> None:
    texts = []
    for certainty in (False, True):
        policy = TransformersPolicy(tiny_checkpoint, Sampling(0.8, top_p=0.9), Horizon(2, 6), certainty=certainty)
        states = policy.start([PROBLEM]) * 30
        texts.append([draw.text for draw in policy.finish(states, np.arange(30, dtype=np.uint64))])
    off, on = texts
    assert [(t.tokens, t.logp) for t in off] == [(t.tokens, t.logp) for t in on]
    assert all(text.certainty is None for text in off) and all(text.certainty is not None for text in on)
