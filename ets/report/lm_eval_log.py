"""A finished run in the files of lm-eval 0.4.13: results, and with `--log_samples` the samples of a task.

A row of the table is a filter of the task, as in lm-eval a choice among repeated samples is: the metric `acc,ets-8` is
the accuracy of the row `ets-8`. A line of samples is a problem under a row; its repeats are the samples of the problem.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ets import __version__
from ets.evaluation.journal import Record, written_to
from ets.report.finished import FinishedRun, Row
from ets.templates import as_text

LENGTH = "max_gen_toks"
"""The new tokens of a text; lm-eval's `max_length` counts the prompt too."""
NO_ANSWER = "[invalid]"
"""What lm-eval's filters make of a text without an answer."""


def write_lm_eval(run: FinishedRun, out: Path) -> list[Path]:
    """Write `results_DATE.json` and `samples_TASK_DATE.jsonl` to the folder `OUT/MODEL`; the date is the run's end."""
    folder = out / _model(run)
    date, task = run.ended.strftime("%Y-%m-%dT%H-%M-%S.%f"), _task(run)
    samples = [_line(run, row, number, problem) for row in run.rows for number, problem in enumerate(run.problems)]
    hashes = "".join(line[f"{part}_hash"] for line in samples for part in ("doc", "prompt", "target"))
    results = folder / f"results_{date}.json", json.dumps(_results(run, _hash(hashes)), indent=2, ensure_ascii=False)
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples)
    with written_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in (results, (folder / f"samples_{task}_{date}.jsonl", lines)):
            path.write_text(text, encoding="utf-8")
    return [results[0], folder / f"samples_{task}_{date}.jsonl"]


def _results(run: FinishedRun, samples_hash: str) -> dict[str, Any]:
    task, setting = _task(run), run.setting
    metrics: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(run.problems)}
    for row in run.rows:
        for name, (mean, error) in row.scores.items():
            metrics |= {f"{name},{row.name}": mean, f"{name}_stderr,{row.name}": "N/A" if error is None else error}
    names = list(dict.fromkeys(name for row in run.rows for name in row.scores))
    model_args = {"pretrained": setting.model, "engine": run.configuration["engine"]}
    size = {"original": len(run.problems), "effective": len(run.problems)}
    return {
        "results": {task: metrics},
        "group_subtasks": {task: []},
        "configs": {task: _configuration(run)},
        "versions": {task: __version__},
        "n-shot": {task: setting.shots},
        "higher_is_better": {task: dict.fromkeys(names, True)},
        "n-samples": {task: size},
        "config": {
            "model": "ets",
            "model_args": model_args,
            "model_revision": run.configuration.get("model_revision"),
            "device": run.configuration.get("placement"),
            "batch_size": None,
            "batch_sizes": [],
            "use_cache": None,
            "limit": None,
            "gen_kwargs": run.law(LENGTH),
            "random_seed": run.configuration["seed"],
        },
        "date": run.ended.timestamp(),
        "task_hashes": {task: samples_hash},
        "model_source": "ets",
        "model_name": setting.model,
        "model_name_sanitized": _model(run),
    }


def _configuration(run: FinishedRun) -> dict[str, Any]:
    """The configuration of the task; its metadata hold the configuration of the run and the settings of the rows."""
    common = [name for name in run.rows[0].scores if all(name in row.scores for row in run.rows)]
    return {
        "task": _task(run),
        "output_type": "generate_until",
        "num_fewshot": run.setting.shots,
        "repeats": run.setting.repeats,
        "generation_kwargs": run.law(LENGTH),
        "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in common],
        "filter_list": [{"name": row.name, "filter": [{"function": "ets"}]} for row in run.rows],
        "metadata": {
            "version": __version__,
            "configuration": dict(run.configuration),
            "rows": {row.name: row.settings for row in run.rows},
        },
    }


def _line(run: FinishedRun, row: Row, number: int, problem: Record) -> dict[str, Any]:
    samples = row.samples[problem["id"]]
    answers = [NO_ANSWER if each.answer is None else str(each.answer) for each in samples]
    prompt = as_text(problem["prompt"])
    return {
        "doc_id": number,
        "doc": problem["doc"],
        "target": problem["target"],
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": run.law(LENGTH)}},
        "resps": [[each.text for each in samples]],
        "filtered_resps": [answers if run.answered else [each.text for each in samples]],
        "filter": row.name,
        "metrics": list(row.means),
        "doc_hash": _hash(json.dumps(problem["doc"], indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(problem["target"]),
        **{name: values[problem["id"]] for name, values in row.means.items()},
    }


def _model(run: FinishedRun) -> str:
    return re.sub(r'["<>:/|\\?*\[\]]+', "__", run.setting.model)


def _task(run: FinishedRun) -> str:
    return re.sub(r"[^\w-]", "_", run.setting.task)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
