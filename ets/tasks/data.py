"""Where a hosted benchmark's rows come from: the Hugging Face hub, or local files in the dataset's own row format.

`task_file` writes a YAML file that includes lm-eval's task and gives the place of the rows. Where lm-eval's processing
of rows is random or loses answers, the file replaces the processing by ours.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import urllib.error
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from ets.types import InputError, not_installed

SECONDS = 5
"""Time limit for the hub."""

Rows: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """A benchmark's dataset, and lm-eval's task for it.

    Parameters
    ----------
    lm_eval, yaml : str
        The name of lm-eval's task, and the file in lm-eval's folder of tasks.
    dataset, config : str
        Names on the hub.
    words : mapping of str to str
        By split, a word in the names of the local files.
    problems, examples : str
        The splits of the problems and of the worked examples; None if lm-eval holds the examples.
    shots : int
        Number of worked examples by default.
    columns : mapping of str to str
        The columns that every row must have, each with a regular expression that the values match.
    changes : tuple of str
        Lines of YAML that replace lines of lm-eval's task.
    common : callable, optional
        Converts a local row with other common columns to the columns of the dataset.
    """

    lm_eval: str
    yaml: str
    dataset: str
    config: str
    words: Mapping[str, str]
    problems: str
    examples: str | None
    shots: int
    columns: Mapping[str, str]
    changes: tuple[str, ...] = ()
    common: Callable[[dict[str, Any]], dict[str, Any]] | None = None


AIME_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\nRemember to put your "
    'answer on its own line after "Answer:".'
)
"""The user's message in the rows of BytedTsinghua-SIA/AIME-2024."""
_AIME_GENERATION = (
    "generation_kwargs: {until: [</s>, <|im_end|>, <|eot_id|>], do_sample: true, temperature: 1.0, max_gen_toks: 32768}"
)


def _lower_names(row: dict[str, Any]) -> dict[str, Any]:
    return {str(column).lower(): value for column, value in row.items()}


def _aime_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the columns problem and answer, in any case, as a row of BytedTsinghua-SIA/AIME-2024."""
    named = _lower_names(row)
    problem, answer = named.get("problem"), named.get("answer")
    if "prompt" in row or problem is None or answer is None:
        return row
    number = int(answer) if isinstance(answer, float) and answer.is_integer() else answer
    content = AIME_PROMPT.format(problem=str(problem).strip())
    return {"prompt": [{"role": "user", "content": content}], "reward_model": {"ground_truth": str(number).strip()}}


def _given_values(row: dict[str, Any]) -> dict[str, Any]:
    """A row of IFEval without the empty values of `kwargs`, which tables hold for the columns of other rows."""
    given = row.get("kwargs")
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        return row
    return row | {"kwargs": [{name: value for name, value in each.items() if value is not None} for each in given]}


SOURCES = {
    "math500": Source(
        lm_eval="minerva_math500",
        yaml="minerva_math/minerva_math500.yaml",
        dataset="HuggingFaceH4/MATH-500",
        config="default",
        words={"test": "test"},
        problems="test",
        examples=None,
        shots=4,
        columns={"problem": r"\S", "solution": r"\\f?box"},
    ),
    "gsm8k": Source(
        lm_eval="gsm8k",
        yaml="gsm8k/gsm8k.yaml",
        dataset="openai/gsm8k",
        config="main",
        words={"test": "test", "train": "train"},
        problems="test",
        examples="train",
        shots=5,
        columns={"question": r"\S", "answer": r"####\s*\S"},
    ),
    "gpqa": Source(
        lm_eval="gpqa_diamond_generative_n_shot",
        yaml="gpqa/generative/gpqa_diamond_generative_n_shot.yaml",
        dataset="Idavidrein/gpqa",
        config="gpqa_diamond",
        words={"train": "diamond"},
        problems="train",
        examples="train",
        shots=0,
        columns=dict.fromkeys(
            ("Question", "Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"), r"\S"
        ),
        changes=("process_docs: !function ets.tasks.gpqa.process_docs",),
    ),
    "aime24": Source(
        lm_eval="aime24",
        yaml="aime/aime24.yaml",
        dataset="BytedTsinghua-SIA/AIME-2024",
        config="default",
        words={"train": "aime"},
        problems="train",
        examples="train",
        shots=0,
        columns={"prompt": "content", "reward_model": r"ground_truth\W+\d+"},
        changes=(
            "process_docs: !function ets.tasks.aime24.process_docs",
            "process_results: !function ets.tasks.aime24.process_results",
            'doc_to_text: "{{problem}}"',
            'doc_to_target: "{{answer}}"',
            "filter_list: [{name: avg@k, filter: []}]",
            _AIME_GENERATION,
        ),
        common=_aime_row,
    ),
    "aime25": Source(
        lm_eval="aime25",
        yaml="aime/aime25.yaml",
        dataset="math-ai/aime25",
        config="default",
        words={"test": "test"},
        problems="test",
        examples="test",
        shots=0,
        columns={"problem": r"\S", "answer": r"\d"},
        changes=(
            "process_results: !function ets.tasks.aime25.process_results",
            f"doc_to_text: {json.dumps(AIME_PROMPT.format(problem='{{problem}}'))}",
            "filter_list: [{name: avg@k, filter: []}]",
            _AIME_GENERATION,
        ),
        common=_lower_names,
    ),
    "ifeval": Source(
        lm_eval="ifeval",
        yaml="ifeval/ifeval.yaml",
        dataset="google/IFEval",
        config="default",
        words={"train": "input_data"},
        problems="train",
        examples=None,
        shots=0,
        columns={"key": r"\d", "prompt": r"\S", "instruction_id_list": r"\w:\w", "kwargs": r"\{"},
        common=_given_values,
    ),
}
"""By the name of a task in `ets.tasks.TASKS`."""


def task_file(
    name: str, folder: Path, data: Path | None = None, *, shots: int | None = None, repeats: int | None = None
) -> Path:
    """Write the YAML of lm-eval's task for a benchmark after a check of the data.

    Parameters
    ----------
    name : str
        A key of `SOURCES`.
    folder : Path
        The folder of the YAML and of copies of local rows, for lm-eval's `--include_path`. Created if missing.
    data : Path, optional
        A folder or a file; by default the rows come from the hub, or from the cache of an earlier download.
    shots : int, optional
        Worked examples in each prompt; by default the task's number, or 0 with a warning if `data` holds the problems
        without the split of the examples.
    repeats : int, optional
        Responses to each problem; by default the task's number.

    Raises
    ------
    InputError
        Within seconds, if the data are missing (with the address of the download) or incomplete.
    """
    source, lines = SOURCES[name], []
    if source.examples is None and shots is not None and shots > source.shots:
        raise InputError(f"shots is {shots}, but lm-eval has {source.shots} worked examples for {name}; choose fewer")
    if data is None:
        require_hub(name)
        lines += [f"dataset_path: {source.dataset}", f"dataset_name: {source.config}"]
    else:
        if shots is None and _lacks_examples(name, data):
            shots = 0
            text = f"{str(data)!r} holds no file of the split {source.examples}: prompts are without worked examples"
            warnings.warn(f"{text} (shots is 0, the benchmark's own number is {source.shots})", stacklevel=2)
        lines += _local(name, data, folder, source.shots if shots is None else shots)
    lines += [f"num_fewshot: {shots}"] * (shots is not None) + [f"repeats: {repeats}"] * (repeats is not None)
    included = json.dumps(str(_lm_eval_tasks() / source.yaml))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{source.lm_eval}.yaml"
    path.write_text(
        "\n".join([f"include: {included}", f"task: {source.lm_eval}", *source.changes, *lines, ""]), "utf-8"
    )
    return path


def _lm_eval_tasks() -> Path:
    found = find_spec("lm_eval")
    if found is None or found.origin is None:
        raise not_installed("lm-eval", "benchmarks")
    return Path(found.origin).parent / "tasks"


def require_hub(name: str) -> None:
    """Raise `InputError` if a benchmark's rows are neither in the cache nor on a reachable hub."""
    source = SOURCES[name]
    trouble = None if _cached(source) else _trouble(source)
    if trouble is not None:
        raise InputError(
            f"no data for {name}: {trouble}; or download https://huggingface.co/datasets/{source.dataset} elsewhere, "
            f"and give the folder: DATA=FOLDER (--data FOLDER), {_wanted(source)}"
        )


def _wanted(source: Source) -> str:
    """The content of a local folder, in words."""
    files = " and ".join(f"{word}.jsonl" for word in source.words.values())
    return f"with {files} (.jsonl, .json, .parquet or .csv; columns: {', '.join(source.columns)})"


def _cached(source: Source) -> bool:
    """Whether the cache holds an earlier download."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    namespace, name = source.dataset.split("/")
    folder = Path(config.HF_DATASETS_CACHE) / f"{namespace}___{camelcase_to_snakecase(name)}" / source.config
    return any(folder.glob("**/*.arrow"))


def _trouble(source: Source) -> str | None:
    """The reason why the hub refuses a dataset, with the remedy, or None."""
    from datasets import config
    from huggingface_hub import get_token

    if config.HF_HUB_OFFLINE:
        return "the Hugging Face hub is switched off; set HF_HUB_OFFLINE=0"
    token = get_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    address = f"{config.HF_ENDPOINT}/api/datasets/{source.dataset}/auth-check"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=SECONDS):
            return None
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return "the Hugging Face hub asks for a login; accept the conditions there, and run `hf auth login`"
        if error.code == 404:
            return None  # a mirror without this check
        return f"the Hugging Face hub answers {error.code} ({error.reason}); try again"
    except (OSError, ValueError) as error:
        return f"the Hugging Face hub cannot be reached ({getattr(error, 'reason', error)}); connect to it"


def _local(name: str, data: Path, folder: Path, shots: int) -> list[str]:
    """Write the rows of local files for lm-eval, and return the lines of YAML that name the copies."""
    source, lines = SOURCES[name], ["dataset_path: json", "dataset_name: null"]
    splits = [source.problems]
    if source.examples and source.examples != source.problems:
        if shots > 0:
            splits.append(source.examples)
        else:
            lines += ["training_split: null", "fewshot_split: null"]
    files = _files(name, data, splits)
    rows = {split: [row for path in paths for row in _rows(path, source)] for split, paths in files.items()}
    if source.examples in rows:
        _require_examples(name, len(rows[source.examples]), shots, source.examples == source.problems)
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, found in rows.items():
        path = folder.resolve() / f"{source.lm_eval}-{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
        written[split] = str(path)
    options = {"data_files": written, "cache_dir": str(folder.resolve() / "cache")}
    return [*lines, f"dataset_kwargs: {json.dumps(options)}"]


def _require_examples(name: str, rows: int, shots: int, shared: bool) -> None:
    """Raise `InputError` for fewer rows than worked examples, plus the problem if the split is shared."""
    if rows < shots + shared:
        raise InputError(f"{name} has {rows} rows to take {shots} worked examples from; add rows, or set fewer shots")


def _lacks_examples(name: str, data: Path) -> bool:
    """Whether local files hold the problems of a benchmark without the split of its worked examples."""
    source = SOURCES[name]
    if not source.shots or source.examples in (None, source.problems):
        return False
    found = _found(name, data, [source.problems, source.examples])
    return bool(found[source.problems]) and not found[source.examples]


def _found(name: str, data: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The local files of each split, or none. A single file of any name holds the problems."""
    source = SOURCES[name]
    if not data.exists():
        raise InputError(f"no data for {name} at {str(data)!r}; name a folder {_wanted(source)}")
    places = [data / name, data / source.config, data / "data", data]
    files: list[Path] = next(filter(None, map(_readable, places)), []) if data.is_dir() else [data]
    if len(files) == 1:
        return {split: files * (split == source.problems) for split in splits}
    return {split: _of(source.words[split], files) for split in splits}


def _files(name: str, data: Path, splits: Sequence[str]) -> dict[str, list[Path]]:
    """The local files of each split. Raises `InputError` for a split without files."""
    source = SOURCES[name]
    for split, paths in (found := _found(name, data, splits)).items():
        if not paths:
            remedy = "" if split == source.problems else ", or set shots to 0"
            raise InputError(
                f"no file of the split {split} of {name} in {str(data)!r}; name a folder {_wanted(source)}{remedy}"
            )
    return found


def _readable(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix in READERS and path.is_file())


def _of(word: str, files: Sequence[Path]) -> list[Path]:
    """The files of one format with a word as their name, or else with the word in their name."""
    exact = [path for path in files if path.stem.lower() == word]
    found = exact or [path for path in files if re.search(rf"(?<![a-z]){word}(?![a-z])", path.name.lower())]
    return [path for path in found if path.suffix == found[0].suffix]


def _rows(path: Path, source: Source) -> Rows:
    """The rows of a file, with the required columns."""
    return [_checked(row, source, f"row {number} of {str(path)!r}") for number, row in enumerate(read_rows(path), 1)]


def read_rows(path: Path) -> list[Any]:
    """The rows of a file, one or more. Raises `InputError` for a file that cannot be read, by its suffix."""
    if path.suffix not in READERS:
        raise InputError(f"{str(path)!r} has an unknown format; name a file that ends in {', '.join(READERS)}")
    try:
        rows = READERS[path.suffix](path)
    except (OSError, EOFError, ValueError, RecursionError, csv.Error, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{str(path)!r} cannot be read as {path.suffix[1:]}: {reason}; correct the file") from error
    if not rows:
        raise InputError(f"{str(path)!r} holds no rows; correct the file")
    return rows


def _checked(row: Any, source: Source, place: str) -> dict[str, Any]:
    """The required columns of a row, numbers as text. Raises `InputError` for a missing column or value."""
    if not isinstance(row, dict):
        raise InputError(f"{place} is {str(row)[:60]!r}, not an object; write one with {', '.join(source.columns)}")
    row = row if source.common is None else source.common(row)
    for column, pattern in source.columns.items():
        if row.get(column) is None:
            raise InputError(f"{place} has no column {column!r} but {', '.join(map(str, row))}; rename or add it")
        if not re.search(pattern, str(row[column])):
            raise InputError(
                f"{place} has {str(row[column])[:60]!r} as {column!r}, without {pattern!r}; correct the row"
            )
    return {
        column: str(row[column]) if isinstance(row[column], int | float) else row[column] for column in source.columns
    }


def _json_lines(path: Path) -> Rows:
    return _parsed(path.read_text(encoding="utf-8"))


def _zipped(path: Path) -> Rows:
    return _parsed(gzip.decompress(path.read_bytes()).decode("utf-8"))


def _parsed(lines: str) -> Rows:
    return [json.loads(line) for line in lines.split("\n") if line.strip()]


def _json(path: Path) -> Rows:
    """A list of rows, or (as in some published files) a row in each line."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return _json_lines(path)
    return found if isinstance(found, list) else [found]


def _csv(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _parquet(path: Path) -> Rows:
    from pyarrow import parquet

    rows: Rows = parquet.read_table(path).to_pylist()
    return rows


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".gz": _zipped,
}
"""By suffix of the file; `.gz` is JSON lines."""
