"""Fast samplers of masked diffusion: the published outputs with caches, and laws of their own (Level 0)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion import cache as canvas_cache
from ets.policies.diffusion.canvas import CanvasMemory
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.settings import Caching
from ets.runner import run
from ets.testing import check_policy
from ets.types import Cost, InputError, Problem
from tests.conftest import canvas_oracle
from tests.hooks import hooked
from tests.policies.diffusion.test_policy import (
    GOLDEN,
    PROBLEMS,
    START,
    guided,
    keys,
    make,
    published_checkpoint,
    same_draws,
    watching,
)

CASES = [case for case in json.loads((GOLDEN / "generate.json").read_text()) if case["sampler"] != "canonical"]
LEVEL = 1e-4


@pytest.fixture(scope="module")
def golden() -> Checkpoint:
    return published_checkpoint()


def published(golden: Checkpoint, case: dict[str, Any], guide_steps: int) -> MaskedDiffusionPolicy:
    shape = [case[name] for name in ("gen_length", "steps", "block_length")]
    caching = Caching(case["sampler"].removesuffix("_cache"))
    return make(golden, *shape, guide_steps, caching=caching, temperature=0, threshold=case["threshold"])


# The publishers' outputs.


@pytest.mark.parametrize("guide_steps", ["one", "all"])
@pytest.mark.parametrize(
    "case", CASES, ids=lambda c: f"{c['sampler']}-{c['steps']}-{c['block_length']}-{c['threshold']}"
)
def test_the_published_cached_generations_token_for_token(
    golden: Checkpoint, case: dict[str, Any], guide_steps: str
) -> None:
    """In one guide step and in one for each denoising step: guide steps refresh nothing. No more forwards."""
    policy = published(golden, case, 1 if guide_steps == "one" else case["steps"])
    state: Any = policy.start([Problem("golden", tuple(case["prompt"]))])[0]
    while not state.done:
        state = policy.extend([state], keys(1))[0].state
    assert list(state.tokens) == case["output"]
    assert policy.ledger.forwards == policy.ledger.row_forwards <= case["forwards"]
    assert policy.ledger.forwards == len(set(state.path))


@pytest.mark.parametrize("case", CASES[3:7], ids=lambda c: f"{c['sampler']}-{c['steps']}-{c['threshold']}")
def test_the_published_cached_generations_in_a_padded_batch(golden: Checkpoint, case: dict[str, Any]) -> None:
    policy = published(golden, case, 1)
    prompts = [tuple(case["prompt"]), tuple(range(1, 16)), tuple(range(20, 36)), tuple(case["prompt"])]
    starts = policy.start([Problem(str(n), prompt) for n, prompt in enumerate(prompts)])
    draws = policy.finish(starts, keys(4))
    assert list(draws[0].state.tokens) == list(draws[3].state.tokens) == case["output"]
    assert policy.ledger.row_forwards == sum(len(set(draw.state.path)) for draw in draws[:3])
    if case["threshold"] is None:
        assert policy.ledger.forwards == case["forwards"]


@pytest.mark.parametrize("kind", ["dual", "prefix"])
def test_only_the_window_is_computed_between_refreshes(golden: Checkpoint, kind: str) -> None:
    """12 prompt tokens, 16 of the canvas in blocks of 8, one token a step, refreshed after three steps."""
    policy = make(golden, 16, 16, 8, 4, caching=Caching(kind, refresh=3))
    starts = policy.start([Problem("p", tuple(range(1, 13)))])
    with watching(golden) as seen:
        draws = policy.finish(starts, keys(1))
    first, second = (8, 8) if kind == "dual" else (16, 8)
    assert seen.columns == [28, first, first] * 2 + [28, first] + [28, second, second] * 2 + [28, second]
    assert policy.ledger == Cost(forwards=16) + draws[0].cost
    assert policy.ledger.positions == seen.positions == sum(seen.columns)
    assert policy.ledger.vocabulary == seen.vocabulary == 2 * sum(range(9))


# Laws.

FAST: list[tuple[tuple[int, int, int, int], Caching | None, dict[str, Any]]] = [
    ((3, 3, 3, 3), None, {"threshold": 0.3}),
    ((4, 4, 2, 2), None, {"remasking": "largest", "threshold": 0.4, "temperature": 0.8}),
    ((3, 3, 3, 3), None, {"factor": 2.0}),
    ((3, 3, 3, 3), Caching("dual"), {}),
    ((4, 4, 2, 4), Caching("dual"), {"temperature": 0.7}),
    ((4, 4, 2, 4), Caching("prefix"), {"remasking": "margin"}),
    ((3, 3, 3, 3), Caching("dual", refresh=2), {"remasking": "random"}),
    ((4, 4, 2, 2), Caching("prefix"), {"remasking": "largest", "threshold": 0.4}),
    ((4, 2, 4, 2), Caching("dual"), {"threshold": 0.3}),  # two positions a step at least
]


def check_tiny(
    checkpoint: Checkpoint,
    shape: tuple[int, int, int, int],
    caching: Caching | None,
    rule: dict[str, Any],
    seen_as: Caching | None,
    draws: int,
) -> None:
    policy = make(checkpoint, *shape, caching=caching, **rule)
    oracle = canvas_oracle(checkpoint, policy.schedule, policy.unmasking, seen_as)
    check_policy(policy, oracle, PROBLEMS, draws=draws, level=LEVEL)


@pytest.mark.parametrize(("shape", "caching", "rule"), FAST, ids=str)
def test_laws_of_fast_samplers_hold_on_a_tiny_network(
    tiny_llada: Checkpoint, shape: tuple[int, int, int, int], caching: Caching | None, rule: dict[str, Any]
) -> None:
    """Law 1, 2 and 4, over paths where there is a cache; rows alone equal rows together."""
    check_tiny(tiny_llada, shape, caching, rule, caching, 6_000)


@pytest.mark.parametrize("kind", ["dual", "prefix"])
def test_a_cache_refreshed_at_every_step_is_the_exact_sampler(tiny_llada: Checkpoint, kind: str) -> None:
    check_tiny(tiny_llada, (4, 4, 2, 2), Caching(kind, refresh=1), {}, None, 3_000)


@pytest.mark.parametrize(
    ("caching", "seen_as"),
    [(Caching("dual"), None), (Caching("dual"), Caching("prefix")), (Caching("dual"), Caching("dual", refresh=1))],
    ids=str,
)
def test_another_cache_turns_the_laws_red(tiny_llada: Checkpoint, caching: Caching, seen_as: Caching | None) -> None:
    with pytest.raises(AssertionError):
        check_tiny(tiny_llada, (4, 4, 2, 4), caching, {}, seen_as, 500)


@pytest.mark.parametrize("fault", ["keys from elsewhere", "values from elsewhere"])
def test_a_cache_that_misplaces_turns_the_laws_red(
    tiny_llada: Checkpoint, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = canvas_cache.Recalling.__call__

    def wrong(self: Any, layer: int, keys: torch.Tensor, values: torch.Tensor) -> Any:
        k, v = right(self, layer, keys, values)
        return (k.roll(1, 2), v) if fault.startswith("keys") else (k, v.roll(1, 2))

    monkeypatch.setattr(canvas_cache.Recalling, "__call__", wrong)
    with pytest.raises(AssertionError):
        check_tiny(tiny_llada, (4, 4, 2, 4), Caching("dual"), {}, Caching("dual"), 500)


@pytest.mark.parametrize("kind", ["dual", "prefix"])
def test_a_model_that_ignores_exchange_is_refused_instead_of_giving_garbage(tiny_llada: Checkpoint, kind: str) -> None:
    """As a family of transformers does, whose forward takes `exchange` among its other keyword arguments."""

    def ignoring(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return arguments, {name: value for name, value in options.items() if name != "exchange"}

    policy = make(tiny_llada, 4, 4, 2, 4, caching=Caching(kind))
    message = r"recorded 0 of \d+ layers for the cache; pass keys and values through"
    with hooked(tiny_llada.model.base_model, ignoring, with_kwargs=True), pytest.raises(InputError, match=message):
        policy.finish(policy.start(START), keys(1))


# The cache is part of the state.


@pytest.mark.parametrize("caching", [Caching("dual"), Caching("prefix"), Caching("dual", refresh=2)], ids=str)
@pytest.mark.parametrize("method", ["extend", "finish"])
def test_what_memory_has_lost_is_computed_again_from_the_canvas_of_the_last_refresh(
    tiny_llada: Checkpoint, method: str, caching: Caching
) -> None:
    policy = make(tiny_llada, 6, 6, 3, 6, caching=caching)
    states = policy.start(PROBLEMS)
    for step in range(5):
        kept = getattr(policy, method)([s for s in states for _ in range(4)], keys(12, 100 * step))
        lost = [replace(state, memory=CanvasMemory(policy)) for state in states]
        same_draws(getattr(policy, method)([s for s in lost for _ in range(4)], keys(12, 100 * step)), kept)
        states = [draw.state for draw in policy.extend(states, keys(3, step))]


def test_rows_that_meet_with_different_refreshes_are_told_apart(tiny_llada: Checkpoint) -> None:
    """At the last step of a block, equal canvases may have been two others at the refresh before."""
    policy, alone = (make(tiny_llada, 4, 4, 4, 1, caching=Caching(refresh=2)) for _ in range(2))
    draws = policy.finish(policy.start(START) * 60, keys(60))
    for number, draw in enumerate(draws):
        same_draws(alone.finish(alone.start(START), keys(1, number)), [draw])


@pytest.mark.parametrize("method", ["extend", "finish"])
@pytest.mark.parametrize("kind", ["dual", "prefix"])
def test_rows_at_different_steps_equal_each_alone(tiny_llada: Checkpoint, method: str, kind: str) -> None:
    """In one call: at refreshes that are needed later and that are not, and in between, in both blocks."""
    policy, alone = (make(tiny_llada, 8, 8, 4, 8, caching=Caching(kind, refresh=3), threshold=0.5) for _ in range(2))
    states: list[Any] = policy.start(PROBLEMS)
    for step in range(6):
        states += [draw.state for draw in policy.extend(states[-3:], keys(3, 50 + step)) if not draw.state.done]
    assert {state.step for state in states} >= {0, 1, 2, 3}
    order = np.random.default_rng(0).permutation(len(states) * 2) % len(states)
    together = getattr(policy, method)([states[n] for n in order], keys(len(order)))
    for number, (n, draw) in enumerate(zip(order, together, strict=True)):
        own = replace(states[n], memory=CanvasMemory(alone))
        same_draws(getattr(alone, method)([own], keys(1, number)), [draw])


@pytest.mark.parametrize("caching", [Caching("dual"), Caching("prefix", refresh=2)], ids=str)
def test_results_with_a_cache_do_not_depend_on_the_width(tiny_llada: Checkpoint, caching: Caching) -> None:
    found = []
    for width, memory in ((1, None), (32, None), (32, 1e-4)):
        policy = make(tiny_llada, 4, 4, 2, 4, memory, caching, threshold=0.6)
        chains = run(policy, guided(), PROBLEMS, width=width, seed=0, samples=6)
        found.append({(chain.problem.id, chain.sample): chain for chain in chains})
    for others in found[1:]:
        for name, chain in found[0].items():
            assert (chain.state.tokens, chain.state.path) == (others[name].state.tokens, others[name].state.path)
            assert [step.choice for step in chain.trace] == [step.choice for step in others[name].trace]


def test_candidates_share_a_refresh_and_guide_steps_inside_a_block_make_none(tiny_llada: Checkpoint) -> None:
    """Two guide steps in a block of four: the whole canvas is read once, and 1 + 1 + 1 windows per row follow."""
    policy = make(tiny_llada, 4, 4, 4, 2, caching=Caching("dual"), temperature=2.0)
    (start,) = policy.start(START)
    with watching(tiny_llada) as seen:
        candidates = [draw.state for draw in policy.extend([start] * 6, keys(6))]
        policy.finish([state for state in candidates for _ in range(2)], keys(12))
    assert seen.columns[0] == 16 + 4 and set(seen.columns[1:]) == {4}
    assert seen.rows[0] == 1


def test_only_what_a_later_step_needs_is_kept(tiny_llada: Checkpoint) -> None:
    """Nothing where the next step is a refresh, and no other row's."""
    policy = make(tiny_llada, 4, 4, 2, 4, caching=Caching("dual"))
    states = policy.start(START)
    assert all(state.memory.cached is None for state in states)
    for step, known in enumerate((True, False, True, False)):
        states = [draw.state for draw in policy.extend(states * 2, keys(2 * len(states), step))][:2]
        assert [state.memory.cached is not None for state in states] == [known] * len(states)
        for state in states:
            for kept in state.memory.cached if known else ():
                assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_the_log_probability_of_each_step_is_recorded(tiny_llada: Checkpoint) -> None:
    policy = make(tiny_llada, 4, 4, 2, 4, caching=Caching("dual"), threshold=0.5)
    states: list[Any] = policy.start(START) * 40
    while states:
        draws = policy.extend(states, keys(len(states), len(states)))
        for before, draw in zip(states, draws, strict=True):
            after: Any = draw.state
            made = sorted(set(after.path) - set(before.path) - {-1})
            assert after.step_logps.shape == (4, 2)
            assert after.step_logps[: before.step].tolist() == before.step_logps[: before.step].tolist()
            assert after.step_logps[made].sum() == pytest.approx(draw.logp, abs=1e-12)
            assert after.step_logps.sum() == pytest.approx(after.logp, abs=1e-12)
            assert (after.step_logps[[n for n in range(4) if n not in after.path]] == 0).all()
        states = [draw.state for draw in draws if not draw.state.done]


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cache": "triple"}, "unknown cache 'triple'; choose from dual, prefix"), ({"refresh": 0}, "refresh is 0")],
)
def test_a_cache_that_there_is_not_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Caching(**options)
    assert "\n" not in str(caught.value)


def test_guidance_with_a_cache_is_refused(tiny_llada: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"cfg is 1.5, but a cache holds no unguided canvases"):
        make(tiny_llada, caching=Caching(), cfg=1.5)
