"""The objective E[r] - λ KL: the value of p*, and the bound by a mean reward."""

import math

import numpy as np
import pytest

from ets.evaluation.objective import FEWEST_TEXTS, Reference, reference_of
from ets.evaluation.pool import Sample
from ets.types import Problem

LAM = 0.25
LAWS = {"a": [0.0] * 5 + [0.5] * 4 + [1.0], "b": [-1.0] * 2 + [0.25] * 8}
"""Rewards of texts that are equally likely under p_ref."""


def exact(lam=LAM):
    """log Z, E_p*[r] and KL(p* ‖ p_ref), means over the problems, by enumeration."""
    rows = []
    for rewards in LAWS.values():
        weights = [math.exp(reward / lam) for reward in rewards]
        law = [weight / sum(weights) for weight in weights]
        divergence = sum(p * math.log(p * len(rewards)) for p in law)
        rows.append((math.log(np.mean(weights)), np.dot(law, rewards), divergence))
    return np.mean(rows, axis=0)


MANY = {problem: rewards * 500 for problem, rewards in LAWS.items()}
"""So many samples that the estimates are those of the laws."""


def test_the_optimum_is_that_of_the_enumerated_law():
    optimum = Reference(LAM, MANY).optimum
    log_z, reward, divergence = exact()
    assert optimum.log_z.mean == pytest.approx(log_z, abs=1e-3)
    assert optimum.reward.mean == pytest.approx(reward, abs=1e-3)
    assert optimum.divergence.mean == pytest.approx(divergence, abs=1e-3)
    assert optimum.objective.mean == pytest.approx(reward - LAM * divergence, abs=1e-3)
    assert optimum.texts == 5000


def test_p_star_reaches_the_objective_and_plain_sampling_has_no_divergence():
    reference = Reference(LAM, MANY)
    tilted = {}
    for problem, rewards in LAWS.items():
        weights = np.exp(np.array(rewards) / LAM)
        tilted[problem] = float(weights @ rewards / weights.sum())
    assert reference.objective(tilted).mean == pytest.approx(reference.optimum.objective.mean)
    plain = {problem: float(np.mean(rewards)) for problem, rewards in LAWS.items()}
    assert reference.objective(plain).mean == pytest.approx(np.mean(list(plain.values())), abs=1e-3)


@pytest.mark.parametrize("seed", range(40))
def test_no_law_is_above_the_bound_of_its_mean_reward(seed):
    """Random laws q: E_q[r] - λ KL(q ‖ p_ref) is at most the bound, and the bound at most λ log Z."""
    rng = np.random.default_rng(seed)
    means, value = {}, 0.0
    for problem, rewards in LAWS.items():
        law = rng.dirichlet(np.full(len(rewards), rng.choice([0.1, 1.0, 10.0])))
        means[problem] = float(law @ rewards)
        known = law[law > 0]
        value += (means[problem] - LAM * float(known @ np.log(known * len(rewards)))) / len(LAWS)
    reference = Reference(LAM, MANY)
    bound = reference.objective(means)
    assert value <= bound.mean + 1e-4
    assert bound.mean <= reference.optimum.objective.mean + 1e-9
    assert bound.low <= bound.mean <= bound.high


def test_a_reward_beyond_that_of_p_star_has_the_bound_of_the_maximum():
    reference = Reference(LAM, MANY)
    beyond = dict.fromkeys(LAWS, 2.0)  # above every text: few samples do not hold the best texts
    assert reference.objective(beyond).mean == pytest.approx(reference.optimum.objective.mean)


def test_few_samples_estimate_the_maximum_without_much_bias_and_the_interval_covers_it():
    """39 samples of each of 40 normal laws, of which about 5 are effective; log Z is known: 2 for a variance of 4.

    100 runs, fixed seed. The mean of the estimates is within four standard errors plus 2% of log Z, and at least 85 of
    the 95% intervals cover log Z. The logarithm of the mean without the jackknife is off by 11% and covers in 41.
    """
    rng, found, covered = np.random.default_rng(0), [], 0
    for _ in range(100):
        values = rng.normal(0.0, 2.0, (40, 39)) * LAM
        estimate = Reference(LAM, {f"{n}": row.tolist() for n, row in enumerate(values)}).optimum.log_z
        found.append(estimate.mean)
        covered += estimate.low <= 2.0 <= estimate.high
    assert np.mean(found) == pytest.approx(2.0, abs=0.04 + 4 * np.std(found) / 10)
    assert covered >= 85


def test_texts_that_carry_most_weight_are_named():
    assert "one text has over half the weight" in str(Reference(0.01, LAWS).optimum)
    assert "half the weight" not in str(Reference(1.0, LAWS).optimum)


def test_forbidden_texts_have_no_weight():
    reference = Reference(LAM, {"a": [-math.inf] * 2000 + [1.0] * 2000})
    assert reference.optimum.log_z.mean == pytest.approx(1 / LAM + math.log(0.5), abs=1e-3)
    assert reference.objective({"a": 1.0}).mean == pytest.approx(1.0 - LAM * math.log(2), abs=1e-3)
    assert reference.objective({"a": -math.inf}) is None


def test_one_allowed_text_has_no_correction():
    optimum = Reference(LAM, {"a": [-math.inf] * 9 + [1.0]}).optimum
    assert optimum.log_z.mean == pytest.approx(1 / LAM + math.log(0.1))


def pooled(rewards, sample=0):
    grades = tuple({} if reward is None else {"reward": reward} for reward in rewards)
    return Sample(Problem(id="a", prompt="", doc={}), sample, (), grades, ())


def test_the_chains_of_a_problem_are_pooled():
    reference = reference_of([pooled([0.0] * 5), pooled([1.0] * 5, 1)], LAM)
    assert reference.rewards == {"a": [0.0] * 5 + [1.0] * 5}


@pytest.mark.parametrize("rewards", [[0.0] * (FEWEST_TEXTS - 1), [None] * 20], ids=["few", "without rewards"])
def test_there_is_no_reference_without_enough_rewards(rewards):
    assert reference_of([pooled(rewards)], LAM) is None


def test_json_values_of_forbidden_texts_are_read():
    forbidden = [{"reward": None}] * FEWEST_TEXTS
    only = Sample(Problem(id="a", prompt="", doc={}), 0, (), tuple(forbidden), ())
    assert reference_of([only], LAM) is None
    mixed = Sample(Problem(id="a", prompt="", doc={}), 0, (), (*forbidden, {"reward": 1.0}), ())
    assert reference_of([mixed], LAM).rewards["a"].count(-math.inf) == FEWEST_TEXTS
