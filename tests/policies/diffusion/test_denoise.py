"""One denoising step, against its definition: every draw of a tiny vocabulary, ranked in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import permutations, product
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ets.policies.diffusion import remasking as rules
from ets.policies.diffusion.denoise import Revealed, Schedule, denoise
from ets.policies.diffusion.remasking import RULES, Drawn, Turn
from ets.policies.settings import Unmasking
from ets.testing import check_law
from ets.types import InputError

Outcome: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""What a step reveals: the positions and their tokens."""

MASK, VOCABULARY, POSITIONS = 1, 4, 3
TEMPERATURES = (0.5, 1.0, 2.0)


def random_logits(positions: int = POSITIONS, canvases: int = 1, seed: int = 0) -> torch.Tensor:
    """The mask token has the highest logit of all: it must be left out, not just be unlikely."""
    logits = torch.randn(canvases, positions, VOCABULARY, dtype=torch.float64, generator=torch.manual_seed(seed))
    logits[..., MASK] = 3.0
    return logits


def tied_logits(positions: int = POSITIONS) -> torch.Tensor:
    """Confidences tie within each position, and across the first and the last; margins tie at 0."""
    rows = [[2.0, 4.0, 2.0, 0.0], [1.0, 3.0, 1.0, 1.0], [2.0, 4.0, 2.0, 0.0], [1.0, 3.0, 1.0, 0.0]]
    return torch.tensor(rows[:positions], dtype=torch.float64)[None]


def identical_logits(positions: int = POSITIONS) -> torch.Tensor:
    """All positions tie whenever they draw the same token."""
    return random_logits(1).expand(1, positions, VOCABULARY).contiguous()


def confident_logits(positions: int = POSITIONS) -> torch.Tensor:
    """Confidences on both sides of a half."""
    logits = 2 * random_logits(positions, seed=3)
    logits[..., MASK] = -1.0
    return logits


LOGITS = {
    "random": random_logits,
    "tied": tied_logits,
    "identical": identical_logits,
    "confident": confident_logits,
}


def sampled_law(logits: torch.Tensor, temperature: float) -> list[list[float]]:
    """p `[n, V]` of a canvas, in plain Python."""
    laws = []
    for row in logits.tolist():
        tokens = [v for v in range(VOCABULARY) if v != MASK]
        if temperature == 0:
            top = max(tokens, key=lambda v: (row[v], -v))
            laws.append([float(v == top) for v in range(VOCABULARY)])
        else:
            weights = [math.exp(row[v] / temperature) if v != MASK else 0.0 for v in range(VOCABULARY)]
            laws.append([weight / sum(weights) for weight in weights])
    return laws


def score(rule: str, log_q: Sequence[float], token: int) -> float:
    """How a rule ranks a token drawn at a position, from the untempered distribution there."""
    if rule == "sequential":
        return 0.0  # ties go to the left
    if rule == "low_confidence":
        return log_q[token]
    if rule == "largest":
        return max(value for v, value in enumerate(log_q) if v != MASK)
    q = [math.exp(value) for v, value in enumerate(log_q) if v != MASK]
    q = [value / sum(q) for value in q]
    if rule == "margin":
        return sorted(q)[-1] - sorted(q)[-2]
    return sum(value * math.log(value) for value in q)


def count(scores: Sequence[float], quota: int, threshold: float | None = None, factor: float | None = None) -> int:
    """How many of the best scores are revealed: the quota, and beyond it those that parallel decoding lets through."""
    ranked, n = sorted(scores, reverse=True), quota
    if threshold is not None:
        n = max(quota, sum(value >= math.log(threshold) for value in scores))
    if factor is not None:
        while n < len(ranked) and (n + 2) * (1 - math.exp(ranked[n])) <= factor:
            n += 1
    return n


def every_draw(
    logits: torch.Tensor, rule: str, temperature: float, quota: int, **parallel: float
) -> Iterator[tuple[float, list[float], tuple[float, ...], Outcome]]:
    """Each draw of a canvas `[n, V]`: its probability, uniforms that cause it, orders, and what is revealed."""
    laws, n = sampled_law(logits, temperature), len(logits)
    log_q = logits.log_softmax(-1).tolist()
    orders = list(permutations([0.1 + 0.2 * i for i in range(n)])) if rule == "random" else [(0.5,) * n]
    for tokens in product(range(VOCABULARY), repeat=n):
        probability = math.prod(law[v] for law, v in zip(laws, tokens, strict=True))
        if probability > 0:
            uniforms = [sum(law[:v]) + law[v] / 2 for law, v in zip(laws, tokens, strict=True)]
            for order in orders:
                scores = order if rule == "random" else [score(rule, *at) for at in zip(log_q, tokens, strict=True)]
                ranked = sorted(range(n), key=lambda i: (-scores[i], i))
                revealed = tuple(sorted(ranked[: count(scores, quota, **parallel)]))
                yield probability / len(orders), uniforms, order, (revealed, tuple(tokens[i] for i in revealed))


def step(logits: torch.Tensor, quota: int, uniforms: Any, orders: Any, unmasking: Unmasking) -> Revealed:
    """Rows that all have the one canvas."""
    wide = torch.tensor(uniforms, dtype=torch.float64)
    orders, rows = torch.tensor(orders, dtype=torch.float64), len(wide)
    canvas, quotas = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), quota)
    return denoise(Turn(logits, MASK, canvas, quotas, wide, orders), unmasking)


def outcomes(revealed: Revealed) -> list[Outcome]:
    found = []
    for tokens, chosen in zip(revealed.tokens.tolist(), revealed.positions.tolist(), strict=True):
        positions = tuple(i for i, yes in enumerate(chosen) if yes)
        found.append((positions, tuple(tokens[i] for i in positions)))
    return found


def check_step(
    logits: torch.Tensor, rule: str, temperature: float, quota: int, **parallel: float
) -> dict[Outcome, float]:
    """Raise AssertionError unless every draw reveals what the rule says, at the probability that all draws add up to.

    Returns the exact law of the outcomes.
    """
    draws = list(every_draw(logits[0], rule, temperature, quota, **parallel))
    law: dict[Outcome, float] = {}
    for probability, _, _, outcome in draws:
        law[outcome] = law.get(outcome, 0.0) + probability
    _, uniforms, orders, expected = zip(*draws, strict=True)
    revealed = step(logits, quota, uniforms, orders, Unmasking(temperature, rule, **parallel))
    assert outcomes(revealed) == list(expected)
    recorded = dict(zip(expected, (revealed.token_logp + revealed.position_logp).exp().tolist(), strict=True))
    assert recorded == pytest.approx(law, abs=1e-13)
    assert abs(sum(recorded.values()) - 1) < 1e-12
    return law


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("quota", range(1, POSITIONS + 1))
@pytest.mark.parametrize("kind", LOGITS)
def test_probabilities_of_all_outcomes_are_those_of_all_draws(
    kind: str, quota: int, temperature: float, rule: str
) -> None:
    check_step(LOGITS[kind](), rule, temperature, quota)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("positions", [1, 2, 4])
def test_blocks_of_other_lengths(positions: int, rule: str) -> None:
    for quota in range(1, positions + 1):
        for kind in ("random", "tied"):
            check_step(LOGITS[kind](positions), rule, 1.0, quota)


CONFIDENT = [name for name, rule in RULES.items() if rule.confident]
PARALLEL: list[dict[str, float]] = [
    {name: value} for name, values in (("threshold", (0.12, 0.3, 0.5)), ("factor", (0.8, 1.5, 2.6))) for value in values
]
PARALLEL_IDS = [f"{name}{value}" for given in PARALLEL for name, value in given.items()]


@pytest.mark.parametrize("parallel", PARALLEL, ids=PARALLEL_IDS)
@pytest.mark.parametrize("rule", CONFIDENT)
@pytest.mark.parametrize("kind", LOGITS)
def test_parallel_decoding_has_the_probabilities_of_all_draws(kind: str, rule: str, parallel: dict[str, float]) -> None:
    """Whatever the quota, and as many positions as there are masked."""
    for quota in range(1, POSITIONS + 1):
        for temperature in TEMPERATURES:
            check_step(LOGITS[kind](), rule, temperature, quota, **parallel)
    check_step(LOGITS[kind](1), rule, 1.0, 1, **parallel)


def test_parallel_decoding_reveals_one_or_more_in_the_tests_above() -> None:
    """Otherwise they would say nothing about it."""
    for parallel in ({"threshold": 0.3}, {"factor": 1.5}):
        law = check_step(confident_logits(), "low_confidence", 1.0, 1, **parallel)
        assert {len(positions) for positions, _ in law} == {1, 2, 3}


def test_a_threshold_is_reached_by_equal_confidence() -> None:
    """All are 1/4."""
    logits = torch.zeros(1, POSITIONS, VOCABULARY, dtype=torch.float64)
    for rule in CONFIDENT:
        law = check_step(logits, rule, 1.0, 1, threshold=0.25)
        assert {len(positions) for positions, _ in law} == {POSITIONS}


grid = st.sampled_from([-2.0, -1.0, 0.0, 1.0])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.lists(grid, min_size=4, max_size=4), min_size=2, max_size=3), st.sampled_from([0.5, 1.0]), st.data())
def test_coarse_logits_tie_everywhere(rows: list[list[float]], temperature: float, data: st.DataObject) -> None:
    quota = data.draw(st.integers(1, len(rows)))
    logits = torch.tensor([rows], dtype=torch.float64)
    for rule in ("low_confidence", "random"):
        check_step(logits, rule, temperature, quota)
    level = data.draw(st.sampled_from([0.1, 0.25, 0.4, 1.0]))
    check_step(logits, "low_confidence", temperature, quota, threshold=level)
    check_step(logits, "low_confidence", temperature, quota, factor=3 * level)


def test_the_tied_logits_tie_within_and_across_positions() -> None:
    """Otherwise the tests above would say nothing about ties."""
    log_q = tied_logits()[0].log_softmax(-1)
    assert log_q[0, 0] == log_q[0, 2] == log_q[2, 0] and log_q[1, 0] == log_q[1, 3]
    law = check_step(tied_logits(), "low_confidence", 1.0, 1)
    first, last = law[(0,), (0,)], law[(2,), (0,)]
    assert first > 2 * last > 0  # the last is revealed with this token only if the first drew a worse one


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("quota", range(1, POSITIONS + 1))
@pytest.mark.parametrize("kind", LOGITS)
def test_at_temperature_zero_there_is_one_outcome(kind: str, quota: int, rule: str) -> None:
    """But for the random order, of which every set is one."""
    law = check_step(LOGITS[kind](), rule, 0, quota)
    assert len(law) == (math.comb(POSITIONS, quota) if rule == "random" else 1)


@pytest.mark.parametrize("rule", RULES)
def test_simulated_steps_follow_the_law_of_all_draws(rule: str) -> None:
    logits, draws = tied_logits(), 30_000
    generator = torch.manual_seed(0)
    numbers = torch.rand(2, draws, POSITIONS, dtype=torch.float64, generator=generator)
    revealed = step(logits, 2, *numbers.tolist(), Unmasking(0.5, rule))
    check_law(outcomes(revealed), check_step(logits, rule, 0.5, 2), level=1e-4)


def test_without_the_position_term_low_confidence_is_no_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token probabilities alone add up to 1.9 here."""
    monkeypatch.setattr(rules, "_lost", lambda *of: torch.zeros(len(of[3]), dtype=torch.float64))
    draws = list(every_draw(random_logits()[0], "low_confidence", 1.0, 1))
    _, uniforms, orders, expected = zip(*draws, strict=True)
    revealed = step(random_logits(), 1, uniforms, orders, Unmasking(1.0))
    recorded = dict(zip(expected, (revealed.token_logp + revealed.position_logp).exp().tolist(), strict=True))
    assert sum(recorded.values()) > 1.5


@pytest.mark.parametrize("parallel", [{"threshold": 0.3}, {"factor": 1.5}])
def test_a_position_term_that_forgets_the_next_bar_is_seen(
    parallel: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not revealed scored below the lowest of S, and missed the bar beside."""
    right = rules._lost
    monkeypatch.setattr(rules, "_lost", lambda *of: right(*of[:-1], torch.full_like(of[-1], math.inf)))
    with pytest.raises(AssertionError):
        check_step(confident_logits(), "low_confidence", 1.0, 1, **parallel)


@pytest.mark.parametrize("rule", RULES)
def test_the_position_term_of_a_set_that_the_rule_cannot_reveal_is_minus_infinity(rule: str) -> None:
    """Each set with each draw of it has the probability that all draws add up to, whatever is left in the others."""
    logits, total = confident_logits(), 0.0
    parallel = {"threshold": 0.3} if RULES[rule].confident else {}
    unmasking, law = Unmasking(1.0, rule, **parallel), check_step(logits, rule, 1.0, 1, **parallel)
    one = torch.zeros(1, dtype=torch.int64)
    for chosen in list(product([False, True], repeat=POSITIONS))[1:]:
        places = tuple(i for i, yes in enumerate(chosen) if yes)
        for tokens in product([v for v in range(VOCABULARY) if v != MASK], repeat=len(places)):
            drawn = torch.zeros(1, POSITIONS, dtype=torch.int64)
            drawn[0, list(places)] = torch.tensor(tokens)
            turn = Turn(logits, MASK, one, one + 1, torch.zeros(1, POSITIONS), torch.zeros(1, POSITIONS))
            p = unmasking.probabilities(logits, MASK)
            term = RULES[rule].term(Drawn(turn, p, drawn, unmasking.bars(one + 1, POSITIONS)), torch.tensor([chosen]))
            q = math.prod(float(p[0, i, v]) for i, v in zip(places, tokens, strict=True)) * float(term.exp())
            assert q == pytest.approx(law.get((places, tokens), 0.0), abs=1e-13)
            total += q
    assert abs(total - 1) < 1e-12


@pytest.mark.parametrize("change", ["ties lost to the left only", "ties never lost", "ties always lost"])
def test_a_wrong_tie_in_the_position_term_is_seen(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each wrong rule moves the scores by a hair before the lost ones are counted."""
    right = rules._lost

    def wrong(log_q: Any, probabilities: Any, scores: Any, chosen: Any, bars: Any) -> Any:
        if change == "ties lost to the left only":
            return right(*(of.flip(1) for of in (log_q, probabilities, scores, chosen)), bars)
        return right(log_q, probabilities, scores + (-1e-9 if change == "ties never lost" else 1e-9), chosen, bars)

    monkeypatch.setattr(rules, "_lost", wrong)
    with pytest.raises(AssertionError):
        check_step(tied_logits(), "low_confidence", 1.0, 1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_rows_that_share_a_canvas_equal_rows_of_their_own(rule: str, temperature: float) -> None:
    """Rows of three canvases, in unequal numbers and with quotas of their own, to the last bit."""
    logits, canvas = random_logits(canvases=3), torch.tensor([0, 0, 1, 2, 2, 2])
    logits[2] = tied_logits()[0]
    quota = torch.tensor([1, 2, 3, 1, 2, 3])
    numbers = torch.rand(2, 6, POSITIONS, dtype=torch.float64, generator=torch.manual_seed(1))
    unmasking = Unmasking(temperature, rule)
    shared = denoise(Turn(logits, MASK, canvas, quota, *numbers), unmasking)
    alone = denoise(Turn(logits[canvas], MASK, torch.arange(6), quota, *numbers), unmasking)
    for name in vars(shared):
        assert torch.equal(getattr(shared, name), getattr(alone, name)), name
    assert shared.positions.sum(-1).tolist() == quota.tolist()


def test_the_callers_logits_are_left_as_they_are() -> None:
    logits = random_logits()
    before = logits.clone()
    for rule in RULES:
        for temperature in (0, 0.5):
            step(logits, 1, [[0.5] * POSITIONS], [[0.5] * POSITIONS], Unmasking(temperature, rule))
            assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_the_mask_token_is_never_drawn(temperature: float) -> None:
    """Not by the uniforms on its edges either, nor at infinity."""
    logits = random_logits()
    logits[..., MASK] = 1e6
    assert Unmasking(temperature).probabilities(logits, MASK)[..., MASK].tolist() == [[0.0] * POSITIONS]
    grid = [[i / 999] * POSITIONS for i in range(999)] + [[1 - 2**-53] * POSITIONS]
    assert MASK not in step(logits, POSITIONS, grid, grid, Unmasking(temperature)).tokens
    logits[..., MASK] = math.inf
    assert MASK not in Unmasking(temperature).probabilities(logits, MASK).argmax(-1)


def test_confidence_is_untempered_and_counts_the_mask_token() -> None:
    """At the first position the token is likelier among tokens, at the second against the mask token as well."""
    logits = torch.tensor([[[3.0, 3.0, 0.0, 0.0], [2.0, 0.0, 0.5, 0.5]]], dtype=torch.float64)
    p = Unmasking(1.0).probabilities(logits, MASK)[0, :, 0]
    assert p[0] > p[1]
    revealed = step(logits, 1, [[0.1, 0.1]], [[0.5, 0.5]], Unmasking(1.0))
    assert outcomes(revealed) == [((1,), (0,))]


def test_confidences_near_one_are_told_apart() -> None:
    """In float32 all three are 1; the second is the best by 1e-9."""
    logits = torch.zeros(1, POSITIONS, VOCABULARY)
    logits[0, :, 0] = torch.tensor([20.0, 21.0, 20.5])
    assert logits.softmax(-1)[0, :, 0].tolist() == [1.0] * POSITIONS
    likeliest = [[0.1] * POSITIONS]
    assert outcomes(step(logits, 1, likeliest, likeliest, Unmasking(1.0))) == [((1,), (0,))]


def test_logits_of_low_precision_are_widened_before_they_are_compared() -> None:
    """Equal bfloat16 logits with other normalisers are other confidences."""
    logits = torch.tensor([[[30.0, 0.0, 24.0, 0.0], [30.0, 0.0, 22.0, 0.0]]], dtype=torch.bfloat16)
    revealed = step(logits, 1, [[0.1, 0.1]], [[0.5, 0.5]], Unmasking(1.0))
    assert outcomes(revealed) == [((1,), (0,))]
    assert revealed.token_logp.dtype == revealed.position_logp.dtype == torch.float64


@pytest.mark.parametrize(
    ("scores", "quota", "expected"),
    [
        ([0.5, 0.5, 0.5, 0.5], 2, [0, 1]),
        ([0.1, 0.5, 0.5, 0.5], 2, [1, 2]),
        ([0.5, 0.9, 0.5, 0.1], 2, [0, 1]),
        ([0.1, 0.2, 0.3, 0.4], 3, [1, 2, 3]),
        ([-math.inf, -1.0, -math.inf, -math.inf], 2, [0, 1]),
        ([0.1, 0.2, 0.3, 0.4], 4, [0, 1, 2, 3]),
    ],
)
def test_ties_go_to_the_lower_position(scores: list[float], quota: int, expected: list[int]) -> None:
    found = rules.best(torch.tensor([scores, scores]), torch.tensor([quota, 1]))
    assert found[0].nonzero().flatten().tolist() == expected
    assert found[1].sum() == 1


def test_ties_go_to_the_lower_position_in_long_blocks() -> None:
    """Sorting that is not stable keeps order among few elements by accident."""
    found = rules.best(torch.zeros(1, 1000), torch.tensor([400]))
    assert found[0].nonzero().flatten().tolist() == list(range(400))


@settings(derandomize=True, max_examples=200)
@given(st.integers(1, 6), st.integers(1, 12), st.data())
def test_quotas_are_even_with_the_remainder_first(blocks: int, length: int, data: st.DataObject) -> None:
    per_block = data.draw(st.integers(1, length))
    schedule = Schedule(blocks * length, blocks * per_block, length, guide_steps=1)
    quotas = [schedule.quota(step) for step in range(schedule.steps)]
    places = [schedule.block_of(step) for step in range(schedule.steps)]
    for block in range(blocks):
        own = slice(block * per_block, (block + 1) * per_block)
        assert quotas[own] == sorted(quotas[own], reverse=True)
        assert max(quotas[own]) - min(quotas[own]) <= 1 and min(quotas[own]) >= 1
        assert sum(quotas[own]) == length
        assert set(places[own]) == {(block * length, (block + 1) * length)}


@settings(derandomize=True, max_examples=100)
@given(st.integers(1, 4), st.integers(1, 8), st.data())
def test_guide_steps_end_with_as_many_positions_as_their_steps_reveal(
    blocks: int, length: int, data: st.DataObject
) -> None:
    steps = blocks * data.draw(st.integers(1, length))
    schedule = Schedule(blocks * length, steps, length, data.draw(st.sampled_from(divisors(steps))))
    revealed = 0
    for step in range(steps):
        if step % schedule.steps_per_guide_step == 0:
            boundary = schedule.boundary(revealed)
        assert all(schedule.boundary(n) == boundary for n in range(revealed, revealed + schedule.quota(step)))
        revealed += schedule.quota(step)
    assert boundary == revealed == schedule.gen_length


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def test_a_full_block_leaves_out_the_rest_of_its_steps() -> None:
    schedule = Schedule(12, 9, 4, guide_steps=1)
    steps = np.arange(9)
    assert schedule.step_after(steps, steps < 0).tolist() == list(range(1, 10))
    assert schedule.step_after(steps, steps >= 0).tolist() == [3] * 3 + [6] * 3 + [9] * 3


def test_guide_steps_split_the_steps_inside_and_across_blocks() -> None:
    assert Schedule(32, 16, 8, guide_steps=2).steps_per_guide_step == 8  # two blocks each
    assert Schedule(32, 16, 8, guide_steps=8).steps_per_guide_step == 2  # half a block each
    assert Schedule(12, 6, 4, guide_steps=2).steps_per_guide_step == 3  # a block and a half each


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((30, 8, 8, 1), "gen_length 30 is no multiple of block_length 8"),
        ((8, 8, 16, 1), "gen_length 8 is no multiple of block_length 16"),
        ((32, 6, 8, 1), "steps 6 is no multiple of the 4 blocks"),
        ((32, 2, 8, 1), "steps 2 is no multiple of the 4 blocks"),
        ((32, 64, 8, 1), "steps 64 are more than the 32 tokens"),
        ((32, 16, 8, 3), "guide_steps 3 does not divide steps 16"),
        ((32, 16, 8, 32), "guide_steps 32 does not divide steps 16"),
        ((0, 1, 1, 1), "gen_length is 0"),
        ((8, 0, 8, 1), "steps is 0"),
        ((8, 8, -8, 1), "block_length is -8"),
        ((8, 8, 8, 0), "guide_steps is 0"),
        ((8, 8.0, 8, 1), r"steps is 8\.0"),
        ((8, 8, 8, True), "guide_steps is True"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_in_one_line(numbers: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Schedule(*numbers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["temperature", "cfg"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "hot", None])
def test_temperature_and_guidance_out_of_range_are_refused_in_one_line(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}; it must be a finite number of at least 0") as caught:
        Unmasking(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "threshold is 0; it must be a finite number above zero"),
        ({"threshold": 1.5}, "threshold is 1.5, but a confidence is 1 at most"),
        ({"factor": math.nan}, "factor is nan; it must be"),
        ({"threshold": 0.9, "factor": 1.0}, "threshold 0.9 and factor 1.0 exclude each other"),
        (
            {"threshold": 0.9, "remasking": "margin"},
            "needs confidences, .* 'margin' .*choose low_confidence or largest",
        ),
        ({"factor": 1.0, "remasking": "random"}, "factor needs confidences"),
    ],
)
def test_parallel_decoding_out_of_range_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Unmasking(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["low-confidence", "topk", "", None])
def test_an_unknown_rule_is_refused_with_those_there_are(rule: Any) -> None:
    with pytest.raises(InputError, match=f"unknown remasking {rule!r}; choose from {', '.join(RULES)}$"):
        Unmasking(remasking=rule)


def test_only_temperature_zero_without_a_random_order_is_deterministic() -> None:
    found = {(t, rule) for t in (0, 0.5) for rule in RULES if Unmasking(t, rule).deterministic}
    assert found == {(0, rule) for rule in RULES if rule != "random"}
