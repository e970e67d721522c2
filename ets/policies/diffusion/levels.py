"""Importance weights between two masked-diffusion samplers: ratios of path probabilities, at levels "1" and "1F".

A fast sampler (a cache, parallel decoding, another temperature) draws candidates and rollouts. Each path carries the
product over its denoising steps of target / fast probability. The level fixes the target. At level "0" the fast sampler
is p_ref, and every weight is exactly 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from ets.path_weights import PathRatio, PathWeights
from ets.policies.autoregressive.law import require_same_vocabulary
from ets.policies.diffusion.canvas import CanvasState
from ets.policies.diffusion.path_probability import path_probabilities, path_steps
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.types import Cost, InputError, State

LEVELS = {
    "0": "the fast sampler itself, which is p_ref: every weight is exactly 1",
    "1": (
        "the exact model's token probabilities, revealed in the order and groups that the fast model chose; this is "
        "the exact sampler only where both choose the same positions"
    ),
    "1F": "the exact sampler, restricted to the paths that the fast sampler can take",
}
"""The law that weighted draws follow, in words, by level. At "1F" the ratio includes the position terms."""


def target_of(level: str) -> str:
    """The law that weighted draws follow at a level, in words.

    Raises
    ------
    InputError
        For an unknown level.
    """
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}; choose from {', '.join(LEVELS)}")
    return LEVELS[level]


class LevelWeigher:
    """Computes the ratios of a fast sampler's paths; the exact model reads the canvases of all paths in batches.

    A step has the ratio 1 if both policies have the same settings and the cache is fresh; the exact model skips it.

    Parameters
    ----------
    exact, fast : MaskedDiffusionPolicy
    level : str
        "1" or "1F".

    Raises
    ------
    InputError
        For an unknown level, or a pair that has no ratio: at temperature 0, at level "1" if drawn tokens choose the
        positions, at level "1F" with a hard threshold, which loses support.
    """

    def __init__(self, exact: MaskedDiffusionPolicy, fast: MaskedDiffusionPolicy, level: str) -> None:
        self.exact, self.fast, self.target, self.positions = exact, fast, target_of(level), level == "1F"
        _require_ratio(exact, fast, level)

    @property
    def ledger(self) -> Cost:
        return self.exact.ledger

    def ratios(self, starts: Sequence[State], ends: Sequence[State]) -> list[PathRatio]:
        """log target - log q of each path, `-inf` where the exact sampler cannot take it."""
        pairs = cast("list[tuple[CanvasState, CanvasState]]", list(zip(starts, ends, strict=True)))
        paths = [
            [step for step in path_steps(*pair, self.fast.mask_id) if not self._is_exact(step.step)] for pair in pairs
        ]
        columns, ratios = slice(0, 2 if self.positions else 1), []
        found = path_probabilities(self.exact, paths, positions=self.positions)
        for steps, (_, end), exact in zip(paths, pairs, found, strict=True):
            as_drawn = end.step_logps[[step.step for step in steps], columns].sum() if steps else 0.0
            ratios.append(PathRatio(float(exact.tokens.sum() + exact.positions.sum() - as_drawn), exact.cost))
        return ratios

    def _is_exact(self, step: int) -> bool:
        """Whether the fast sampler's law of a denoising step is the target's: a fresh cache, and the same settings."""
        exact, fast = self.exact.unmasking, self.fast.unmasking
        names = ("temperature", "cfg", "alg_temp", "logits_eos_inf", "confidence_eos_eot_inf")
        alike = all(getattr(exact, name) == getattr(fast, name) for name in names)
        return alike and self.exact.checkpoint is self.fast.checkpoint and self.fast.last_refresh(step) == step


def _require_ratio(exact: MaskedDiffusionPolicy, fast: MaskedDiffusionPolicy, level: str) -> None:
    if exact.caching is not None:
        raise InputError("the exact policy has a cache itself; leave the cache out, or take level 0")
    if exact.unmasking.temperature == 0 or fast.unmasking.temperature == 0:
        raise InputError("at temperature 0 a path has probability 0 or 1, and no ratio exists; raise the temperature")
    if exact.checkpoint is not fast.checkpoint:
        require_same_vocabulary(exact.endings, fast.endings)
    if exact.mask_id != fast.mask_id:
        raise InputError(f"the mask is token {exact.mask_id} and {fast.mask_id}; choose two models of one family")
    plan, fast_plan = exact.schedule, fast.schedule
    if (plan.gen_length, plan.block_length) != (fast_plan.gen_length, fast_plan.block_length):
        raise InputError(
            f"the canvas is {plan.gen_length} tokens in blocks of {plan.block_length} for the exact sampler and "
            f"{fast_plan.gen_length} in blocks of {fast_plan.block_length} for the fast one; make them equal"
        )
    if exact.unmasking.logits_eos_inf != fast.unmasking.logits_eos_inf:
        raise InputError("one of the two samplers draws end tokens, the other does not; make logits_eos_inf equal")
    if level == "1" and not fast.unmasking.by_canvas:
        raise InputError(
            f"level 1 takes the positions as given, but remasking {fast.unmasking.remasking!r} chooses them by the "
            "drawn tokens; choose largest, margin, entropy or random for the fast sampler, or level 1F"
        )
    if level == "1F":
        _require_full_support(exact, fast)


def _require_full_support(exact: MaskedDiffusionPolicy, fast: MaskedDiffusionPolicy) -> None:
    rule, fast_rule = exact.unmasking, fast.unmasking
    if rule.parallel or fast_rule.parallel:
        raise InputError(
            "level 1F weighs positions too, and a hard threshold makes some sets impossible on one side alone: "
            "support is lost and the weights do not average to 1; leave threshold and factor out (threshold none "
            "where the model family has one), or take level 1"
        )
    if rule.remasking != fast_rule.remasking:
        raise InputError(
            f"level 1F needs one rule on both sides, not remasking {rule.remasking!r} and {fast_rule.remasking!r}; "
            "make them equal"
        )
    if rule.confidence_eos_eot_inf != fast_rule.confidence_eos_eot_inf:
        raise InputError("level 1F needs one rule on both sides; make confidence_eos_eot_inf equal")
    for each in (rule, fast_rule):
        if each.by_canvas and not each.rule.random:
            raise InputError(
                f"with remasking {each.remasking!r} either side reveals one set with certainty, and where they differ "
                "no support is left at level 1F; take level 1, or the rule low_confidence"
            )
    if exact.schedule.steps != fast.schedule.steps:
        raise InputError(
            f"level 1F needs one schedule on both sides, not {exact.schedule.steps} and {fast.schedule.steps} steps; "
            "make them equal"
        )
    if (exact.schedule.quotas, exact.schedule.eps) != (fast.schedule.quotas, fast.schedule.eps):
        raise InputError("level 1F needs one schedule on both sides; make quotas and eps equal")


def weighed_sampler(
    exact: MaskedDiffusionPolicy,
    fast: MaskedDiffusionPolicy,
    level: str,
    clip: tuple[float, float] | None = None,
) -> MaskedDiffusionPolicy | PathWeights:
    """The fast sampler with its draws weighted at a level; at level "0" the fast sampler alone."""
    return fast if level == "0" else PathWeights(fast, LevelWeigher(exact, fast, level), clip)
