"""The results folder: crashes, resumption, other configurations and other processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ets
from ets.evaluation.journal import VERSION, Journal, Record, fingerprint
from ets.types import InputError

CONFIGURATION = {"task": "arithmetic", "lam": 0.1, "seed": 0, "top_k": None, "methods": "ets,plain"}


def record(problem: str, sample: int = 0, method: str = "ets", **fields: Any) -> Record:
    return {"method": method, "problem": problem, "sample": sample, "text": "", **fields}


def written(folder: Path, *records: Record, configuration: dict[str, Any] = CONFIGURATION) -> list[Record]:
    """Open a journal, append, close; what it held before."""
    journal = Journal(folder, configuration)
    before = list(journal.records.values())
    for line in records:
        journal.append(line)
    journal.close()
    return before


@pytest.mark.parametrize(("version", "shown"), [({}, "none"), ({"version": 2}, "2"), ({"version": "new"}, "new")])
def test_a_folder_of_another_version_is_refused_in_one_line(
    tmp_path: Path, version: dict[str, Any], shown: str
) -> None:
    (tmp_path / "configuration.json").write_text(json.dumps({**CONFIGURATION, **version}))
    message = (
        f"has version {shown}, and this ets reads version {VERSION}; finish it with the ets that began it, or choose"
    )
    with pytest.raises(InputError, match=message) as error:
        written(tmp_path)
    assert "\n" not in str(error.value)


def test_a_long_value_that_differs_is_shortened(tmp_path: Path) -> None:
    written(tmp_path, record("a"), configuration={"prompt": "a" * 1000})
    with pytest.raises(InputError, match=r"prompt \('a{59}… there, 'b{59}… now\)"):
        written(tmp_path, configuration={"prompt": "b" * 1000})


def test_a_journal_goes_on_where_it_was_closed(tmp_path: Path) -> None:
    folder, records = tmp_path / "new" / "results", [record("a"), record("a", 1), record("b", method="plain")]
    assert written(folder, *records[:2]) == []
    assert written(folder, records[2]) == records[:2]
    assert written(folder) == records


def test_records_are_found_by_method_and_a_second_one_replaces_the_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, CONFIGURATION)
    for line in (record("a"), record("a", 1), record("b", method="plain"), record("a", correct=True)):
        journal.append(line)
    assert journal.of("ets") == [record("a", correct=True), record("a", 1)]
    assert journal.of("plain") == [record("b", method="plain")] and journal.of("majority") == []
    journal.close()
    assert written(tmp_path) == [record("a", correct=True), record("a", 1), record("b", method="plain")]


@pytest.mark.parametrize(
    "text", ["", "two\nlines\r\n", "\u2028 \u2029 \x85 \x0b \x0c \x1c", "{\"é\": '𝜆'}\\", "\x00\t"]
)
def test_any_text_takes_one_line_and_comes_back(tmp_path: Path, text: str) -> None:
    records = [record("a", text=text), record(text, cost={"seconds": 0.1, "generated": 3}, answer=None)]
    written(tmp_path, *records)
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 2
    assert written(tmp_path) == records


def test_a_line_is_on_disk_as_soon_as_it_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path, CONFIGURATION)
    journal.append(record("a"))
    assert json.loads((tmp_path / "journal.jsonl").read_text(encoding="utf-8")) == record("a")
    journal.close()


@pytest.mark.parametrize("lost", [1, 2, 8, 40])
def test_a_torn_last_line_is_cut_off_and_the_others_are_kept(tmp_path: Path, lost: int) -> None:
    written(tmp_path, record("a"), record("b"), record("c", text="π" * 20))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:-lost])  # within the text, these cut a character in two
    assert written(tmp_path, record("d")) == [record("a"), record("b")]
    assert [json.loads(line)["problem"] for line in path.read_bytes().splitlines()] == ["a", "b", "d"]
    assert written(tmp_path) == [record("a"), record("b"), record("d")]


def test_a_journal_that_is_nothing_but_a_torn_line_starts_anew(tmp_path: Path) -> None:
    written(tmp_path, record("a"))
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes()[:10])
    assert written(tmp_path, record("b")) == []
    assert written(tmp_path) == [record("b")]


def test_results_of_another_configuration_are_refused_and_the_differing_keys_named(tmp_path: Path) -> None:
    written(tmp_path, record("a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other: dict[str, Any] = {**CONFIGURATION, "lam": 0.2, "top_k": 5, "width": 8}
    del other["methods"]
    with pytest.raises(InputError) as caught:
        Journal(tmp_path, other)
    message = str(caught.value)
    assert str(tmp_path) in message and "\n" not in message
    for part in ("lam (0.1 there, 0.2 now)", "top_k (None there, 5 now)", "width ('absent' there, 8 now)", "methods ("):
        assert part in message
    assert "seed" not in message and "task" not in message.split("configuration:")[1]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert written(tmp_path) == [record("a")]  # what was refused holds no lock, though its traceback is still there


def test_the_same_configuration_is_recognised_in_any_order_and_after_json(tmp_path: Path) -> None:
    written(tmp_path, record("a"), configuration={"stops": ("\n", "π"), "lam": 1e-3})
    assert written(tmp_path, configuration={"lam": 0.001, "stops": ["\n", "π"]}) == [record("a")]


def test_the_fingerprint_hangs_on_every_value_and_not_on_the_order() -> None:
    prints = {fingerprint(CONFIGURATION), fingerprint(dict(reversed(CONFIGURATION.items())))}
    assert len(prints) == 1 and all(len(p) == 8 and set(p) <= set("0123456789abcdef") for p in prints)
    for name in CONFIGURATION:
        assert fingerprint(CONFIGURATION | {name: "another"}) not in prints
    assert fingerprint(CONFIGURATION | {"more": None}) not in prints


def test_a_folder_is_written_by_one_journal_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path, CONFIGURATION)
    first.append(record("a"))
    with pytest.raises(InputError, match="another process is writing") as caught:
        Journal(tmp_path, CONFIGURATION)
    assert str(tmp_path) in str(caught.value)
    first.append(record("b"))
    first.close()
    assert written(tmp_path) == [record("a"), record("b")]


def own(code: dict[str, str], **values: Any) -> dict[str, Any]:
    return {**CONFIGURATION, "own_code": code, **values}


@pytest.mark.parametrize(
    ("code", "values", "message"),
    [
        ({"a.py:f": "2"}, {}, "made with other code: a.py has changed [(]f[)]; choose another folder with --out"),
        ({}, {}, "other code: a.py:f [(]there, not now[)]; choose another folder with --out, or put the code back"),
        ({"a.py:f": "1", "b:g": "1"}, {}, "other code: b:g [(]now, not there[)]; choose"),
        ({"a.py:f": "2"}, {"lam": 1}, "configuration: lam [(]0.1 there, 1 now[)], a.py has changed [(]f[)]; choose"),
        ({"b.py:f": "1"}, {"lam": 1}, "configuration: lam [(]0.1 there, 1 now[)]; choose another folder"),
    ],
)
def test_changed_code_of_a_user_is_named_with_its_file_and_the_remedy(
    code: dict[str, str], values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    written(tmp_path, record("a"), configuration=own({"a.py:f": "1"}))
    with pytest.raises(InputError, match=message) as caught:
        written(tmp_path, configuration=own(code, **values))
    assert "own_code" not in str(caught.value) and "{" not in str(caught.value)
    assert written(tmp_path, configuration=own({"a.py:f": "1"})) == [record("a")]


def test_of_two_mappings_the_differing_values_are_named(tmp_path: Path) -> None:
    written(tmp_path, record("a"), configuration={"chat": {"system": "Sing.", "stop": []}})
    with pytest.raises(InputError, match=r": chat.system \('Sing.' there, 'Say.' now\); choose"):
        written(tmp_path, configuration={"chat": {"system": "Say.", "stop": []}})


@pytest.mark.parametrize("content", [b"", b'{"method": "ets", "prob'])
def test_a_folder_without_a_finished_chain_takes_another_configuration(content: bytes, tmp_path: Path) -> None:
    written(tmp_path)
    for name, text in (("journal.jsonl", content), ("traces.jsonl", b"{}\n")):
        (tmp_path / name).write_bytes(text)
    assert written(tmp_path, record("a"), configuration={"lam": 2}) == []
    assert not (tmp_path / "traces.jsonl").exists()  # of a chain that never ended
    with pytest.raises(InputError, match=r"lam \(2 there, 0.1 now\)"):
        written(tmp_path)


def test_a_record_that_a_killed_process_has_left_holds_its_configuration(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "journal-1.jsonl").write_text(json.dumps(record("a")) + "\n")
    with pytest.raises(InputError, match=r"lam \(0.1 there, 2 now\)"):
        written(tmp_path, configuration={**CONFIGURATION, "lam": 2})
    assert written(tmp_path) == [record("a")]


HOLDER = """
import sys
from pathlib import Path
from ets.evaluation.journal import Journal

journal = Journal(Path(sys.argv[1]), {"seed": 0})
journal.append({"method": "ets", "problem": "a", "sample": 0})
print("holding", flush=True)
sys.stdin.read()
"""


def test_the_lock_of_a_process_that_is_killed_is_freed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(ets.__file__).parents[1])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"holding\n"
            with pytest.raises(InputError, match="another process is writing"):
                Journal(tmp_path, {"seed": 0})
        finally:
            holder.kill()
    assert written(tmp_path, configuration={"seed": 0}) == [{"method": "ets", "problem": "a", "sample": 0}]
