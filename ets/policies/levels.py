"""Importance weights between two masked-diffusion samplers: ratios of path probabilities, at three levels.

A fast sampler (a cache, parallel decoding, another temperature, a smaller model) draws candidates and rollouts, and
each path is weighed towards a law of the exact sampler, denoising step by denoising step. Which law, is the level's
choice and stands in its `target`. Level 0 needs nothing of this: the fast sampler is p_ref itself, its weight exactly
1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ets.path_weights import PathRatio, PathWeights
from ets.policies.autoregressive import require_same_vocabulary
from ets.policies.canvases import CanvasState
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.path_probability import PathStep, path_probabilities, path_steps
from ets.types import Cost, InputError, State


@dataclass(frozen=True)
class Level:
    """How paths are weighed.

    Parameters
    ----------
    target : str
        The law that weighed draws follow.
    sequential : bool
        Whether the exact model is asked for one token of a step after the other, from left to right.
    positions : bool
        Whether the position terms of both sides are part of the ratio.
    """

    target: str
    sequential: bool = False
    positions: bool = False


LEVELS = {
    "1": Level(
        "the exact model's token probabilities, revealed in the order and groups that the fast model chose; this is "
        "the exact sampler only where both choose the same positions"
    ),
    "1F": Level(
        "the exact sampler, as far as the fast one can take its paths: what it cannot is missing", positions=True
    ),
    "2": Level(
        "sequential exact tokens in the fast grouping: those of a step are drawn from left to right, each given the "
        "ones before it",
        sequential=True,
    ),
}
"""By name. Level 2 asks for as many forwards as exact sampling takes, though in parallel: a diagnostic."""

LEVEL_0 = "the fast sampler itself, which is p_ref: every weight is exactly 1"
"""The target at level "0", which weighs nothing."""


def target_of(level: str) -> str:
    """The law that draws follow at a level, in words.

    Raises
    ------
    InputError
        For an unknown level.
    """
    return LEVEL_0 if level == "0" else _named(level).target


def _named(level: str) -> Level:
    if level not in LEVELS:
        raise InputError(f"unknown level {level!r}; choose from 0, {', '.join(LEVELS)}")
    return LEVELS[level]


class LevelWeigher:
    """Ratios of a fast sampler's paths towards a level's target, the exact forwards batched once the paths are known.

    Steps on a fresh cache are exact already, where both sides sample alike: they add 0 and are not read (but for the
    tokens that Level 2 asks for one by one).

    Parameters
    ----------
    exact, fast : MaskedDiffusionPolicy
    level : str
        A key of `LEVELS`.

    Raises
    ------
    InputError
        For an unknown level, or a pair that has no ratio: at temperature 0, with positions that depend on drawn tokens
        where the level takes them as given, or with a hard threshold on drawn tokens, which loses support.
    """

    def __init__(self, exact: MaskedDiffusionPolicy, fast: MaskedDiffusionPolicy, level: str) -> None:
        self.exact, self.fast, self.level = exact, fast, _named(level)
        require_ratio(exact, fast, level)

    @property
    def target(self) -> str:
        return self.level.target

    @property
    def ledger(self) -> Cost:
        return self.exact.ledger

    def ratios(self, starts: Sequence[State], ends: Sequence[State]) -> list[PathRatio]:
        """log target - log q of each path, `-inf` where the exact sampler cannot take it."""
        paths = [self._steps(*pair) for pair in zip(starts, ends, strict=True)]
        asked = [[part for step in steps for part in self._parts(step)] for steps in paths]
        found = path_probabilities(self.exact, asked, positions=self.level.positions)
        columns = slice(0, 2 if self.level.positions else 1)
        ratios = []
        for steps, end, exact in zip(paths, ends, found, strict=True):
            assert isinstance(end, CanvasState)
            as_drawn = end.step_logps[[step.step for step in steps], columns].sum() if steps else 0.0
            log_ratio = float(exact.tokens.sum() + exact.positions.sum() - as_drawn)
            ratios.append(PathRatio(log_ratio, exact.cost))
        return ratios

    def _steps(self, start: State, end: State) -> list[PathStep]:
        """The steps of a path that are not exact already."""
        assert isinstance(start, CanvasState) and isinstance(end, CanvasState)
        return [step for step in path_steps(start, end, self.fast.mask_id) if not self._settled(step)]

    def _settled(self, step: PathStep) -> bool:
        fresh = self._same_law and self.fast.last_refresh(step.step) == step.step
        return fresh and not (self.level.sequential and len(step.positions) > 1)

    @property
    def _same_law(self) -> bool:
        """Whether both sides sample alike from the same canvas, without a cache."""
        mine, its = self.exact.unmasking, self.fast.unmasking
        same = (mine.temperature, mine.cfg) == (its.temperature, its.cfg)
        return same and self.exact.checkpoint is self.fast.checkpoint

    def _parts(self, step: PathStep) -> list[PathStep]:
        return list(step.one_by_one()) if self.level.sequential else [step]


def require_ratio(exact: MaskedDiffusionPolicy, fast: MaskedDiffusionPolicy, level: str) -> None:
    """Raise `InputError` unless paths of the fast sampler can be weighed at this level."""
    if not all(isinstance(policy, MaskedDiffusionPolicy) for policy in (exact, fast)):
        raise InputError("a level weighs one masked-diffusion sampler by another; give two of them")
    if exact.caching is not None:
        raise InputError("the policy that weighs has a cache itself; give the exact one, or take level 0")
    if exact.unmasking.temperature == 0 or fast.unmasking.temperature == 0:
        raise InputError("at temperature 0 a path has probability 0 or 1, and no ratio exists; raise the temperature")
    if exact.checkpoint is not fast.checkpoint:
        require_same_vocabulary(exact.endings, fast.endings)
    if exact.mask_id != fast.mask_id:
        raise InputError(f"the mask is token {exact.mask_id} and {fast.mask_id}; choose two models of one family")
    mine, its = exact.schedule, fast.schedule
    if (mine.gen_length, mine.block_length) != (its.gen_length, its.block_length):
        raise InputError(
            f"the canvas is {mine.gen_length} tokens in blocks of {mine.block_length} for the exact sampler and "
            f"{its.gen_length} in blocks of {its.block_length} for the fast one; make them equal"
        )
    (_require_full_ratio if LEVELS[level].positions else _require_given_positions)(exact, fast, level)


def _require_given_positions(exact: MaskedDiffusionPolicy, fast: MaskedDiffusionPolicy, level: str) -> None:
    if not fast.unmasking.by_canvas:
        raise InputError(
            f"level {level} takes the positions as given, but remasking {fast.unmasking.remasking!r} chooses them by "
            "the drawn tokens; choose largest, margin, entropy or random for the fast sampler, or level 1F"
        )


def _require_full_ratio(exact: MaskedDiffusionPolicy, fast: MaskedDiffusionPolicy, level: str) -> None:
    mine, its = exact.unmasking, fast.unmasking
    if mine.parallel or its.parallel:
        raise InputError(
            f"level {level} weighs positions too, and a hard threshold makes some sets impossible on one side alone: "
            "support is lost and the weights do not average to 1; leave threshold and factor out, or take level 1"
        )
    if mine.remasking != its.remasking or exact.schedule.steps != fast.schedule.steps:
        raise InputError(
            f"level {level} needs one rule and one schedule on both sides, not remasking {mine.remasking!r} in "
            f"{exact.schedule.steps} steps and {its.remasking!r} in {fast.schedule.steps}; make them equal"
        )
    if its.by_canvas and its.remasking != "random":
        raise InputError(
            f"with remasking {its.remasking!r} either side reveals one set with certainty, and where they differ no "
            f"support is left at level {level}; take level 1, or the rule low_confidence"
        )


def weighed_sampler(
    exact: MaskedDiffusionPolicy,
    fast: MaskedDiffusionPolicy,
    level: str,
    clip: tuple[float, float] | None = None,
) -> MaskedDiffusionPolicy | PathWeights:
    """The fast sampler, its draws weighed at a level; at level "0" itself alone, since its weight is exactly 1."""
    return fast if level == "0" else PathWeights(fast, LevelWeigher(exact, fast, level), clip)
