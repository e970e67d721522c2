"""`Problem.max_length`: every policy ends a problem's text at the problem's own limit, or refuses the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ets import demo
from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.server import Endpoint
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.diffusion.uniform import UniformDiffusionPolicy
from ets.policies.settings import Horizon, Sampling, UniformCanvases, UniformDenoising, Unmasking
from ets.randomness import derive
from ets.rewards import per_text
from ets.runner import run
from ets.suffix_moves import refined
from ets.tasks import Arithmetic
from ets.testing import TabularPolicy, check_policy
from ets.types import Chain, InputError, Keys, Policy, Problem
from tests.conftest import best_of_beams, causal_oracle
from tests.tiny_server import TinyServer

LAW = Sampling(1.3)
LIMITS = (1, 7, 20, 33, None)
REWARD = per_text(lambda _, text: -0.1 * len(text))
TINY = [Problem("p", "abc", max_length=3), Problem("q", (1, 3, 3, 2, 1), max_length=1), Problem("r", "b")]


def keys(count: int, salt: int = 0) -> Keys:
    return derive(np.arange(count, dtype=np.uint64), salt)


@pytest.fixture(scope="module")
def embedded() -> TransformersPolicy:
    return TransformersPolicy(Checkpoint(demo.model_path()), LAW, Horizon(16, 40))


def limited(limits: Sequence[int | None] = LIMITS) -> list[Problem]:
    found = Arithmetic().problems(len(limits), 0)
    return [replace(problem, stop=(), max_length=limit) for problem, limit in zip(found, limits, strict=True)]


def by_steps(policy: Policy, problems: Sequence[Problem], row_keys: Keys) -> list[tuple[int, ...]]:
    """The tokens of each row after guide steps to the end."""
    states = list(policy.start(problems))
    while rows := [n for n, state in enumerate(states) if not state.done]:
        drawn = policy.extend([states[n] for n in rows], row_keys[rows])
        for n, draw in zip(rows, drawn, strict=True):
            states[n] = draw.state
    return [state.tokens for state in states]


@pytest.mark.parametrize("draw", ["finish", "extend", "greedy"])
def test_a_limited_text_is_the_beginning_of_the_unlimited_one(embedded: TransformersPolicy, draw: str) -> None:
    """Token for token, for problems of all limits in one batch."""

    def tokens(problems: Sequence[Problem]) -> list[tuple[int, ...]]:
        if draw == "extend":
            return by_steps(embedded, problems, keys(len(problems)))
        drawn = getattr(embedded, draw)(embedded.start(problems), keys(len(problems)))
        assert all(each.state.done for each in drawn)
        return [each.state.tokens for each in drawn]

    whole = tokens(limited([None] * len(LIMITS)))
    assert len(set(map(len, whole))) > 1 or draw == "greedy"
    assert tokens(limited()) == [text[:limit] for text, limit in zip(whole, LIMITS, strict=True)]


@pytest.mark.parametrize("look_every", [1, 8])
def test_a_row_draws_no_token_beyond_its_limit(tiny_checkpoint: Any, look_every: int) -> None:
    """Neither between two checks for ended rows; the ledger counts the tokens of the texts alone."""
    policy = TransformersPolicy(tiny_checkpoint, Sampling(), Horizon(2, 12), end_ids=(), look_every=look_every)
    drawn = policy.finish(policy.start(TINY), keys(3))
    assert [len(draw.state.tokens) for draw in drawn] == [3, 1, 12]
    assert policy.ledger.generated == 16 and policy.ledger.rollout == 2 + 0 + 11


def test_limits_of_a_batch_equal_single_runs(make_tiny: Callable[..., TransformersPolicy]) -> None:
    policy, row_keys = make_tiny(), keys(60)
    problems = [TINY[n % 3] for n in range(60)]
    together = by_steps(policy, problems, row_keys)
    assert together == [by_steps(policy, [problem], row_keys[n : n + 1])[0] for n, problem in enumerate(problems)]
    assert {len(tokens) for tokens in together[::3]} == {1, 2, 3} and {len(t) for t in together[1::3]} == {1}


def test_laws_hold_under_a_limit(make_tiny: Callable[..., TransformersPolicy]) -> None:
    """At a level of 1e-4; the law is that of a policy whose max_length is 3."""
    policy = make_tiny()
    check_policy(policy, replace(causal_oracle(policy), max_length=3), TINY, draws=10_000, level=1e-4)


def test_laws_of_the_tabular_policy_hold_under_a_limit() -> None:
    policy, problems = TabularPolicy(max_length=3), [Problem("a", "x", max_length=2), Problem("b", "yy")]
    check_policy(policy, replace(policy.oracle, max_length=2), problems, draws=20_000, level=1e-4)


def test_beam_search_keeps_every_limit(make_tiny: Callable[..., TransformersPolicy]) -> None:
    policy = make_tiny()
    drawn = policy.beam(policy.start(TINY), 3)
    for problem, draw in zip(TINY, drawn, strict=True):
        oracle = replace(causal_oracle(policy), max_length=problem.max_length or 4)
        assert draw.state.tokens == best_of_beams(oracle, problem, 3) and draw.state.done


def test_laws_hold_under_a_limit_over_a_server(tiny_checkpoint: Any) -> None:
    """At a level of 1e-4; no request has more room than its problem."""
    with TinyServer(tiny_checkpoint) as server:
        policy = EnginePolicy(Endpoint(server.address, tiny_checkpoint, connections=16), Sampling(), Horizon(2, 4))
        server.seen.clear()
        check_policy(policy, replace(causal_oracle(policy), max_length=3), TINY, draws=400, level=1e-4)
        assert max(len(body["prompt"]) + body["max_tokens"] for body in server.seen if len(body["prompt"]) < 5) <= 6


@pytest.mark.parametrize("method", ["ets", "ets-is", "refined"])
def test_chains_of_several_limits_equal_single_chains(embedded: TransformersPolicy, method: str) -> None:
    """All rollouts keep the limit; with a proposal both policies do."""
    policy: Policy = embedded
    step = energy_guided(REWARD, candidates=3, rollouts=2, lam=0.5)
    if method == "refined":
        step = refined(REWARD, lam=0.5, budget=160)
    if method == "ets-is":
        small = TransformersPolicy(Checkpoint(demo.model_path("small")), LAW, embedded.horizon)
        policy = ImportanceSampling(embedded, small, (0.01, 100))

    def drawn(width: int) -> dict[str, Chain]:
        return {chain.problem.id: chain for chain in run(policy, step, limited(), width=width, seed=3)}

    chains, alone = drawn(5), drawn(1)
    assert all(chains[id].state.tokens == chain.state.tokens for id, chain in alone.items())
    for chain in chains.values():
        texts = [text for step in chain.trace for row in step.rollouts for text in row]
        longest, limit = max(len(text.tokens) for text in texts), chain.problem.max_length or 40
        assert longest == limit if limit < 20 else longest <= limit
        assert chain.valid and all(text.done for text in texts)


@pytest.mark.parametrize("limit", [0, -1, 2.0, "9", True])
def test_a_limit_that_is_no_count_is_refused(limit: Any) -> None:
    with pytest.raises(InputError, match=r"max_length of problem 'a' is .*; give a whole number of at least 1"):
        Problem("a", "x", max_length=limit)


def test_a_limit_above_the_policys_is_refused(make_tiny: Callable[..., TransformersPolicy]) -> None:
    with pytest.raises(InputError, match="max_length of problem 'a' is 5, and the policy's is 4; lower"):
        make_tiny().start([Problem("a", "b", max_length=5)])


def test_a_limit_makes_room_for_a_longer_prompt(make_tiny: Callable[..., TransformersPolicy]) -> None:
    """The tiny model has 2,048 positions."""
    policy = make_tiny(max_length=1000)
    prompt = (1,) * 1048
    assert policy.start([Problem("a", prompt), Problem("b", (*prompt, 1), max_length=999)])
    with pytest.raises(InputError, match="'a' has 1049 tokens, which leaves no room for a generation of 1000"):
        policy.start([Problem("a", (*prompt, 1))])


def test_diffusion_takes_the_length_of_its_canvas_alone(tiny_llada: Any, tiny_diffusion_gemma: Any) -> None:
    masked = MaskedDiffusionPolicy(tiny_llada, Unmasking(), Schedule(4, 4, 2, 2))
    uniform = UniformDiffusionPolicy(tiny_diffusion_gemma, UniformDenoising(), UniformCanvases(max_length=4))
    for policy in (masked, uniform):
        assert policy.start([Problem("a", "ab", max_length=4), Problem("b", "a")])
        for other in (2, 5):
            with pytest.raises(InputError, match=f"max_length of problem 'a' is {other}, and the canvas"):
                policy.start([Problem("a", "ab", max_length=other)])
