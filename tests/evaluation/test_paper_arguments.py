"""The paper's command lines, through lm-eval's parser and into our names."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from ets.evaluation.methods import METHODS
from ets.evaluation.paper_arguments import (
    ARGUMENTS,
    BENCHMARKS,
    FLAGS,
    MODELS,
    OF_PROPOSALS,
    STUDY,
    PaperRun,
    read_arguments,
)
from ets.evaluation.paper_command import main, notes, parsed
from ets.tasks import TASKS, Benchmark
from ets.types import InputError

TINY_LLADA = "--model llada_dist --model_args model_path=embedded,gen_length=24,block_length=8"
QWEN = "--model_args model_path=/m,max_length=512"
LLADA = "--model_args model_path=/m,gen_length=256"


def translated(line: str) -> PaperRun:
    options = parsed(shlex.split(line))
    assert set(options.tasks) <= set(BENCHMARKS)
    return read_arguments(options.model, options.model_args)


@pytest.mark.parametrize(
    ("line", "method", "values"),
    [
        (
            "--tasks minerva_math500 --model qwen-ets --model_args model_path=Qwen/Qwen3-8B,m_candidates=15,"
            "k_monte_carlo=3,block_size=64,max_length=512,temperature=0.7",
            "ets",
            {"model": "Qwen/Qwen3-8B", "candidates": 15, "rollouts": 3, "block_size": 64, "max_length": 512,
             "temperature": 0.7, "lam": 0.1, "pool": "chain", "seed": 0},
        ),
        (
            "--tasks humaneval --confirm_run_unsafe_code --model qwen-ets --batch_size 1 --device cuda:0 " + QWEN
            + ",m_candidates=20,lambda_param=0.2,dataset=humaneval,is_accelerate_available=True,"
            "use_importance_sampling=False,small_model_path=Qwen/Qwen3-1.7B,accumulate_x0=False,checkpoint_dir=out",
            "ets",
            {"candidates": 20, "lam": 0.2, "benchmark": "humaneval", "pool": "step", "folder": "out"},
        ),
        (
            "--tasks minerva_math500 --model qwen-ets --model_args model_path=Qwen/Qwen3-8B,"
            "small_model_path=Qwen/Qwen3-1.7B,use_importance_sampling=True,block_size=128,max_length=512,clip=0.1:10,proposal_temperature=1",
            "ets-is",
            {"model": "Qwen/Qwen3-8B", "proposal": "Qwen/Qwen3-1.7B", "block_size": 128, "clip": (0.1, 10.0),
             "proposal_temperature": 1.0, "proposal_top_k": None, "proposal_top_p": None, "estimator": "plain"},
        ),
        ("--tasks gsm8k --model qwen " + QWEN + ",method=ets-is,small_model_path=/s", "ets-is", {"proposal": "/s"}),
        ("--tasks gsm8k --model qwen " + QWEN + ",temperature=1.5", "plain", {"temperature": 1.5, "block_size": 512}),
        ("--tasks gsm8k --model qwen " + QWEN + ",is_rl=True", "greedy", {}),
        ("--tasks gsm8k --model qwen " + QWEN + ",use_vanilla=True", "plain", {}),
        ("--tasks gsm8k --model qwen " + QWEN + ",use_bon=True,num_samples=60", "best-of-n", {"samples": 60}),
        ("--tasks gsm8k --model qwen-ets " + QWEN + ",use_bon=True,m_candidates=7", "best-of-n", {"samples": 7}),
        (
            "--tasks gpqa_diamond_generative_n_shot --num_fewshot 5 --model qwen-beam " + QWEN + ",num_beams=50",
            "beam",
            {"beams": 50},
        ),
        ("--tasks aime24 --include_path aime24 --model qwen " + QWEN + ",use_beam_search=True", "beam", {"beams": 20}),
        (
            "--tasks gsm8k,minerva_math500 --model llada_dist --model_args model_path=/m,gen_length=256,steps=128,"
            "block_length=8,guide_steps=4,num_candidates=15,monte_carlo_num=3,energy_weight=0.1,temperature=1.0,cfg=0.5,"
            "remasking=low_confidence,mc_num=128,task=gsm8k,is_check_greedy=False,mask_id=126336",
            "ets",
            {"max_length": 256, "steps": 128, "block_length": 8, "guide_steps": 4, "candidates": 15, "rollouts": 3,
             "lam": 0.1, "temperature": 1.0, "cfg": 0.5, "remasking": "low_confidence", "benchmark": "gsm8k"},
        ),
        ("--tasks humaneval --model llada_dist " + LLADA + ",use_vanilla=True", "plain", {"steps": 256, "cfg": 0.0}),
        ("--tasks humaneval --model llada_dist " + LLADA + ",use_bon=True", "best-of-n", {}),
        ("--tasks gsm8k --model llada_dist " + LLADA + ",is_accelerate_available=True", "ets", {"cache": "dual"}),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",is_accelerate_available=True,cache=prefix,refresh=2,"
            "threshold=0.9,use_bon=True",
            "best-of-n",
            {"cache": "prefix", "refresh": 2, "threshold": 0.9},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",is_accelerate_available=True,use_importance_sampling=True",
            "ets-is",
            {"level": "0", "cache": None, "fast_cache": "dual", "fast_remasking": None},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",use_importance_sampling=True",
            "ets-is",
            {"level": "1", "cache": None, "fast_cache": "dual", "fast_remasking": "largest"},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",use_importance_sampling=True,level=2,fast_threshold=0.9,"
            "remasking=entropy,clip=0.1:10",
            "ets-is",
            {"level": "2", "fast_cache": None, "fast_remasking": None, "fast_threshold": 0.9, "clip": (0.1, 10.0)},
        ),
        (
            "--tasks gsm8k --model llada_dist " + LLADA + ",method=ets-is,level=1F",
            "ets-is",
            {"level": "1F", "fast_cache": "dual", "fast_remasking": None},
        ),
        ("run -t gsm8k --model llada_dist " + LLADA + ",method=majority,num_samples=9", "majority", {"samples": 9}),
    ],
)  # fmt: skip
def test_a_command_line_of_the_paper_is_understood(line: str, method: str, values: dict[str, Any]) -> None:
    run = translated(line)
    assert run.method == method
    assert {name: run.values[name] for name in values} == values


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--model qwen-draw " + QWEN + ",use_bon=True", "the model qwen-draw has no other method; leave use_bon out"),
        ("--model qwen-etc " + QWEN, "unknown model 'qwen-etc'; choose from qwen, qwen-beam, qwen-ets, qwen-draw"),
        (QWEN, "unknown model ''; choose from qwen"),
        ("--model qwen-ets --model_args max_length=512", "the model qwen-ets needs model_path=…"),
        ("--model qwen-ets --model_args model_path=/m", "the model qwen-ets needs max_length=…"),
        ("--model llada_dist --model_args model_path=/m", "the model llada_dist needs gen_length=…"),
        ("--model qwen-ets " + QWEN + ",gen_length=8", "unknown argument 'gen_length' of the model qwen-ets"),
        ("--model qwen-ets " + QWEN + ",m_candidates=many", "m_candidates is 'many'; it must be a whole number"),
        ("--model qwen-ets " + QWEN + ",m_candidates=2.5", "m_candidates is 2.5; it must be a whole number"),
        ("--model qwen-ets " + QWEN + ",temperature=hot", "temperature is 'hot'; it must be a number"),
        ("--model qwen-ets " + QWEN + ",is_rl=perhaps", "is_rl is 'perhaps'; choose True or False"),
        ("--model qwen-ets " + QWEN + ",is_rl=True,use_bon=True", "use_bon and is_rl ask for different methods"),
        ("--model qwen-ets " + QWEN + ",dataset=mmlu", "dataset is 'mmlu'; choose from math500, gsm8k"),
        ("--model qwen-ets " + QWEN + ",use_importance_sampling=True", "importance sampling needs small_model_path=…"),
        (
            "--model qwen-ets " + QWEN + ",use_importance_sampling=True,use_bon=True,small_model_path=/s",
            "use_bon and use_importance_sampling ask for different methods",
        ),
        (
            "--model qwen-ets " + QWEN + ",use_importance_sampling=True,small_model_path=/s,clip=10",
            "clip is '10'; give the lowest and the highest ratio",
        ),
        (
            TINY_LLADA + ",use_importance_sampling=True,fast_remasking=low_confidence",
            "level 1 takes the positions as given, but remasking 'low_confidence' chooses them by the drawn tokens",
        ),
        (
            TINY_LLADA + ",is_accelerate_available=True,cfg=0.5",
            "cfg is 0.5, but a cache holds no unguided canvases",
        ),
        ("--model llada_dist " + LLADA + ",is_accelerate_available=maybe", "choose True or False"),
        ("--model qwen-ets " + QWEN + ",method=magic", "method is 'magic'; choose from base, plain"),
        ("--model qwen-ets --model_args model_path", "argument --model_args: expected `key=value`, got 'model_path'"),
        ("--model qwen-ets --banana", "unrecognized arguments: --banana; see --help"),
        ("--model qwen-ets --config x.yaml " + QWEN, "--config is not read here; write its options on the command"),
        ("--model qwen-ets --cache_requests true " + QWEN, "--cache_requests keeps prompts whatever DATA says"),
        ("--model qwen-ets --gen_kwargs temperature=0.5 " + QWEN, "--gen_kwargs temperature=… would have no effect;"),
        ("--model qwen-ets --gen_kwargs until=x,top_p=0.5 " + QWEN, "top_p=… would have no effect; say it in --model"),
        ("--model qwen-ets --use_cache x " + QWEN, "--use_cache ignores the model's arguments"),
        ("--model qwen-ets --log_samples " + QWEN, "Specify --output_path if providing --log_samples"),
        ("--model qwen-ets --include_path nowhere " + QWEN, "--include_path is 'nowhere', which is no folder"),
        ("--model qwen-ets --tasks mmlu " + QWEN, "no answers can be told in texts of the task 'mmlu'"),
    ],
)
def test_bad_input_is_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [] if "--tasks" in line else ["--tasks", "gsm8k"]
    assert main([*tasks, *shlex.split(line)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("argument", "note"),
    [
        ("is_accelerate_available=True", "how many processes there are follows from accelerate launch"),
        ("small_model_path=/s", "has no effect without importance sampling; add use_importance_sampling=True"),
        ("clip=0.1:10", "has no effect without importance sampling"),
        ("mc_num=128", "which these models do not answer"),
        ("trust_remote_code=True", "no remote code is run"),
    ],
)
def test_an_argument_without_effect_is_answered_by_one_line(argument: str, note: str) -> None:
    (line,) = translated(f"--tasks gsm8k --model qwen {QWEN},{argument}").notes
    assert line.startswith(argument.split("=")[0]) and note in line and "\n" not in line


@pytest.mark.parametrize(
    ("argument", "note"),
    [
        (
            "is_accelerate_available=True",
            "p_ref is the fast sampler with the dual cache itself, every weight exactly 1",
        ),
        ("level=1F", "level has no effect without importance sampling; add use_importance_sampling=True"),
        ("fast_cache=dual", "fast_cache has no effect without importance sampling"),
        ("proposal=/s", "level, fast_cache, fast_threshold … say what importance sampling draws from"),
    ],
)
def test_what_makes_llada_fast_is_answered_by_one_line(argument: str, note: str) -> None:
    run = translated(f"--tasks gsm8k --model llada_dist {LLADA},{argument}")
    (line,) = run.notes
    assert line.startswith(argument.split("=")[0]) and note in line and "\n" not in line
    assert run.method == "ets" and not set(OF_PROPOSALS) & set(run.values)
    assert not translated(f"--tasks gsm8k --model llada_dist {LLADA},is_accelerate_available=False").notes


def test_the_fast_sampler_of_importance_sampling_is_said_too() -> None:
    both = f"--tasks gsm8k --model llada_dist {LLADA},is_accelerate_available=True,use_importance_sampling=True"
    (line,) = translated(both).notes
    assert "every weight exactly 1" in line
    assert not translated(f"{both},level=1").notes


@pytest.mark.parametrize(
    ("flag", "note"),
    [
        ("--batch_size 8", "--batch_size has no effect: width in --model_args"),
        ("--max_batch_size 8", "--max_batch_size has no effect: width in --model_args"),
        ("--device cuda:1", "--device has no effect: the model takes a GPU where there is one"),
        ("--device cpu", None),
        ("--seed 3", "--seed chooses the worked examples alone"),
        ("--gen_kwargs until=x", None),
        ("--confirm_run_unsafe_code", None),
    ],
)
def test_an_option_of_lm_eval_that_changes_less_than_it_says_is_answered_by_one_line(flag: str, note: str) -> None:
    found = notes(parsed(shlex.split(f"--tasks gsm8k --model qwen {QWEN} {flag}")))
    assert [line.startswith(note or "nothing") for line in found] == [True] * bool(note)


def test_what_belongs_to_ets_is_is_no_setting_of_another_method() -> None:
    """So that a folder of ETS's results stays the same, whether a small model is named or not."""
    without, named = (
        translated(f"--tasks gsm8k --model qwen-ets {QWEN}{more}") for more in ("", ",small_model_path=/s")
    )
    assert named.values == without.values and not set(OF_PROPOSALS) & set(without.values)


def test_the_tables_name_what_exists() -> None:
    assert {method for _, method in MODELS.values()} | set(FLAGS.values()) <= {*METHODS, STUDY}
    hosted = {task.lm_eval: task.name for task in (make() for make in TASKS.values()) if isinstance(task, Benchmark)}
    assert hosted | {"humaneval": "humaneval"} == BENCHMARKS
    assert {name: argument.name for name, argument in ARGUMENTS["llada"].items() if name != argument.name} == {
        "model_path": "model",
        "accumulate_x0": "pool",
        "dataset": "benchmark",
        "task": "benchmark",
        "num_beams": "beams",
        "num_samples": "samples",
        "checkpoint_dir": "folder",
        "enable_thinking": "thinking",
        "think_end_token": "think_end",
        "num_candidates": "candidates",
        "monte_carlo_num": "rollouts",
        "energy_weight": "lam",
        "gen_length": "max_length",
        "is_accelerate_available": "accelerated",
    }


def test_a_dataset_that_contradicts_its_second_name_is_refused() -> None:
    with pytest.raises(InputError, match="dataset and task"):
        translated(f"--tasks gsm8k --model qwen {QWEN},dataset=gsm8k,task=gpqa")
