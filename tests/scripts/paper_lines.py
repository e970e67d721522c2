"""The command lines of the paper's scripts by their arguments, and the runs that they are here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ets.cli import parser_of
from ets.commands import evaluate
from scripts.paper_command import parsed, translated


@dataclass(frozen=True)
class PaperLine:
    """A command line of a script of the paper, and the method, the settings and the readout that it stands for."""

    script: str
    line: str
    method: str
    values: dict[str, Any]
    readout: str = "last"

    @property
    def engine(self) -> str | None:
        """What its script runs models with, where the line does not say it."""
        return "vllm" if self.script.startswith("qwen_vllm") else None

    @cached_property
    def call(self) -> tuple[list[str], list[str]]:
        """The words of the call of `ets eval`, and the notes."""
        return translated(parsed(shlex.split(self.line)), self.engine)

    @property
    def found(self) -> dict[str, Any]:
        """The settings of the call, by our names."""
        return settings(self.call[0])


def settings(words: Sequence[str]) -> dict[str, Any]:
    """The settings of a call as `ets eval` reads them, with the defaults of the methods."""
    plan = evaluate.plan_of(parser_of().parse_args(words))
    shared = {"samples": plan.samples, "task": plan.asked.task, "model": plan.asked.model, "engine": plan.asked.engine}
    return {**vars(plan.settings), "seed": plan.asked.seed, **plan.values, **shared, "methods": list(plan.methods)}


def markdown(lines: Sequence[PaperLine]) -> str:
    """A table with a row for each line, and below it the notes that the calls print."""
    rows = ["| script | arguments | call | notes |", "| --- | --- | --- | --- |"]
    notes: dict[str, int] = {}
    for line in lines:
        words, own = line.call
        numbers = ", ".join(str(notes.setdefault(note, len(notes) + 1)) for note in own)
        rows.append(f"| `{line.script}` | `{line.line}` | `ets {shlex.join(words)}` | {numbers} |")
    return "\n".join([*rows, "", *(f"{number}. {note}" for note, number in notes.items())])


BASE = {"base_temperature": 0.7, "base_top_k": 20, "base_top_p": 0.8}
TRUNCATED = {"top_k": "checkpoint", "top_p": "checkpoint"}
M15 = TRUNCATED | {"candidates": 15, "rollouts": 3, "lam": 0.1, "max_length": 512, "pool": "chain"}
SMALL = {"proposal": "Qwen/Qwen3-1.7B"}
EIGHT_B = "model_path='Qwen/Qwen3-8B'"
GPQA = "--tasks gpqa_diamond_generative_n_shot --num_fewshot 5"
CODE = "--tasks humaneval --confirm_run_unsafe_code"
IS = ",small_model_path='Qwen/Qwen3-1.7B',use_importance_sampling=True"


def _tasks(*settings: tuple[str, dict[str, Any]]) -> list[tuple[str, str, str, dict[str, Any]]]:
    """The tasks of the paper with their datasets, and the arguments of each with what they stand for."""
    tasks = ("--tasks minerva_math500", "--tasks gsm8k", GPQA, CODE)
    names = ("math500", "gsm8k", "gpqa", "humaneval")
    return [(task, name, *each) for task, name, each in zip(tasks, names, settings, strict=True)]


def _guided(m: int, block: int, temperature: float) -> tuple[str, dict[str, Any]]:
    words = f"m_candidates={m},k_monte_carlo=3,block_size={block},max_length=512,temperature={temperature}"
    return words, M15 | {"candidates": m, "block_size": block, "temperature": temperature}


def _beams(beams: int) -> tuple[str, dict[str, Any]]:
    return f"max_length=512,num_beams={beams}", {"max_length": 512, "beams": beams}


QWEN = (
    *(
        PaperLine("qwen/eval.sh", f"{task} --model qwen --model_args {EIGHT_B},{words}", "base", BASE | values)
        for task, _, words, values in _tasks(*[("max_length=512", {"max_length": 512})] * 4)
    ),
    *(
        PaperLine("qwen/eval.sh", f"{task} --model qwen-beam --model_args {EIGHT_B},{words}", "beam", values)
        for task, _, words, values in _tasks(_beams(20), _beams(20), _beams(50), _beams(20))
    ),
    *(
        PaperLine(
            "qwen/eval.sh", f"{task} --model qwen-ets --model_args dataset='{name}',{EIGHT_B},{words}", "ets",
            values | {"task": name},
        )
        for task, name, words, values in _tasks(
            _guided(15, 64, 0.7), _guided(15, 128, 1.5), _guided(15, 64, 0.25), _guided(20, 64, 0.25)
        )
    ),
    *(
        PaperLine(
            "qwen/eval.sh", f"{task} --model qwen-ets --model_args dataset='{name}',{EIGHT_B},{words}{IS}", "ets-is",
            values | {"task": name} | SMALL,
        )
        for task, name, words, values in _tasks(
            _guided(15, 128, 0.7), _guided(15, 128, 1.5), _guided(15, 64, 0.25), _guided(10, 64, 0.25)
        )
    ),
)  # fmt: skip


def _aime(words: str, model: str, method: str, **values: Any) -> PaperLine:
    line = f"--tasks aime24 --model {model} --model_args {words}{EIGHT_B},max_length=6144"
    return PaperLine("qwen/eval_aime.sh", line, method, {"max_length": 6144} | values)


def _aime_guided(m: int, k: int, block: int, method: str = "ets", **values: Any) -> PaperLine:
    words = f"dataset='aime',m_candidates={m},k_monte_carlo={k},block_size={block},temperature=0.7,"
    if method == "ets-is":
        words += f"{IS[1:]},"
    law = M15 | {"candidates": m, "rollouts": k, "block_size": block, "temperature": 0.7, "max_length": 6144}
    return _aime(words, "qwen-ets", method, **law | values)


AIME = (
    _aime("", "qwen", "base", **BASE),
    _aime("num_beams=50,", "qwen-beam", "beam", beams=50),
    _aime_guided(
        20,
        1,
        6144,
    ),  # their best-of-N: one-step ETS
    _aime_guided(5, 3, 2048),
    _aime_guided(5, 3, 1536, "ets-is", **SMALL),
)
LLADA_LAW = {
    "math500": (256, 32, 0.5),
    "gsm8k": (256, 8, 1.0),
    "gpqa": (64, 8, 0.5),
    "humaneval": (512, 32, 0.5),
}
LLADA = tuple(
    PaperLine(
        "llada/eval.sh",
        f"{task} --model llada_dist --model_args model_path='GSAI-ML/LLaDA-8B-Instruct',gen_length={length},"
        f"steps={length},block_length={block},temperature={temperature},guide_steps=4,{flag}=True,num_candidates=15,"
        f'monte_carlo_num=3,energy_weight=0.1,task="{name}",accumulate_x0=True',
        method,
        {"max_length": length, "steps": length, "block_length": block, "temperature": temperature, "guide_steps": 4,
         "candidates": 15, "rollouts": 3, "lam": 0.1, "pool": "chain", "task": name,
         **more},
        "vote",
    )
    for flag, method, more in (
        ("use_vanilla", "ets", {}),
        ("is_accelerate_available", "ets-is", {"level": "0", "fast_cache": "dual"}),
    )
    for task, name, length, block, temperature in (row[:2] + LLADA_LAW[row[1]] for row in _tasks(*[("", {})] * 4))
)  # fmt: skip
VLLM = tuple(
    PaperLine(
        f"qwen_vllm/eval.sh {task} {dataset}",
        f"--tasks {task} --model qwen-ets --output_path out --log_samples --model_args dataset={dataset},{EIGHT_B},"
        "m_candidates=15,k_monte_carlo=3,block_size=64,max_length=512,temperature=0.7,data_parallel_size=8,"
        "tensor_parallel_size=1,gpu_memory_utilization=0.8,vllm_seed=0",
        "ets",
        {n: v for n, v in M15.items() if n not in TRUNCATED}
        | {"block_size": 64, "temperature": 0.7, "engine": "vllm", "seed": 0}
        | {"replicas": 8, "tensor_parallel": 1, "utilization": 0.8},
    )
    for task, dataset in (
        ("minerva_math500", "math500"),
        ("gsm8k", "gsm8k"),
        ("gpqa_diamond_generative_n_shot", "gpqa"),
        ("humaneval", "humaneval"),
        ("aime24", "aime"),
    )
)  # fmt: skip
LINES = (*QWEN, *AIME, *LLADA, *VLLM)
"""All of them: 16 of qwen/eval.sh, 5 of qwen/eval_aime.sh, 8 of llada/eval.sh, and 5 of qwen_vllm/eval.sh, whose one
line stands for each of its tasks."""
