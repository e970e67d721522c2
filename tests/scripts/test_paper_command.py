"""The paper's command lines, translated into calls of `ets eval`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ets.commands.evaluate import OWNERS
from ets.evaluation.methods import METHODS
from ets.settings import fields_of
from ets.tasks import TASKS, Benchmark
from ets.types import InputError
from scripts.paper_command import BENCHMARKS, DEFAULTS, FLAGS, MODELS, NAMES, main, parsed, translated
from tests.scripts.paper_lines import LINES, PaperLine, settings

ROOT = Path(__file__).parents[2]

TINY_LLADA = "--model llada_dist --model_args model_path=embedded,gen_length=24,block_length=8"
QWEN = "--model_args model_path=/m,max_length=512"
LLADA = "--model_args model_path=/m,gen_length=256"


def called(line: str) -> tuple[dict[str, Any], list[str]]:
    """The settings of a line's call as `ets eval` reads them, and the notes."""
    words, notes = translated(parsed(shlex.split(line)))
    return settings(words), notes


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.script} {line.line}"[:110])
def test_a_command_line_of_the_paper_s_scripts_is_the_run_that_it_was(line: PaperLine) -> None:
    found, (_, notes) = line.found, line.call
    assert found["methods"] == [line.method]
    assert {name: found[name] for name in line.values} == line.values
    assert ("the paper's text is the vote" in " ".join(notes)) == (line.readout == "vote")


def test_the_lines_are_those_of_the_four_scripts() -> None:
    scripts = Counter(line.script.split()[0] for line in LINES)
    assert scripts == {"qwen/eval.sh": 16, "qwen/eval_aime.sh": 5, "llada/eval.sh": 8, "qwen_vllm/eval.sh": 5}
    methods = Counter(line.method for line in LINES)
    assert methods == {"base": 5, "beam": 5, "ets": 15, "ets-is": 9}


def test_the_lines_are_printed_as_a_table() -> None:
    """A row for each, with the notes that runs print below it."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "paper_lines.py")], capture_output=True, text=True)
    rows = [row for row in done.stdout.splitlines() if row.startswith("| `")]
    assert len(rows) == len(LINES), done.stderr
    assert "--methods ets --candidates 20 --rollouts 1" in rows[18] and "--block-size 6144" in rows[18]
    assert "1. beam search is deterministic here" in done.stdout and "(Level 0)" in done.stdout


ORIGINAL: dict[str, dict[str, Any]] = {
    "qwen": {"max_length": 512, "base_temperature": 0.7, "base_top_k": 20, "base_top_p": 0.8, "block_size": 64},
    "qwen-beam": {"max_length": 512, "beams": 5},
    "qwen-ets": {"max_length": 512, "temperature": 0.7, "candidates": 3, "rollouts": 3, "lam": 0.1, "block_size": 64,
                 "pool": "chain"},
    "llada_dist": {"max_length": 1024, "steps": 1024, "block_length": 1024, "temperature": 0.0, "guide_steps": 8,
                   "candidates": 3, "rollouts": 3, "lam": 0.1, "pool": "step"},
}  # fmt: skip


@pytest.mark.parametrize("model", ORIGINAL)
def test_what_a_line_leaves_out_is_the_default_of_the_paper_s_constructor(model: str) -> None:
    values, _ = called(f"--tasks gsm8k --model {model} --model_args model_path=/m")
    assert {name: values[name] for name in ORIGINAL[model]} == ORIGINAL[model]


@pytest.mark.parametrize(
    ("line", "method", "values"),
    [
        (
            "--tasks humaneval --confirm_run_unsafe_code --model qwen-ets --batch_size 1 --device cuda:0 " + QWEN
            + ",m_candidates=20,lambda_param=0.2,dataset=humaneval,is_accelerate_available=True,"
            "use_importance_sampling=False,small_model_path=Qwen/Qwen3-1.7B,accumulate_x0=False,checkpoint_dir=out",
            "ets",
            {"candidates": 20, "lam": 0.2, "task": "humaneval", "pool": "step"},
        ),
        (
            "--tasks minerva_math500 --model qwen-ets --model_args model_path=Qwen/Qwen3-8B,"
            "small_model_path=Qwen/Qwen3-1.7B,use_importance_sampling=True,clip=0.1:10,proposal_temperature=1",
            "ets-is",
            {"clip": (0.1, 10.0), "proposal_temperature": 1.0, "top_k": "checkpoint"},
        ),
        ("--tasks gsm8k --model qwen " + QWEN + ",method=ets-is,small_model_path=/s", "ets-is", {"proposal": "/s"}),
        ("--tasks gsm8k --model qwen " + QWEN + ",is_rl=True", "greedy", {}),
        ("--tasks gsm8k --model qwen " + QWEN + ",use_bon=True,num_samples=60", "best-of-n", {"samples": 60}),
        (
            "--tasks gsm8k --model qwen-ets " + QWEN + ",use_bon=True,m_candidates=7",
            "best-of-n",
            {"samples": 7, "best_by": "majority"},
        ),
        ("--tasks aime24 --include_path aime24 --model qwen " + QWEN + ",use_beam_search=True", "beam", {"beams": 5}),
        ("--tasks gsm8k --model qwen-ets " + QWEN + ",method=plain,temperature=1.5", "plain", {"temperature": 1.5}),
        ("--tasks gsm8k --model qwen-ets " + QWEN + ",top_k=0,top_p=1", "ets", {"top_k": None, "top_p": None}),
        ("--tasks gsm8k --model qwen-ets " + QWEN + ",top_k=5", "ets", {"top_k": 5, "top_p": "checkpoint"}),
        ("--tasks gsm8k --model qwen-ets " + QWEN + ",engine=vllm", "ets", {"top_k": None, "top_p": None}),
        (
            "--tasks gsm8k --model qwen-ets " + QWEN + ",engine=vllm,top_k=checkpoint,vllm_seed=9,"
            "tensor_parallel_size=4",
            "ets",
            {"top_k": "checkpoint", "top_p": None, "tensor_parallel": 4, "seed": 9},
        ),
        ("--tasks gsm8k --model qwen-ets --model_args model_path=/m,max_length=32", "ets", {"block_size": 32}),
        (
            "--tasks gsm8k,minerva_math500 --model llada_dist --model_args model_path=/m,gen_length=256,steps=128,"
            "block_length=8,guide_steps=4,num_candidates=15,monte_carlo_num=3,energy_weight=0.1,temperature=1.0,cfg=0.5,"
            "remasking=low_confidence,mc_num=128,task=gsm8k,is_check_greedy=False,mask_id=126336",
            "plain",
            {"max_length": 256, "steps": 128, "block_length": 8, "guide_steps": 4, "candidates": 15, "rollouts": 3,
             "lam": 0.1, "temperature": 1.0, "cfg": 0.5, "remasking": "low_confidence", },
        ),
        ("--tasks humaneval --model llada_dist " + LLADA, "plain", {"steps": 256, "block_length": 256}),
        (
            "--tasks humaneval --model llada_dist " + LLADA + ",use_bon=True,num_candidates=6",
            "best-of-n",
            {"samples": 6, "best_by": "majority"},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",use_beam_search=True,num_candidates=6,steps=64",
            "beam",
            {"beams": 6, "steps": 256, "remasking": "largest"},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",use_beam_search=True,remasking=low_confidence",
            "beam",
            {"beams": 3, "remasking": "low_confidence"},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",use_vanilla=True,cache=prefix,refresh=2,threshold=0.9",
            "ets",
            {"cache": "prefix", "refresh": 2, "threshold": 0.9},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",is_accelerate_available=True,level=1",
            "ets-is",
            {"level": "1", "cache": None, "fast_cache": "dual", "fast_remasking": "largest"},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",use_importance_sampling=True",
            "ets-is",
            {"level": "1", "cache": None, "fast_cache": "dual", "fast_remasking": "largest"},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",use_importance_sampling=True,level=1,fast_threshold=0.9,"
            "remasking=entropy,clip=0.1:10",
            "ets-is",
            {"level": "1", "fast_cache": None, "fast_remasking": None, "fast_threshold": 0.9, "clip": (0.1, 10.0)},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",method=ets-is,level=1F",
            "ets-is",
            {"level": "1F", "fast_cache": "dual", "fast_remasking": None},
        ),
        ("run -t gsm8k --model llada_dist " + LLADA + ",method=majority,num_samples=9", "majority", {"samples": 9}),
    ],
)  # fmt: skip
def test_arguments_in_other_combinations_are_understood_too(line: str, method: str, values: dict[str, Any]) -> None:
    found, _ = called(line)
    assert found["methods"] == [method]
    assert {name: found.get(name) for name in values} == values


@pytest.mark.parametrize(
    ("flags", "readout"),
    [
        ("use_vanilla=True,accumulate_x0=True", "vote"),
        ("is_accelerate_available=True,accumulate_x0=True", "vote"),
        ("use_vanilla=True,accumulate_x0=False", "last"),
        ("use_bon=True,accumulate_x0=True", "last"),
        ("accumulate_x0=True", "last"),
    ],
)
def test_the_readout_is_the_vote_where_the_paper_s_script_returns_it(flags: str, readout: str) -> None:
    _, notes = called(f"--tasks gsm8k --model llada_dist {LLADA},{flags}")
    assert any("the paper's text is the vote" in note for note in notes) == (readout == "vote")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model qwen-draw " + QWEN, "the model qwen-draw is the reward study; run python benchmarks/reward_study.py"),
        ("--model qwen-etc " + QWEN, "unknown model 'qwen-etc'; choose from qwen, qwen-beam, qwen-ets, llada_dist"),
        (QWEN, "unknown model ''; choose from qwen"),
        ("--model qwen-ets --model_args max_length=512", "the model needs model_path=…"),
        ("--model llada_dist --model_args gen_length=8", "the model needs model_path=…"),
        ("--model qwen-ets " + QWEN + ",use_vanilla=True", "unknown argument 'use_vanilla'; choose from"),
        ("--model qwen-ets " + QWEN + ",top_k=few", "argument --top-k: 'few' is no number"),
        ("--model qwen-ets " + QWEN + ",engine=abacus", "unknown engine 'abacus'; choose from transformers, vllm"),
        ("--model llada_dist " + LLADA + ",engine=vllm", "engine is 'vllm'; choose masked-diffusion"),
        (
            "--model qwen-ets " + QWEN + ",seed=1,vllm_seed=2",
            "vllm_seed is '2', but another argument sets seed to '1'; keep one",
        ),
        (
            "--model qwen-ets " + QWEN + ",lora_local_path=/a",
            "lora_local_path is '/a', which has no effect here;",
        ),
        ("--model qwen-ets " + QWEN + ",quantization=awq", "quantization is 'awq', which has no effect here"),
        (
            "--model llada_dist " + LLADA + ",use_vanilla=True,is_accelerate_available=True",
            "use_vanilla and is_accelerate_available ask for different methods; keep one of them",
        ),
        (
            "--model llada_dist " + LLADA + ",use_vanilla=True,use_bon=True,use_beam_search=True",
            "use_bon and use_vanilla and use_beam_search ask for different methods",
        ),
        ("--model qwen-ets " + QWEN + ",gen_length=8", "unknown argument 'gen_length'; choose from"),
        ("--model qwen-ets " + QWEN + ",m_candidates=many", "argument --candidates: 'many' is no number"),
        ("--model qwen-ets " + QWEN + ",m_candidates=2.5", "argument --candidates: '2.5' is no number"),
        ("--model qwen-ets " + QWEN + ",temperature=hot", "argument --temperature: invalid float value: 'hot'"),
        ("--model qwen-ets " + QWEN + ",is_rl=perhaps", "is_rl is 'perhaps'; choose True or False"),
        ("--model qwen-ets " + QWEN + ",is_rl=True,use_bon=True", "use_bon and is_rl ask for different methods"),
        ("--model qwen-ets " + QWEN + ",dataset=mmlu", "dataset is 'mmlu', but --tasks names gsm8k; leave dataset out"),
        ("--model qwen-ets " + QWEN + ",use_importance_sampling=True", "importance sampling needs small_model_path=…"),
        (
            "--model qwen-ets " + QWEN + ",use_importance_sampling=True,use_bon=True,small_model_path=/s",
            "use_bon and use_importance_sampling ask for different methods",
        ),
        (
            "--model qwen-ets " + QWEN + ",use_importance_sampling=True,small_model_path=/s,clip=10",
            "'10' is no pair of bounds; give the lowest and the highest",
        ),
        (
            TINY_LLADA + ",use_importance_sampling=True,temperature=1,fast_remasking=low_confidence",
            "level 1 takes the positions as given, but remasking 'low_confidence' chooses them by the drawn tokens",
        ),
        (
            TINY_LLADA + ",is_accelerate_available=True,temperature=1,cfg=0.5",
            "cfg is 0.5, but a cache holds no unguided canvases",
        ),
        ("--model llada_dist " + LLADA + ",is_accelerate_available=maybe", "choose True or False"),
        ("--model qwen-ets " + QWEN + ",method=magic", "method is 'magic'; choose from plain"),
        (
            "--model qwen-ets --model_args model_path",
            "argument --model_args/-a: expected `key=value`, got 'model_path'",
        ),
        ("--model qwen-ets --banana", "unrecognized arguments: --banana; see --help"),
        ("--model qwen-ets --config x.yaml " + QWEN, "--config is not read here; write its options on the command"),
        ("--model qwen-ets --cache_requests true " + QWEN, "--cache_requests keeps prompts whatever DATA says"),
        ("--model qwen-ets --gen_kwargs temperature=0.5 " + QWEN, "--gen_kwargs would have no effect;"),
        ("--model qwen-ets --use_cache x " + QWEN, "--use_cache ignores the model's arguments"),
        ("--model qwen-ets --tasks mmlu " + QWEN, "no answers are read in texts of 'mmlu'"),
    ],
)
def test_bad_input_is_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [] if "--tasks" in line else ["--tasks", "gsm8k"]
    assert main([*tasks, *shlex.split(line)]) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and all(note.startswith("note: ") for note in notes)
    assert message in error


@pytest.mark.parametrize(
    ("argument", "note"),
    [
        ("is_accelerate_available=True", "the number of processes follows from accelerate launch"),
        ("small_model_path=/s", "has no effect without importance sampling; add use_importance_sampling=True"),
        ("clip=0.1:10", "has no effect without importance sampling"),
        ("mc_num=128", "which these models do not answer"),
        ("trust_remote_code=True", "no remote code is run"),
        ("dtype=bfloat16", "weights keep the checkpoint's number type"),
        ("swap_space=4", "rows that find no room in vLLM's cache wait for it"),
        ("checkpoint_interval=25", "every finished problem is written to the results folder at once"),
        ("resume_from_checkpoint=False", "and the same command continues; set seed for new samples"),
        ("reset_checkpoint=True", "finished problems are never deleted; set seed for new samples"),
        ("use_energy_guidance=True", "the model qwen-ets is the one with energy guidance"),
        ("temperature=1.5", "the model qwen samples at temperature 0.7, top_k 20, top_p 0.8, as the paper's"),
        ("top_p=0.9", "the model qwen samples at temperature 0.7, top_k 20, top_p 0.8, as the paper's"),
        ("tensor_parallel_size=2", "has no effect without vLLM; run qwen_vllm/eval_qwen.py, or add engine=vllm"),
        ("data_parallel_size=8", "has no effect without vLLM"),
        ("gpu_memory_utilization=0.8", "has no effect without vLLM"),
    ],
)
def test_an_argument_without_effect_is_answered_by_one_line(argument: str, note: str) -> None:
    plain, changed = (called(f"--tasks gsm8k --model qwen {QWEN}{more}") for more in ("", f",{argument}"))
    (line,) = changed[1]
    assert line.startswith(argument.split("=")[0]) and note in line and "\n" not in line
    given = argument.split("=")[0]
    assert not plain[1] and {**changed[0], given: None} == {**plain[0], given: None}


@pytest.mark.parametrize(
    "argument",
    ["resume_from_checkpoint=True", "reset_checkpoint=False", "temperature=0.7", "quantization=", "vllm_seed=0"],
)
def test_an_argument_that_says_what_holds_anyway_needs_no_line(argument: str) -> None:
    assert not called(f"--tasks gsm8k --model qwen {QWEN},{argument}")[1]


@pytest.mark.parametrize(
    ("argument", "note"),
    [
        ("level=1F", "level has no effect without importance sampling; add is_accelerate_available=True"),
        ("fast_cache=dual", "fast_cache has no effect without importance sampling"),
        ("proposal=/s", "level, fast_cache, fast_threshold … choose the sampler of importance sampling"),
        ("max_length=4096", "gen_length is the length of a generation"),
        ("use_energy_guidance=True", "as in the paper's script, use_vanilla=True chooses ETS"),
        ("mask_id=126336", "the mask token is read from the checkpoint's configuration"),
    ],
)
def test_an_argument_of_llada_without_effect_is_answered_by_one_line(argument: str, note: str) -> None:
    found, (line,) = called(f"--tasks gsm8k --model llada_dist {LLADA},{argument}")
    assert line.startswith(argument.split("=")[0]) and note in line and "\n" not in line
    assert found["methods"] == ["plain"] and not {"level", "fast_cache", "proposal"} & set(found)
    assert not called(f"--tasks gsm8k --model llada_dist {LLADA},is_accelerate_available=False")[1]


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (f"--model llada_dist {LLADA},is_accelerate_available=True", "both come from the sampler with the dual cache"),
        (f"--model llada_dist {LLADA},is_accelerate_available=True,level=1", None),
        (
            f"--model llada_dist {LLADA},use_beam_search=True",
            "keeps num_candidates denoising paths by their log-probability",
        ),
        (f"--model llada_dist {LLADA},use_vanilla=True", None),
        (f"--model qwen-beam {QWEN}", "beam search is deterministic here"),
        (f"--model qwen-beam {QWEN},engine=vllm", "the method beam runs through transformers, as in the paper"),
        (
            f"--model qwen-ets {QWEN},engine=vllm,use_importance_sampling=True,small_model_path=/s",
            "the method ets-is runs through transformers, as in the paper",
        ),
        (f"--model qwen-ets {QWEN},engine=vllm", None),
    ],
)
def test_a_method_that_differs_from_the_paper_s_says_so(line: str, note: str | None) -> None:
    found, notes = called(f"--tasks gsm8k {line}")
    assert (note in notes[0]) if note else not notes
    assert (found["engine"] == "vllm") == (note is None and "vllm" in line)


def test_what_vllm_does_not_run_has_transformers_p_ref() -> None:
    """The truncation too: the paper's qwen_vllm script runs ETS-IS through transformers."""
    line = f"--tasks gsm8k --model qwen-ets {QWEN},engine=vllm,use_importance_sampling=True,small_model_path=/s"
    values, _ = called(line)
    assert (values["engine"], values["top_k"], values["top_p"]) == ("transformers",) + ("checkpoint",) * 2
    assert not {"replicas", "tensor_parallel", "utilization"} & set(values)


@pytest.mark.parametrize(
    ("flag", "note"),
    [
        ("--batch_size 8", "--batch_size has no effect: width says how many"),
        ("--max_batch_size 8", "--max_batch_size has no effect: width says how many"),
        ("--device cuda:1", "--device has no effect: the model takes a GPU where there is one"),
        ("--device cpu", None),
        ("--seed 3", "--seed has no effect: it chooses the worked examples alone"),
        ("--confirm_run_unsafe_code", None),
    ],
)
def test_an_option_of_lm_eval_that_changes_less_than_it_says_is_answered_by_one_line(flag: str, note: str) -> None:
    options = parsed(shlex.split(f"--tasks gsm8k --model qwen {QWEN} {flag}"))
    _, found = translated(options)
    assert [line.startswith(note or "nothing") for line in found] == [True] * bool(note)


def test_what_belongs_to_ets_is_is_no_setting_of_another_method() -> None:
    """So that a folder of ETS's results stays the same, whether a small model is named or not."""
    (without, _), (named, _) = (
        called(f"--tasks gsm8k --model qwen-ets {QWEN}{more}") for more in ("", ",small_model_path=/s")
    )
    assert named == without and "proposal" not in named


def test_the_tables_name_what_exists() -> None:
    flags = {method for own in FLAGS.values() for method in own.values()}
    assert {method for _, method in MODELS.values()} | flags <= {*METHODS}
    known = {*fields_of(*OWNERS), "results", "thinking", "samples"}
    assert {ours for names in NAMES.values() for ours in names.values()} <= known
    assert {name for own in DEFAULTS.values() for name in own} <= known
    hosted = {task.lm_eval: task.name for task in (make() for make in TASKS.values()) if isinstance(task, Benchmark)}
    assert hosted | {"humaneval": "humaneval"} == BENCHMARKS


def test_a_dataset_that_contradicts_its_second_name_is_refused() -> None:
    with pytest.raises(InputError, match="task is 'gpqa'"):
        called(f"--tasks gsm8k --model qwen {QWEN},dataset=gsm8k,task=gpqa")
