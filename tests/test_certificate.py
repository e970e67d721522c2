"""What a chain says of its distance to p*, on a policy whose p* is enumerated."""

from __future__ import annotations

import math

import numpy as np
import pytest

import ets
from ets.baselines import one_step
from ets.certificate import certificate
from ets.kernel import energy_guided
from ets.rejection import exact
from ets.step import of_prefixes
from ets.suffix_moves import refined
from ets.testing import optimal_law, total_variation
from ets.types import Chain, StepFn
from tests.enumerable import lifted, reference, spelled
from tests.laws.tabular import TabularModel
from tests.test_suffix_moves import LAM, chains_of, liking

LETTERS = TabularModel(concentration=0.7, seed=1)
WEIGHTS = {x: math.exp(spelled(LETTERS, liking)(x) / LAM) for x in reference(LETTERS)}
LOG_Z = math.log(sum(p * WEIGHTS[x] for x, p in reference(LETTERS).items()))


def drawn(step: StepFn, samples: int = 400) -> list[Chain]:
    return chains_of(LETTERS, step, samples=samples)


def test_log_z_and_its_error_are_those_of_independent_texts() -> None:
    found = [certificate(chain.trace) for chain in drawn(one_step(lifted(liking), samples=200, lam=LAM))]
    errors = np.array([(each.log_z - LOG_Z) / each.log_z_error for each in found if each])
    assert len(errors) == 400 and abs(errors.mean()) < 0.2 and 0.8 < errors.std() < 1.2


def test_the_divergence_is_that_of_the_optimal_law() -> None:
    target = optimal_law(reference(LETTERS), spelled(LETTERS, liking), LAM)
    expected = sum(p * math.log(p / reference(LETTERS)[x]) for x, p in target.items() if p)
    found = [certificate(chain.trace) for chain in drawn(one_step(lifted(liking), samples=400, lam=LAM), 50)]
    assert np.mean([each.divergence for each in found if each]) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("samples", [4, 16])
def test_the_distance_bounds_that_of_a_choice_among_the_texts(samples: int) -> None:
    """The bound in expectation, with the true Z, against the law of 4,000 chains."""
    target = optimal_law(reference(LETTERS), spelled(LETTERS, liking), LAM)
    bound = sum(
        p * max(0.0, v - 1) / (samples + v - 1) for x, p in target.items() for v in [WEIGHTS[x] / math.exp(LOG_Z)]
    )
    chains = drawn(one_step(lifted(liking), samples=samples, lam=LAM), 4_000)
    counts: dict[object, float] = {}
    for chain in chains:
        counts[chain.state.tokens] = counts.get(chain.state.tokens, 0.0) + 1 / len(chains)
    assert total_variation(counts, target) < bound + 0.02
    many = [certificate(chain.trace) for chain in drawn(one_step(lifted(liking), samples=200, lam=LAM), 20)]
    assert np.mean([each.distance for each in many if each]) < 0.05


def test_moves_are_counted_by_their_cuts() -> None:
    chain = drawn(refined(lifted(liking), lam=LAM, budget=60), 1)[0]
    found = certificate(chain.trace)
    assert found and not found.exact and set(found.acceptance) == {0, 1, 2}
    assert all(0 < rate <= 1 for rate in found.acceptance.values())
    assert "moves are accepted with probability" in str(found) and "too few" in str(found)


def test_particles_have_a_certificate_without_a_bound() -> None:
    chain = drawn(refined(of_prefixes(lifted(liking)), lam=LAM, budget=60), 1)[0]
    found = certificate(chain.trace)
    assert found and found.texts == 10 and math.isnan(found.distance) and math.isnan(found.log_z_error)
    assert str(found).startswith("a particle filter of 10 particles, and ") and "total variation" not in str(found)
    many = [certificate(each.trace) for each in drawn(refined(of_prefixes(lifted(liking)), lam=LAM, budget=600), 20)]
    assert np.mean([each.log_z for each in many if each]) == pytest.approx(LOG_Z, abs=0.05)


def test_a_sentence_names_the_remedy_and_no_distance_where_the_texts_are_too_few() -> None:
    for reward, budget, said, remedy in (
        (lambda text: 20 * liking(text), 30, "too few of them (", "; raise the budget"),
        (lambda text: 20 * liking(text), 300, "as good as p* asks", "; raise λ or the budget"),
        (lambda text: 0.0, 300, "average; raise the budget, or change the reward", "change the reward"),
        (lambda text: 0.0, 30, "accepted with probability 1.00 on average; raise the budget", "; raise the budget"),
    ):
        chain = drawn(refined(lifted(reward), lam=LAM, budget=budget), 1)[0]
        found = str(certificate(chain.trace))
        assert said in found and "total variation" not in found and found.endswith(remedy)
    sure = str(certificate(drawn(refined(lifted(liking), lam=LAM, budget=900), 1)[0].trace))
    assert "as good as p* asks" in sure and "raise" not in sure


def test_an_exact_sample_says_so_and_guided_chains_have_no_certificate() -> None:
    chains = drawn(exact(lifted(liking), lam=LAM, highest=1.8, limit=90), 20)
    said = {chain.exact: str(certificate(chain.trace)) for chain in chains}
    assert said[True].startswith("an exact sample of p*, accepted after")
    walked = next(certificate(chain.trace) for chain in drawn(exact(lifted(liking), lam=LAM, highest=9.0, limit=9), 20))
    assert walked and math.isnan(walked.log_z) and str(walked).startswith("not exact: ")
    guided = drawn(energy_guided(lifted(liking), candidates=2, rollouts=2, lam=LAM), 1)[0]
    assert certificate(guided.trace) is None and certificate(()) is None


def test_sample_spends_a_budget_of_tokens_and_says_what_it_bought() -> None:
    out = ets.sample("ab", model=LETTERS, reward=lambda prompt, text: liking(text), lam=LAM, tokens=40)
    assert 30 < out.cost.generated <= 40 and "certificate" in out.notes
    sure = ets.sample("ab", model=LETTERS, reward=lambda prompt, text: liking(text), lam=LAM, tokens=400, highest=1.8)
    assert sure.certificate and sure.certificate.exact


def test_sample_shows_a_choice_among_all_rollouts_of_guide_steps_alone() -> None:
    given = {"model": LETTERS, "reward": lambda prompt, text: liking(text), "lam": LAM}
    guided = ets.sample("ab", candidates=3, rollouts=2, **given)
    assert guided.weighted in [text for step in guided.trace for row in step.rollouts for text in row]
    assert ets.sample("ab", tokens=40, **given).weighted is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tokens": 40, "candidates": 4}, "candidates is 4, and tokens stands in place of"),
        ({"highest": 1.0}, "highest is 1.0, but there is no budget"),
        ({"tokens": 40, "step": ets.baselines.retained_rollouts}, "step and decided are for guide steps"),
        ({"tokens": 1}, "the budget is 1 token, and a text may have 3"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ets.InputError, match=message):
        ets.sample("ab", model=LETTERS, reward=lambda prompt, text: liking(text), lam=LAM, **wrong)
