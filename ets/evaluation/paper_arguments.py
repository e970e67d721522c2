"""The arguments of the paper's scripts, translated once into this library's names.

People paste commands such as `--model qwen-ets --model_args model_path=…,m_candidates=15,k_monte_carlo=3`. Every
argument of the paper's scripts is honoured, or answered by one line that says what replaced it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ets.evaluation.methods import METHODS, MethodSettings
from ets.settings import bounds
from ets.types import InputError

Family: TypeAlias = Literal["qwen", "llada"]
REQUIRED = object()
MODELS: dict[str, tuple[Family, str]] = {
    "qwen": ("qwen", "plain"),
    "qwen-beam": ("qwen", "beam"),
    "qwen-ets": ("qwen", "ets"),
    "llada_dist": ("llada", "plain"),
}
"""By the paper's name of a model: its family of arguments, and its method without further arguments."""

ENGINES: dict[Family, tuple[str, ...]] = {"qwen": ("transformers", "vllm"), "llada": ("masked-diffusion",)}
"""The engines of the models. The first is the default, and alone runs the methods of `ONE_ENGINE`."""

ONE_ENGINE = ("beam", "ets-is")
"""Methods that need transformers: vLLM has no beam search, and no scores at other temperatures."""

BASE: dict[str, Any] = {name: getattr(MethodSettings(), f"base_{name}") for name in ("temperature", "top_k", "top_p")}
"""The law of the paper's Base row, from which its model `qwen` samples whatever the arguments."""

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
    """An argument of the paper: our name, the reader of its value, and its default. The reader raises ValueError."""

    name: str
    read: Callable[[Any], Any]
    default: Any = REQUIRED


@dataclass(frozen=True)
class PaperRun:
    """A command of the paper in this library's names.

    Parameters
    ----------
    family : {"qwen", "llada"}
    method : str
        A key of `ets.evaluation.methods.METHODS`.
    values : mapping
        By our names, all of the family's. `top_k` and `top_p` may be `"checkpoint"`: the values of the checkpoint's
        generation_config.
    notes : tuple of str
        One line for each argument that has no effect here, and for each method that differs from the paper's.
    readout : {"last", "vote"}
        The row of the table that is the paper's: the sampled text, or the first rollout with the majority answer.
    name : str
        The method's name for `ets eval`: the paper's model `qwen` without a flag is the method `base`.
    """

    family: Family
    method: str
    values: Mapping[str, Any]
    notes: tuple[str, ...]
    readout: Literal["last", "vote"] = "last"
    name: str = ""


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not _is(int, value):
        raise ValueError("it must be a whole number")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not _is(float, value):
        raise ValueError("it must be a number")
    return float(value)


def _is(kind: Callable[[Any], Any], value: Any) -> bool:
    try:
        return bool(kind(value) == float(value))
    except (ValueError, TypeError, OverflowError):
        return False


def _text(value: Any) -> str:
    if value in ("", None) or isinstance(value, bool):
        raise ValueError("it must be a name")
    return str(value)


def _flag(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise ValueError("choose True or False")
    return known[str(value).lower()]


def _pool(value: Any) -> str:
    return "chain" if _flag(value) else "step"


def _benchmark(value: Any) -> str:
    known = BENCHMARKS | {ours: ours for ours in BENCHMARKS.values()}
    known |= {"math": "math500", "gpqa_diamond": "gpqa", "aime": "aime24"}
    if str(value).lower() not in known:
        raise ValueError(f"choose from {', '.join(BENCHMARKS.values())}, or leave it out")
    return known[str(value).lower()]


def _truncation(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: value if value == CHECKPOINT else kind(value)


def _one_of(*choices: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError(f"choose from {', '.join(choices)}")
        return str(value)

    return read


FAST = ("cache", "refresh", "threshold", "factor", "remasking", "temperature")
"""Settings of the faster sampler of ETS-IS, `fast_cache` and so on."""
CHECKPOINT = "checkpoint"
"""A value of `top_k` and `top_p`: the one in the checkpoint's generation_config."""

_SHARED = {
    "model_path": Argument("model", _text),
    "dataset": Argument("benchmark", _benchmark, None),
    "task": Argument("benchmark", _benchmark, None),
    "reward": Argument("reward", _text, "majority"),
    "best_by": Argument("best_by", _text, "majority"),
    "num_samples": Argument("samples", _whole, None),
    "unsafe_code": Argument("unsafe_code", _flag, False),
    "checkpoint_dir": Argument("folder", _text, "results"),
    "method": Argument("method", _one_of(*(name for name in METHODS if name != "base")), None),
    "seed": Argument("seed", _whole, 0),
    "width": Argument("width", _whole, 8),
    "memory_gib": Argument("memory_gib", _number, None),
    "enable_thinking": Argument("thinking", _flag, None),
    "clip": Argument("clip", lambda value: bounds(str(value)), None),
}
ARGUMENTS: dict[Family, dict[str, Argument]] = {
    "qwen": _SHARED
    | {
        "m_candidates": Argument("candidates", _whole, 3),
        "k_monte_carlo": Argument("rollouts", _whole, 3),
        "lambda_param": Argument("lam", _number, 0.1),
        "max_length": Argument("max_length", _whole, 512),
        "block_size": Argument("block_size", _whole, 64),
        "temperature": Argument("temperature", _number, 0.7),
        "accumulate_x0": Argument("pool", _pool, "chain"),
        "num_beams": Argument("beams", _whole, 5),
        "top_k": Argument("top_k", _truncation(_whole), None),
        "top_p": Argument("top_p", _truncation(_number), None),
        "small_model_path": Argument("proposal", _text, None),
        "proposal_temperature": Argument("proposal_temperature", _number, None),
        "engine": Argument("engine", _one_of(*ENGINES["qwen"]), "transformers"),
        "data_parallel_size": Argument("replicas", _whole, 1),
        "tensor_parallel_size": Argument("tensor_parallel", _whole, 1),
        "gpu_memory_utilization": Argument("utilization", _number, 0.9),
        "vllm_seed": Argument("seed", _whole, 0),
    },
    "llada": _SHARED
    | {
        "num_candidates": Argument("candidates", _whole, 3),
        "monte_carlo_num": Argument("rollouts", _whole, 3),
        "energy_weight": Argument("lam", _number, 0.1),
        "gen_length": Argument("max_length", _whole, 1024),
        "steps": Argument("steps", _whole, 1024),
        "block_length": Argument("block_length", _whole, 1024),
        "guide_steps": Argument("guide_steps", _whole, 8),
        "temperature": Argument("temperature", _number, 0.0),
        "accumulate_x0": Argument("pool", _pool, "step"),
        "cfg": Argument("cfg", _number, 0.0),
        "remasking": Argument("remasking", _text, "low_confidence"),
        "threshold": Argument("threshold", _number, None),
        "factor": Argument("factor", _number, None),
        "cache": Argument("cache", _text, None),
        "refresh": Argument("refresh", _whole, None),
        "level": Argument("level", _text, None),
        "fast_temperature": Argument("fast_temperature", _number, None),
        "fast_remasking": Argument("fast_remasking", _text, None),
        "fast_threshold": Argument("fast_threshold", _number, None),
        "fast_factor": Argument("fast_factor", _number, None),
        "fast_cache": Argument("fast_cache", _text, None),
        "fast_refresh": Argument("fast_refresh", _whole, None),
        "engine": Argument("engine", _one_of(*ENGINES["llada"]), "masked-diffusion"),
    },
}
"""By the paper's name. The defaults of the paper's arguments are those of its models' constructors. Where `top_k` or
`top_p` is left out, transformers takes the checkpoint's, and vLLM all tokens; 0 and 1 stand for all tokens."""

RESOURCES = ("replicas", "tensor_parallel", "utilization")
"""Our names of the arguments that say what vLLM may use."""

OF_PROPOSALS = (
    *("proposal", "proposal_temperature", "clip"),
    *("level", *(f"fast_{name}" for name in FAST)),
)
"""Our names of the arguments that belong to ETS-IS alone. A clip's bounds stand as `clip=0.1:10`: commas separate
arguments."""

FLAGS: dict[Family, dict[str, str]] = {
    "qwen": {
        "use_bon": "best-of-n",
        "use_beam_search": "beam",
        "is_rl": "greedy",
        "use_importance_sampling": "ets-is",
    },
    "llada": {
        "use_bon": "best-of-n",
        "use_vanilla": "ets",
        "is_accelerate_available": "ets-is",
        "use_beam_search": "beam",
        "use_importance_sampling": "ets-is",
    },
}
"""Arguments that choose a method when they are true. `is_rl` stands for the paper's comparison with RL: greedy
decoding of a checkpoint that was trained with RL."""

_LIKELIHOOD = "has no effect: it belongs to tasks that compare likelihoods, which these models do not answer"
_PLACES = "has no effect: every finished problem is written to the results folder at once"
_IDLE: dict[str, str] = {
    "mc_num": _LIKELIHOOD,
    "is_check_greedy": _LIKELIHOOD,
    "mask_id": "has no effect: the mask token is read from the checkpoint's configuration",
    "trust_remote_code": "has no effect: no remote code is run",
    "dtype": "has no effect: weights keep the checkpoint's number type (float32 on a CPU)",
    "swap_space": "has no effect: rows that find no room in vLLM's cache wait for it",
    "checkpoint_interval": _PLACES,
}
_OF_FAMILY: dict[Family, dict[str, str]] = {
    "qwen": {
        "is_accelerate_available": "has no effect: how many processes there are follows from accelerate launch",
        "use_energy_guidance": "has no effect: the model qwen-ets is the one with energy guidance",
    },
    "llada": {
        "max_length": "has no effect: gen_length is the length of a generation",
        "proposal": "has no effect: level, fast_cache, fast_threshold … say what importance sampling draws from",
        "use_energy_guidance": "has no effect, as in the paper's script: use_vanilla=True chooses ETS",
    },
}
_ONLY_IF: dict[str, tuple[bool, str]] = {
    "resume_from_checkpoint": (False, "the same command always goes on where it was interrupted"),
    "reset_checkpoint": (True, "finished problems are never deleted"),
}
"""Arguments with the one value that has no effect here, and the reason."""
_REFUSED = {
    "lora_local_path": "merge the adapter into the checkpoint, and name that by model_path",
    "quantization": "name a checkpoint that is stored as it shall run",
    "revision": "download that revision to a folder, and name it by model_path",
    "think_end_token": "thinking sections are read by the tags of ets.thinking",
}
_OF_LM_EVAL = ("batch_size", "max_batch_size", "device")

_LEVEL_0 = (
    "is_accelerate_available: the paper draws candidates exactly and rollouts with the dual cache, which follows no "
    "stated law; here both come from the sampler with the dual cache, every weight exactly 1 (Level 0); level=1 "
    "or 1F weighs towards the exact sampler"
)
_BEAM: dict[Family, str] = {
    "qwen": (
        "beam search is deterministic here: the most probable text of num_beams beams; the paper's is sampled wherever "
        "the checkpoint's generation_config has do_sample"
    ),
    "llada": (
        "beam search keeps num_candidates denoising paths by their log-probability at temperature 1, and reveals, as "
        "the paper's, one position a step: by default the one with the most probable token (largest)"
    ),
}


def read_arguments(model: str, arguments: Mapping[str, Any]) -> PaperRun:
    """Translate the arguments of one of `MODELS`.

    Raises
    ------
    InputError
        For an unknown model or argument, a missing one, a value that cannot be read, or one that asks for what
        does not exist here.
    """
    family, method = _model(model)
    known = ARGUMENTS[family]
    _require_known(model, family, arguments)
    values = {argument.name: argument.default for argument in known.values() if argument.default is not REQUIRED}
    values |= BASE if model == "qwen" else {}
    read = {name: _read(name, value, known[name].read) for name, value in arguments.items() if name in known}
    _require_agreement(known, read)
    values |= {known[name].name: value for name, value in read.items()}
    if missing := [name for name, argument in known.items() if argument.name not in values]:
        raise InputError(f"the model {model} needs {missing[0]}=…; add it to --model_args")
    method = _chosen(family, method, values.pop("method"), arguments)
    notes = [
        *_idle(family, arguments),
        *_base(model, method, values, read),
        *_without_proposal(family, method, values, read),
        *_engine_notes(family, method, values, read),
        *_level(method, values, arguments),
        *((_BEAM[family],) if method == "beam" else ()),
    ]
    given = {known[name].name for name in read}
    if (family, method) == ("llada", "beam"):
        values["steps"] = values["max_length"]
        values["remasking"] = values["remasking"] if "remasking" in given else "largest"
    readout: Literal["last", "vote"] = "last"
    if family == "llada" and method in ("ets", "ets-is") and values["pool"] == "chain":
        readout = "vote"
    name = "base" if (model, method) == ("qwen", "plain") else method
    return PaperRun(family, method, _completed(family, values, given), tuple(notes), readout, name)


def _read(name: str, value: Any, read: Callable[[Any], Any]) -> Any:
    """The value of an argument; raises `InputError` for a value that the reader refuses."""
    try:
        return read(value)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{name} is {value!r}; {error}") from None


def _model(model: str) -> tuple[Family, str]:
    if model == "qwen-draw":
        raise InputError(
            "the model qwen-draw is the reward study; run python benchmarks/reward_study.py (see its --help)"
        )
    if model not in MODELS:
        raise InputError(f"unknown model {model!r}; choose from {', '.join(MODELS)}")
    return MODELS[model]


def _require_known(model: str, family: Family, arguments: Mapping[str, Any]) -> None:
    for name, mend in _REFUSED.items():
        if arguments.get(name) not in (None, ""):
            raise InputError(f"{name} is {arguments[name]!r}, which has no effect here; {mend}")
    known = ARGUMENTS[family]
    answered = {*FLAGS[family], *_IDLE, *_OF_FAMILY[family], *_ONLY_IF, *_REFUSED, *_OF_LM_EVAL}
    if unknown := [name for name in arguments if name not in known and name not in answered]:
        raise InputError(f"unknown argument {unknown[0]!r} of the model {model}; choose from {', '.join(known)}")


def _require_agreement(known: Mapping[str, Argument], read: Mapping[str, Any]) -> None:
    """Raise `InputError` for two arguments that give one setting different values, such as dataset and task."""
    first: dict[str, str] = {}
    for name, value in read.items():
        other = first.setdefault(known[name].name, name)
        if read[other] != value:
            raise InputError(
                f"{other} and {name} name one setting, but are {read[other]} and {value}; keep one of them"
            )


def _chosen(family: Family, method: str, named: str | None, arguments: Mapping[str, Any]) -> str:
    """The model's method, or the one that an argument chooses."""
    flags = FLAGS[family]
    chosen = {name: flags[name] for name in flags if _read(name, arguments.get(name, False), _flag)}
    if named is not None:
        chosen["method"] = named
    if len(set(chosen.values())) > 1:
        raise InputError(f"{' and '.join(chosen)} ask for different methods; keep one of them")
    return next(iter(chosen.values()), method)


def _idle(family: Family, arguments: Mapping[str, Any]) -> Iterator[str]:
    """A line for each argument without an effect."""
    reasons = _IDLE | _OF_FAMILY[family]
    for name, value in arguments.items():
        if name in reasons:
            yield f"{name} {reasons[name]}"
        if name in _ONLY_IF and _read(name, value, _flag) == _ONLY_IF[name][0]:
            yield f"{name} has no effect: {_ONLY_IF[name][1]}; for new samples, set another seed or checkpoint_dir"


def _base(model: str, method: str, values: dict[str, Any], read: Mapping[str, Any]) -> Iterator[str]:
    """Set the law of the Base row; a line for each argument that it overrules."""
    if (model, method) != ("qwen", "plain"):
        return
    values |= BASE
    law = ", ".join(f"{name} {value}" for name, value in BASE.items())
    for name in (name for name in read if name in BASE and read[name] != BASE[name]):
        yield (
            f"{name} has no effect: the model qwen samples at {law}, as the paper's; for another law, take the model "
            "qwen-ets with method=plain"
        )


def _without_proposal(family: Family, method: str, values: dict[str, Any], read: Mapping[str, Any]) -> tuple[str, ...]:
    """Take what belongs to ETS-IS out of another method's values; a line for each such argument that was given."""
    if method == "ets-is":
        if family == "qwen" and values["proposal"] is None:
            raise InputError("importance sampling needs small_model_path=…; add it to --model_args")
        return ()
    for name in OF_PROPOSALS:
        values.pop(name, None)
    idle = [name for name in read if ARGUMENTS[family][name].name in OF_PROPOSALS]
    flag = {"qwen": "use_importance_sampling", "llada": "is_accelerate_available"}[family]
    return tuple(f"{name} has no effect without importance sampling; add {flag}=True" for name in idle)


def _engine_notes(family: Family, method: str, values: dict[str, Any], read: Mapping[str, Any]) -> Iterator[str]:
    """Choose transformers for a method that vLLM does not run, and leave its resources out; a line for each change."""
    first = ENGINES[family][0]
    if values["engine"] != first and method in ONE_ENGINE:
        values["engine"] = first
        yield f"the method {method} runs through {first}, as in the paper: vLLM does not have it"
    if values["engine"] != "vllm":
        for name in RESOURCES:
            values.pop(name, None)
        for name in (name for name in read if ARGUMENTS[family][name].name in RESOURCES):
            yield f"{name} has no effect without vLLM; run qwen_vllm/eval_qwen.py, or add engine=vllm"


def _level(method: str, values: dict[str, Any], arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Of masked diffusion: the level of ETS-IS, and the fast sampler that is meant where none is given.

    Level 1 takes the positions as given, which LLaDA's own rule does not.
    """
    if method != "ets-is" or "level" not in values:
        return ()
    asked = _read("is_accelerate_available", arguments.get("is_accelerate_available", False), _flag)
    values["level"] = values["level"] or ("0" if asked else "1")
    if values["level"] == "1" and values["remasking"] == "low_confidence":
        values["fast_remasking"] = values["fast_remasking"] or "largest"
    if asked or all(values[f"fast_{name}"] is None for name in FAST if name != "remasking"):
        values["fast_cache"] = values["fast_cache"] or "dual"
    return (_LEVEL_0,) if asked and values["level"] == "0" else ()


def _completed(family: Family, values: dict[str, Any], given: Collection[str]) -> dict[str, Any]:
    """Fill in what follows from other arguments: N = M, and blocks that fit into a short generation."""
    for name in ("block_size", "block_length", "steps"):
        if name in values and name not in given:
            values[name] = min(values[name], values["max_length"])
    if values["samples"] is None:
        values["samples"] = values["candidates"]
    if family == "llada":
        return values | {"beams": values["candidates"], "minimum": 2}
    default = CHECKPOINT if values["engine"] == "transformers" else None
    for name, none in (("top_k", 0), ("top_p", 1)):
        if values[name] is None:
            values[name] = default
        elif values[name] == none:
            values[name] = None
    return values | {"minimum": 1}
