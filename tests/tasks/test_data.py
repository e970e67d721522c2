"""Benchmarks' rows from local files and from the hub, as lm-eval loads and scores them, without a network."""

from __future__ import annotations

import csv
import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ets.evaluation.hosted import opened_task
from ets.tasks import Benchmark, expressions, task_named
from ets.tasks.data import SOURCES, require_hub, task_file
from ets.tasks.gpqa import _clean
from ets.types import InputError, Problem

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "tests" / "data"
SIZES = {"math500": 4, "gsm8k": 3, "gpqa": 6, "aime24": 3, "aime25": 3, "ifeval": 3}
NESTED = ("aime24", "ifeval")
ANSWERED = [name for name in SOURCES if name != "ifeval"]


@pytest.fixture(autouse=True, scope="module")
def _warm() -> None:
    """lm-eval's limit on math-verify is one of the clock, of which its first reading takes most on a busy machine."""
    assert expressions.equal("1", "1")


def loaded(folder: Path, name: str) -> Any:
    """lm-eval's task of a folder that is given to it as an include path."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False).load(name)["tasks"][name]


def opened(name: str, folder: Path, data: Path = LOCAL, **options: Any) -> Any:
    task_file(name, folder, data, **options)
    return loaded(folder, SOURCES[name].lm_eval)


def rows_of(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet", ".csv"])
@pytest.mark.parametrize("name", SOURCES)
def test_every_format_gives_lm_eval_the_same_rows(name: str, ending: str, tmp_path: Path) -> None:
    if name in NESTED and ending == ".csv":
        pytest.skip("the rows are nested")
    for path in (LOCAL / name).iterdir():
        write(tmp_path / "it's my data" / f"{path.stem}{ending}", rows_of(path))
    docs = list(opened(name, tmp_path / "one", tmp_path / "it's my data").eval_docs)
    assert docs == list(opened(name, tmp_path / "other").eval_docs) and len(docs) == SIZES[name]


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_alone_holds_the_problems(name: str, tmp_path: Path) -> None:
    (path,) = [p for p in (LOCAL / name).iterdir() if p.stem != "train"]
    write(tmp_path / "mine.jsonl", rows_of(path))
    for place in (tmp_path / "mine.jsonl", tmp_path):
        task = opened(name, tmp_path / "task", place, shots=0)
        assert len(list(task.eval_docs)) == SIZES[name]
        task.build_all_requests()
        assert len(task.instances) == SIZES[name]


@pytest.mark.parametrize(
    "place", ["main/{}-00000-of-00001.jsonl", "gsm8k/{}.jsonl", "data/gsm8k_{}.jsonl", "{}.jsonl", "{}-a.jsonl"]
)
def test_files_are_found_where_downloads_put_them(place: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = tmp_path / "data" / place.format(split)
        write(path, rows_of(LOCAL / "gsm8k" / f"{split}.jsonl"))
        write(path.with_name(f"{split}_socratic.txt"), [{"question": "no"}] if path.suffix == ".jsonl" else [])
    write(tmp_path / "data" / "dataset_infos.json", [{"no": "row"}])
    assert len(list(opened("gsm8k", tmp_path / "task", tmp_path / "data").eval_docs)) == 3


def test_files_of_the_other_configuration_are_left_alone(tmp_path: Path) -> None:
    for split in ("train", "test"):
        rows = rows_of(LOCAL / "gsm8k" / f"{split}.jsonl")
        write(tmp_path / f"{split}.jsonl", rows)
        write(tmp_path / f"{split}_socratic.jsonl", rows)
        write(tmp_path / f"{split}.parquet", rows)
    assert len(list(opened("gsm8k", tmp_path / "task", tmp_path).eval_docs)) == 3


RIGHT = {
    "math500": "$\\boxed{\\frac{3}{4}}$\nFinal Answer: The final answer is $\\frac{3}{4}$. I hope it is correct.",
    "gsm8k": "It keeps 39.\n#### 39",
    "aime24": "Answer: \\boxed{024}",
    "aime25": "Answer: \\boxed{049}",
}


@pytest.mark.parametrize("name", ANSWERED)
def test_lm_evals_own_scorers_and_ours_run_on_the_rows(name: str, tmp_path: Path) -> None:
    task, ours = opened(name, tmp_path), task_named(name)
    task.build_all_requests()
    instance = task.instances[0]
    right = RIGHT.get(name, f"The answer is {instance.doc['answer']}.")
    for text, expected in ((right, 1.0), ("no idea", 0.0)):
        instance.resps, instance.filtered_resps = [text], {}
        for ensemble in task._filters:
            ensemble.apply([instance])
            scores = task.process_results(instance.doc, [instance.filtered_resps[ensemble.name]])
            assert set(scores.values()) == {expected}, (ensemble.name, scores)
        assert ours.grade(Problem("p", instance.args[0], doc=instance.doc), text) is bool(expected)


def test_lm_eval_takes_the_folder_as_an_include_path_and_averages_over_repeats(tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    for name in SOURCES:
        task_file(name, tmp_path, LOCAL, repeats=4 if name == "aime24" else None)

    class Canned(LM):
        """Right for the first AIME problem every second time, and 39 to everything else."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            aime = [n % 2 and "2^{10}" in request.args[0] for n, request in enumerate(requests)]
            return ["\\boxed{024}" if right else "#### 39" for right in aime]

        def loglikelihood(self, requests: Any) -> Any: ...
        def loglikelihood_rolling(self, requests: Any) -> Any: ...

    results = simple_evaluate(
        Canned(),
        tasks=[source.lm_eval for source in SOURCES.values()],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert results["aime24"]["exact_match,avg@k"] == pytest.approx(0.5 / 3)
    assert results["gsm8k"]["exact_match,strict-match"] == pytest.approx(1 / 3)
    assert results["minerva_math500"]["math_verify,none"] == 0.0
    assert results["aime25"]["exact_match,avg@k"] == results["ifeval"]["prompt_level_strict_acc,none"] == 0.0
    assert results["gpqa_diamond_generative_n_shot"]["exact_match,strict-match"] == 0.0


def test_gpqa_is_shuffled_the_same_whatever_was_drawn_before(tmp_path: Path) -> None:
    from lm_eval.tasks.gpqa.generative.utils import preprocess

    docs = []
    for seed in (1, 2):
        random.seed(seed)
        docs.append(list(opened("gpqa", tmp_path / str(seed)).eval_docs))
    assert docs[0] == docs[1] and len({doc["answer"] for doc in docs[0]}) > 1
    for text in (" newton ", "a  b [title]c", None, "a   b"):
        assert _clean(text) == preprocess(text)


def test_each_repeated_problem_is_asked_once(tmp_path: Path) -> None:
    assert len(rows_of(LOCAL / "aime24" / "aime-2024.jsonl")) == 6
    docs = list(opened("aime24", tmp_path).eval_docs)
    assert [doc["answer"] for doc in docs] == ["24", "33", "28"] and len({doc["problem"] for doc in docs}) == 3


def test_shots_and_repeats_are_passed_on(tmp_path: Path) -> None:
    task = opened("gsm8k", tmp_path, shots=2, repeats=3)
    task.set_fewshot_seed(1234)
    task.build_all_requests()
    assert task.instances[0].args[0].count("Question:") == 3 and task.instances[0].repeats == 3


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty cache, and the hub switched on."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    return monkeypatch


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("offline", [True, False])
def test_without_a_hub_and_a_path_one_line_says_what_to_download(
    name: str, offline: bool, nowhere: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere.setattr("datasets.config.HF_HUB_OFFLINE", offline)
    nowhere.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        task_file(name, tmp_path / "task")
    assert time.monotonic() - began < 20  # the hub's own client would try again and again
    message, source = str(caught.value), SOURCES[name]
    assert "\n" not in message and source.dataset in message and "DATA=FOLDER" in message and "--data" in message
    assert all(f"{word}.jsonl" in message for word in source.words.values())
    assert all(column in message for column in source.columns)
    assert ("HF_HUB_OFFLINE=0" if offline else "cannot be reached") in message


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("gsm8k", "openai___gsm8k/main"),
        ("math500", "HuggingFaceH4___math-500/default"),
        ("gpqa", "Idavidrein___gpqa/gpqa_diamond"),
        ("aime24", "BytedTsinghua-SIA___aime-2024/default"),
        ("aime25", "math-ai___aime25/default"),
        ("ifeval", "google___if_eval/default"),
    ],
)
def test_a_dataset_in_the_cache_needs_no_hub(
    name: str, folder: str, nowhere: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere.setattr("datasets.config.HF_HUB_OFFLINE", True)
    from datasets import config

    path = Path(config.HF_DATASETS_CACHE) / folder / "0.0.0" / "1a2b" / "rows.arrow"
    path.parent.mkdir(parents=True)
    path.touch()
    task_file(name, tmp_path / "task")


class Hub(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path.endswith("/auth-check") else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def hub(nowhere: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    nowhere.setattr("datasets.config.HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield nowhere
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "found"), [(200, None), (404, None), (401, "run `hf auth login`"), (403, "accept"), (503, "503")]
)
def test_what_the_hub_answers_is_told(status: int, found: str | None, hub: pytest.MonkeyPatch) -> None:
    hub.setattr(Hub, "status", status)
    if found is None:
        return require_hub("gpqa")
    with pytest.raises(InputError, match=found) as caught:
        require_hub("gpqa")
    assert "Idavidrein/gpqa" in str(caught.value)


GOOD = {"question": "q", "answer": "#### 1"}


def test_problems_without_the_split_of_the_examples_are_prompted_without_examples(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(GOOD) + "\n")
    with pytest.warns(UserWarning, match="no file of the split train: prompts are without worked examples"):
        path = task_file("gsm8k", tmp_path / "made", tmp_path)
    assert "num_fewshot: 0" in path.read_text().splitlines()


@pytest.mark.parametrize(
    ("files", "options", "found"),
    [
        ({"test.txt": "x"}, {}, "no file of the split test of gsm8k"),
        ({}, {}, "no file of the split test of gsm8k"),
        ({"test.jsonl": [GOOD]}, {"shots": 5}, "no file of the split train of gsm8k"),
        ({"test.jsonl": [GOOD]}, {"shots": 5}, "set shots to 0"),
        ({"a.jsonl": [GOOD], "b.jsonl": [GOOD]}, {"shots": 0}, "no file of the split test of gsm8k"),
        ({"test.jsonl": [GOOD], "train.jsonl": [GOOD]}, {}, "1 rows to take 5 worked examples from"),
        ({"test.jsonl": []}, {"shots": 0}, "holds no rows"),
        ({"test.jsonl": "{broken"}, {"shots": 0}, "cannot be read as jsonl"),
        ({"test.json": "[broken"}, {"shots": 0}, "cannot be read as json"),
        ({"test.parquet": "broken"}, {"shots": 0}, "cannot be read as parquet"),
        ({"test.jsonl": [GOOD, {"question": "q"}]}, {"shots": 0}, "row 2 of .* has no column 'answer' but question"),
        ({"test.jsonl": [{"Question": "q", "answer": "#### 1"}]}, {"shots": 0}, "has no column 'question'"),
        ({"test.jsonl": [GOOD | {"answer": "1"}]}, {"shots": 0}, "row 1 of .* has '1' as 'answer', without"),
        ({"test.jsonl": [[1, 2]]}, {"shots": 0}, "row 1 of .* is '.1, 2.', not an object"),
    ],
)
def test_files_that_will_not_do_are_named_in_one_line(
    files: dict[str, Any], options: dict[str, Any], found: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (folder / name).write_text(text)
    with pytest.raises(InputError, match=found) as caught:
        task_file("gsm8k", tmp_path / "task", folder, **options)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_there_and_a_file_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data for gpqa at '/nowhere'; name a folder with diamond.jsonl"):
        task_file("gpqa", tmp_path, Path("/nowhere"))
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(InputError, match=r"unknown format; name a file that ends in .jsonl, .json, .parquet, .csv"):
        task_file("gpqa", tmp_path, tmp_path / "rows.txt")


def test_more_worked_examples_than_there_are_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shots is 5, but lm-eval has 4 worked examples for math500"):
        task_file("math500", tmp_path, LOCAL, shots=5)
    with pytest.raises(InputError, match="gpqa has 6 rows to take 6 worked examples from"):
        task_file("gpqa", tmp_path, LOCAL, shots=6)
    task_file("gpqa", tmp_path, LOCAL, shots=5)


def test_a_missing_lm_eval_is_one_line_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ets.tasks.data.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"lm-eval is not installed; .*pip install -e '.\[benchmarks\]"):
        task_file("gpqa", tmp_path, LOCAL)


def test_every_source_belongs_to_a_benchmark_of_ours() -> None:
    for name, source in SOURCES.items():
        task = task_named(name)
        assert isinstance(task, Benchmark) and task.name == name and task.lm_eval == source.lm_eval
        with pytest.raises(InputError, match=f"made by lm-eval's task {task.lm_eval}"):
            task.problems()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"id": 60, "problem": "Find $x+{1}$.", "solution": "…", "answer": "024"}\n'),
        ("a.jsonl", '{"ID": "1", "Problem": "Find $x+{1}$.", "Answer": 24}\n'),
        ("a.csv", "problem,answer\nFind $x+{1}$.,24\n"),
    ],
)
def test_aime_rows_may_have_the_common_columns(tmp_path: Path, name: str, content: str) -> None:
    """They become the prompts of the published rows."""
    (tmp_path / name).write_text(content)
    task = opened_task("aime24", tmp_path / name)
    (problem,) = task.problems()
    (published, *_) = opened_task("aime24", LOCAL).problems()
    asked = "Find the remainder when $2^{10}$ is divided by $1000$."
    assert problem.prompt == str(published.prompt).replace(asked, "Find $x+{1}$.")
    assert task.grade(problem, "\\boxed{24}") and not task.grade(problem, "\\boxed{25}")
