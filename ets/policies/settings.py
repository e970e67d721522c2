"""The settings of the policies: laws, horizons, denoising and resources. This module imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ets.settings import Read, boolean, bounds, number_or, numbers, setting
from ets.step import require_counts, require_positive, warn_of_rounding
from ets.types import InputError

if TYPE_CHECKING:
    import torch

BLOCK_SIZE, MAX_LENGTH = 64, 512
"""The default tokens of a guide step, and of a generation; a shorter generation has one guide step."""
NONE = "none"
"""The threshold of a sampler without a threshold, where the model family has one."""
CHECKPOINT = "checkpoint"
"""The value of top_k or top_p that stands for the checkpoint's generation configuration."""
_LENGTH = "tokens in all; for masked diffusion, of the canvas"
_GUIDE_STEPS = "I, guide steps, which split the denoising steps evenly"
_BLOCK = f"tokens per guide step (default: {BLOCK_SIZE}, or all tokens of a shorter text)"
_AS_GENERATE = "checkpoint: the value that transformers' generate takes from the generation configuration"


def _published(text: str, read: Read) -> Any:
    """A setting of uniform diffusion; its default is in the checkpoint."""
    return setting(None, f"uniform diffusion: {text} (default: the checkpoint's)", read)


@dataclass(frozen=True)
class Sampling:
    """The law of the drawn tokens.

    Parameters
    ----------
    temperature : float
        At least 0; 0 takes the most probable token.
    top_k : int, optional
        Keep the k most probable tokens, and tokens as probable as the k-th.
    top_p : float, optional
        Renormalise, and keep the smallest set of most probable tokens whose mass reaches p, 0 < p ≤ 1.
    """

    temperature: float = setting(1.0, "temperature of the reference policy, at least 0", float)
    top_k: int | None = setting(
        None,
        f"sample from the k most probable tokens; {_AS_GENERATE} (default: all tokens)",
        number_or(int, CHECKPOINT, CHECKPOINT),
    )
    top_p: float | None = setting(
        None,
        f"sample from the most probable tokens whose mass reaches p; {_AS_GENERATE} (default: all tokens)",
        number_or(float, CHECKPOINT, CHECKPOINT),
    )

    def __post_init__(self) -> None:
        for name, value in {"temperature": self.temperature, "top_p": self.top_p}.items():
            if not isinstance(value, int | float) and (value is not None or name == "temperature"):
                raise InputError(f"{name} is {value!r}; it must be a number")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"temperature is {self.temperature}; it must be a finite number of at least 0")
        warn_of_rounding(temperature=self.temperature)
        if self.top_k is not None:
            require_counts(top_k=self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    @property
    def truncated(self) -> bool:
        """Whether the law gives some tokens the probability 0."""
        return self.top_k is not None or self.top_p not in (None, 1) or self.temperature == 0


@dataclass(frozen=True)
class Horizon:
    """The tokens per guide step (B) and in all (d_x)."""

    block_size: int = setting(BLOCK_SIZE, _BLOCK, int)
    max_length: int = setting(MAX_LENGTH, _LENGTH, int, flags=("gen_length",))

    def __post_init__(self) -> None:
        require_counts(max_length=self.max_length, block_size=self.block_size)
        if self.block_size > self.max_length:
            raise InputError(
                f"block_size {self.block_size} is longer than max_length {self.max_length}; "
                "lower it, or raise max_length"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens at the guide boundaries of an open text, and of the longest text."""
        return (*range(0, self.max_length, self.block_size), self.max_length)


@dataclass(frozen=True)
class Unmasking:
    """The law of one denoising step.

    Parameters
    ----------
    temperature : float
        Of the drawn tokens, at least 0. Confidences belong to the untempered distribution.
    remasking : str
        A key of `ets.policies.diffusion.remasking.RULES`: the order in which positions are revealed. `low_confidence`
        (LLaDA's name: the others are remasked) prefers the most probable drawn tokens, `largest` the positions with
        the most probable token, `margin` the largest difference between the two most probable tokens, `entropy` the
        lowest entropy, `sequential` the leftmost position, and `random` none. As in LLaDA's sampler, the mask token
        counts in the confidences; it does not count in margin and entropy. Dream's sampler has four rules (`alg`),
        whose scores belong to the tempered distribution with the mask token: `maskgit_plus` prefers the most probable
        drawn tokens, `topk_margin` the largest difference, and `neg_entropy` (its name in a setting is `entropy`) the
        lowest entropy; `origin` reveals each position with the probability 1 - s/t of the schedule's times, and may
        reveal none.
    cfg : float
        Classifier-free guidance s: logits un + (s + 1)(cond - un), at twice the forwards; 0 is none.
    stop_at_end : bool
        Leave out the blocks after a block that holds an end token. The law of the text is the same: the text ends at
        its first end token, and no block attends to a later block that has been filled.
    threshold : float, optional
        Parallel decoding (Wu et al., Fast-dLLM, arXiv 2505.22618): beyond its quota, a step reveals every position
        whose confidence reaches the threshold, above 0 and at most 1. For `low_confidence` and `largest`. By default
        the published threshold of the model family, if it has one; "none" is no threshold.
    factor : float, optional
        Parallel decoding by Fast-dLLM's factor rule, for the same rules: beyond its quota, a step reveals the n most
        confident positions for the largest n with (n + 1)(1 - confidence of the n-th) ≤ factor.
    alg_temp : float
        Dream's noise in the order: a step draws its positions without replacement from softmax(scores / alg_temp).
        For rules whose scores depend on the canvas alone; 0 is none. With scores of drawn tokens the law of a step is
        not closed, because it depends on tokens that the step does not reveal.
    logits_eos_inf : bool
        LLaDA's sampler: the logit of the tokenizer's end token is -∞, in the draws and in all scores.
    confidence_eos_eot_inf : bool
        LLaDA's sampler: end tokens, those that end a turn included, are left out of the distribution of the
        confidences, and their own confidence is 0. So a drawn end token is revealed after all other tokens. Published
        results are at temperature 0; at another temperature the published code spares the end token, by an assignment
        to a copy of the logits.

    Raises
    ------
    InputError
        For an unknown rule, a number out of range, parallel decoding or `confidence_eos_eot_inf` by a rule without
        confidences, or `alg_temp` by a rule without scores of the canvas.
    """

    temperature: float = setting(1.0, "temperature of the reference policy, at least 0", float)
    remasking: str = setting(
        "low_confidence",
        "low_confidence, largest, random, margin, entropy or sequential; Dream's origin, maskgit_plus, topk_margin, or "
        "neg_entropy for its entropy",
    )
    cfg: float = setting(0.0, "classifier-free guidance; 0 for none", float)
    stop_at_end: bool = setting(False, "True: leave out the blocks after one that holds an end token", boolean)
    threshold: float | str | None = setting(
        None,
        "a step reveals every position whose confidence reaches this; none for no threshold (default: the family's)",
        number_or(float, NONE, NONE),
    )
    factor: float | None = setting(None, "parallel decoding by the factor rule, instead of a threshold", float)
    alg_temp: float = setting(0.0, "Dream's noise in the order of positions; 0 for none", float)
    logits_eos_inf: bool = setting(False, "True: the end token is never drawn", boolean)
    confidence_eos_eot_inf: bool = setting(False, "True: drawn end tokens are revealed last", boolean)

    def __post_init__(self) -> None:
        from ets.policies.diffusion.remasking import RULES

        for name, value in (("temperature", self.temperature), ("cfg", self.cfg), ("alg_temp", self.alg_temp)):
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InputError(f"{name} is {value!r}; it must be a finite number of at least 0")
        warn_of_rounding(temperature=self.temperature)
        if self.remasking not in RULES:
            raise InputError(f"unknown remasking {self.remasking!r}; choose from {', '.join(RULES)}")
        for name in ("stop_at_end", "logits_eos_inf", "confidence_eos_eot_inf"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"{name} is {value!r}; it must be True or False")
        bars = {"threshold": self.bar, "factor": self.factor}
        given = {name: value for name, value in bars.items() if value is not None}
        require_positive(**given)
        if len(given) > 1:
            raise InputError(f"threshold {self.threshold} and factor {self.factor} exclude each other; leave one out")
        if self.bar is not None and self.bar > 1:
            raise InputError(f"threshold is {self.threshold!r}, but a confidence is 1 at most; choose less")
        needing = [*given, *(["confidence_eos_eot_inf"] if self.confidence_eos_eot_inf else [])]
        if needing and not RULES[self.remasking].confident:
            confident = " or ".join(name for name, rule in RULES.items() if rule.confident)
            raise InputError(
                f"{needing[0]} needs confidences, which remasking {self.remasking!r} has not; choose {confident}"
            )
        if self.alg_temp:
            self._require_scores_of_the_canvas(RULES)

    def _require_scores_of_the_canvas(self, rules: dict[str, Any]) -> None:
        rule, fitting = rules[self.remasking], [n for n, each in rules.items() if each.by_canvas and not each.random]
        if self.parallel:
            raise InputError(f"alg_temp is {self.alg_temp}, but threshold and factor are without noise; leave one out")
        if rule.random:
            reason = "draws positions already"
        else:
            reason = "ranks drawn tokens: the law would depend on tokens that are not revealed, and is not closed"
        if rule.random or not rule.by_canvas:
            raise InputError(
                f"alg_temp is {self.alg_temp}, but remasking {self.remasking!r} {reason}; set alg_temp to 0, or choose "
                f"{', '.join(fitting)}"
            )

    @property
    def parallel(self) -> bool:
        """Whether a step may reveal more than its quota."""
        return self.bar is not None or self.factor is not None

    @property
    def bar(self) -> float | None:
        """The threshold as a number; None without one."""
        return None if self.threshold == NONE else self.threshold  # type: ignore[return-value]

    @property
    def takes_threshold(self) -> bool:
        """Whether a family's published threshold applies: the rule has confidences, and the user sets none."""
        bars = self.threshold, self.factor
        return bars == (None, None) and not self.alg_temp and bool(self.rule.confident)

    @property
    def by_canvas(self) -> bool:
        """Whether the revealed positions are independent of the drawn tokens."""
        return bool(self.rule.by_canvas)

    @property
    def deterministic(self) -> bool:
        """Whether a step has one outcome: greedy tokens, and no random positions."""
        return self.temperature == 0 and not self.rule.random

    @property
    def rule(self) -> Any:
        """The `ets.policies.diffusion.remasking.Rule`, with the noise of `alg_temp`."""
        from ets.policies.diffusion.remasking import RULES, perturbed

        rule = RULES[self.remasking]
        return perturbed(rule, self.alg_temp) if self.alg_temp else rule

    def probabilities(self, logits: torch.Tensor, mask_id: int) -> torch.Tensor:
        """The law p of the drawn tokens `[..., V]` in float64: tempered, without the mask token."""
        import torch

        logits = logits.to(torch.float64, copy=True)
        logits[..., mask_id] = -math.inf
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        return logits.div_(self.temperature).softmax(-1)

    def bars(self, quota: torch.Tensor, positions: int) -> torch.Tensor:
        """The least score `[R, positions]` of the m-th best position that is revealed, from the quotas `[R]`."""
        import torch

        m = torch.arange(1, positions + 1, dtype=torch.float64, device=quota.device)
        beyond = torch.full_like(m, math.inf if self.bar is None else math.log(self.bar))
        if self.factor is not None:
            beyond = (1 - self.factor / (m + 1)).clamp(min=0).log()
        return torch.where(m <= quota[:, None], -math.inf, beyond)


@dataclass(frozen=True)
class CanvasSettings:
    """The canvas of masked diffusion and its guide steps; `Schedule.of` completes it for a model family.

    Parameters
    ----------
    max_length : int
        Tokens of the canvas.
    steps : int, optional
        Denoising steps in all; by default one per token.
    block_length : int, optional
        Tokens of a block; by default the block length of the family, or the whole canvas if that is no multiple.
        A block-causal family refuses a canvas that is no multiple.
    guide_steps, block_size : int, optional
        I, or the tokens of a guide step: not both; by default a block size of 64.
    quotas : str, optional
        `even` or `time`, see `ets.policies.diffusion.denoise.Schedule`; by default that of the family: `even` for LLaDA
        and iLLaDA, `time` for Dream and DiffuCoder.
    eps : float, optional
        The last time of `time`; by default 0.001.
    """

    max_length: int = setting(MAX_LENGTH, _LENGTH, int, flags=("gen_length",))
    steps: int | None = setting(None, "denoising steps in all (default: one per token)", int)
    block_length: int | None = setting(
        None, "tokens of a block of masked diffusion, filled from left to right (default: the family's)", int
    )
    guide_steps: int | None = setting(None, _GUIDE_STEPS, int)
    block_size: int | None = setting(None, _BLOCK, int)
    quotas: str | None = setting(None, "even, or Dream's time: the tokens that each denoising step reveals")
    eps: float | None = setting(None, "the last time of Dream's denoising steps (default: 0.001)", float)

    def __post_init__(self) -> None:
        if self.guide_steps is not None and self.block_size is not None:
            raise InputError(f"block_size is {self.block_size} and guide_steps {self.guide_steps}; set one of the two")
        require_counts(**{n: v for n, v in vars(self).items() if v is not None and n not in ("quotas", "eps")})
        if self.quotas not in (None, *QUOTAS):
            raise InputError(f"unknown quotas {self.quotas!r}; choose from {', '.join(QUOTAS)}")
        if self.eps is not None and not (isinstance(self.eps, float) and 0 < self.eps < 1):
            raise InputError(f"eps is {self.eps!r}; it must be above 0 and below 1")
        if self.guide_steps is None and self.max_length % self._block_size:
            raise InputError(
                f"block_size {self._block_size} does not divide max_length {self.max_length}, and a masked-diffusion "
                "model fills its canvas in equal guide steps; choose a divisor"
            )

    @property
    def _block_size(self) -> int:
        return min(BLOCK_SIZE, self.max_length) if self.block_size is None else self.block_size

    @property
    def guide_step_count(self) -> int:
        """I, of `guide_steps` or of the block size."""
        return self.max_length // self._block_size if self.guide_steps is None else self.guide_steps


@dataclass(frozen=True)
class UniformDenoising:
    """The denoising law of uniform diffusion, see `ets.policies.diffusion.entropy_bound`.

    None stands for the value of the checkpoint's generation configuration.

    Parameters
    ----------
    max_denoising_steps : int, optional
        Most denoising steps of a canvas, N. Step n = 0, 1, … has the temperature t_min + (t_max - t_min) (N - n) / N.
    t_max, t_min : float, optional
        0 ≤ t_min ≤ t_max, and t_max above 0.
    entropy_bound : float, optional
        In nats, at least 0.
    stability_threshold, confidence_threshold : int and float, optional
        A canvas ends early when its most probable tokens equal those of so many steps before, and the mean entropy is
        below the confidence threshold. A confidence threshold of 0 never ends a canvas early.

    Raises
    ------
    InputError
        For values out of range.
    """

    max_denoising_steps: int | None = _published("most denoising steps of a canvas", int)
    t_max: float | None = _published("temperature of a canvas's first denoising step", float)
    t_min: float | None = _published("temperature to which t_max falls linearly", float)
    entropy_bound: float | None = _published("nats of the positions that a step accepts", float)
    stability_threshold: int | None = _published(
        "equal steps before a canvas ends early: their most probable tokens agree", int
    )
    confidence_threshold: float | None = _published("mean entropy below which a canvas ends early; 0 for never", float)

    def __post_init__(self) -> None:
        if self.max_denoising_steps is not None:
            require_counts(max_denoising_steps=self.max_denoising_steps)
        for name, value in vars(self).items():
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value!r}; it must be a finite number of at least 0")
        if self.stability_threshold is not None and not isinstance(self.stability_threshold, int):
            raise InputError(f"stability_threshold is {self.stability_threshold!r}; it must be a whole number")
        if self.t_max == 0:
            raise InputError("t_max is 0, at which nothing is random; give a temperature above 0")
        if None not in (self.t_min, self.t_max) and self.t_min > self.t_max:  # type: ignore[operator]
            raise InputError(f"t_min {self.t_min} is above t_max {self.t_max}; the temperature falls to t_min")


@dataclass(frozen=True)
class UniformCanvases:
    """The length of a generation of uniform diffusion, and its guide steps.

    Parameters
    ----------
    max_length : int
        Tokens in all; rounded up to whole canvases, whose length is the checkpoint's.
    guide_steps : int, optional
        I; by default one guide step per canvas.
    """

    max_length: int = setting(MAX_LENGTH, _LENGTH, int, flags=("gen_length",))
    guide_steps: int | None = setting(None, _GUIDE_STEPS, int)

    def __post_init__(self) -> None:
        require_counts(**{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Caching:
    """The part of the canvas that a denoising step computes, and how often a step computes the whole canvas.

    Parameters
    ----------
    cache : str
        `dual`: the active block is computed, and the keys and values before and after it are cached. `prefix`: the
        positions from the active block on are computed, and those before it are cached.
    refresh : int, optional
        Denoising steps of a block after which the whole canvas is computed; by default only the block's first step
        computes it. With 1 the law is the exact one.

    Raises
    ------
    InputError
        For an unknown cache, or a refresh that is not a whole number of at least 1.
    """

    cache: str = setting("dual", "dual or prefix, a faster sampler as p_ref (default: no cache)")
    refresh: int | None = setting(None, "denoising steps of a block after which the whole canvas is computed", int)

    def __post_init__(self) -> None:
        if self.cache not in CACHES:
            raise InputError(f"unknown cache {self.cache!r}; choose from {', '.join(CACHES)}")
        if self.refresh is not None:
            require_counts(refresh=self.refresh)

    def last_refresh(self, step: int) -> int:
        """The last step, `step` included, that computes the whole canvas; steps are numbered within the block."""
        return step // self.refresh * self.refresh if self.refresh else 0

    def window(self, block: tuple[int, int], gen_length: int) -> tuple[int, int]:
        """The first position that is computed between refreshes, and the position after the last."""
        return block if self.cache == "dual" else (block[0], gen_length)


CACHES = ("dual", "prefix")
QUOTAS = ("even", "time")
EPS = 1e-3
"""The last time of Dream's denoising steps, by default."""


@dataclass(frozen=True)
class Weighing:
    """The sampler of ETS-IS, and the weights of its paths."""

    proposal: str | None = setting(
        None,
        "q, a cheaper model with the same tokens that draws the rollouts of ETS-IS; in Python also a running engine",
        flags=("small_model_path",),
    )
    proposal_temperature: float | None = setting(None, "temperature of the proposal (default: the policy's)", float)
    proposal_engine: str | None = setting(None, "what runs the proposal, transformers (the default) or vllm")
    proposal_utilization: float | None = setting(
        None, "share of a GPU's memory that vLLM takes for the proposal (default: 0.3)", float
    )
    level: str | None = setting(None, "0, 1 or 1F: how a faster sampler of masked diffusion is weighed (default: 0)")
    clip: tuple[float, float] | None = setting(
        None, "LOW,HIGH: bounds on the importance ratio, a bias (default: none)", bounds
    )


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint by name."""

    dtype: str | None = setting(None, "float32, bfloat16 or float16 (default: float32 on a CPU, else the checkpoint's)")


@dataclass(frozen=True)
class MemorySettings:
    """The memory of a policy in this process, and its records."""

    memory_gib: float | None = setting(None, "GiB of the cache of rows (default: half of the free memory)", float)
    certainty: bool = setting(False, "record how certain the model is of the tokens that it draws", boolean)
    deterministic: bool = setting(
        False, "True: rows go through the model one by one, so no text depends on the batch, in any dtype", boolean
    )

    def options(self) -> dict[str, Any]:
        """The options of a policy's constructor, where `deterministic` means temperature 0."""
        return {"memory_gib": self.memory_gib, "certainty": self.certainty, "one_by_one": self.deterministic}


@dataclass(frozen=True)
class VLLMResources:
    """The GPUs of vLLM."""

    memory_gib: float | None = setting(None, "GiB of the cache of rows (default: half of the free memory)", float)
    replicas: int = setting(1, "copies of the model, vLLM's data parallelism", int)
    tensor_parallel: int = setting(1, "GPUs that share each copy, vLLM's tensor parallelism", int)
    utilization: float = setting(0.9, "share of a GPU's memory that vLLM takes", float)


@dataclass(frozen=True)
class ServerResources:
    """An OpenAI-compatible server, and the connections to it."""

    endpoint: str = setting("", "the address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    served_model: str | None = setting(None, "the server's name of the model (default: the only one that it serves)")
    key_variable: str = setting("OPENAI_API_KEY", "environment variable that holds the API key")
    connections: int = setting(256, "requests under way at once", int)
    seconds: float = setting(1800.0, "time limit of a row, after which it is requested again", float)
    waits: tuple[float, ...] | None = setting(
        None, "SECONDS,SECONDS,…: waits between attempts at a row (default: 0.5,1,2,4,8,16)", numbers
    )


@dataclass(frozen=True)
class FastSampler:
    """The sampler of the method ets-is where it differs from the policy's: for comparisons, which measure both."""

    is_block_size: int | None = setting(None, "tokens per guide step of ets-is (default: the policy's)", int)
    fast_cache: str | None = setting(None, "cache of ets-is's sampler of masked diffusion: dual or prefix")
    fast_refresh: int | None = setting(None, "refresh of ets-is's sampler of masked diffusion", int)
    fast_threshold: float | str | None = setting(
        None, "threshold of ets-is's sampler of masked diffusion, or none", number_or(float, NONE, NONE)
    )
    fast_factor: float | None = setting(None, "factor of ets-is's sampler of masked diffusion", float)
    fast_remasking: str | None = setting(None, "remasking of ets-is's sampler of masked diffusion")
    fast_temperature: float | None = setting(None, "temperature of ets-is's sampler of masked diffusion", float)
