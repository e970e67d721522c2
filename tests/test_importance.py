"""Importance sampling with a proposal: the laws that the weights restore, and what breaks them.

Each law test has level 1e-4 and a fixed seed. The reference policy and its proposals differ clearly: another table, or
another temperature.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ets import importance as pairs
from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.randomness import derive
from ets.readouts import rollout_weights
from ets.rewards import agreement_share
from ets.runner import run
from ets.testing import check_law, frequencies, optimal_law, total_variation
from ets.types import Chain, Cost, InputError, Problem, Scored
from ets.weights import log_mean_exp, log_run_weight
from tests.enumerable import PROBLEM, largest_error, lifted, liking
from tests.laws.kernel import kept_law, kernel_law
from tests.laws.masked_tabular import TabularMaskedDiffusion
from tests.laws.tabular import TabularModel
from tests.laws.voting import agreement_share_law

LAM, LEVEL, DRAWS = 0.5, 1e-4, 5_000
FEWER = 1_500
"""Draws of a faulty sampler."""
REFERENCE = {"block_size": 1, "max_length": 3}
PROPOSALS = {"other weights": {"seed": 1}, "other temperature": {"temperature": 2.0}}


def reference() -> TabularModel:
    return TabularModel(**REFERENCE)


def another(name: str) -> TabularModel:
    return TabularModel(**REFERENCE | PROPOSALS[name])


def of_outcome(tokens: tuple[int, ...]) -> float:
    return liking(TabularModel.spelled(tokens))


REWARD = lifted(liking)


def chains(proposal: Any, candidates: int, rollouts: int, draws: int = DRAWS, **options: Any) -> list[Chain]:
    clip = options.pop("clip", None)
    step = energy_guided(REWARD, candidates=candidates, rollouts=rollouts, lam=LAM, **options)
    pair = ImportanceSampling(reference(), proposal, clip)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these proposals are meant to be far off
        return list(run(pair, step, [PROBLEM], width=5000, seed=0, samples=draws))


def law(proposal: TabularModel, candidates: int, rollouts: int) -> Any:
    numbers: dict[str, Any] = {"lam": LAM, "candidates": candidates, "rollouts": rollouts}
    return kernel_law(reference().oracle, PROBLEM, of_outcome, **numbers, proposal=proposal.oracle)


@pytest.mark.parametrize("name", PROPOSALS)
@pytest.mark.parametrize(("candidates", "rollouts"), [(2, 1), (2, 3), (4, 2)])
def test_the_kernel_follows_its_exact_law_with_a_proposal(name: str, candidates: int, rollouts: int) -> None:
    expected = law(another(name), candidates, rollouts)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-9)
    drawn = chains(another(name), candidates, rollouts)
    check_law([chain.state.tokens for chain in drawn], expected, level=LEVEL)


def test_the_exact_law_with_a_proposal_tends_to_the_optimal_law() -> None:
    optimal = optimal_law(reference().oracle.finish_law(PROBLEM, ()), of_outcome, LAM)
    near, nearer, nearest = (total_variation(law(another("other weights"), m, 2), optimal) for m in (128, 256, 512))
    assert near / nearer == pytest.approx(2, abs=0.15)  # the bias goes like 1/M
    assert nearer / nearest == pytest.approx(2, abs=0.15)


def test_a_proposal_that_is_the_policy_itself_changes_no_text() -> None:
    step = energy_guided(REWARD, candidates=3, rollouts=2, lam=LAM)
    plain = list(run(reference(), step, [PROBLEM], width=5000, seed=0, samples=200))
    same = chains(reference(), 3, 2, 200)
    assert [chain.state.tokens for chain in plain] == [chain.state.tokens for chain in same]
    assert all(np.allclose(step.log_ratios, 0) for chain in same for step in chain.trace)


def largest_error_of_a_weight(proposal: TabularModel, clip: Any = None) -> float:
    """|w - p_ref(x_0 | x_s) / q(x_0 | x_s)| over rollouts from a prefix, which follow q."""
    pair = ImportanceSampling(reference(), proposal, clip)
    start = pair.start([PROBLEM])[0]
    drawn = next(d for d in pair.extend([start] * 8, np.arange(8, dtype=np.uint64)) if not d.state.done)
    keys = derive(np.arange(DRAWS, dtype=np.uint64), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rollouts = pair.finish([drawn.state] * DRAWS, keys)
    p, q = (policy.oracle.finish_law(PROBLEM, drawn.state.tokens) for policy in (reference(), proposal))
    check_law([draw.text.tokens for draw in rollouts], q, level=LEVEL)
    assert len({draw.text.tokens for draw in rollouts}) > 4
    return max(abs(math.exp(draw.text.log_ratio) - p[x] / q[x]) for draw in rollouts for x in [draw.text.tokens])


@pytest.mark.parametrize("name", PROPOSALS)
def test_weights_are_proper_for_every_outcome(name: str) -> None:
    """E_q[w · 1{x_0}] = p_ref(x_0 | x_s), as each weight is exactly p_ref / q and the draws follow q at level 1e-4."""
    assert largest_error_of_a_weight(another(name)) < 1e-9


def test_a_constant_weight_turns_that_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passes the blunt test, that weights average to 1."""
    monkeypatch.setattr(TabularModel, "logp", without_ratio)
    assert largest_error_of_a_weight(another("other weights")) > 0.1


def test_a_clip_turns_that_red_and_is_seen_in_the_trace() -> None:
    assert largest_error_of_a_weight(another("other weights"), clip=(0.8, 1.25)) > 0.1
    drawn = chains(another("other weights"), 2, 2, 200, clip=(0.8, 1.25))
    ratios = np.concatenate([step.log_ratios.ravel() for chain in drawn for step in chain.trace])
    assert ratios.min() == pytest.approx(math.log(0.8)) and ratios.max() == pytest.approx(math.log(1.25))


def without_ratio(self: TabularModel, starts: Any, ends: Any) -> Any:
    return [Scored(end.logp - start.logp, Cost()) for start, end in zip(starts, ends, strict=True)]


def read(policy: TabularModel, tokens: tuple[int, ...], end: Any) -> float:
    """The log-probability of what comes after so many tokens."""
    return policy._read(SimpleNamespace(tokens=tokens, problem=PROBLEM), end)[1]


def over_all_tokens(self: TabularModel, starts: Any, ends: Any) -> Any:
    """A fault of the reference code: the ratio over the whole generation, the reference's own tokens included."""
    proposal = another("other weights")
    return [Scored(read(self, (), e) - read(proposal, (), s), Cost()) for s, e in zip(starts, ends, strict=True)]


def without_the_last_token(self: TabularModel, starts: Any, ends: Any) -> Any:
    """A fault: the end token's probability is left out."""
    cut = [SimpleNamespace(tokens=end.tokens[:-1]) for end in ends]
    return [Scored(read(self, s.tokens, e), Cost()) for s, e in zip(starts, cut, strict=True)]


def at_another_temperature(self: TabularModel, starts: Any, ends: Any) -> Any:
    """A fault of the reference code: scored at temperature 1 while another was sampled."""
    cold = TabularModel(**REFERENCE | {"temperature": 0.5})
    return [Scored(read(cold, s.tokens, e), Cost()) for s, e in zip(starts, ends, strict=True)]


@pytest.mark.parametrize(
    ("fault", "draws"),
    [
        (without_ratio, FEWER),
        (over_all_tokens, FEWER),
        (without_the_last_token, FEWER),
        (at_another_temperature, 6_000),
    ],
)
def test_a_wrong_ratio_turns_the_law_red(
    fault: Callable[..., Any], draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposal = another("other weights")
    expected = law(proposal, 4, 2)
    monkeypatch.setattr(TabularModel, "logp", fault)
    drawn = chains(proposal, 4, 2, draws)
    with pytest.raises(AssertionError, match="exact law"):
        check_law([chain.state.tokens for chain in drawn], expected, level=LEVEL)


def test_ratios_that_reach_a_complete_candidate_turn_the_law_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that has ended has its exact energy: no ratio of its own, drawn as it is by the reference."""
    from ets import kernel

    proposal = another("other weights")
    expected = law(proposal, 4, 2)
    plain = kernel.rollout_log_ratios
    tables = (reference(), proposal)

    def faulty(candidates: Any, rollouts: Any) -> Any:
        ratios = plain(candidates, rollouts)
        for m, candidate in enumerate(candidates):
            if candidate.done:
                logps = [np.log(t.oracle.finish_law(PROBLEM, ())[candidate.tokens]) for t in tables]
                ratios[m] = logps[0] - logps[1]
        return ratios

    monkeypatch.setattr(kernel, "rollout_log_ratios", faulty)
    drawn = chains(proposal, 4, 2, FEWER)
    with pytest.raises(AssertionError, match="exact law"):
        check_law([chain.state.tokens for chain in drawn], expected, level=LEVEL)


@pytest.mark.parametrize("name", PROPOSALS)
def test_run_weights_are_proper_with_a_proposal(name: str) -> None:
    """Law 5: E[W f] = E_ref[exp(r/λ) f]; |z| below 5.5, at level 1e-4 in all."""
    results = chains(another(name), 3, 2, 8_000)
    weights = np.array([math.exp(log_run_weight(chain.trace)) for chain in results])
    targets = {x: p * math.exp(of_outcome(x) / LAM) for x, p in reference().oracle.finish_law(PROBLEM, ()).items()}
    assert largest_error([chain.state.tokens for chain in results], weights, targets) < 5.5


class Truncated(TabularModel):
    """A model that draws the two most probable tokens of three."""

    def _row(self, prompt: Any, prefix: Any) -> Any:
        full = super()._row(prompt, prefix)
        cut = np.where(full > full.min(), full, 0.0)
        return cut / cut.sum()


def test_run_weights_of_a_truncated_reference_are_nan_and_lack_the_mass_of_the_closed_form() -> None:
    """The proposal draws outside the support of p_ref; |z| below 5.5, at level 1e-4 in all."""
    truncated, proposal = Truncated(**REFERENCE), another("other weights")
    law = truncated.oracle.finish_law(PROBLEM, ())
    kept = kept_law(truncated.oracle, PROBLEM, lambda x: x in law, 1, proposal.oracle)
    tilt = {x: math.exp(of_outcome(x) / LAM) for x in law}
    assert sum(kept[x] * tilt[x] for x in law) < 0.8 * sum(law[x] * tilt[x] for x in law)
    step = energy_guided(REWARD, candidates=2, rollouts=1, lam=LAM)
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")
        pair = ImportanceSampling(truncated, proposal)
        results = list(run(pair, step, [PROBLEM], width=5000, seed=0, samples=4_000))
    weights = np.array([math.exp(log_mean_exp(rollout_weights(chain.trace)[-1], axis=None)) for chain in results])
    targets = {x: kept[x] * tilt[x] for x in kept}
    assert largest_error([chain.state.tokens for chain in results], weights, targets) < 5.5
    impossible = [any(np.isneginf(s.log_ratios).any() for s in chain.trace) for chain in results]
    assert [math.isnan(log_run_weight(chain.trace)) for chain in results] == impossible
    assert 0.1 < np.mean(impossible) < 0.99


@pytest.mark.parametrize("weighed", [True, False])
@pytest.mark.parametrize("pool", ["step", "chain"])
def test_votes_carry_the_ratio(pool: Any, weighed: bool) -> None:
    """Self-consistency with a proposal tends to the same recursion; with votes of 1 each it is far off.

    M = 32: the bias of finite M and the noise of 400 chains leave about 0.1; votes without their ratio leave 0.4.
    """
    lam, oracle, agreement = 0.1, TabularModel(seed=17).oracle, agreement_share(len, pool=pool)

    def reward(problem: Problem, rollouts: Any, chain: Chain) -> Any:
        if weighed:
            return agreement(problem, rollouts, chain)
        steps = [replace(s, rollouts=tuple(tuple(map(plain, row)) for row in s.rollouts)) for s in chain.trace]
        return agreement(problem, list(map(plain, rollouts)), replace(chain, trace=tuple(steps)))

    def plain(text: Any) -> Any:
        return replace(text, log_ratio=0.0)

    target = agreement_share_law(oracle, PROBLEM, lambda tokens: len(TabularModel.spelled(tokens)), lam=lam, pool=pool)
    step = energy_guided(reward, candidates=32, rollouts=4, lam=lam)
    pair = ImportanceSampling(TabularModel(seed=17), TabularModel(seed=18))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = list(run(pair, step, [PROBLEM], width=500, seed=0, samples=400))
    distance = total_variation(frequencies(chain.state.tokens for chain in drawn), target)
    assert distance < 0.15 if weighed else distance > 0.3


def test_a_chain_through_what_the_reference_cannot_draw_is_no_sample() -> None:
    chain = chains(another("other weights"), 2, 2, 1)[0]
    impossible = replace(chain.trace[0].candidates[chain.trace[0].choice], log_ratio=-math.inf)
    candidates = tuple(impossible if m == chain.trace[0].choice else c for m, c in enumerate(chain.trace[0].candidates))
    assert chain.valid
    assert not replace(chain, trace=(replace(chain.trace[0], candidates=candidates), *chain.trace[1:])).valid


def test_the_costs_of_both_models_reach_the_chain() -> None:
    model, small = reference(), another("other weights")
    step = energy_guided(REWARD, candidates=3, rollouts=2, lam=LAM)
    found = list(run(ImportanceSampling(model, small), step, [PROBLEM], width=4, seed=0, samples=8))
    spent, total = model.ledger + small.ledger, Cost.total(chain.cost for chain in found)
    for name in ("prompt", "candidate", "rollout", "scored", "generated"):
        assert getattr(total, name) == getattr(spent, name) > (-1 if name == "prompt" else 0)


def test_a_clip_leaves_a_ratio_of_zero_as_it_is() -> None:
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")
        pair = ImportanceSampling(Truncated(**REFERENCE), another("other weights"), clip=(0.5, 2.0))
        rollouts = pair.finish(pair.start([PROBLEM]) * 64, derive(np.arange(64, dtype=np.uint64), 1))
    ratios = np.array([draw.text.log_ratio for draw in rollouts])
    assert 0 < np.isneginf(ratios).sum() < 64
    assert np.all(ratios[np.isfinite(ratios)] >= math.log(0.5)) and ratios.max() <= math.log(2.0)


@pytest.mark.parametrize(("count", "effective", "warns"), [(40, 3.9, True), (40, 4.1, False), (31, 1.0, False)])
def test_the_warning_begins_below_a_tenth_of_32_rollouts_or_more(count: int, effective: float, warns: bool) -> None:
    """One rollout of weight 1 and others of weight w have the effective size (1 + (n - 1) w)² / (1 + (n - 1) w²)."""
    others = count - 1
    roots = np.roots([others * (others - effective), 2 * others, 1 - effective])
    weight = max(float(root.real) for root in roots)
    ratios = np.log([1.0, *[weight] * others]) if weight > 0 else np.array([0.0, *[-np.inf] * others])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs.NoiseWarning()(ratios.tolist())
    assert [f"of {count} rollouts" in str(each.message) for each in caught] == [True] * warns


def test_a_warning_tells_once_that_the_correction_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "NOISE", 0.9)
    step = energy_guided(REWARD, candidates=4, rollouts=4, lam=LAM)
    pair = ImportanceSampling(reference(), another("other weights"))
    with pytest.warns(UserWarning, match="are effective: the correction is mostly noise") as caught:
        list(run(pair, step, [PROBLEM], width=8, seed=0, samples=64))
    assert sum("are effective" in str(each.message) for each in caught) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"proposal": TabularModel(vocabulary=4, **REFERENCE)}, "vocabulary is 3 here and 4 in the proposal"),
        ({"proposal": TabularModel(max_length=2)}, "max_length is 3 here and 2"),
        ({"proposal": TabularMaskedDiffusion()}, "cannot follow another policy"),
        ({"clip": (2.0, 3.0)}, "clip is"),
        ({"clip": 3.0}, "clip is 3.0"),
        ({"clip": (1, 10)}, "its bounds must enclose 1"),
    ],
)
def test_what_does_not_fit_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImportanceSampling(reference(), **{"proposal": reference(), **wrong})
