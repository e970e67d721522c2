"""The paper's command form, translated into a call of `ets eval`.

    accelerate launch qwen/eval_qwen.py --tasks minerva_math500 --model qwen-ets --model_args model_path=…,block_size=64

becomes

    ets eval --task math500 --methods ets --model … --block-size 64 …

`--model_args` takes the paper's arguments and every setting of `ets eval`. An argument that a call of `ets eval` has no
place for is answered by one line.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

from ets.commands.evaluate import OWNERS
from ets.evaluation.methods import METHODS
from ets.exits import exit_status
from ets.settings import boolean, fields_of, flag
from ets.types import InputError

BENCHMARKS = {
    "minerva_math500": "math500",
    "gsm8k": "gsm8k",
    "gpqa_diamond_generative_n_shot": "gpqa",
    "humaneval": "humaneval",
    "aime24": "aime24",
    "aime25": "aime25",
    "ifeval": "ifeval",
}
"""The names in `ets.tasks` of lm-eval's tasks."""
MODELS = {
    "qwen": ("qwen", "base"),
    "qwen-beam": ("qwen", "beam"),
    "qwen-ets": ("qwen", "ets"),
    "llada_dist": ("llada", "plain"),
}
"""By the paper's name of a model: its family of arguments, and its method without further arguments."""
_SHARED = {"model_path": "model", "checkpoint_dir": "results", "accumulate_x0": "pool", "enable_thinking": "thinking"}
NAMES: dict[str, dict[str, str]] = {
    "qwen": _SHARED
    | {"m_candidates": "candidates", "k_monte_carlo": "rollouts", "lambda_param": "lam", "num_beams": "beams"}
    | {"small_model_path": "proposal", "data_parallel_size": "replicas", "tensor_parallel_size": "tensor_parallel"}
    | {"gpu_memory_utilization": "utilization", "vllm_seed": "seed", "num_samples": "samples"},
    "llada": _SHARED
    | {"num_candidates": "candidates", "monte_carlo_num": "rollouts", "energy_weight": "lam"}
    | {"gen_length": "max_length", "num_samples": "samples"},
}
"""By family: our names of the paper's arguments. An argument with our name needs no entry."""
DEFAULTS: dict[str, dict[str, str]] = {
    "qwen": {"candidates": "3", "rollouts": "3", "lam": "0.1", "max_length": "512", "block_size": "64"}
    | {"temperature": "0.7", "pool": "True", "beams": "5", "engine": "transformers"},
    "llada": {"candidates": "3", "rollouts": "3", "lam": "0.1", "max_length": "1024", "steps": "1024"}
    | {"block_length": "1024", "guide_steps": "8", "temperature": "0.0", "pool": "False"}
    | {"engine": "masked-diffusion"},
}
"""The defaults of the constructors in the authors' code, not of their scripts."""
FLAGS: dict[str, dict[str, str]] = {
    "qwen": {"use_bon": "best-of-n", "use_beam_search": "beam", "is_rl": "greedy", "use_importance_sampling": "ets-is"},
    "llada": {"use_bon": "best-of-n", "use_vanilla": "ets", "is_accelerate_available": "ets-is"}
    | {"use_beam_search": "beam", "use_importance_sampling": "ets-is"},
}
"""Arguments that choose a method when they are true. `is_rl` is the paper's row of a checkpoint trained with RL."""
OF_BENCHMARK = ("dataset", "task")
_PLACES = "every finished problem is written to the results folder at once"
IDLE: dict[str, dict[str, str]] = {
    "qwen": {
        "is_accelerate_available": "the number of processes follows from accelerate launch",
        "use_energy_guidance": "the model qwen-ets is the one with energy guidance",
    },
    "llada": {
        "max_length": "gen_length is the length of a generation",
        "proposal": "level, fast_cache, fast_threshold … choose the sampler of importance sampling",
        "use_energy_guidance": "as in the paper's script, use_vanilla=True chooses ETS",
    },
    "": {
        "mc_num": "it belongs to tasks that compare likelihoods, which these models do not answer",
        "is_check_greedy": "it belongs to tasks that compare likelihoods, which these models do not answer",
        "mask_id": "the mask token is read from the checkpoint's configuration",
        "trust_remote_code": "no remote code is run",
        "dtype": "weights keep the checkpoint's number type (float32 on a CPU)",
        "swap_space": "rows that find no room in vLLM's cache wait for it",
        "checkpoint_interval": _PLACES,
        "resume_from_checkpoint": f"{_PLACES}, and the same command continues; set seed for new samples",
        "reset_checkpoint": "finished problems are never deleted; set seed for new samples",
        "batch_size": "width says how many problems advance together",
        "max_batch_size": "width says how many problems advance together",
        "device": "the model takes a GPU where there is one, unless this is cpu",
    },
}
"""Arguments without an effect, by family and for both ("")."""
REFUSED = {
    "lora_local_path": "merge the adapter into the checkpoint, and name that by model_path",
    "quantization": "name a checkpoint that is stored as it shall run",
    "revision": "download that revision to a folder, and name it by model_path",
    "think_end_token": "thinking sections are read by the tags of ets.thinking",
}
OF_LM_EVAL = {
    "batch_size": IDLE[""]["batch_size"],
    "max_batch_size": IDLE[""]["max_batch_size"],
    "device": IDLE[""]["device"],
    "seed": "it chooses the worked examples alone, and they are fixed; the seed of sampling is seed in --model_args",
    "log_samples": "the journal in the results folder holds every text",
    "include_path": "the prompts are those of the benchmark in ets.tasks",
}
"""Options of lm-eval's command line without an effect."""
REFUSED_OF_LM_EVAL = {
    "config": "is not read here; write its options on the command line",
    "use_cache": "ignores the model's arguments; leave it out, finished problems are kept anyway",
    "cache_requests": "keeps prompts whatever DATA says; leave it out",
    "gen_kwargs": "would have no effect; write the settings in --model_args",
}
ONLY_VLLM = ("replicas", "tensor_parallel", "utilization")
ONLY_ETS_IS = ("proposal", "proposal_engine", "proposal_utilization", "proposal_temperature", "clip", "level")
NOTES = {
    "level 0": "is_accelerate_available: the paper draws candidates exactly and rollouts with the dual cache, which "
    "follows no stated law; here both come from the sampler with the dual cache, every weight exactly 1 (Level 0); "
    "level=1 or 1F weighs towards the exact sampler",
    "qwen beam": "beam search is deterministic here: the most probable text of num_beams beams; the paper's is sampled "
    "wherever the checkpoint's generation_config has do_sample",
    "llada beam": "beam search keeps num_candidates denoising paths by their log-probability at temperature 1, and "
    "reveals, as the paper's, one position a step: by default the one with the most probable token (largest)",
    "base": "has no effect: the model qwen samples at temperature 0.7, top_k 20, top_p 0.8, as the paper's; for "
    "another law, take the model qwen-ets with method=plain",
    "vote": "the paper's text is the vote: the row whose name ends in vote",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of lm-eval's command line that the paper's form knows.

    Raises
    ------
    InputError
        For other options, and those of `REFUSED_OF_LM_EVAL`.
    """
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--tasks", "-t", help=f"comma-separated, from {', '.join(BENCHMARKS)}")
    parser.add_argument("--model", "-M", default="", help=", ".join(MODELS))
    parser.add_argument("--model_args", "-a", type=_pairs, default={}, help="arguments as name=value,…")
    parser.add_argument("--num_fewshot", "-f", help="worked examples in each prompt")
    parser.add_argument("--limit", "-L", help="problems of each task")
    parser.add_argument("--output_path", "-o", help="the folder in which results folders are made")
    parser.add_argument("--apply_chat_template", nargs="?", const="default", help="prompts by a chat template")
    parser.add_argument("--system_instruction", help="the system turn")
    parser.add_argument("--fewshot_as_multiturn", nargs="?", const="True", help="worked examples as turns")
    parser.add_argument("--confirm_run_unsafe_code", action="store_true", help="code runs in the sandbox anyway")
    for name in (*OF_LM_EVAL, *REFUSED_OF_LM_EVAL):
        parser.add_argument(f"--{name}", nargs="?", const="True", help=argparse.SUPPRESS)
    options = parser.parse_args([word for n, word in enumerate(arguments) if (n, word) != (0, "run")])
    for name, reason in REFUSED_OF_LM_EVAL.items():
        if getattr(options, name) is not None:
            raise InputError(f"--{name} {reason}")
    if not options.tasks:
        raise InputError(f"no task is named; add --tasks with some of {', '.join(BENCHMARKS)}")
    if unknown := [name for name in options.tasks.split(",") if name not in BENCHMARKS]:
        raise InputError(f"no answers are read in texts of {unknown[0]!r}; choose from {', '.join(BENCHMARKS)}")
    if options.model == "qwen-draw":
        raise InputError(
            "the model qwen-draw is the reward study; run python benchmarks/reward_study.py (see its --help)"
        )
    if options.model not in MODELS:
        raise InputError(f"unknown model {options.model!r}; choose from {', '.join(MODELS)}")
    return options


def _pairs(text: str) -> dict[str, str]:
    """The arguments `name=value,name=value`, where a value may stand in quotes."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise argparse.ArgumentTypeError(f"expected `key=value`, got {wrong[0]!r}")
    return {name.strip(): value.strip().strip("'\"") for name, _, value in pairs}


def translated(options: argparse.Namespace, engine: str | None = None) -> tuple[list[str], list[str]]:
    """The words of the call of `ets eval`, and a line for each argument that changes less than its name says.

    Parameters
    ----------
    options : argparse.Namespace
        From `parsed`.
    engine : str, optional
        The engine where `--model_args` names none.

    Raises
    ------
    InputError
        For unknown or contradicting arguments, and those of `REFUSED`.
    """
    family, method = MODELS[options.model]
    given = {} if engine is None else {"engine": engine}
    given, idle = _known(family, {**given, **{n: v for n, v in options.model_args.items() if n not in OF_BENCHMARK}})
    notes = [*(f"--{n} has no effect: {why}" for n, why in OF_LM_EVAL.items() if _shown(n, getattr(options, n))), *idle]
    method = _method(family, method, given)
    accelerated = _true(given, "is_accelerate_available")
    values = {n: v for n, v in {**DEFAULTS[family], **given}.items() if n not in FLAGS[family]}
    notes += _completed(family, method, values, given, accelerated)
    words = ["eval", "--task", _tasks(options), "--methods", method]
    thinking = values.pop("thinking", None)
    if options.apply_chat_template is None and thinking is not None:
        notes.append("enable_thinking has no effect without --apply_chat_template")
    further = {
        "shots": options.num_fewshot,
        "count": options.limit,
        "data": os.environ.get("DATA") or None,
        "system": options.system_instruction,
    }
    if options.output_path is not None:
        values["results"] = options.output_path
    values |= {name: value for name, value in further.items() if value is not None}
    words += [word for name, value in values.items() for word in (flag(name), value)]
    return [*words, *_chat(options, thinking)], notes


def _tasks(options: argparse.Namespace) -> str:
    """The tasks by our names; raises `InputError` where the arguments name another dataset."""
    tasks = [BENCHMARKS[name] for name in options.tasks.split(",")]
    ours = BENCHMARKS | {task: task for task in tasks} | {"math": "math500", "gpqa_diamond": "gpqa", "aime": "aime24"}
    for name in OF_BENCHMARK:
        if (named := options.model_args.get(name)) is not None and ours.get(named.lower()) not in tasks:
            raise InputError(f"{name} is {named!r}, but --tasks names {options.tasks}; leave {name} out")
    return ",".join(tasks)


def _known(family: str, arguments: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The arguments by our names, and a line for each without an effect.

    Raises
    ------
    InputError
        For an argument of `REFUSED`, an unknown one, or two that give one setting different values.
    """
    settings = {*fields_of(*OWNERS), "method", "samples", "results", "thinking"} - {"task", "count", "shots", "data"}
    idle, found, notes = IDLE[""] | IDLE[family], dict[str, str](), list[str]()
    for name, value in arguments.items():
        if name in REFUSED and value:
            raise InputError(f"{name} is {value!r}, which has no effect here; {REFUSED[name]}")
        ours = NAMES[family].get(name, name)
        if name in idle and name not in FLAGS[family]:
            notes += [f"{name} has no effect: {idle[name]}"] if _shown(name, value) else []
        elif ours in settings or name in FLAGS[family]:
            if found.setdefault(ours, value) != value:
                raise InputError(f"{name} is {value!r}, but another argument sets {ours} to {found[ours]!r}; keep one")
        elif name not in REFUSED:
            known = ", ".join((*NAMES[family], *FLAGS[family]))
            raise InputError(f"unknown argument {name!r}; choose from {known}, or the settings of ets eval")
    return found, notes


def _shown(name: str, value: str | None) -> bool:
    """Whether an argument without an effect asks for something that does not hold anyway."""
    holds = {"device": ("cpu", "cuda", "cuda:0"), "resume_from_checkpoint": ("True",), "reset_checkpoint": ("False",)}
    return value is not None and value not in holds.get(name, ())


def _true(arguments: Mapping[str, str], name: str) -> bool:
    try:
        return boolean(arguments.get(name, "False"))
    except InputError:
        raise InputError(f"{name} is {arguments[name]!r}; choose True or False") from None


def _method(family: str, method: str, given: dict[str, str]) -> str:
    """The model's method, or the method that an argument chooses."""
    chosen = {name: FLAGS[family][name] for name in FLAGS[family] if _true(given, name)}
    if (named := given.pop("method", None)) is not None:
        if named not in METHODS or named == "base":
            known = ", ".join(name for name in METHODS if name != "base")
            raise InputError(f"method is {named!r}; choose from {known}")
        chosen["method"] = named
    if len(set(chosen.values())) > 1:
        raise InputError(f"{' and '.join(chosen)} ask for different methods; keep one of them")
    return next(iter(chosen.values()), method)


def _completed(
    family: str, method: str, values: dict[str, str], given: Mapping[str, str], accelerated: bool
) -> Iterator[str]:
    """Fill in the settings that follow from others, and yield a line for each change."""
    if "model" not in values:
        raise InputError("the model needs model_path=…; add it to --model_args")
    values["pool"] = "chain" if _true({"accumulate_x0": values["pool"]}, "accumulate_x0") else "step"
    for name in ("block_size", "block_length", "steps"):  # a short generation has short blocks
        if name in values and name not in given and values["max_length"].isdigit():
            values[name] = str(min(int(values[name]), int(values["max_length"])))
    values["best_by"] = values.get("best_by", "majority")
    if METHODS[method].kind == "among":
        values.setdefault("samples", values["candidates"])
    else:
        values.pop("samples", None)
    if method == "base":
        for name in ("temperature", "top_k", "top_p"):
            if name in given and given[name] != {"temperature": "0.7", "top_k": "20", "top_p": "0.8"}[name]:
                yield f"{name} {NOTES['base']}"
    yield from _is_settings(family, method, values, given, accelerated)
    yield from _engine(family, method, values, given)
    if method == "beam":
        yield NOTES[f"{family} beam"]
    if family == "llada":
        values["beams"] = values["candidates"]
        if method == "beam":
            values |= {"steps": values["max_length"], "remasking": given.get("remasking", "largest")}
        if method in ("ets", "ets-is") and values["pool"] == "chain":
            yield NOTES["vote"]


def _is_settings(
    family: str, method: str, values: dict[str, str], given: Mapping[str, str], accelerated: bool
) -> Iterator[str]:
    """The settings of ETS-IS; another method has none of them."""
    fast = [name for name in values if name.startswith("fast_")]
    if method != "ets-is":
        use = "use_importance_sampling" if family == "qwen" else "is_accelerate_available"
        for name in [name for name in values if name in (*ONLY_ETS_IS, *fast)]:
            paper = {ours: theirs for theirs, ours in NAMES[family].items()}.get(name, name)
            yield f"{paper} has no effect without importance sampling; add {use}=True"
            del values[name]
    elif family == "qwen":
        if "proposal" not in values:
            raise InputError("importance sampling needs small_model_path=…; add it to --model_args")
    else:
        values.setdefault("level", "0" if accelerated else "1")
        if values["level"] == "1" and values.get("remasking", "low_confidence") == "low_confidence":
            values.setdefault("fast_remasking", "largest")  # LLaDA's rule lets drawn tokens choose the positions
        if accelerated or not [name for name in fast if name != "fast_remasking"]:
            values.setdefault("fast_cache", "dual")
        if accelerated and values["level"] == "0":
            yield NOTES["level 0"]


def _engine(family: str, method: str, values: dict[str, str], given: Mapping[str, str]) -> Iterator[str]:
    """transformers for a method that vLLM does not have, and the truncation of the paper's transformers runs."""
    if family == "llada":
        if values["engine"] != "masked-diffusion":
            raise InputError(f"engine is {values['engine']!r}; choose masked-diffusion")
        return
    if values["engine"] != "transformers" and method in ("beam", "ets-is"):
        values["engine"] = "transformers"
        yield f"the method {method} runs through transformers, as in the paper: vLLM does not have it"
    if values["engine"] != "vllm":
        for name in [name for name in ONLY_VLLM if values.pop(name, None) is not None]:
            paper = next(theirs for theirs, ours in NAMES[family].items() if ours == name)
            yield f"{paper} has no effect without vLLM; run qwen_vllm/eval_qwen.py, or add engine=vllm"
    for name, none in (("top_k", "0"), ("top_p", "1")):
        if values.get(name) == none:
            del values[name]
        elif name not in given and values["engine"] == "transformers" and method != "base":
            values[name] = "checkpoint"


def _chat(options: argparse.Namespace, thinking: str | None) -> Iterator[str]:
    if options.apply_chat_template is None:
        return
    yield from ("--chat-template", options.apply_chat_template)
    if options.fewshot_as_multiturn == "True":
        yield "--fewshot-as-multiturn"
    if thinking is not None:
        yield from ("--thinking", "on" if _true({"enable_thinking": thinking}, "enable_thinking") else "off")


def main(arguments: Sequence[str] | None = None, engine: str | None = None) -> int:
    """Run the translated call; bad input ends in one line on standard error and exit status 2.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words of the command line; by default those of this process.
    engine : str, optional
        The engine where `--model_args` names none.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    words: list[str] = []

    def translate() -> None:
        options = parsed(sys.argv[1:] if arguments is None else arguments)
        call, notes = translated(options, engine)
        if "cpu" in (options.device, options.model_args.get("device")):
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if os.environ.get("RANK", "0") == "0":
            print("".join(f"note: {line}\n" for line in notes), end="", file=sys.stderr)
            print(f"ets {shlex.join(call)}")
        words.extend(call)

    from ets.cli import main as ets

    return exit_status(translate) or ets(words)
