"""The paper's commands run: lm-eval's scores, our grades and journal, resuming, repeats and several processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from ets import demo
from ets.cli import main as ets_main
from ets.evaluation.lm_eval_models import LLaDADist, Qwen, QwenETS
from ets.evaluation.paper_command import main
from ets.policies.autoregressive import Sampling
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.checkpoint import Checkpoint
from ets.types import InputError
from tests.chatting import CHATML
from tests.sandboxed import needs_sandbox

ROOT = Path(__file__).parents[2]
needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")
DATA = ROOT / "tests" / "data"
SMALL = "model_path=embedded-small,m_candidates=2,k_monte_carlo=1,block_size=8,max_length=16,temperature=0.7"


@pytest.fixture(autouse=True)
def _local_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(DATA))


PROPOSED = {"use_importance_sampling": True, "small_model_path": "embedded"}


def run_paper(folder: Path, tasks: str, *words: str, model: str = "qwen-ets", arguments: str = SMALL) -> int:
    line = ["--tasks", tasks, "--model", model, "--model_args", f"{arguments},checkpoint_dir={folder}"]
    return main([*line, "--limit", "2", *words])


def records(folder: Path) -> list[dict[str, Any]]:
    journals = sorted(folder.glob("*/journal.jsonl"))
    return [json.loads(line) for path in journals for line in path.read_text().splitlines()]


def test_a_command_of_the_paper_runs_offline_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--num_fewshot", "2")
    assert run_paper(tmp_path, "gsm8k,gpqa_diamond_generative_n_shot", *words) == 0
    printed = capsys.readouterr().out
    for expected in ("gsm8k, graded by ets", "ETS (M 2, K 1)", "flexible-extract", "gpqa_diamond_generative_n_shot"):
        assert expected in printed
    headings = next(line for line in printed.splitlines() if "Version" in line).split("|")
    assert [heading.strip() for heading in headings[1:6]] == ["Tasks", "Version", "Filter", "n-shot", "Metric"]
    first = records(tmp_path)
    assert [r["problem"] for r in first] == [
        *(f"gpqa_diamond_generative_n_shot-{n}" for n in (0, 1)),
        *(f"gsm8k-{n}" for n in (0, 1)),
    ]
    assert run_paper(tmp_path, "gsm8k,gpqa_diamond_generative_n_shot", *words) == 0
    assert records(tmp_path) == first


def test_a_run_grows_with_the_limit(tmp_path: Path) -> None:
    for limit, count in (("1", 1), ("2", 2), ("1", 2)):
        assert run_paper(tmp_path, "gsm8k", "--num_fewshot", "0", "--limit", limit, model="qwen") == 0
        assert len(list(tmp_path.iterdir())) == 1 and len(records(tmp_path)) == count


def test_chat_prompts_of_a_command_of_the_paper(
    tmp_path: Path, chat_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Turns, a system text and thinking by the template; what lm-eval scores is without the thinking."""
    arguments = SMALL.replace("embedded-small", str(chat_model)) + ",enable_thinking=False,think_end_token=0"
    words = ("--num_fewshot", "1", "--apply_chat_template", "--system_instruction", "Be brief.")
    assert run_paper(tmp_path, "gsm8k", *words, arguments=arguments) == 0
    stored = json.loads(next(tmp_path.glob("*/configuration.json")).read_text())
    assert stored["prompt"].startswith("<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQuestion: ")
    assert stored["prompt"].count("<|im_start|>assistant\n") == 2 and stored["prompt"].endswith("</think>\n\n")
    assert stored["prompt_kind"] == "chat template" and "<|im_end|>" in stored["until"]
    assert run_paper(tmp_path, "gsm8k", "--num_fewshot", "0", arguments=arguments) == 0
    assert "enable_thinking has no effect without --apply_chat_template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "message"), [((), "has no chat template"), (("long",), "unknown chat template 'long'")]
)
def test_a_template_that_is_not_there_is_one_line(
    tmp_path: Path, template: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_paper(tmp_path, "gsm8k", "--num_fewshot", "0", "--apply_chat_template", *template, model="qwen") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_what_lm_eval_scores_follows_the_thinking(tmp_path: Path) -> None:
    for end, text in (("</think>", "5"), ("9", "</think> 5"), (None, "4 </think>9</think> 5")):
        lm = model(tmp_path, **({} if end is None else {"think_end_token": end}))
        if end == "9":  # the number of a token
            lm.checkpoint.tokenizer.decode = lambda ids: str(ids[0])
        assert lm._without_thinking("4 </think>9</think> 5") == text


def test_a_task_file_reads_local_data_at_zero_shots_or_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval.tasks

    (tmp_path / "tasks").mkdir()
    for name, place in (("gsm8k", "gsm8k/gsm8k.yaml"), ("aime24", "aime/aime24.yaml")):
        included = Path(lm_eval.tasks.__path__[0]) / place
        (tmp_path / "tasks" / f"{name}.yaml").write_text(f"include: {included}\ntask: {name}\n")
    (tmp_path / "test.jsonl").write_text((DATA / "gsm8k" / "test.jsonl").read_text())
    words = ("--include_path", str(tmp_path / "tasks"), "--num_fewshot", "0")
    monkeypatch.setenv("DATA", str(tmp_path / "test.jsonl"))
    assert run_paper(tmp_path / "run", "gsm8k", *words, model="qwen") == 0
    monkeypatch.setenv("DATA", str(DATA))
    assert run_paper(tmp_path / "run", "aime24", *words, model="qwen") == 2
    assert "cannot be used with these data: UndefinedError: 'Problem' is undefined" in capsys.readouterr().err


def test_it_samples_what_ets_eval_samples(tmp_path: Path) -> None:
    assert run_paper(tmp_path / "paper", "minerva_math500") == 0
    words = """--task math500 --model embedded-small --count 2 --methods ets --candidates 2 --rollouts 1 --lam 0.1
        --pool chain --block-size 8 --max-length 16 --temperature 0.7 --top-k checkpoint --top-p checkpoint --seed 0
        --width 2"""
    assert ets_main(["eval", *words.split(), "--data", str(DATA), "--out", str(tmp_path / "own" / "run")]) == 0
    ours, theirs = records(tmp_path / "own"), records(tmp_path / "paper")
    assert [(r["problem"], r["text"]) for r in ours] == [(r["problem"], r["text"]) for r in theirs]
    assert set(ours[0]["scores"]) == {"exact_match", "math_verify"}


def test_ets_is_of_the_paper_s_form_samples_what_ets_eval_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With other candidates and steps than ETS, which the paper says by m_candidates and block_size alone."""
    arguments = SMALL.replace("embedded-small", "embedded") + ",use_importance_sampling=True"
    arguments += ",small_model_path=embedded-small,clip=0.1:10"
    for _ in range(2):
        assert run_paper(tmp_path / "paper", "minerva_math500", arguments=arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("ETS-IS (M 2, K 1, block 8): ") == 2 and "rollouts of the proposal" in printed
    words = """--task math500 --model embedded --count 2 --methods ets-is --candidates 5 --rollouts 1 --lam 0.1
        --pool chain --block-size 16 --max-length 16 --temperature 0.7 --top-k checkpoint --top-p checkpoint --seed 0
        --width 2 --proposal embedded-small --is-candidates 2 --is-block-size 8 --clip 0.1,10"""
    assert ets_main(["eval", *words.split(), "--data", str(DATA), "--out", str(tmp_path / "own" / "run")]) == 0
    ours, theirs = records(tmp_path / "own"), records(tmp_path / "paper")
    assert len(theirs) == 2  # the second command found them
    assert [(r["problem"], r["method"], r["text"]) for r in ours] == [
        (r["problem"], r["method"], r["text"]) for r in theirs
    ]
    assert ours[0]["method"].startswith("ets-is-embedded-small@")


@needs_sandbox
def test_humaneval_is_judged_in_the_sandbox(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_paper(tmp_path, "humaneval", "--confirm_run_unsafe_code", model="qwen") == 0
    assert "pass@1" in capsys.readouterr().out
    assert {record["method"] for record in records(tmp_path)} == {"plain"}


def test_aime_averages_over_the_repeats_of_its_own_task_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks").mkdir()
    own = (ROOT / "aime24" / "aime24.yaml").read_text()
    kept = [line for line in own.splitlines() if not line.startswith("repeats:")]
    (tmp_path / "tasks" / "aime24.yaml").write_text("\n".join([*kept, "repeats: 3"]))
    (tmp_path / "tasks" / "utils.py").write_text((ROOT / "aime24" / "utils.py").read_text())
    assert run_paper(tmp_path / "run", "aime24", "--include_path", str(tmp_path / "tasks"), model="qwen") == 0
    assert "base model (temperature 0.7, top-k 20, top-p 0.8; mean of 3)" in capsys.readouterr().out
    texts = [record["text"] for record in records(tmp_path / "run")]
    assert len(texts) == 6 and len(set(texts)) > 2


MASKED = (
    "model_path=embedded,gen_length=16,block_length=8,guide_steps=2,num_candidates=2,monte_carlo_num=1,temperature=2.4"
)


@pytest.mark.parametrize(
    ("more", "label"),
    [
        ("", "plain sampling (mean of 1)"),
        (",use_vanilla=True", "ETS (M 2, K 1)"),
        (",use_bon=True", "best of 2 samples, by majority"),
        (",use_beam_search=True", "beam search (2 beams)"),
        (",is_accelerate_available=True", "ETS-IS at level 0 (M 2, K 1)"),
    ],
)
def test_a_flag_chooses_the_method_of_the_masked_diffusion_model(
    more: str, label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--num_fewshot", "0")
    assert run_paper(tmp_path, "gsm8k", *words, model="llada_dist", arguments=MASKED + more) == 0
    assert f"| {label} " in capsys.readouterr().out


def test_a_fast_masked_diffusion_model_runs_by_the_paper_s_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Accelerated, the sampler with the cache is p_ref; at a level it is weighed towards the exact sampler."""
    positions, shown = [], []
    for more in (",use_vanilla=True", ",is_accelerate_available=True", ",is_accelerate_available=True,level=1"):
        folder = tmp_path / str(len(positions))
        assert run_paper(folder, "gsm8k", "--num_fewshot", "0", model="llada_dist", arguments=MASKED + more) == 0
        positions.append(sum(r["cost"]["candidate"] + r["cost"]["rollout"] for r in records(folder)))
        shown.append(capsys.readouterr())
    assert ["Level 0" in each.err for each in shown] == [False, True, False]
    exact, accelerated, weighed = positions
    assert accelerated < exact > weighed
    assert "ETS-IS at level 1 (M 2, K 1): its target is the exact model's token probabilities" in shown[-1].out


@pytest.mark.parametrize("pooled", [True, False])
def test_the_text_of_llada_s_ets_is_the_vote_s_where_votes_accumulate(
    pooled: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The chain's own text is journalled beside it, and both are rows of the table."""
    given: dict[str, Any] = {"gen_length": 24, "block_length": 8, "guide_steps": 3, "temperature": 2.4, "width": 4}
    given |= {"num_candidates": 3, "monte_carlo_num": 2, "use_vanilla": True, "accumulate_x0": pooled}
    lm = LLaDADist(model_path="embedded", checkpoint_dir=str(tmp_path), **given)
    sums = [request(number) for number in range(4)]
    texts = lm.generate_until(sums)
    drawn = {record["problem"]: record for record in records(tmp_path)}
    expected = [drawn[f"gsm8k-{number}"] for number in range(4)]
    assert texts == [record["vote"]["text"] if pooled else record["text"] for record in expected]
    assert any(record["vote"]["text"] != record["text"] for record in expected)
    assert capsys.readouterr().out.count("| ETS (M 3, K 2)") == 2


def test_p_ref_is_truncated_by_the_checkpoint_and_a_line_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here by transformers' default, for want of a value in the checkpoint's generation configuration."""
    lm = model(tmp_path, QwenETS)
    assert (lm.policy.sampling, lm.run.values["top_k"]) == (Sampling(1.5, 50, None), 50)
    assert "note: top_k 50: of the checkpoint's generation_config, as in the paper; top_k=0" in capsys.readouterr().err
    assert model(tmp_path, QwenETS, top_k=0, top_p=0.9).policy.sampling == Sampling(1.5, None, 0.9)
    pair = model(tmp_path, QwenETS, **PROPOSED).policy
    assert (pair.reference.sampling, pair.proposal.sampling) == (Sampling(1.5, 50, None),) * 2
    assert "note: top_k 50: of the small model's generation_config" in capsys.readouterr().err


def test_what_generate_would_apply_beside_the_truncation_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(demo.model_path("small"), folder)
    written = {"eos_token_id": 0, "top_k": 20, "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(written))
    model(tmp_path, QwenETS, model_path=str(folder))
    shown = capsys.readouterr().err
    assert "note: p_ref is without the checkpoint's repetition_penalty 1.05, which the paper's generate would" in shown


def test_the_base_row_has_its_own_law(tmp_path: Path) -> None:
    assert model(tmp_path, Qwen).policy.sampling == Sampling(0.7, 20, 0.8)
    assert model(tmp_path, Qwen, use_bon=True).policy.sampling == Sampling(1.5, 20, 0.8)


@needs_vllm
def test_vllm_gets_its_copies_its_seed_and_all_tokens(tmp_path: Path) -> None:
    lm = model(tmp_path, QwenETS, engine="vllm", vllm_seed=5, gpu_memory_utilization=0.4)
    assert isinstance(lm.policy, EnginePolicy) and lm.policy.sampling == Sampling(1.5)
    asked = ("data_parallel_size", "tensor_parallel_size", "gpu_memory_utilization")
    assert [lm.policy.engine.arguments[name] for name in asked] == [1, 1, 0.4]
    assert lm.run.values["seed"] == 5


@needs_vllm
@pytest.mark.parametrize("name", ["data_parallel_size", "tensor_parallel_size"])
def test_more_gpus_than_there_are_is_one_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(VLLMEngine, "load", lambda self: pytest.fail("the engine was loaded"))
    line = ["--tasks", "gsm8k", "--model", "qwen-ets", "--model_args", f"{SMALL},checkpoint_dir={tmp_path},{name}=99"]
    assert main(line, engine="vllm") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and " take 99 GPUs, but " in error and name in error


def test_data_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
    monkeypatch.delenv("DATA")
    assert run_paper(tmp_path, "gsm8k") == 2
    assert "error: no data for gsm8k" in capsys.readouterr().err
    monkeypatch.setenv("DATA", str(DATA))
    assert run_paper(tmp_path, "gsm8k", "--num_fewshot", "-1") == 2
    assert capsys.readouterr().err.endswith("error: shots is -1; it must be 0 or more\n")


def request(number: int, repeats: int = 1, until: tuple[str, ...] = ()) -> Instance:
    doc = {"question": f"{number}?", "answer": f"#### {number}"}
    options = {"until": list(until), "do_sample": False, "temperature": 0.0}
    prompt = f"Question: {number}?\nAnswer:"
    return Instance("generate_until", doc, (prompt, options), 0, metadata=("gsm8k", number, repeats))


def model(folder: Path, kind: type = Qwen, **changed: Any) -> Any:
    given = {"model_path": "embedded-small", "max_length": 8, "temperature": 1.5, "checkpoint_dir": str(folder)}
    return kind(**{**given, **changed})


def hot(folder: Path) -> Any:
    """Plain sampling at a high temperature."""
    return model(folder, QwenETS, method="plain")


def test_repeats_are_samples_of_their_own_and_padding_is_answered_again(tmp_path: Path) -> None:
    one, two = request(1, repeats=3), request(2, repeats=3)
    before = json.dumps([one.args, two.args])
    texts = hot(tmp_path).generate_until([one, one, one, two, two, two, two, two])  # lm-eval pads with the last one
    assert json.dumps([one.args, two.args]) == before
    assert len(texts) == 8 and len(set(texts[:6])) > 3
    assert texts[6:] == texts[3:5]
    assert len(records(tmp_path)) == 6
    again = hot(tmp_path).generate_until([two, one, two, one, two, one])
    assert again == [texts[n] for n in (3, 0, 4, 1, 5, 2)]


def test_a_greedy_text_is_sampled_once_for_all_repeats(tmp_path: Path) -> None:
    one = request(1, repeats=3)
    assert len(set(model(tmp_path, is_rl=True).generate_until([one, one, one]))) == 1
    assert len(records(tmp_path)) == 1


def test_requests_with_other_prompts_are_other_runs(tmp_path: Path) -> None:
    model(tmp_path).generate_until([request(1)])
    model(tmp_path).generate_until([request(1, until=("7",))])
    assert len(list(tmp_path.iterdir())) == 2


def test_chat_templates_are_the_tokenizer_s(tmp_path: Path) -> None:
    lm = model(tmp_path)
    assert lm.chat_template() == ""
    with pytest.raises(InputError, match="has no chat template"):
        lm.chat_template(True)
    lm.checkpoint.tokenizer.chat_template = {"default": CHATML, "short": "<{{ messages[0].content }}>"}
    assert lm.chat_template(True) == CHATML
    with pytest.raises(InputError, match=r"unknown chat template 'long': the tokenizer of '.*' has default, short"):
        lm.chat_template("long")
    assert lm.chat_template("short") and lm.apply_chat_template([{"role": "user", "content": "hi"}]) == "<hi>"
    assert lm.tokenizer_name


def test_likelihoods_are_refused(tmp_path: Path) -> None:
    lm = model(tmp_path)
    for method in (lm.loglikelihood, lm.loglikelihood_rolling):
        with pytest.raises(InputError, match="the model qwen generates texts and answers no likelihoods"):
            method([])


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (QwenETS, {"temperature": -1}, "temperature is -1.0"),
        (QwenETS, {"temperature": 0}, "at temperature 0 nothing is random"),
        (QwenETS, {"block_size": 64}, "block_size 64 is longer than max_length 8"),
        (QwenETS, {"lambda_param": 0}, "lam is 0.0"),
        (QwenETS, {"m_candidates": 0}, "is 0; it must be"),
        (QwenETS, {"model_path": "./nowhere"}, "no checkpoint at './nowhere'"),
        (Qwen, {"use_beam_search": True, "num_beams": 0}, "beams is 0"),
        (QwenETS, {**PROPOSED, "clip": "2:3"}, "its bounds must enclose 1"),
        (QwenETS, {**PROPOSED, "proposal_temperature": 0}, "at temperature 0 the proposal draws one text only"),
        (QwenETS, {**PROPOSED, "small_model_path": "./nowhere"}, "no checkpoint at './nowhere'"),
        (LLaDADist, {"model_path": "embedded", "gen_length": 16, "max_length": None, "block_length": 32},
         "no multiple of block_length 32"),
        (LLaDADist, {"model_path": "embedded", "gen_length": 32, "max_length": None, "use_beam_search": True,
                     "remasking": "random"}, "remasking 'random' draws positions, which beam search cannot do"),
    ],
)  # fmt: skip
def test_bad_values_are_one_line_before_any_weights_are_loaded(
    kind: type, changed: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
    given = {"model_path": "embedded-small", "max_length": 8, "checkpoint_dir": str(tmp_path), **changed}
    with pytest.raises(InputError, match=message) as caught:
        kind(**{name: value for name, value in given.items() if value is not None})
    assert "\n" not in str(caught.value)


def test_another_dataset_than_the_task_s_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the arguments name the dataset math500, but the task is gsm8k"):
        model(tmp_path, dataset="math500").generate_until([request(1)])


def launch(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


def test_the_script_is_launched_inside_its_folder() -> None:
    words = ("accelerate.commands.launch", "eval_qwen.py", "--tasks", "gsm8k", "--model", "qwen")
    done = launch(*words, "--model_args", "max_length=8", folder=ROOT / "qwen")
    assert "error: the model qwen needs model_path=…" in done.stderr


def test_the_script_for_vllm_chooses_vllm(tmp_path: Path) -> None:
    """Where a line names no engine, and the method is one that vLLM runs."""
    words = ["--tasks", "gsm8k", "--model", "llada_dist", "--model_args", "model_path=embedded"]
    done = launch("qwen_vllm.eval_qwen", *words, folder=ROOT)
    assert done.stderr.endswith("error: engine is 'vllm'; choose from masked-diffusion\n")


def test_stop_strings_of_the_command_line_are_heeded(tmp_path: Path) -> None:
    words = ("--num_fewshot", "0")
    assert run_paper(tmp_path / "own", "gsm8k", *words, model="qwen") == 0
    assert run_paper(tmp_path / "cut", "gsm8k", *words, "--gen_kwargs", 'until=["<<"]', model="qwen") == 0
    own, cut = ([record["text"] for record in records(tmp_path / name)] for name in ("own", "cut"))
    assert cut == [text.split("<<")[0] for text in own] != own


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    """Prompts with worked examples included, so that it is one folder, and with a problem more for one of them."""
    words = ["--tasks", "gsm8k", "--num_fewshot", "2", "--limit", "3", "--model", "qwen-ets", "--model_args"]
    assert main([*words, f"{SMALL},checkpoint_dir={tmp_path / 'one'}"]) == 0
    launched = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "qwen" / "eval_qwen.py")]
    done = launch(*launched, *words, f"{SMALL},checkpoint_dir={tmp_path / 'two'}", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("gsm8k, graded by ets") == done.stdout.count("flexible-extract") == 1
    one, two = ([path.name for path in (tmp_path / name).glob("*/*")] for name in ("one", "two"))
    assert sorted(one) == sorted(two) == ["configuration.json", "journal.jsonl"]
    assert [path.name for path in (tmp_path / "one").iterdir()] == [path.name for path in (tmp_path / "two").iterdir()]
    found = [{r["problem"]: (r["text"], r["correct"]) for r in records(tmp_path / name)} for name in ("one", "two")]
    assert found[0] == found[1] and set(found[0]) == {"gsm8k-0", "gsm8k-1", "gsm8k-2"}
    assert len(records(tmp_path / "two")) == 3
