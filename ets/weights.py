"""Weights in log space: means, effective sample sizes, choices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ets.types import Floats, Step


def log_mean_exp(values: Floats, axis: int) -> Floats:
    """log of the mean of exp(values) along an axis; -inf where all are -inf."""
    largest = np.max(values, axis=axis, keepdims=True)
    shift = np.where(np.isneginf(largest), 0.0, largest)
    with np.errstate(divide="ignore"):
        return np.squeeze(shift, axis) + np.log(np.mean(np.exp(values - shift), axis=axis))


def normalised(log_weights: Floats) -> Floats:
    """Probabilities proportional to exp(log_weights); uniform if every weight is zero."""
    if np.all(np.isneginf(log_weights)):
        return np.full(len(log_weights), 1.0 / len(log_weights))
    weights = np.exp(log_weights - np.max(log_weights))
    return weights / np.sum(weights)


def effective_sample_size(log_weights: Floats) -> float:
    """1 / Σ w² of the normalised weights: from 1 (one weight carries all) to their number (all equal)."""
    return float(1.0 / np.sum(normalised(log_weights) ** 2))


def effective_draws(log_ratios: Floats) -> float:
    """The effective sample size of importance ratios: 0 where every ratio is zero."""
    return 0.0 if np.all(np.isneginf(log_ratios)) else effective_sample_size(log_ratios)


def pick(probabilities: Floats, uniform: float) -> int:
    """The index that a uniform in [0, 1) selects: the first with cdf > uniform · total.

    Never an index of probability zero: the result is clamped to the last one of positive probability.
    """
    cdf = np.cumsum(probabilities)
    index = int(np.searchsorted(cdf, uniform * cdf[-1], side="right"))
    return min(index, int(np.flatnonzero(probabilities)[-1]))


def log_run_weight(trace: Sequence[Step]) -> float:
    """log W of a chain that has ended: W = Π_i mean_m Ê_im / Π_{i<last} Ê_i,chosen.

    For a fixed reward whose values are all finite, W is properly weighted with respect to p_ref · exp(r/λ) at any M
    and K: E[W f(x)] = E_ref[exp(r(x)/λ) f(x)]. So Σ W f / Σ W over independent chains estimates E_p*[f] without the
    bias of chains at finite M and K, and the mean of W estimates the normaliser of p*. (The ratio of a candidate that a
    proposal drew is a factor of its weight, and no factor of the energy that the next step continues from.) A proposal
    needs unclipped ratios, the support of p_ref at least, and a p_ref without truncation (top-k, top-p) of what the
    proposal draws.

    Rollouts of weight zero break the rule: an unfinished candidate whose K rollouts all have weight zero is never
    chosen, though another continuation may be allowed. With a_i, the probability that a rollout from prefix i has a
    positive weight, E[W f] = E_ref[exp(r/λ) f Π_i (1 - (1 - a_i)^K)], over the unfinished prefixes i of the text. A
    chain that holds such a rollout (of reward -inf, or of tokens that p_ref cannot draw) has log W = NaN. Chains
    without such rollouts have the bias too: if the weight of any chain is NaN, no mean over the chains is proper.
    Finite rewards far below the others keep the rule in name alone: the mean then rests on chains that hardly occur.

    -inf for a chain whose every weight at a step was zero, all of them weights of complete or impossible candidates.
    """
    if any(_zero_rollouts(step) for step in trace):
        return math.nan
    means = [float(log_mean_exp(step.log_weights, axis=0)) for step in trace]
    if -math.inf in means:
        return -math.inf
    chosen = [step.log_weights[step.choice] - step.candidates[step.choice].log_ratio for step in trace[:-1]]
    return sum(means) - float(sum(chosen))


def _zero_rollouts(step: Step) -> bool:
    """Whether a rollout of an unfinished candidate has weight zero."""
    zero = np.isneginf(step.log_rewards + step.log_ratios)
    unfinished = [not text.done and text.log_ratio > -math.inf for text in step.candidates]
    return bool(zero[unfinished].any())
