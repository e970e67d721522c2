"""The arguments of the paper's scripts, translated once into this library's names.

People paste commands such as `--model qwen-ets --model_args model_path=…,m_candidates=15,k_monte_carlo=3`. Every
argument of the paper's scripts is honoured, or answered by one line that says what replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ets.evaluation.fast import FAST
from ets.evaluation.methods import METHODS
from ets.evaluation.proposing import bounds_of
from ets.types import InputError

Family: TypeAlias = Literal["qwen", "llada"]
REQUIRED = object()
MODELS: dict[str, tuple[Family, str]] = {
    "qwen": ("qwen", "plain"),
    "qwen-beam": ("qwen", "beam"),
    "qwen-ets": ("qwen", "ets"),
    "qwen-draw": ("qwen", "draw"),
    "llada_dist": ("llada", "ets"),
}
"""By the paper's name of a model: the kind of arguments that it takes, and its method."""

STUDY = "draw"
"""What samples for the reward study, see `ets.evaluation.reward_study`: no method that others are compared with."""

ENGINE: dict[Family, str] = {"qwen": "transformers", "llada": "masked-diffusion"}
"""What runs the models."""

BENCHMARKS = {
    "minerva_math500": "math500",
    "gsm8k": "gsm8k",
    "gpqa_diamond_generative_n_shot": "gpqa",
    "humaneval": "humaneval",
    "aime24": "aime24",
}
"""The names in `ets.tasks` of lm-eval's tasks."""


@dataclass(frozen=True)
class Argument:
    """What an argument of the paper is here: our name, how its value is read, and what holds where it is left out."""

    name: str
    read: Callable[[str, Any], Any]
    default: Any = REQUIRED


@dataclass(frozen=True)
class PaperRun:
    """A command of the paper in this library's names.

    Parameters
    ----------
    family : {"qwen", "llada"}
    method : str
        A key of `ets.evaluation.methods.METHODS`, or `STUDY`.
    values : mapping
        By our names, all of the family's.
    notes : tuple of str
        One line for each argument that has no effect here.
    """

    family: Family
    method: str
    values: Mapping[str, Any]
    notes: tuple[str, ...]


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not _is(int, value):
        raise InputError(f"{name} is {value!r}; it must be a whole number")
    return int(value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not _is(float, value):
        raise InputError(f"{name} is {value!r}; it must be a number")
    return float(value)


def _is(kind: Callable[[Any], Any], value: Any) -> bool:
    try:
        return bool(kind(value) == float(value))
    except (ValueError, OverflowError):
        return False


def _text(name: str, value: Any) -> str:
    if value in ("", None) or isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it must be a name")
    return str(value)


def _flag(name: str, value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise InputError(f"{name} is {value!r}; choose True or False")
    return known[str(value).lower()]


def _bounds(name: str, value: Any) -> tuple[float, float]:
    return bounds_of(str(value))


def _pool(name: str, value: Any) -> str:
    return "chain" if _flag(name, value) else "step"


def _benchmark(name: str, value: Any) -> str:
    known = BENCHMARKS | {ours: ours for ours in BENCHMARKS.values()}
    known |= {"math": "math500", "gpqa_diamond": "gpqa", "aime": "aime24"}
    if str(value).lower() not in known:
        raise InputError(f"{name} is {value!r}; choose from {', '.join(BENCHMARKS.values())}, or leave it out")
    return known[str(value).lower()]


def _method(name: str, value: Any) -> str:
    if value not in METHODS:
        raise InputError(f"{name} is {value!r}; choose from {', '.join(METHODS)}")
    return str(value)


_SHARED = {
    "model_path": Argument("model", _text),
    "temperature": Argument("temperature", _number, 1.0),
    "accumulate_x0": Argument("pool", _pool, "chain"),
    "dataset": Argument("benchmark", _benchmark, None),
    "task": Argument("benchmark", _benchmark, None),
    "num_beams": Argument("beams", _whole, 20),
    "best_by": Argument("best_by", _text, "likelihood-per-token"),
    "num_samples": Argument("samples", _whole, None),
    "unsafe_code": Argument("unsafe_code", _flag, False),
    "checkpoint_dir": Argument("folder", _text, "results"),
    "method": Argument("method", _method, None),
    "seed": Argument("seed", _whole, 0),
    "width": Argument("width", _whole, 8),
    "memory_gib": Argument("memory_gib", _number, None),
    "enable_thinking": Argument("thinking", _flag, None),
    "think_end_token": Argument("think_end", _text, None),
}
ARGUMENTS: dict[Family, dict[str, Argument]] = {
    "qwen": _SHARED
    | {
        "m_candidates": Argument("candidates", _whole, 15),
        "k_monte_carlo": Argument("rollouts", _whole, 3),
        "lambda_param": Argument("lam", _number, 0.1),
        "max_length": Argument("max_length", _whole),
        "block_size": Argument("block_size", _whole, None),
        "top_k": Argument("top_k", _whole, None),
        "top_p": Argument("top_p", _number, None),
        "small_model_path": Argument("proposal", _text, None),
        "proposal_temperature": Argument("proposal_temperature", _number, None),
        "proposal_top_k": Argument("proposal_top_k", _whole, None),
        "proposal_top_p": Argument("proposal_top_p", _number, None),
        "clip": Argument("clip", _bounds, None),
        "estimator": Argument("estimator", _text, "plain"),
    },
    "llada": _SHARED
    | {
        "num_candidates": Argument("candidates", _whole, 15),
        "monte_carlo_num": Argument("rollouts", _whole, 3),
        "energy_weight": Argument("lam", _number, 0.1),
        "gen_length": Argument("max_length", _whole),
        "steps": Argument("steps", _whole, None),
        "block_length": Argument("block_length", _whole, 32),
        "guide_steps": Argument("guide_steps", _whole, 4),
        "cfg": Argument("cfg", _number, 0.0),
        "remasking": Argument("remasking", _text, "low_confidence"),
        "threshold": Argument("threshold", _number, None),
        "factor": Argument("factor", _number, None),
        "cache": Argument("cache", _text, None),
        "refresh": Argument("refresh", _whole, None),
        "is_accelerate_available": Argument("accelerated", _flag, False),
        "level": Argument("level", _text, None),
        "fast_temperature": Argument("fast_temperature", _number, None),
        "fast_remasking": Argument("fast_remasking", _text, None),
        "fast_threshold": Argument("fast_threshold", _number, None),
        "fast_factor": Argument("fast_factor", _number, None),
        "fast_cache": Argument("fast_cache", _text, None),
        "fast_refresh": Argument("fast_refresh", _whole, None),
        "clip": Argument("clip", _bounds, None),
        "estimator": Argument("estimator", _text, "plain"),
    },
}
"""By the paper's name. Where its commands leave an argument out, what the paper states holds."""

OF_PROPOSALS = (
    *("proposal", "proposal_temperature", "proposal_top_k", "proposal_top_p", "clip", "estimator"),
    *("level", *(f"fast_{name}" for name in FAST)),
)
"""Our names of the arguments that belong to ETS-IS alone. A clip's bounds stand as `clip=0.1:10`: commas separate
arguments."""

FLAGS = {
    "use_vanilla": "plain",
    "use_bon": "best-of-n",
    "use_beam_search": "beam",
    "is_rl": "greedy",
    "use_importance_sampling": "ets-is",
}
"""Arguments that choose a method when they are true. `is_rl` stands for the paper's comparison with RL: greedy
decoding of a checkpoint that was trained with RL."""

_LIKELIHOOD = "has no effect: it belongs to tasks that compare likelihoods, which these models do not answer"
_REPLACED = {
    "is_accelerate_available": "has no effect: how many processes there are follows from accelerate launch",
    "proposal": "has no effect: level, fast_cache, fast_threshold … say what importance sampling draws from",
    "mc_num": _LIKELIHOOD,
    "is_check_greedy": _LIKELIHOOD,
    "mask_id": "has no effect: the mask token is read from the checkpoint's configuration",
    "trust_remote_code": "has no effect: no remote code is run",
}
_LEVEL_0 = (
    "is_accelerate_available: p_ref is the fast sampler with the dual cache itself, every weight exactly 1 (Level 0); "
    "the other levels: use_importance_sampling=True,level=1 (or 1F, 2)"
)
_OF_LM_EVAL = ("batch_size", "max_batch_size", "device")


def read_arguments(model: str, arguments: Mapping[str, Any]) -> PaperRun:
    """Translate the arguments of one of `MODELS`.

    Raises
    ------
    InputError
        For an unknown model or argument, a missing one, a value that cannot be read, or one that asks for what
        does not exist yet.
    """
    family, method = _model(model)
    known = ARGUMENTS[family]
    answered = {*FLAGS, *_REPLACED, *_OF_LM_EVAL}
    if unknown := [name for name in arguments if name not in known and name not in answered]:
        raise InputError(f"unknown argument {unknown[0]!r} of the model {model}; choose from {', '.join(known)}")
    values = {argument.name: argument.default for argument in known.values() if argument.default is not REQUIRED}
    read = {name: known[name].read(name, value) for name, value in arguments.items() if name in known}
    if "dataset" in read and read.get("task", read["dataset"]) != read["dataset"]:
        raise InputError(f"dataset and task name different benchmarks, {read['dataset']} and {read['task']}; keep one")
    values |= {known[name].name: value for name, value in read.items()}
    if missing := [name for name, argument in known.items() if argument.name not in values]:
        raise InputError(f"the model {model} needs {missing[0]}=…; add it to --model_args")
    method = _chosen(method, values.pop("method"), arguments)
    told = (*_notes(arguments, known), *_without_proposal(family, method, values, read), *_accelerated(method, values))
    return PaperRun(family, method, _completed(values), told)


def _model(model: str) -> tuple[Family, str]:
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}; choose from {', '.join(MODELS)}")
    return MODELS[model]


def _chosen(method: str, named: str | None, arguments: Mapping[str, Any]) -> str:
    """The model's method, or the one that an argument chooses."""
    chosen = {name: FLAGS[name] for name in FLAGS if _flag(name, arguments.get(name, False))}
    if named is not None:
        chosen["method"] = named
    if method == STUDY and chosen:
        raise InputError(f"the model qwen-draw has no other method; leave {next(iter(chosen))} out, or take qwen")
    if len(set(chosen.values())) > 1:
        raise InputError(f"{' and '.join(chosen)} ask for different methods; keep one of them")
    return next(iter(chosen.values()), method)


def _without_proposal(family: Family, method: str, values: dict[str, Any], read: Mapping[str, Any]) -> tuple[str, ...]:
    """Take what belongs to ETS-IS out of another method's values; a line for each such argument that was given."""
    if method == "ets-is":
        if family == "qwen" and values["proposal"] is None:
            raise InputError("importance sampling needs small_model_path=…; add it to --model_args")
        return ()
    for name in OF_PROPOSALS:
        values.pop(name, None)
    idle = [name for name in read if ARGUMENTS[family][name].name in OF_PROPOSALS]
    return tuple(f"{name} has no effect without importance sampling; add use_importance_sampling=True" for name in idle)


def _accelerated(method: str, values: dict[str, Any]) -> tuple[str, ...]:
    """Of masked diffusion: the dual cache where it is asked for, and what ETS-IS needs where nothing is said of it.

    Levels 1 and 2 take the positions as given, which LLaDA's own rule does not.
    """
    asked = values.pop("accelerated", False)
    if "level" in values:
        values["level"] = values["level"] or ("0" if asked else "1")
        if values["level"] in ("1", "2") and values["remasking"] == "low_confidence":
            values["fast_remasking"] = values["fast_remasking"] or "largest"
        if asked or all(values[f"fast_{name}"] is None for name in FAST if name != "remasking"):
            values["fast_cache"] = values["fast_cache"] or "dual"
        return (_LEVEL_0,) if asked and values["level"] == "0" else ()
    if asked:
        values["cache"] = values["cache"] or "dual"
        return (_LEVEL_0,)
    return ()


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Fill in what follows from other arguments: one guide step, one denoising step per token, N = M."""
    if values.get("block_size", 0) is None:
        values["block_size"] = values["max_length"]
    if values.get("steps", 0) is None:
        values["steps"] = values["max_length"]
    if values["samples"] is None:
        values["samples"] = values["candidates"]
    return values


def _notes(arguments: Mapping[str, Any], known: Mapping[str, Argument]) -> tuple[str, ...]:
    return tuple(f"{name} {_REPLACED[name]}" for name in arguments if name in _REPLACED and name not in known)
