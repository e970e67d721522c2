"""`ets export`: other tools read the files, and the numbers are those of the table."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from ets.cli import main
from ets.evaluation.comparison import Entry
from ets.report.finished import finished_run
from ets.report.tables import interval, reward_interval
from tests.chatting import chat_checkpoint

SMALL = """
--model embedded --task arithmetic --count 3 --shots 0 --candidates 2 --rollouts 2 --lam 0.1 --block-size 16
--max-length 64 --temperature 1.6 --width 3 --seed 0
"""
RUN = f"compare {SMALL} --methods plain,majority,one-step,ets,greedy --candidates 2,3 --repeats 2"
ROWS = """
majority-6 one-step-6 ets-2 ets-2-vote majority-9 one-step-9 ets-3 ets-3-vote plain greedy
"""
REWARD = """
import math

def short(prompt, text):
    return -math.inf if len(text) > 50 else -len(text) / 100
"""
needs_inspect = pytest.mark.skipif(find_spec("inspect_ai") is None, reason="no inspect_ai: pip install inspect-ai")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of answers."""
    folder = tmp_path_factory.mktemp("answers")
    assert main([*RUN.split(), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of prompts in a chat, with a reward that forbids texts."""
    folder = tmp_path_factory.mktemp("rewarded")
    (folder / "reward.py").write_text(REWARD)
    prompts = [{"messages": [{"role": "user", "content": f"Question: Tom has {n} eggs."}]} for n in (3, 5)]
    (folder / "eggs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    model = chat_checkpoint(folder / "model")
    words = f"eval {SMALL} --model {model} --task {folder}/eggs.jsonl --count 2 --shots 0 --methods plain,best-of-n,ets"
    reward = f"{folder}/reward.py:short"
    assert main([*words.split(), "--samples", "4", "--reward", reward, "--out", str(folder / "run")]) == 0
    return folder / "run"


def exported(folder: Path, to: str, out: Path) -> list[Path]:
    assert main(["export", str(folder), "--to", to, "--out", str(out)]) == 0
    return sorted(path for path in out.rglob("*") if path.is_file())


def lm_eval_files(folder: Path, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    results, samples = exported(folder, "lm-eval", out)
    return json.loads(results.read_text()), [json.loads(line) for line in samples.read_text().splitlines()]


def shown(entry: Entry) -> dict[str, float]:
    """The numbers of an entry that its line of the table shows."""
    found = {"acc": interval(entry).mean} if entry.scores else {}
    reward = reward_interval(entry)
    return found | ({"reward": reward.mean if reward else float("-inf")} if entry.rewards else {})


def test_the_samples_of_a_row_have_the_means_of_the_table(folder: Path, rewarded: Path) -> None:
    answers, rewards = finished_run(folder), finished_run(rewarded)
    for run in (answers, rewards):
        for row in run.rows:
            assert row.means.get("acc", {}) == row.entry.scores and row.means.get("reward", {}) == row.entry.rewards
            assert {name: mean for name, (mean, _) in row.scores.items()} == pytest.approx(shown(row.entry), abs=1e-12)
            if row.entry.method != "plain":
                generated = fmean(each.generated for samples in row.samples.values() for each in samples)
                assert generated == pytest.approx(row.entry.cost["generated"])
    assert [row.name for row in answers.rows] == ROWS.split()
    assert any(reward == float("-inf") for row in rewards.rows for reward in row.entry.rewards.values())
    table = (folder / "table.md").read_text()
    for row in answers.rows:
        assert re.search(rf"\| {re.escape(row.entry.label)} +\|.* {row.scores['acc'][0]:.1%} \|", table)


def test_a_choice_among_samples_is_exported_as_the_chosen_text(folder: Path) -> None:
    run = finished_run(folder)
    rows, right = {row.name: row for row in run.rows}, {each["id"]: int(each["target"]) for each in run.problems}
    for name in ("majority-6", "one-step-9"):
        for problem, samples in rows[name].samples.items():
            pool = [each.text for each in rows["plain"].samples[problem]]
            assert len(samples) == 2 and all(each.text in pool for each in samples)
            if name == "majority-6":  # the choice has no randomness but among texts with equal answers
                grades = [each.answer == right[problem] for each in samples]
                assert [round(each.values["acc"]) for each in samples] == grades


def test_lm_eval_shows_a_line_for_each_row(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="no lm_eval: pip install '.[benchmarks]'")
    from lm_eval.utils import make_table

    results, _ = lm_eval_files(folder, tmp_path)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in make_table(results).splitlines()[2:] if line]
    found = {line[2]: (line[3], line[4], line[6], line[8]) for line in lines}
    expected = {row.name: row.scores["acc"] for row in finished_run(folder).rows}
    assert found == {name: ("0", "acc", f"{mean:.4f}", f"{error:.4f}") for name, (mean, error) in expected.items()}


def test_lm_eval_finds_and_validates_the_files(folder: Path, rewarded: Path, tmp_path: Path) -> None:
    """Its readers of file names, its schema of samples, and datasets, for which lm-eval makes all columns alike."""
    pytest.importorskip("lm_eval", reason="no lm_eval: pip install '.[benchmarks]'")
    from datasets import load_dataset
    from lm_eval import utils
    from lm_eval.result_schema import SampleResult
    from pydantic import TypeAdapter

    for run, task in ((folder, "arithmetic"), (rewarded, "eggs")):
        names = [str(path) for path in exported(run, "lm-eval", tmp_path / task)]
        (results,), (samples,) = utils.get_results_filenames(names), utils.get_sample_results_filenames(names)
        assert utils.get_file_task_name(Path(samples).name) == task
        assert utils.get_file_datetime(Path(samples).name) in results
        assert Path(results).parent.name == json.loads(Path(results).read_text())["model_name_sanitized"]
        lines = Path(samples).read_text().splitlines()
        for line in lines:
            TypeAdapter(SampleResult).validate_python(json.loads(line))
        read = load_dataset("json", data_files=samples, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(read) == len(lines) and set(read["filter"]) == {row.name for row in finished_run(run).rows}


def test_a_line_of_lm_evals_samples_is_a_problem_under_a_row(folder: Path, rewarded: Path, tmp_path: Path) -> None:
    results, lines = lm_eval_files(folder, tmp_path / "answers")
    configuration = results["configs"]["arithmetic"]
    assert [each["name"] for each in configuration["filter_list"]] == ROWS.split()
    assert configuration["metadata"]["rows"]["ets-3"]["label"] == "ETS (M 3, K 2)"
    assert (results["n-shot"], results["n-samples"]["arithmetic"]["original"]) == ({"arithmetic": 0}, 3)
    kept = configuration["metadata"]["configuration"]
    law = {"temperature": kept["temperature"], "max_gen_toks": kept["max_length"]}
    assert configuration["generation_kwargs"] == results["config"]["gen_kwargs"] == law
    assert all(line["arguments"]["gen_args_0"]["arg_1"] == law for line in lines)
    places = [(line["filter"], line["doc_id"]) for line in lines]
    assert places == [(name, number) for name in ROWS.split() for number in range(3)]
    for line in lines:
        assert line["doc"]["answer"] == int(line["target"])
        assert line["arguments"]["gen_args_0"]["arg_0"].startswith("Question: ")
        ((*texts,), (*answers,)) = *line["resps"], *line["filtered_resps"]
        assert len(texts) == len(answers) == {"plain": 18, "greedy": 1}.get(line["filter"], 2)
        if line["filter"] in ("plain", "ets-3", "greedy"):  # the others' grades are expectations over a choice
            assert line["acc"] == pytest.approx(fmean(answer == line["target"] for answer in answers))
    _, lines = lm_eval_files(rewarded, tmp_path / "rewarded")
    assert all(line["filtered_resps"] == line["resps"] and line["metrics"] == ["reward"] for line in lines)
    assert all(line["arguments"]["gen_args_0"]["arg_0"].startswith("<s><|im_start|>user") for line in lines)


def test_inspects_logs_have_an_epoch_for_each_sample(folder: Path, rewarded: Path, tmp_path: Path) -> None:
    logs = {log["eval"]["tags"][0]: log for log in _logs(folder, tmp_path / "answers")}
    run = finished_run(folder)
    assert sorted(logs) == sorted(ROWS.split())
    for row in run.rows:
        log = logs[row.name]
        assert len(log["samples"]) == 3 * log["eval"]["config"]["epochs"]
        values: dict[str, list[float]] = {}
        for sample in log["samples"]:
            values.setdefault(sample["id"], []).append(sample["scores"]["acc"]["value"])
        assert {problem: fmean(each) for problem, each in values.items()} == row.entry.scores
        (score,) = log["results"]["scores"]
        assert score["metrics"]["mean"]["value"] == row.scores["acc"][0]
        used = sum(sample["model_usage"]["embedded"]["output_tokens"] for sample in log["samples"])
        assert used == log["stats"]["model_usage"]["embedded"]["output_tokens"]
        assert log["eval"]["metadata"]["row"]["cost"] == row.entry.cost
        assert log["eval"]["metadata"]["configuration"]["lam"] == 0.1
    chat = next(log for log in _logs(rewarded, tmp_path / "rewarded") if log["eval"]["tags"] == ["ets-2"])
    assert chat["samples"][0]["input"] == [{"role": "user", "content": "Question: Tom has 3 eggs."}]
    assert [message["role"] for message in chat["samples"][0]["messages"]] == ["user", "assistant"]


def _logs(folder: Path, out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in exported(folder, "inspect", out)]


@needs_inspect
def test_inspect_reads_the_logs(folder: Path, rewarded: Path, tmp_path: Path) -> None:
    from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample

    for run in map(finished_run, (folder, rewarded)):
        out = tmp_path / run.setting.task
        exported(run.folder, "inspect", out)
        rows = {row.name: row for row in run.rows}
        infos = list_eval_logs(str(out))
        assert len(infos) == len(rows)
        for info in infos:
            log = read_eval_log(info)
            (name,), row = log.eval.tags or [], rows[(log.eval.tags or [""])[0]]
            assert (log.status, log.eval.task, info.task) == ("success", run.setting.task, f"{run.setting.task}-{name}")
            assert info.task_id == log.eval.task_id and log.eval.solver == row.entry.method
            metrics = {score.name: score.metrics["mean"].value for score in log.results.scores}
            assert metrics == {name: mean for name, (mean, _) in row.scores.items()}
            problem = run.problems[-1]["id"]
            sample = read_eval_log_sample(info, id=problem, epoch=1)
            first = row.samples[problem][0]
            assert (sample.output.completion, sample.output.usage.output_tokens) == (first.text, first.generated)
            assert {name: score.value for name, score in sample.scores.items()} == first.values


def test_an_export_is_the_same_each_time_and_lies_in_the_folder(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to in ("lm-eval", "inspect"):
        contents = []
        for _ in range(2):
            assert main(["export", str(folder), "--to", to]) == 0
            paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
            assert all(path.is_relative_to(folder / to) for path in paths)
            contents.append([path.read_bytes() for path in paths])
        assert contents[0] == contents[1] and len(contents[0]) == len(list((folder / to).rglob("*.json*")))


def test_a_run_that_goes_on_writes_the_same_samples(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    for name in ("samples.jsonl", "problems.jsonl"):
        (again / name).unlink()
    assert main([*RUN.split(), "--out", str(again)]) == 0
    assert (again / "problems.jsonl").read_bytes() == (folder / "problems.jsonl").read_bytes()
    assert _timeless(again) == _timeless(folder)


def _timeless(folder: Path) -> list[dict[str, Any]]:
    """The samples without the seconds of choices, which are measured each time."""
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [{**row, "cost": {n: v for n, v in row["cost"].items() if "seconds" not in n}} for row in rows]


def test_a_folder_without_a_whole_run_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, torn = tmp_path / "old", tmp_path / "torn"
    for place in (old, torn):
        shutil.copytree(folder, place)
    (old / "problems.jsonl").unlink()
    (torn / "samples.jsonl").write_text((folder / "samples.jsonl").read_text()[:-9])
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    for place, out, message in (
        (tmp_path, "x", f"'{tmp_path}' holds no finished run of ets eval or ets compare; name its results folder"),
        (old, "x", f"'{old}' has no problems.jsonl; run its command again, which draws no chain anew"),
        (torn, "x", f"'{torn}' is damaged ("),
        (folder, "file/x", f"cannot write results to '{tmp_path}/file/x"),
    ):
        for to in ("lm-eval", "inspect"):
            assert main(["export", str(place), "--to", to, "--out", str(tmp_path / out)]) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {message}") and error.count("\n") == 1
