"""What methods compute, by formula: exact where no text ends and no canvases are equal, and never exceeded."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from ets import baselines, demo
from ets.evaluation.work import TokenWork, Work, formula_of
from ets.kernel import energy_guided
from ets.policies import kv_cache
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.autoregressive.engine import Answer, Engine, EnginePolicy, Request
from ets.policies.canvas_cache import Caching
from ets.policies.checkpoint import Checkpoint
from ets.policies.kv_cache import RowCache
from ets.policies.making import fast_sampler_of
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.memory import cache_bytes
from ets.policies.transformers import TransformersPolicy
from ets.policies.unmasking import Schedule, Unmasking
from ets.proposal import ImportanceSampling
from ets.randomness import derive
from ets.rewards import per_text
from ets.runner import run
from ets.types import Chain, Cost, Policy, Problem, StepFn

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


def engine(block: int, longest: int, *, ends: bool) -> EnginePolicy:
    return EnginePolicy(_Uniform(ends), Sampling(1.0), Horizon(block, longest), end_ids={0} if ends else ())


class _Uniform(Engine):
    """Draws tokens evenly and remembers no prompts."""

    name = "an even engine"

    def __init__(self, ends: bool) -> None:
        self.checkpoint, self.first = checkpoint("small"), 0 if ends else 1

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Answer:
        tokens = np.random.default_rng(request.seed).integers(self.first, 8, request.room).tolist()
        ended = tokens[: tokens.index(0) + 1] if 0 in tokens else tokens
        return Answer(ended, [-1.0] * len(ended), 0)


def chains(policy: Policy, step: StepFn, width: int) -> list[Chain]:
    return list(run(policy, step, PROBLEMS, width=width, seed=3))


def guided(candidates: int, rollouts: int) -> StepFn:
    return energy_guided(REWARD, candidates=candidates, rollouts=rollouts, lam=0.5)


def prompts_of(policy: Any) -> dict[str, int]:
    policy = getattr(policy, "reference", getattr(policy, "sampler", policy))
    return {problem.id: len(policy.start([problem])[0].prompt) for problem in PROBLEMS}


def amounts(cost: Cost | Work) -> list[float]:
    return [cost.prompt, cost.candidate, cost.rollout, cost.scored, cost.generated, cost.row_forwards]


def compared(
    policy: Policy, found: Sequence[Chain], alone: bool, **shape: int
) -> list[tuple[list[float], list[float]]]:
    """What every guide step took, and what the formula says."""
    prompts, pairs = prompts_of(policy), []
    formula = formula_of(policy, list(prompts.values()), alone)
    for chain in found:
        steps = formula.steps(prompts[chain.problem.id], **shape, lengths=[getattr(formula, "longest", 0)])
        pairs += [(amounts(step.cost), amounts(work)) for step, work in zip(chain.trace, steps, strict=False)]
    return pairs


@pytest.mark.parametrize("make", [policy, pair, engine])
@pytest.mark.parametrize(("candidates", "rollouts", "block", "longest"), SHAPES)
def test_where_no_text_ends_the_formula_for_tokens_is_exact(
    make: Callable[..., Policy], candidates: int, rollouts: int, block: int, longest: int
) -> None:
    never = make(block, longest, ends=False)
    found = chains(never, guided(candidates, rollouts), width=3)
    assert {len(chain.trace) for chain in found} == {-(-longest // block)}
    for taken, said in compared(never, found, False, candidates=candidates, rollouts=rollouts):
        assert taken == pytest.approx(said)


@pytest.mark.parametrize("make", [policy, pair, engine])
def test_where_texts_end_the_formula_for_tokens_is_never_exceeded(make: Callable[..., Policy]) -> None:
    ending = make(8, 40, ends=True)
    found = chains(ending, guided(3, 2), width=2)
    assert min(len(chain.trace) for chain in found) < 5
    pairs = compared(ending, found, False, candidates=3, rollouts=2)
    assert all(t <= s for taken, said in pairs for t, s in zip(taken, said, strict=True))
    assert any(taken[-2] < said[-2] for taken, said in pairs)


@pytest.mark.parametrize("ends", [True, False])
def test_samples_and_beams_take_what_the_formula_says(ends: bool) -> None:
    drawn = policy(4, 24, ends=ends)
    formula, prompts = formula_of(drawn, [1], False), prompts_of(drawn)
    assert isinstance(formula, TokenWork)
    steps = {
        baselines.best_of_n(REWARD, samples=5): lambda prompt: formula.samples(prompt, 5, [24]),
        baselines.greedy(): lambda prompt: formula.samples(prompt, 1, [24]),
        **({baselines.beam(3): lambda prompt: formula.beams(prompt, 3)} if ends else {}),  # it wants an end token
    }
    for step, work in steps.items():
        for chain in chains(policy(4, 24, ends=ends), step, width=2):
            taken, said = amounts(chain.cost), amounts(work(prompts[chain.problem.id]))
            assert all(t <= s for t, s in zip(taken, said, strict=True))
            assert ends or taken == said


def test_the_expected_work_is_the_mean_over_chains_that_are_not_steered() -> None:
    """At level 1e-4: the mean of 200 chains is within 3.9 standard errors of the formula, with 1000 lengths."""
    ending = policy(8, 40, ends=True)
    start = ending.start(PROBLEMS[:1])[0]
    keys = derive(np.array(7, np.uint64), np.arange(1000))
    lengths = [len(draw.text.tokens) for draw in ending.finish([start] * len(keys), keys)]
    said = sum(TokenWork(8, 40).steps(len(start.prompt), 2, 2, lengths), Work())
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
    for taken, said in compared(drawn, found, True, candidates=candidates, rollouts=rollouts):
        assert taken == said


@pytest.mark.parametrize("options", [*CANVASES.values(), {"stop_at_end": True}])
def test_with_padding_and_early_ends_the_formula_for_canvases_is_never_exceeded(options: dict[str, Any]) -> None:
    drawn = canvases(**options)
    pairs = compared(drawn, chains(drawn, guided(3, 2), width=4), False, candidates=3, rollouts=2)
    assert all(t <= s for taken, said in pairs for t, s in zip(taken, said, strict=True))


def test_level_1_is_within_its_bound() -> None:
    fast = fast_sampler_of(canvases(), "1", cache="dual")
    pairs = compared(fast, chains(fast, guided(3, 2), width=4), False, candidates=3, rollouts=2)
    assert all(t <= s for taken, said in pairs for t, s in zip(taken, said, strict=True))
    assert all(taken[3] > 0 for taken, _ in pairs)


@pytest.mark.parametrize("options", [{}, {"cfg": 0.5}, {"caching": Caching("dual")}])
def test_samples_of_canvases_share_the_first_forward(options: dict[str, Any]) -> None:
    drawn, prompts = canvases(**options), prompts_of(canvases())
    formula = formula_of(drawn, list(prompts.values()), True)
    for chain in chains(drawn, baselines.best_of_n(REWARD, samples=4), width=1):
        assert amounts(chain.cost) == amounts(formula.samples(prompts[chain.problem.id], 4, ()))


def test_beams_over_canvases_take_what_samples_take() -> None:
    """One canvas first, and then as many as there are beams, which differ."""
    drawn = MaskedDiffusionPolicy(checkpoint("diffusion"), Unmasking(8.0, "largest"), Schedule(16, 8, 8, 4))
    prompts = prompts_of(drawn)
    formula = formula_of(drawn, list(prompts.values()), True)
    for chain in chains(drawn, baselines.beam(3), width=1):
        assert amounts(chain.cost) == amounts(formula.samples(prompts[chain.problem.id], 3, ()))


class _Alive:
    """Bytes of the keys and values that caches have been forked to."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def note(self, cache: RowCache) -> RowCache:
        for tensor in (kept for layer in cache.layers for kept in (layer.keys, layer.values)):
            self.now += tensor.nbytes
            weakref.finalize(tensor, self._gone, tensor.nbytes)
        self.most = max(self.most, self.now)
        return cache

    def _gone(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("ends", [True, False])
def test_the_caches_of_rows_hold_no_more_than_the_formula_says(
    width: int, ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, gather = _Alive(), kv_cache._gather
    monkeypatch.setattr(kv_cache, "_gather", lambda *given: alive.note(gather(*given)))
    drawn = policy(6, 40, ends=ends)
    chains(drawn, guided(4, 3), width)
    formula, prompt = formula_of(drawn, [1], width == 1), max(prompts_of(drawn).values())
    most = width * formula.columns(prompt, 4, 3, apart=width > 1) * cache_bytes(drawn.checkpoint.config, 4)
    assert alive.most <= most
    assert ends or alive.most > 0.6 * most
    assert cache_bytes(drawn.checkpoint.config, 4) == drawn._bytes_per_column
