"""One denoising step, against its definition: every draw of a tiny vocabulary, ranked in plain Python."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations, product
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
CHANCE = 0.3
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


def score(rule: str, log_q: Sequence[float], log_tempered: Sequence[float], token: int) -> float:
    """How a rule ranks a token drawn at a position, from the untempered and the tempered distribution there."""
    if rule == "sequential":
        return 0.0  # ties go to the left
    if rule == "low_confidence":
        return log_q[token]
    tempered = sorted(map(math.exp, log_tempered))
    dream = {
        "maskgit_plus": log_tempered[token],
        "topk_margin": tempered[-1] - tempered[-2],
        "neg_entropy": sum(value * math.log(value) for value in tempered if value),
    }
    if rule in dream:
        return dream[rule]
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


def orders_of(rule: str, n: int) -> dict[tuple[float, ...], float]:
    """Numbers that cause each order of positions, or each set of revealed positions, and their probability."""
    if rule == "random":
        return dict.fromkeys(permutations([0.1 + 0.2 * i for i in range(n)]), 1 / math.factorial(n))
    if rule == "origin":
        low, high = CHANCE / 2, (1 + CHANCE) / 2
        sets = product((low, high), repeat=n)
        return {each: math.prod(CHANCE if number == low else 1 - CHANCE for number in each) for each in sets}
    return {(0.5,) * n: 1.0}


def every_draw(
    logits: torch.Tensor, rule: str, temperature: float, quota: int, ends: tuple[int, ...] = (), **parallel: float
) -> Iterator[tuple[float, list[float], tuple[float, ...], Outcome]]:
    """Each draw of a canvas `[n, V]`: its probability, uniforms that cause it, orders, and what is revealed."""
    laws, n = sampled_law(logits, temperature), len(logits)
    confident = logits.clone()
    confident[:, list(ends)] = -math.inf
    log_q, tempered = (of.log_softmax(-1).tolist() for of in (confident, confident / (temperature or 1.0)))
    orders = orders_of(rule, n)
    for tokens in product(range(VOCABULARY), repeat=n):
        probability = math.prod(law[v] for law, v in zip(laws, tokens, strict=True))
        if probability > 0:
            uniforms = [sum(law[:v]) + law[v] / 2 for law, v in zip(laws, tokens, strict=True)]
            for order, share in orders.items():
                drawn = zip(log_q, tempered, tokens, strict=True)
                scores = order if rule in ("random", "origin") else [score(rule, *at) for at in drawn]
                ranked = sorted(range(n), key=lambda i: (-scores[i], i))
                revealed = tuple(sorted(ranked[: count(scores, quota, **parallel)]))
                if rule == "origin":
                    revealed = tuple(i for i in range(n) if order[i] < CHANCE)
                yield probability * share, uniforms, order, (revealed, tuple(tokens[i] for i in revealed))


def step(
    logits: torch.Tensor, quota: int, uniforms: Any, orders: Any, unmasking: Unmasking, ends: tuple[int, ...] = ()
) -> Revealed:
    """Rows that all have the one canvas."""
    wide = torch.tensor(uniforms, dtype=torch.float64)
    orders, rows = torch.tensor(orders, dtype=torch.float64), len(wide)
    canvas, quotas = torch.zeros(rows, dtype=torch.int64), torch.full((rows,), quota)
    chance = chances(rows) if unmasking.remasking == "origin" else None
    return denoise(Turn(logits, MASK, canvas, quotas, wide, orders, chance, ends), unmasking)


def chances(rows: int) -> torch.Tensor:
    return torch.full((rows,), CHANCE, dtype=torch.float64)


def outcomes(revealed: Revealed) -> list[Outcome]:
    found = []
    for tokens, chosen in zip(revealed.tokens.tolist(), revealed.positions.tolist(), strict=True):
        positions = tuple(i for i, yes in enumerate(chosen) if yes)
        found.append((positions, tuple(tokens[i] for i in positions)))
    return found


def check_step(
    logits: torch.Tensor, rule: str, temperature: float, quota: int, ends: tuple[int, ...] = (), **parallel: float
) -> dict[Outcome, float]:
    """Raise AssertionError unless every draw reveals what the rule says, at the probability that all draws add up to.

    Returns the exact law of the outcomes.
    """
    draws = list(every_draw(logits[0], rule, temperature, quota, ends, **parallel))
    law: dict[Outcome, float] = {}
    for probability, _, _, outcome in draws:
        law[outcome] = law.get(outcome, 0.0) + probability
    _, uniforms, orders, expected = zip(*draws, strict=True)
    revealed = step(logits, quota, uniforms, orders, Unmasking(temperature, rule, **parallel), ends)
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
    """Rules that draw positions have an outcome for every set."""
    law = check_step(LOGITS[kind](), rule, 0, quota)
    assert len(law) == {"random": math.comb(POSITIONS, quota), "origin": 2**POSITIONS}.get(rule, 1)


@pytest.mark.parametrize("rule", RULES)
def test_simulated_steps_follow_the_law_of_all_draws(rule: str) -> None:
    logits, draws = tied_logits(), 30_000
    generator = torch.manual_seed(0)
    numbers = torch.rand(2, draws, POSITIONS, dtype=torch.float64, generator=generator)
    revealed = step(logits, 2, *numbers.tolist(), Unmasking(0.5, rule))
    check_law(outcomes(revealed), check_step(logits, rule, 0.5, 2), level=1e-4)


# Suppressed end tokens.

ENDS = {"end": (0,), "end and end of turn": (0, 3), "all but one": (0, 2)}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("rule", CONFIDENT)
@pytest.mark.parametrize("kind", LOGITS)
def test_without_the_confidence_of_end_tokens_the_law_is_that_of_all_draws(kind: str, rule: str, ends: str) -> None:
    for quota in range(1, POSITIONS + 1):
        for temperature in (0, *TEMPERATURES):
            check_step(LOGITS[kind](), rule, temperature, quota, ENDS[ends])
    for parallel in ({"threshold": 0.3}, {"factor": 1.5}, {"factor": 3.2}):
        check_step(LOGITS[kind](), rule, 1.0, 1, ENDS[ends], **parallel)


def test_drawn_end_tokens_are_revealed_last() -> None:
    """At both positions token 0 has nearly all probability; a step reveals it only if all positions drew it."""
    logits = torch.tensor([[[5.0, 0.0, 0.0, 0.0], [6.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    law = check_step(logits, "low_confidence", 1.0, 1, (0,))
    p = [sampled[0] for sampled in sampled_law(logits[0], 1.0)]
    assert sum(q for (_, (token,)), q in law.items() if token == 0) == pytest.approx(p[0] * p[1])
    assert law[(0,), (0,)] == pytest.approx(p[0] * p[1]) and ((1,), (0,)) not in law
    without = check_step(logits, "low_confidence", 1.0, 1)
    assert without[(1,), (0,)] > 0.9


def test_a_dropped_suppression_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Drawn._log_confidences
    monkeypatch.setattr(
        Drawn,
        "_log_confidences",
        lambda self, logits: right(replace(self, turn=replace(self.turn, without_confidence=())), logits),
    )
    with pytest.raises(AssertionError):
        check_step(random_logits(), "low_confidence", 1.0, 1, (0,))


def test_a_confidence_of_minus_infinity_would_lose_ties_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """No score is below -∞, so ties of suppressed tokens need a finite score."""
    monkeypatch.setattr(rules, "LEAST", -math.inf)
    with pytest.raises(AssertionError):
        test_the_position_term_of_a_set_that_the_rule_cannot_reveal_is_minus_infinity("low_confidence", (0,))


# Positions drawn without replacement.

NOISY = [name for name, rule in RULES.items() if rule.by_canvas and not rule.random]


def drawn_without_replacement(weights: Sequence[float], positions: Sequence[int]) -> float:
    """The sum over all orders of a set."""
    total = 0.0
    for order in permutations(positions):
        probability = 1.0
        for n, i in enumerate(order):
            probability *= weights[i] / sum(weight for j, weight in enumerate(weights) if j not in order[:n])
        total += probability
    return total


def noisy_law(logits: torch.Tensor, rule: str, temperature: float, quota: int, alg_temp: float) -> dict[Outcome, float]:
    laws, n = sampled_law(logits[0], temperature), logits.shape[1]
    log_q, tempered = (of[0].log_softmax(-1).tolist() for of in (logits, logits / temperature))
    weights = [math.exp(score(rule, *at, 0) / alg_temp) for at in zip(log_q, tempered, strict=True)]
    law = {}
    for positions in combinations(range(n), quota):
        chance = drawn_without_replacement(weights, positions)
        for tokens in product([v for v in range(VOCABULARY) if v != MASK], repeat=quota):
            drawn = zip(positions, tokens, strict=True)
            law[positions, tokens] = chance * math.prod(laws[i][v] for i, v in drawn)
    return law


@pytest.mark.parametrize("rule", NOISY)
@pytest.mark.parametrize("alg_temp", [0.05, 1.0])
def test_positions_with_noise_are_drawn_without_replacement(rule: str, alg_temp: float) -> None:
    logits, draws = random_logits(), 5_000
    numbers = torch.rand(2, draws, POSITIONS, dtype=torch.float64, generator=torch.manual_seed(0)).tolist()
    for quota in range(1, POSITIONS + 1):
        law = noisy_law(logits, rule, 0.7, quota, alg_temp)
        revealed = step(logits, quota, *numbers, Unmasking(0.7, rule, alg_temp=alg_temp))
        check_law(outcomes(revealed), law, level=1e-4)
        logps = (revealed.token_logp + revealed.position_logp).tolist()
        for outcome, logp in dict(zip(outcomes(revealed), logps, strict=True)).items():
            assert logp == pytest.approx(math.log(law[outcome]), abs=1e-9)
        assert sum(law.values()) == pytest.approx(1)


@pytest.mark.parametrize(("n", "k"), [(5, 1), (5, 3), (5, 5), (7, 6)])
def test_the_probability_of_a_set_sums_over_its_orders(n: int, k: int) -> None:
    """Of weights between 1e-13 and 1e13, for rows with sets of different sizes."""
    log_weights = 30 * torch.rand(4, n, dtype=torch.float64, generator=torch.manual_seed(n)) - 15
    positions = torch.arange(n).expand(4, n) < torch.tensor([[k], [1], [n], [0]])
    found = rules._without_replacement(log_weights, positions)
    for row, (logs, chosen) in enumerate(zip(log_weights.tolist(), positions.tolist(), strict=True)):
        expected = drawn_without_replacement([math.exp(value) for value in logs], [i for i in range(n) if chosen[i]])
        assert found[row].exp() == pytest.approx(expected, rel=1e-6)


def test_an_order_in_place_of_the_set_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probability of one order of two positions is below that of the set."""

    def of_one_order(chosen: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
        ahead = [torch.cat((chosen[:, n:], outside[:, None]), 1).logsumexp(-1) for n in range(chosen.shape[1])]
        return chosen.sum(-1) - torch.stack(ahead).sum(0)

    monkeypatch.setattr(rules, "_all_first", of_one_order)
    with pytest.raises(AssertionError):
        test_positions_with_noise_are_drawn_without_replacement("entropy", 1.0)


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


@pytest.mark.parametrize(("rule", "ends"), [*((rule, ()) for rule in RULES), *((rule, (0,)) for rule in CONFIDENT)])
def test_the_position_term_of_a_set_that_the_rule_cannot_reveal_is_minus_infinity(
    rule: str, ends: tuple[int, ...]
) -> None:
    """Each set with each draw of it has the probability that all draws add up to, whatever is left in the others."""
    logits, total = confident_logits(), 0.0
    parallel = {"threshold": 0.3} if RULES[rule].confident else {}
    unmasking, law = Unmasking(1.0, rule, **parallel), check_step(logits, rule, 1.0, 1, ends, **parallel)
    one = torch.zeros(1, dtype=torch.int64)
    for chosen in product([False, True], repeat=POSITIONS):
        places = tuple(i for i, yes in enumerate(chosen) if yes)
        for tokens in product([v for v in range(VOCABULARY) if v != MASK], repeat=len(places)):
            drawn = torch.zeros(1, POSITIONS, dtype=torch.int64)
            drawn[0, list(places)] = torch.tensor(tokens, dtype=torch.int64)
            unused, chance = torch.zeros(1, POSITIONS), chances(1) if rule == "origin" else None
            turn = Turn(logits, MASK, one, one + 1, unused, unused, chance, ends)
            p = unmasking.probabilities(logits, MASK)
            term = RULES[rule].term(Drawn.under(unmasking, turn, p, drawn), torch.tensor([chosen]))
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
    chance = chances(6) if rule == "origin" else None
    shared = denoise(Turn(logits, MASK, canvas, quota, *numbers, chance), unmasking)
    alone = denoise(Turn(logits[canvas], MASK, torch.arange(6), quota, *numbers, chance), unmasking)
    for name in vars(shared):
        assert torch.equal(getattr(shared, name), getattr(alone, name)), name
    assert rule == "origin" or shared.positions.sum(-1).tolist() == quota.tolist()


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


def published_quotas(length: int, steps: int, eps: float) -> list[int]:
    """The loop of Dream's sampler over a canvas, in float32 as there."""
    times, left, quotas = torch.linspace(1, eps, steps + 1), torch.tensor(length), []
    for i in range(steps):
        now = int(left / 1 * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(left)
        quotas.append(now)
        left = left - now
    return quotas


@pytest.mark.parametrize(
    ("length", "steps", "eps"),
    [(512, 512, 1e-3), (256, 128, 1e-3), (64, 64, 1e-3), (7, 3, 0.2), (5, 20, 1e-3), (100, 1, 1e-3), (48, 48, 1e-5)],
)
def test_the_quotas_of_the_times_are_those_of_the_published_loop(length: int, steps: int, eps: float) -> None:
    schedule = Schedule(length, steps, length, 1, "time", eps)
    quotas = [schedule.quota(step) for step in range(steps)]
    assert quotas == published_quotas(length, steps, eps) and sum(quotas) == length
    following = [next((s for s in range(step, steps) if quotas[s]), steps) for step in range(steps + 1)]
    assert [int(schedule.revealing(step)) for step in range(steps + 1)] == following


def test_some_steps_of_the_times_reveal_nothing_and_guide_steps_without_positions_are_left_out() -> None:
    schedule = Schedule(4, 4, 4, 4, "time")
    assert [schedule.quota(step) for step in range(4)] == [0, 1, 1, 2]
    assert [schedule.boundary(n) for n in range(4)] == [1, 2, 4, 4]
    assert int(schedule.revealing(0)) == 1


def test_each_block_has_the_times_of_its_own_steps() -> None:
    schedule = Schedule(8, 8, 4, 2, "time")
    assert [schedule.quota(step) for step in range(8)] == [0, 1, 1, 2] * 2
    assert schedule.chance(3) == schedule.chance(7) == 1.0


def test_the_chances_are_those_of_the_times() -> None:
    schedule = Schedule(4, 2, 4, 1, "time", 0.2)
    assert [schedule.chance(step) for step in range(2)] == pytest.approx([0.4, 1.0])
    assert [Schedule(6, 6, 3, 1).chance(step) for step in range(6)] == [1 / 3, 1 / 2, 1.0] * 2


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
        ((8, 8, 8, 1, "odd"), "unknown quotas 'odd'; choose from even, time"),
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
        ({"confidence_eos_eot_inf": True, "remasking": "random"}, "confidence_eos_eot_inf needs confidences"),
        ({"confidence_eos_eot_inf": True, "remasking": "entropy"}, "choose low_confidence or largest or maskgit_plus"),
        ({"confidence_eos_eot_inf": 1}, "confidence_eos_eot_inf is 1; it must be True or False"),
        ({"logits_eos_inf": "yes"}, "logits_eos_inf is 'yes'; it must be True or False"),
        ({"alg_temp": -1.0}, "alg_temp is -1.0; it must be a finite number of at least 0"),
        ({"alg_temp": 0.5}, "'low_confidence' ranks drawn tokens: .* not closed; set alg_temp to 0, or choose margin"),
        ({"alg_temp": 0.5, "remasking": "maskgit_plus"}, "'maskgit_plus' ranks drawn tokens: .* is not closed"),
        ({"alg_temp": 0.5, "remasking": "origin"}, "'origin' draws positions already"),
        ({"alg_temp": 0.5, "remasking": "largest", "threshold": 0.5}, "threshold and factor are without noise"),
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
    assert found == {(0, rule) for rule in RULES if rule not in ("random", "origin")}
