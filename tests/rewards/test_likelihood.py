"""The log-probability of a text as a reward."""

from __future__ import annotations

import numpy as np
import pytest

from ets.rewards import likelihood
from ets.testing import TabularPolicy
from ets.types import Chain, Problem

PROBLEM = Problem("p", "a prompt")


@pytest.mark.parametrize("per_token", [False, True])
def test_it_is_the_log_probability_under_what_was_sampled_in_all_or_per_token(per_token: bool) -> None:
    policy = TabularPolicy(max_length=4, block_size=2, temperature=1.7, seed=1)
    start = policy.start([PROBLEM])[0]
    texts = [draw.text for draw in policy.finish([start] * 50, np.arange(50, dtype=np.uint64))]
    law = policy.oracle.finish_law(PROBLEM, ())
    rewards = likelihood(per_token=per_token)(PROBLEM, texts, Chain(PROBLEM, 0, 1, start))
    for text, reward in zip(texts, rewards, strict=True):
        assert reward == pytest.approx(np.log(law[text.tokens]) / (len(text.tokens) if per_token else 1))
    assert len({len(text.tokens) for text in texts}) > 2


def test_it_counts_what_came_before_the_guide_step() -> None:
    policy = TabularPolicy(max_length=4, block_size=2, seed=1)
    keys = np.arange(20, dtype=np.uint64)
    open_states = [d.state for d in policy.extend(policy.start([PROBLEM]) * 20, keys) if not d.state.done]
    texts = [draw.text for draw in policy.finish(open_states, keys[: len(open_states)])]
    law = policy.oracle.finish_law(PROBLEM, ())
    rewards = likelihood()(PROBLEM, texts, Chain(PROBLEM, 0, 1, open_states[0]))
    assert rewards == pytest.approx([np.log(law[text.tokens]) for text in texts])
