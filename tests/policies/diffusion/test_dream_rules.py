"""The policy under Dream's rules and times and without LLaDA's end tokens: laws by enumeration on tiny networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch

from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.levels import LevelWeigher
from ets.policies.diffusion.path_probability import path_probabilities, path_steps
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.registry import fast_sampler_of, policy_of
from ets.policies.settings import Unmasking
from ets.runner import run
from ets.testing import check_policy
from ets.types import InputError, Keys, Problem
from tests.conftest import canvas_oracle, random_dream, tiny_tokenizer, whole_logits
from tests.policies.diffusion.test_policy import guided

PROBLEMS = [Problem("p", "abbabaabababbaab"), Problem("q", "baab")]
END, MASK = 0, 3
SHIFT = {"Dream": 1, "llada": 0}
ORIGIN = Schedule(2, 4, 2, 2, "time", 0.2)


def policy_with(checkpoint: Checkpoint, schedule: Schedule, **rule: Any) -> MaskedDiffusionPolicy:
    return MaskedDiffusionPolicy(checkpoint, Unmasking(**rule), schedule)


def keys(count: int) -> Keys:
    return np.arange(count, dtype=np.uint64)


# Laws by enumeration.

LAWS: list[tuple[str, Schedule, dict[str, Any]]] = [
    ("tiny_dream", Schedule(3, 3, 3, 3, "time"), {"remasking": "neg_entropy", "temperature": 0.7}),
    ("tiny_dream", Schedule(3, 2, 3, 2, "time", 0.3), {"remasking": "maskgit_plus", "temperature": 0.6}),
    ("tiny_dream", Schedule(3, 2, 3, 2), {"remasking": "topk_margin", "alg_temp": 0.3}),
    ("tiny_dream", Schedule(4, 4, 2, 2, "time"), {"remasking": "topk_margin", "temperature": 1.5}),
    ("tiny_llada", Schedule(3, 3, 3, 3), {"confidence_eos_eot_inf": True}),
    ("tiny_llada", Schedule(3, 2, 3, 2), {"logits_eos_inf": True}),
    ("tiny_llada", Schedule(3, 3, 3, 3), {"confidence_eos_eot_inf": True, "logits_eos_inf": True, "cfg": 0.5}),
]


@pytest.mark.parametrize(("name", "schedule", "rule"), LAWS, ids=str)
def test_laws_hold_on_a_tiny_network(
    name: str, schedule: Schedule, rule: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    checkpoint = request.getfixturevalue(name)
    policy = policy_with(checkpoint, schedule, **rule)
    oracle = canvas_oracle(checkpoint, schedule, policy.unmasking, shift=SHIFT[checkpoint.config.model_type])
    check_policy(policy, oracle, PROBLEMS, draws=1_000, level=1e-4)


@dataclass(frozen=True)
class OriginOracle:
    """The exact laws of `origin`. Outcomes are (canvas, path, step), because a step may reveal nothing."""

    checkpoint: Checkpoint
    chances: tuple[float, ...]
    guide_steps: int
    length: int = 2

    @property
    def root(self) -> Any:
        return (MASK,) * self.length, (-1,) * self.length, 0

    @property
    def by_path(self) -> OriginOracle:
        return self

    def outcome(self, state: Any) -> Any:
        return state.tokens, state.path, state.step

    def extend_law(self, problem: Problem, outcome: Any) -> Any:
        each = len(self.chances) // self.guide_steps
        return self._until(problem, outcome, (outcome[2] // each + 1) * each)

    def finish_law(self, problem: Problem, outcome: Any) -> Any:
        return self._until(problem, outcome, len(self.chances))

    def _until(self, problem: Problem, outcome: Any, end: int) -> Any:
        law = {outcome: 1.0}
        for step in range(outcome[2], end):
            after: dict[Any, float] = {}
            for (canvas, path, _), before in law.items():
                for node, q in self._step(problem, canvas, path, step):
                    after[node] = after.get(node, 0.0) + before * q
            law = after
        full = len(self.chances)  # a full canvas has no step left
        return {(c, p, full if MASK not in c else s): q for (c, p, s), q in law.items()}

    def _step(self, problem: Problem, canvas: Any, path: Any, step: int) -> Any:
        prompt = self.checkpoint.tokenizer(problem.prompt)["input_ids"]
        logits = whole_logits(self.checkpoint.model, prompt, canvas, 1)
        logits[:, MASK] = -math.inf
        p = logits.softmax(-1).tolist()
        choices: list[list[tuple[int, int, float]]] = []
        for j, token in enumerate(canvas):
            if token != MASK:
                choices.append([(token, path[j], 1.0)])
            else:
                drawn = [(v, step, self.chances[step] * p[j][v]) for v in range(MASK)]
                choices.append([(MASK, -1, 1 - self.chances[step]), *drawn])
        for chosen in product(*choices):
            if q := math.prod(each[2] for each in chosen):
                yield (tuple(each[0] for each in chosen), tuple(each[1] for each in chosen), step + 1), q


def chances_of(steps: int, eps: float) -> tuple[float, ...]:
    times = [1 - n * (1 - eps) / steps for n in range(steps + 1)]
    return (*(1 - s / t for t, s in pairwise(times[:-1])), 1.0)


@pytest.mark.parametrize("even", [False, True])
def test_the_laws_of_origin_hold_on_a_tiny_network(even: bool, tiny_dream: Checkpoint) -> None:
    """A guide step reveals a random number of positions, perhaps none."""
    schedule = Schedule(2, 2, 2, 2) if even else ORIGIN
    policy = policy_with(tiny_dream, schedule, remasking="origin")
    oracle = OriginOracle(tiny_dream, (0.5, 1.0) if even else chances_of(4, 0.2), 2)
    check_policy(policy, oracle, PROBLEMS, draws=1_500, level=1e-4)


@pytest.mark.parametrize("mutation", ["times", "last step"])
def test_other_times_turn_the_laws_of_origin_red(
    mutation: str, tiny_dream: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    chances = chances_of(4, 0.5) if mutation == "times" else (*chances_of(4, 0.2)[:3], 0.9)
    policy = policy_with(tiny_dream, ORIGIN, remasking="origin")
    with pytest.raises((AssertionError, KeyError)):
        check_policy(policy, OriginOracle(tiny_dream, chances, 2), PROBLEMS, draws=1_500, level=1e-4)


def test_a_dropped_suppression_turns_the_laws_red(tiny_llada: Checkpoint) -> None:
    for rule in ({"confidence_eos_eot_inf": True}, {"logits_eos_inf": True}):
        policy = policy_with(tiny_llada, Schedule(3, 3, 3, 3))
        oracle = canvas_oracle(tiny_llada, policy.schedule, Unmasking(**rule))  # type: ignore[arg-type]
        with pytest.raises((AssertionError, KeyError)):
            check_policy(policy, oracle, PROBLEMS, draws=1_000, level=1e-4)


# Work and determinism.


def test_a_step_of_origin_that_reveals_nothing_computes_nothing(tiny_dream: Checkpoint) -> None:
    policy = policy_with(tiny_dream, Schedule(2, 200, 2, 1, "time"), remasking="origin")
    draws = policy.finish(policy.start(PROBLEMS[:1]) * 20, keys(20))
    different = {(draw.state.tokens, draw.state.path) for draw in draws}
    assert len({min(path) for _, path in different}) > 5  # first steps that reveal something differ
    assert policy.ledger.row_forwards <= 1 + 20  # the empty canvas once for all rows, and one more for each row
    assert policy.ledger.generated == 40 and all(MASK not in draw.state.tokens for draw in draws)


def test_steps_with_the_quota_zero_are_left_out(tiny_dream: Checkpoint) -> None:
    policy = policy_with(tiny_dream, Schedule(4, 4, 4, 4, "time"), remasking="neg_entropy")
    (state,) = policy.start(PROBLEMS[:1])
    found: list[Any] = []
    while not state.done:
        state = policy.extend([state], keys(1))[0].state
        found.append(sum(token != MASK for token in state.tokens))  # type: ignore[attr-defined]
    assert found == [1, 2, 4] and policy.ledger.row_forwards == 3


@pytest.mark.parametrize(
    "rule",
    [
        {"remasking": "origin"},
        {"remasking": "neg_entropy", "alg_temp": 0.5},
        {"remasking": "maskgit_plus", "confidence_eos_eot_inf": True},
    ],
    ids=str,
)
def test_results_do_not_depend_on_the_width(rule: dict[str, Any], tiny_dream: Checkpoint) -> None:
    found = []
    for width in (1, 32):
        policy = policy_with(tiny_dream, Schedule(4, 8, 4, 2, "time"), **rule)
        chains = run(policy, guided(2, 2), PROBLEMS, width=width, seed=0, samples=3)
        found.append(sorted((c.problem.id, c.sample, c.state.tokens, c.state.path, c.state.step) for c in chains))
    assert found[0] == found[1] and len(found[0]) == 6


def test_without_end_tokens_no_text_ends_and_certainty_is_finite(tiny_llada: Checkpoint) -> None:
    policy = MaskedDiffusionPolicy(tiny_llada, Unmasking(logits_eos_inf=True), Schedule(4, 4, 4, 1), certainty=True)
    draws = policy.finish(policy.start(PROBLEMS[:1]) * 100, keys(100))
    assert all(END not in draw.state.tokens and len(draw.text.text) == 4 for draw in draws)
    assert all(math.isfinite(draw.text.certainty.self_certainty) for draw in draws if draw.text.certainty)


def test_at_temperature_zero_dreams_rules_are_those_of_the_untempered_distribution(tiny_dream: Checkpoint) -> None:
    policy = policy_with(tiny_dream, Schedule(3, 3, 3, 3, "time"), remasking="neg_entropy", temperature=0)
    (draw,) = policy.finish(policy.start(PROBLEMS[:1]), keys(1))
    prompt = tiny_dream.tokenizer(PROBLEMS[0].prompt)["input_ids"]
    logits = whole_logits(tiny_dream.model, prompt, (MASK,) * 3, 1)
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    logits[:, MASK] = -math.inf
    first = int(entropy.argmin())
    state: Any = draw.state
    assert min(state.path) == state.path[first] and state.tokens[first] == int(logits[first].argmax())
    assert draw.logp == 0.0


def published_loop(model: Any, prompt: list[int], length: int, steps: int, rule: str, mask: int) -> list[int]:
    """Dream's sampler at temperature 0 over the whole canvas, whose draws exclude the mask token."""
    canvas, times = torch.full((length,), mask), torch.linspace(1, 1e-3, steps + 1)
    for i in range(steps):
        masked = (canvas == mask).nonzero()[:, 0]
        p = whole_logits(model, prompt, canvas.tolist(), 1)[masked].softmax(-1)
        ranked = p.sort(descending=True).values
        p[:, mask] = 0
        confidence, tokens = p.max(-1)
        scores = {
            "maskgit_plus": confidence,
            "topk_margin": ranked[:, 0] - ranked[:, 1],
            "neg_entropy": (ranked * ranked.log()).sum(-1),
        }[rule]
        count = int(len(masked) * (1 - times[i + 1] / times[i])) if i < steps - 1 else len(masked)
        best = scores.topk(count).indices
        canvas[masked[best]] = tokens[best]
    return canvas.tolist()


@pytest.mark.parametrize("rule", ["maskgit_plus", "topk_margin", "neg_entropy"])
@pytest.mark.parametrize("steps", [24, 7])
def test_the_texts_are_those_of_the_published_loop_token_for_token(rule: str, steps: int) -> None:
    alphabet = ("<end>", *(f"<{number}>" for number in range(38)), "a", "<mask>")
    checkpoint = Checkpoint.loaded(random_dream(len(alphabet), end=0), tiny_tokenizer(alphabet))
    policy = policy_with(checkpoint, Schedule(24, steps, 24, 1, "time"), remasking=rule, temperature=0)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    (draw,) = policy.finish(policy.start([Problem("p", tuple(prompt))]), keys(1))
    expected = published_loop(checkpoint.model, prompt, 24, steps, rule, len(alphabet) - 1)
    assert list(draw.state.tokens) == expected and len(set(expected)) > 3


# Ratios.

RATIOS: list[tuple[Schedule, dict[str, Any]]] = [
    (Schedule(4, 8, 4, 2, "time"), {"remasking": "origin", "temperature": 0.8}),
    (Schedule(4, 2, 4, 2), {"remasking": "margin", "alg_temp": 0.4}),
    (Schedule(4, 3, 4, 1, "time"), {"remasking": "maskgit_plus", "temperature": 0.7}),
    (Schedule(4, 2, 4, 1), {"confidence_eos_eot_inf": True, "logits_eos_inf": True}),
]


@pytest.mark.parametrize(("schedule", "rule"), RATIOS, ids=str)
def test_the_probability_of_a_path_is_the_recorded_one(
    schedule: Schedule, rule: dict[str, Any], tiny_dream: Checkpoint
) -> None:
    policy = policy_with(tiny_dream, schedule, **rule)
    (start,) = policy.start(PROBLEMS[:1])
    draws = policy.finish([start] * 30, keys(30))
    paths = [path_steps(start, draw.state, MASK) for draw in draws]  # type: ignore[arg-type]
    for path, draw, found in zip(paths, draws, path_probabilities(policy, paths), strict=True):
        recorded = draw.state.step_logps[[step.step for step in path]]  # type: ignore[attr-defined]
        assert np.stack((found.tokens, found.positions), 1) == pytest.approx(recorded, abs=1e-9)


@pytest.mark.parametrize("rule", [{"remasking": "origin"}, {"remasking": "neg_entropy", "alg_temp": 0.5}], ids=str)
def test_weights_of_level_1f_average_to_one(rule: dict[str, Any], tiny_dream: Checkpoint) -> None:
    """Over all paths of two positions: Σ q(path) w(path) = 1, by the average over 2,000 draws within 6 deviations."""
    exact = policy_with(tiny_dream, Schedule(2, 4, 2, 2, "time", 0.2), **rule)
    weighed: Any = fast_sampler_of(exact, "1F", temperature=1.5)
    draws = weighed.finish(weighed.start(PROBLEMS[:1]) * 2_000, keys(2_000))
    weights = np.exp([draw.text.log_ratio for draw in draws])
    assert weights.std() > 0.05
    assert abs(weights.mean() - 1) < 6 * weights.std() / math.sqrt(len(weights))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"remasking": "neg_entropy"}, "'neg_entropy' either side reveals one set with certainty"),
        ({"remasking": "topk_margin"}, "'topk_margin' either side reveals one set with certainty"),
    ],
)
def test_a_rule_without_full_support_is_refused_at_level_1f(
    rule: dict[str, Any], message: str, tiny_dream: Checkpoint
) -> None:
    exact = policy_with(tiny_dream, Schedule(4, 4, 4, 2, "time"), **rule)
    with pytest.raises(InputError, match=message):
        fast_sampler_of(exact, "1F", temperature=0.5)


def test_two_samplers_have_one_suppression_and_one_schedule(tiny_dream: Checkpoint) -> None:
    def sampler(schedule: Schedule = ORIGIN, **rule: Any) -> MaskedDiffusionPolicy:
        return policy_with(tiny_dream, schedule, **rule)

    with pytest.raises(InputError, match="the other does not; make logits_eos_inf equal"):
        LevelWeigher(sampler(), sampler(logits_eos_inf=True), "1F")
    with pytest.raises(InputError, match="one rule on both sides; make confidence_eos_eot_inf equal"):
        LevelWeigher(sampler(), sampler(confidence_eos_eot_inf=True), "1F")
    with pytest.raises(InputError, match="one schedule on both sides; make quotas and eps equal"):
        LevelWeigher(sampler(), sampler(Schedule(2, 4, 2, 2, "time", 0.1)), "1F")


# Settings.


def test_the_family_sets_the_schedule(tiny_dream: Checkpoint, tiny_llada: Checkpoint) -> None:
    def schedule(checkpoint: Checkpoint, **values: Any) -> Schedule:
        return policy_of(lambda: checkpoint, max_length=64, guide_steps=4, **values).schedule  # type: ignore[no-any-return]

    assert schedule(tiny_dream) == Schedule(64, 64, 64, 4, "time", 1e-3)
    assert schedule(tiny_dream, quotas="even", block_length=32) == Schedule(64, 64, 32, 4)
    assert schedule(tiny_llada, quotas="time", eps=0.01) == Schedule(64, 64, 32, 4, "time", 0.01)
    assert schedule(tiny_dream, steps=128).steps == 128


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"eps": 0.01, "quotas": "even"},
            "eps is 0.01, but even quotas have no times; leave eps out, or set quotas to",
        ),
        ({"eps": 0.0}, "eps is 0.0; it must be above 0 and below 1"),
        ({"eps": 1}, "eps is 1; it must be above 0 and below 1"),
        ({"quotas": "odd"}, "unknown quotas 'odd'; choose from even, time"),
        ({"remasking": "entropy", "alg_temp": 0.5, "steps": 4}, "reveals 1[3-9] positions, .* raise steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(
    values: dict[str, Any], message: str, tiny_dream: Checkpoint
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        policy_of(lambda: tiny_dream, max_length=64, guide_steps=4, **values)
    assert "\n" not in str(caught.value)
