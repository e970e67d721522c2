"""The log-probabilities of a state's tokens, one by one: their law, their sum, and the states without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from ets.importance import ImportanceSampling
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.server import Endpoint
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.settings import Horizon, Sampling
from ets.randomness import derive
from ets.types import Draw, Keys, Problem
from tests.conftest import causal_oracle
from tests.tiny_server import TinyServer

PROBLEMS = [Problem("p", "abc"), Problem("q", (1, 3, 3, 2, 1), stop=("ab",)), Problem("r", "b", max_length=5)]
HORIZON = Horizon(2, 6)


def keys(count: int, salt: int = 0) -> Keys:
    return derive(np.arange(count, dtype=np.uint64), salt)


@contextmanager
def policy_of(tiny: Any, name: str, sampling: Sampling, **server: Any) -> Iterator[Any]:
    if name == "transformers":
        yield TransformersPolicy(tiny, sampling, HORIZON)
    elif name == "look_every 8":
        yield TransformersPolicy(tiny, sampling, HORIZON, look_every=8)
    else:
        with TinyServer(tiny, **server) as there:
            yield EnginePolicy(Endpoint(there.address, tiny, connections=16), sampling, HORIZON)


def drawn_by_steps(policy: Any, count: int = 30) -> list[Draw]:
    """Draws of complete texts: a guide step from the start, then the rest."""
    begun = policy.extend(policy.start(PROBLEMS) * (count // 3), keys(count))
    opened = [draw.state for draw in begun if not draw.state.done]
    return [draw for draw in begun if draw.state.done] + policy.finish(opened, keys(len(opened), 1))


@pytest.mark.parametrize("name", ["transformers", "look_every 8", "server"])
def test_each_term_is_the_sampled_log_probability_of_its_token(tiny_checkpoint: Any, name: str) -> None:
    with policy_of(tiny_checkpoint, name, Sampling(0.7)) as policy:
        oracle = causal_oracle(policy, 0.7)
        draws = drawn_by_steps(policy)
        assert {len(draw.state.tokens) for draw in draws} >= {1, 2, 6}
        for draw in draws:
            state = draw.state
            laws = [oracle.next_token(state.problem, state.tokens[:n]) for n in range(len(state.tokens))]
            expected = [math.log(law[token]) for law, token in zip(laws, state.tokens, strict=True)]
            assert state.logps == pytest.approx(expected, abs=1e-5)
            assert math.fsum(state.logps) == pytest.approx(state.logp, abs=1e-9)
            assert draw.text.logp == state.logp and all(type(logp) is float for logp in state.logps)


@pytest.mark.parametrize("name", ["transformers", "server"])
def test_at_temperature_zero_each_term_is_zero_and_greedy_has_the_models(tiny_checkpoint: Any, name: str) -> None:
    with policy_of(tiny_checkpoint, name, Sampling(0.0)) as policy:
        start = policy.start(PROBLEMS)
        (drawn, *_), (greedy, *_) = policy.finish(start, keys(3)), policy.greedy(start, keys(3))
        assert drawn.state.logps == (0.0,) * len(drawn.state.tokens) and drawn.logp == 0.0
        assert greedy.state.tokens == drawn.state.tokens
        assert math.fsum(greedy.state.logps) == pytest.approx(greedy.logp) and greedy.logp < -0.1


def test_a_server_of_text_alone_has_no_terms(tiny_checkpoint: Any) -> None:
    with (
        pytest.warns(UserWarning, match="approximate"),
        policy_of(tiny_checkpoint, "server", Sampling(), text_only=True) as policy,
    ):
        assert all(draw.state.logps == () and draw.logp < 0 for draw in drawn_by_steps(policy))


def test_tokens_of_another_policy_and_of_beam_search_have_no_terms(
    make_tiny: Callable[..., TransformersPolicy],
) -> None:
    policy, other = make_tiny(), make_tiny(Sampling(0.5))
    begun = [draw.state for draw in policy.extend(policy.start(PROBLEMS[:1]) * 9, keys(9)) if not draw.state.done]
    followed = [each.state for each in other.follow(other.start(PROBLEMS[:1]) * len(begun), begun)]
    assert begun and all(state.tokens and state.logps == () for state in followed)
    assert all(draw.state.logps == () for draw in other.finish(followed, keys(len(followed))))
    assert all(draw.state.logps == () for draw in policy.beam(begun, 2))


def test_a_pair_has_the_terms_of_the_reference_policy_alone(make_tiny: Callable[..., TransformersPolicy]) -> None:
    pair = ImportanceSampling(make_tiny(), make_tiny(Sampling(0.5)))
    start = pair.start(PROBLEMS[:1]) * 4
    for draw in pair.extend(start, keys(4)):
        assert math.fsum(draw.state.logps) == pytest.approx(draw.logp) and draw.state.logps
    assert all(draw.state.logps == () for draw in pair.finish(start, keys(4)))
