"""A finished run as logs of Inspect (the package inspect-ai): one JSON file for each row of the table.

A sample of the log is a returned text, and its epochs are the samples of its problem. The scores are the metrics of
`ets.report.finished.Sample`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from ets import __version__
from ets.evaluation.journal import Record, written_to
from ets.report.finished import FinishedRun, Row, Sample
from ets.templates import as_text

SCORER = "ets"
VERSION = 2
"""The version of the schema of logs."""


def write_inspect(run: FinishedRun, out: Path) -> list[Path]:
    """Write `DATE_TASK-ROW_ID.json` for each row to a folder; the date is the run's end."""
    date, paths = run.ended.strftime("%Y-%m-%dT%H-%M-%S-00-00"), []
    with written_to(out):
        out.mkdir(parents=True, exist_ok=True)
        for row in run.rows:
            log = _log(run, row)
            name = re.sub(r"[^a-zA-Z0-9.]+", "-", f"{run.setting.task}-{row.name}")
            paths.append(out / f"{date}_{name}_{log['eval']['task_id']}.json")
            paths[-1].write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return paths


def _log(run: FinishedRun, row: Row) -> dict[str, Any]:
    model, ended = run.setting.model, run.ended.isoformat()
    samples = [
        _sample(run, problem, epoch, sample)
        for problem in run.problems
        for epoch, sample in enumerate(row.samples[problem["id"]], 1)
    ]
    every = [sample for samples in row.samples.values() for sample in samples]
    total = _usage(sum(each.prompt for each in every), sum(each.generated for each in every))
    return {
        "version": VERSION,
        "status": "success",
        "eval": _spec(run, row),
        "plan": {"steps": [{"solver": row.entry.method, "params": row.settings}], "config": _law(run)},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [_score(run, row, name) for name in row.scores],
        },
        "stats": {"started_at": ended, "completed_at": ended, "model_usage": {model: total}},
        "samples": samples,
        "reductions": [
            {
                "scorer": name,
                "reducer": "mean",
                "samples": [{"value": value, "sample_id": problem} for problem, value in values.items()],
            }
            for name, values in row.means.items()
        ],
    }


def _spec(run: FinishedRun, row: Row) -> dict[str, Any]:
    task, problems = run.setting.task, [problem["id"] for problem in run.problems]
    of_run = f"{sorted(run.configuration.items())}{run.ended}"
    return {
        "eval_id": _id(f"{of_run}{row.name}"),
        "run_id": _id(of_run),
        "task_id": _id(f"{of_run}{task}{row.name}"),
        "created": run.ended.isoformat(),
        "task": task,
        "task_display_name": f"{task}: {row.entry.label}",
        "task_args": {"shots": run.setting.shots},
        "solver": row.entry.method,
        "solver_args": row.settings,
        "tags": [row.name],
        "dataset": {"name": task, "samples": len(problems), "sample_ids": problems},
        "model": run.setting.model,
        "model_generate_config": _law(run),
        "config": {"epochs": _epochs(row), "epochs_reducer": ["mean"]},
        "packages": {"ets-sampling": __version__},
        "metadata": {"configuration": dict(run.configuration), "row": row.settings},
        "scorers": [{"name": name, "metrics": [{"name": "mean"}, {"name": "stderr"}]} for name in row.scores],
    }


def _sample(run: FinishedRun, problem: Record, epoch: int, sample: Sample) -> dict[str, Any]:
    model, usage = run.setting.model, _usage(sample.prompt, sample.generated)
    asked = problem["messages"] or [{"role": "user", "content": as_text(problem["prompt"])}]
    returned = {"role": "assistant", "content": sample.text, "source": "generate", "model": model}
    answer = None if sample.answer is None else str(sample.answer)
    return {
        "id": problem["id"],
        "epoch": epoch,
        "input": problem["messages"] or as_text(problem["prompt"]),
        "target": problem["target"],
        "messages": [*asked, returned],
        "output": {
            "model": model,
            "choices": [{"message": returned, "stop_reason": "unknown"}],
            "completion": sample.text,
            "usage": usage,
            "time": sample.seconds,
        },
        "scores": {name: {"value": value, "answer": answer} for name, value in sample.values.items()},
        "metadata": {"doc": problem["doc"]},
        "model_usage": {model: usage},
        "total_time": sample.seconds,
    }


def _score(run: FinishedRun, row: Row, name: str) -> dict[str, Any]:
    mean, error = row.scores[name]
    values = {"mean": mean, **({} if error is None else {"stderr": error})}
    return {
        "name": name,
        "scorer": SCORER,
        "reducer": "mean",
        "scored_samples": len(run.problems),
        "unscored_samples": 0,
        "metrics": {metric: {"name": metric, "value": value} for metric, value in values.items()},
    }


def _epochs(row: Row) -> int:
    return max(map(len, row.samples.values()))


def _law(run: FinishedRun) -> dict[str, Any]:
    """The settings of the policy by Inspect's names."""
    return {**run.law("max_tokens"), "seed": run.configuration["seed"]}


def _usage(prompt: int, generated: int) -> dict[str, int]:
    return {"input_tokens": prompt, "output_tokens": generated, "total_tokens": prompt + generated}


def _id(text: str) -> str:
    """22 letters and digits, which depend on the text alone."""
    return hashlib.sha256(text.encode()).hexdigest()[:22]
