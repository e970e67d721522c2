"""The scripts that a user runs: from any directory, with every hyper-parameter in the script."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from ets.cli import parser_of
from tests.laws.uniform import saved_diffusion_gemma

ROOT = Path(__file__).parents[2]
EVAL = ROOT / "qwen" / "eval.sh"
LLADA = ROOT / "llada" / "eval.sh"
VLLM = ROOT / "qwen_vllm" / "eval.sh"
READERS = (ROOT / "scripts" / "run_eval.sh", EVAL, LLADA, VLLM, ROOT / "aime24" / "eval_aime.sh")
READ = {name for script in READERS for name in re.findall(r"\$\{([A-Z][A-Z0-9_]*)", script.read_text())}
"""The variables that the scripts read, hyper-parameters for the most part: tests alone set them."""


def bash(*words: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command on this interpreter, which starts faster than a `python3` that chooses among versions."""
    inherited = {name: value for name, value in os.environ.items() if name not in READ - {"OMP_NUM_THREADS"}}
    here = {"ETS_VENV": sys.prefix, "BASE_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    environment = {**inherited, **here, **variables}
    return subprocess.run(["bash", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)


@pytest.mark.parametrize("script", [EVAL, LLADA])
def test_an_unknown_preset_names_those_that_work(script: Path, tmp_path: Path) -> None:
    done = bash(str(script), "nonsense", folder=tmp_path, BASE_PYTHON="")
    assert done.returncode == 2
    presets = "demo, demo-is, math500, gsm8k, humaneval, gpqa, humaneval-plus, mbpp-plus, ifeval, all"
    assert done.stderr == f"error: unknown preset 'nonsense'; the presets that work are: {presets}\n"


def test_the_demonstration_runs_from_any_directory_with_changed_variables(tmp_path: Path) -> None:
    small = {"NUM_PROBLEMS": "2", "M_CANDIDATES": "3", "K_MONTE_CARLO": "2", "BLOCK_SIZE": "32", "OUT": "out"}
    done = bash(str(EVAL), folder=tmp_path, **small)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    command = "MODEL_PATH=Qwen/Qwen3-1.7B-Base SHOTS=4 TEMPERATURE=1.0 bash qwen/eval.sh"
    for line in (lines[0], lines[-1]):
        assert "embedded demonstration" in line
        assert command in line
    assert "ETS (M 3, K 2)" in done.stdout
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 1000


def test_the_demonstration_of_importance_sampling_goes_on_in_the_folder_of_the_other(tmp_path: Path) -> None:
    """It adds its row to the table; what is done is not sampled again, and all of it stays on this machine."""
    small = {"NUM_PROBLEMS": "2", "M_CANDIDATES": "3", "K_MONTE_CARLO": "2", "BLOCK_SIZE": "32", "OUT": "out"}
    assert bash(str(EVAL), folder=tmp_path, METHODS="ets", **small).returncode == 0
    done = bash(str(EVAL), "demo-is", folder=tmp_path, METHODS="ets,ets-is", **small)
    assert done.returncode == 0, done.stderr
    assert "2 finished chains" in done.stdout and "embedded demonstration" in done.stdout
    assert "ETS (M 3, K 2)" in done.stdout and "ETS-IS (M 3, K 2, block 32): " in done.stdout
    entries = json.loads((tmp_path / "out" / "summary.json").read_text())["entries"]
    rows = {entry["method"]: entry for entry in entries if entry["readout"] == "last"}
    assert list(rows) == ["ets", "ets-is"] and rows["ets-is"]["ratios"]["rollouts"] > 0


def test_the_masked_diffusion_demonstration_runs_with_changed_variables(tmp_path: Path) -> None:
    small = {"NUM_PROBLEMS": "2", "NUM_CANDIDATES": "3", "MONTE_CARLO_NUM": "1", "STEPS": "6", "GUIDE_STEPS": "2"}
    done = bash(str(LLADA), folder=tmp_path, OUT="out", **small)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    for line in (lines[0], lines[-1]):
        assert "embedded demonstration" in line and "bash llada/eval.sh" in line
    assert "ETS (M 3, K 1)" in done.stdout
    assert (tmp_path / "out" / "accuracy.png").stat().st_size > 1000


def test_a_uniform_diffusion_checkpoint_runs_by_its_path(tmp_path: Path) -> None:
    model = saved_diffusion_gemma(tmp_path / "gemma")
    small = {
        "NUM_PROBLEMS": "2",
        "NUM_CANDIDATES": "2",
        "MONTE_CARLO_NUM": "1",
        "GEN_LENGTH": "8",
        "MINIMUM_VOTES": "1",
    }
    done = bash(str(LLADA), folder=tmp_path, MODEL_PATH=str(model), OUT="out", **small)
    assert done.returncode == 0, done.stderr
    assert "ETS (M 2, K 1)" in done.stdout and "majority voting" in done.stdout


def test_through_a_server_the_demonstration_names_the_command_for_a_server(tmp_path: Path) -> None:
    done = bash(str(VLLM), folder=tmp_path, ENDPOINT="no address")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: 'no address' is no address")
    assert "With a real model, on the same problems: ENDPOINT=http://its.server/v1 MODEL_PATH=" in done.stdout
    assert done.stdout.splitlines()[0].endswith(" bash qwen_vllm/eval.sh")


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")
def test_the_demonstration_runs_through_vllm_and_leaves_nothing_running(tmp_path: Path) -> None:
    """And shows a finished run again without loading the engine, which takes half a minute."""
    small = {"NUM_PROBLEMS": "4", "M_CANDIDATES": "3", "K_MONTE_CARLO": "2", "BLOCK_SIZE": "32", "MEMORY_GIB": "1"}
    shown = []
    for _ in range(2):
        done = bash(str(VLLM), folder=tmp_path, OUT="out", METHODS="plain,greedy,ets", **small)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr and "EngineDead" not in done.stderr
        shown.append(done.stdout)
    assert "bash qwen_vllm/eval.sh" in shown[0]
    chains = len((tmp_path / "out" / "journal.jsonl").read_text().splitlines())
    assert "\n0 finished chains" in shown[0] and f"\n{chains} finished chains" in shown[1] and chains == 3 * 4
    for label in ("plain sampling", "greedy decoding", "ETS (M 3, K 2)"):
        assert f"\n| {label}" in shown[0]
    assert shown[0].partition("| method")[2] == shown[1].partition("| method")[2]
    deadline = time.monotonic() + 120
    while (left := processes_in(tmp_path)) and time.monotonic() < deadline:  # helpers end a moment after their masters
        time.sleep(0.1)
    assert not left


def processes_in(folder: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if str(folder) in working_folder(process)]


def working_folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


def test_the_fast_demonstration_goes_on_in_the_folder_of_the_other(tmp_path: Path) -> None:
    """It adds ETS-IS at one level after the other; what is done is not sampled again."""
    small = {"NUM_PROBLEMS": "2", "NUM_CANDIDATES": "3", "MONTE_CARLO_NUM": "1", "STEPS": "12", "OUT": "out"}
    journal, counts = tmp_path / "out" / "journal.jsonl", []
    for preset, level in (("demo", ""), ("demo-is", ""), ("demo-is", "1"), ("demo-is", "")):
        methods = "ets" if preset == "demo" else "ets,ets-is"
        done = bash(str(LLADA), preset, folder=tmp_path, METHODS=methods, LEVEL=level, **small)
        assert done.returncode == 0, done.stderr
        assert "embedded demonstration" in done.stdout and "ETS (M 3, K 1)" in done.stdout
        counts.append(len(journal.read_text().splitlines()))
    assert counts == [2, 4, 6, 6]
    assert done.stdout.count("ets-is: its target is the fast sampler itself") == 2
    assert "\n| ETS-IS at level 0 (M 3, K 1) " in done.stdout


def test_the_script_works_beside_folders_named_like_its_packages(tmp_path: Path) -> None:
    """A clone called `ets`, and a `tqdm.py` of the user's, must not hide the installed packages."""
    (tmp_path / "ets").mkdir()
    (tmp_path / "tqdm.py").write_text("raise ImportError")
    done = bash(str(EVAL), folder=tmp_path, K_MONTE_CARLO="0")
    assert done.stderr.splitlines()[-1].startswith("error: --rollouts is 0")


@pytest.mark.parametrize("script", [EVAL, LLADA, ROOT / "scripts" / "real.sh"])
def test_prompts_without_a_reward_name_the_variable(script: Path, tmp_path: Path) -> None:
    given = {"TASK": "eggs.jsonl", "METHODS": "plain,ets", "PRINT_ONLY": "1"}
    done = bash(str(script), folder=tmp_path, **given)
    assert done.returncode == 2 and done.stdout == ""
    reason = "TASK is the file of prompts eggs.jsonl, which has no right answers"
    assert done.stderr == f"error: {reason}; set REWARD=file.py:function or REWARD=module:function\n"
    done = bash(str(script), folder=tmp_path, **given, REWARD="mine.py:short")
    assert done.returncode == 0 and " --reward 'mine.py:short' " in done.stdout


@pytest.mark.parametrize(("task", "shots"), [("eggs.jsonl", ""), ("sums", "SHOTS=4 ")])
def test_the_command_for_a_real_model_has_worked_examples_if_the_task_has(
    task: str, shots: str, tmp_path: Path
) -> None:
    """The run ends before a model is loaded: no file of this name, or no rollouts."""
    given = {"TASK": task, "REWARD": "likelihood", "METHODS": "plain,ets", "K_MONTE_CARLO": "0"}
    done = bash(str(EVAL), folder=tmp_path, **given)
    assert done.returncode == 2 and f" MODEL_PATH=Qwen/Qwen3-1.7B-Base {shots}TEMPERATURE=1.0 " in done.stdout


def test_words_after_the_preset_are_refused(tmp_path: Path) -> None:
    done = bash(str(EVAL), "demo", "M=5", folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unexpected argument 'M=5'")


def test_the_script_works_inside_its_folder_and_shows_no_traceback() -> None:
    done = bash("eval.sh", folder=EVAL.parent, K_MONTE_CARLO="0")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --rollouts is 0")
    assert "Traceback" not in done.stderr


REAL = ROOT / "scripts" / "real.sh"


@pytest.mark.parametrize(
    ("script", "variable", "message"),
    [
        (LLADA, "LAMBDA_PARAM", "LAMBDA_PARAM is no variable of this script; set ENERGY_WEIGHT"),
        (EVAL, "GEN_LENGTH", "GEN_LENGTH is no variable of this script; set MAX_LENGTH"),
        (EVAL, "M_CANDIDATE", "M_CANDIDATE is no variable of this script; set M_CANDIDATES"),
        (VLLM, "TEMPRATURE", "TEMPRATURE is no variable of this script; set TEMPERATURE"),
        (EVAL, "STEPS", "STEPS is no variable of this script but of another one; leave it out"),
        (REAL, "NUM_PROBLEMS", "NUM_PROBLEMS is no variable of this script; set NUM_PROMPTS"),
    ],
)
def test_a_variable_of_another_script_and_a_misspelt_one_are_refused(
    script: Path, variable: str, message: str, tmp_path: Path
) -> None:
    done = bash(str(script), folder=tmp_path, PRINT_ONLY="1", **{variable: "4"})
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")


def helped(folder: Path, script: Path, *words: str) -> tuple[str, dict[str, str]]:
    """The examples of a script's help, and its variables with their values."""
    done = bash(str(script), *words, "--help", folder=folder, ETS_VENV=str(folder / "none"))
    assert done.returncode == 0 and done.stderr == "" and not (folder / "none").exists()
    examples, _, variables = done.stdout.partition("\nVariables")
    pairs = re.findall(r"^  ([A-Z_]+)=(\S*)", variables, re.MULTILINE)
    assert len(pairs) == len(dict(pairs))
    return examples, dict(pairs)


@pytest.mark.parametrize("script", [EVAL, VLLM, LLADA, REAL, READERS[-1]], ids=lambda script: script.parent.name)
def test_help_shows_the_examples_of_the_script_and_every_variable(script: Path, tmp_path: Path) -> None:
    examples, variables = helped(tmp_path, script)
    assert f"bash {script.relative_to(ROOT)}" in examples
    assert examples.splitlines()[0] == script.read_text().splitlines()[1].removeprefix("# ")
    source = EVAL if script == VLLM else script
    assert set(re.findall(r"\b([A-Z][A-Z_]*)=\$\{\1\b", source.read_text())) | {"PRINT_ONLY"} <= set(variables)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (EVAL, ["demo"]), (EVAL, ["demo-is"]), (EVAL, ["math500"]), (VLLM, ["demo"]), (VLLM, ["gsm8k"]),
        (VLLM, ["minerva_math500", "math500", "some/model"]), (VLLM, ["aime25"]), (LLADA, ["demo"]), (LLADA, ["gpqa"]),
        (READERS[-1], ["aime24"]),
    ],
)  # fmt: skip
def test_help_shows_the_values_of_the_preset(script: Path, words: list[str], tmp_path: Path) -> None:
    variables = helped(tmp_path, script, *words)[1]
    printed = shlex.split(bash(str(script), *words, folder=tmp_path, PRINT_ONLY="1").stdout)
    options = {"TASK": "task", "MODEL_PATH": "model", "METHODS": "methods", "TEMPERATURE": "temperature"}
    options |= {"K_MONTE_CARLO": "rollouts", "MONTE_CARLO_NUM": "rollouts", "LAMBDA_PARAM": "lam", "WIDTH": "width"}
    options |= {"M_CANDIDATES": "candidates", "NUM_CANDIDATES": "candidates", "GEN_LENGTH": "gen-length"}
    shown = {option: variables[name] for name, option in options.items() if variables.get(name)}
    assert len(shown) > 6
    assert {option: printed[printed.index(f"--{option}") + 1] for option in shown} == shown


def test_an_unknown_extra_is_refused_at_once(tmp_path: Path) -> None:
    done = bash(str(ROOT / "scripts" / "setup.sh"), "nonsense", folder=tmp_path, ETS_VENV=str(tmp_path / "venv"))
    assert done.returncode == 2 and not (tmp_path / "venv").exists()
    assert done.stderr.startswith("error: there is no extra 'nonsense'; choose from eval benchmarks ")


VALUES = {
    "TASK": "gsm8k", "METHODS": "ets,ets-is,best-of-n,base", "REWARD": "share", "POOL": "step", "BEST_BY": "share",
    "SIZES": "best-of-n=3", "CLIP": "0.1,10", "DATA": "/data", "OUT": "out", "CHAT": "1", "THINKING": "off",
    "FEWSHOT_AS_MULTITURN": "1", "STOPS": "answer", "UNSAFE_CODE": "1", "ENGINE": "vllm", "SMALL_MODEL_PATH": "/small",
    "PROPOSAL_ENGINE": "vllm",
    "REMASKING": "random", "STOP_AT_END": "True", "CACHE": "prefix", "FAST_CACHE": "prefix", "LEVEL": "1",
    "QUOTAS": "time", "LOGITS_EOS_INF": "True", "CONFIDENCE_EOS_EOT_INF": "True",
    "FAST_REMASKING": "random", "TOP_P": "0.5", "UTILIZATION": "0.5", "IS_ACCELERATE_AVAILABLE": "True",
}  # fmt: skip
"""Values that differ from the defaults; the other variables are numbers or texts."""
NEEDED = {
    "CHAT=1": "SYSTEM THINKING FEWSHOT_AS_MULTITURN CHAT_STOP",
    "ENGINE=vllm": "GEN_DP GEN_TP UTILIZATION",
    "ENDPOINT=http://there:8000/v1": "SERVED_MODEL CONNECTIONS ROW_SECONDS",
    "SMALL_MODEL_PATH=/small": "IS_M_CANDIDATES IS_BLOCK_SIZE PROPOSAL_TEMPERATURE PROPOSAL_ENGINE",
    "SMALL_MODEL_PATH=/small PROPOSAL_ENGINE=vllm": "PROPOSAL_UTILIZATION",
    "LEVEL=1": "CLIP IS_NUM_CANDIDATES FAST_CACHE FAST_REFRESH FAST_THRESHOLD FAST_FACTOR FAST_REMASKING "
    "FAST_TEMPERATURE",
    "ENGINE=uniform-diffusion": "MAX_DENOISING_STEPS T_MAX T_MIN ENTROPY_BOUND STABILITY_THRESHOLD "
    "CONFIDENCE_THRESHOLD",
}
"""A setting without which others have no effect, and the names of those variables."""
NEEDS = {
    name: dict(each.split("=") for each in needed.split()) for needed, names in NEEDED.items() for name in names.split()
}


@pytest.mark.parametrize("script", [EVAL, LLADA, READERS[-1]], ids=lambda script: script.parent.name)
def test_every_variable_of_a_script_reaches_the_command(script: Path, tmp_path: Path) -> None:
    @cache
    def command(**variables: str) -> str:
        return bash(str(script), folder=tmp_path, PRINT_ONLY="1", **variables).stdout

    values = VALUES | ({"ENGINE": "uniform-diffusion"} if script == LLADA else {})
    names = sorted(set(re.findall(r"\b([A-Z][A-Z_]*)=\$\{\1\b", script.read_text())))
    assert len(names) > 35
    for name in names:
        needed = {n: value for n, value in NEEDS.get(name, {}).items() if n in (*names, "ENGINE", "ENDPOINT")}
        without, found = command(**needed), command(**needed, **{name: values.get(name, "7")})
        assert without.startswith("python ") and found.startswith("python ") and found != without, name
        assert parser_of().parse_args(shlex.split(found.partition(" -m ets ")[2])).task, name
