"""Damaged files: each ends in one line, or changes nothing; never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ets.evaluation.journal import VERSION, Journal
from ets.policies.checkpoint import Checkpoint
from ets.report.page import write_report
from ets.tasks.data import read_rows
from ets.tasks.instructions import instructions
from ets.tasks.json_schema import json_schema
from ets.tasks.prompts import read_prompts
from ets.types import InputError, Problem
from tests.conftest import random_qwen3, tiny_tokenizer
from tests.report.test_page import run_folder

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "noise": lambda content: random.Random(0).randbytes(1000),
    "no UTF-8": lambda content: content.replace(b"e", b"\xff"),
    "other marks": lambda content: content.replace(b":", b";"),
    "nested": lambda content: b"[" * 100_000 + b"]" * 100_000 + b"\n",
    "a number": lambda content: b"1e999\n",
    "a list": lambda content: b"[1, null]\n",
    "an object": lambda content: b'{"a": NaN}\n',
}
"""What is done to the bytes of a file."""


def of_run(folder: Path) -> Path:
    with Journal(folder, {"seed": 0}) as journal:
        for name in "abc":
            journal.append({"method": "ets", "problem": name, "sample": 0})
    return folder


def of_model(folder: Path) -> Path:
    random_qwen3(4, end=0).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def of_rows(folder: Path) -> Path:
    for name in ("rows.jsonl", "rows.json"):
        (folder / name).write_text(json.dumps({"prompt": "a:e", "question": "e"}) + "\n")
    return folder


def opened_journal(folder: Path) -> None:
    Journal(folder, {"seed": 0}).close()


def loaded(folder: Path) -> None:
    checkpoint = Checkpoint(str(folder))
    checkpoint.load()
    _ = checkpoint.truncation


MAKERS = (of_run, of_model, of_rows, run_folder)
FILES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Any]]] = {
    "journal.jsonl": (of_run, opened_journal),
    "configuration.json": (of_run, opened_journal),
    "summary.json": (run_folder, write_report),
    "problems.jsonl": (run_folder, write_report),
    "traces.jsonl": (run_folder, write_report),
    "config.json": (of_model, loaded),
    "model.safetensors": (of_model, loaded),
    "tokenizer.json": (of_model, loaded),
    "tokenizer_config.json": (of_model, loaded),
    "generation_config.json": (of_model, loaded),
    "rows.jsonl": (of_rows, lambda folder: read_prompts(folder / "rows.jsonl", "rows")),
    "rows.json": (of_rows, lambda folder: read_rows(folder / "rows.json")),
}
"""By name of a file: what makes its folder, and what reads it."""


def refusal(read: Callable[[Path], Any], folder: Path) -> str:
    """The words of the refusal, if any."""
    try:
        read(folder)
    except InputError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    return {make: make(tmp_path_factory.mktemp(make.__name__)) for make in MAKERS}


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_read(name: str, whole: dict[Any, Path], tmp_path: Path) -> None:
    make, read = FILES[name]
    shutil.copytree(whole[make], tmp_path, dirs_exist_ok=True)
    read(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line(name: str, damage: str, whole: dict[Any, Path], tmp_path: Path) -> None:
    make, read = FILES[name]
    shutil.copytree(whole[make], tmp_path, dirs_exist_ok=True)
    content = DAMAGES[damage]((tmp_path / name).read_bytes())
    (tmp_path / name).write_bytes(content)
    line = refusal(read, tmp_path)
    assert "\n" not in line and (not line or str(tmp_path) in line or name in line)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_the_place_of_a_file_is_one_line(name: str, whole: dict[Any, Path], tmp_path: Path) -> None:
    make, read = FILES[name]
    shutil.copytree(whole[make], tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    assert "\n" not in refusal(read, tmp_path)


def test_damage_to_a_configuration_loses_no_record(tmp_path: Path) -> None:
    of_run(tmp_path)
    before = (tmp_path / "journal.jsonl").read_bytes()
    for damage in DAMAGES.values():
        (tmp_path / "configuration.json").write_bytes(damage(json.dumps({"seed": 0, "version": VERSION}).encode()))
        with pytest.raises(InputError):
            opened_journal(tmp_path)
        assert (tmp_path / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "[" * 100_000 + "]" * 100_000])
def test_a_text_that_is_nested_deeply_is_graded(text: str) -> None:
    """A model may repeat a bracket for ever."""
    rows = Problem("p", "", doc={"instructions": [{"kind": "json-value"}], "schema": {"type": "object"}})
    assert instructions._scored(rows, text) == 0.0
    pytest.importorskip("jsonschema")
    assert json_schema._scored(rows, text) == 0.0
