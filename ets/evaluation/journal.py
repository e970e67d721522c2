"""The results folder of a run: its configuration, and one JSON line for each chain that has ended.

Every line is flushed when it is written, and the same command goes on where the folder ends. Since a chain is
a function of (seed, problem, sample) alone, a resumed run ends with what an undisturbed one ends with.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from ets.types import InputError

Record = dict[str, Any]


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a hash of the whole configuration."""
    return hashlib.sha256(_canonical(configuration).encode()).hexdigest()[:8]


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2)


class Journal:
    """The records of a results folder, on disk and in memory.

    Parameters
    ----------
    folder : Path
        Made if there is none.
    configuration : mapping
        Everything that the results depend on, as JSON values.

    Raises
    ------
    InputError
        If the folder holds results of another configuration (naming the keys that differ), or if another
        process is writing to it.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]) -> None:
        self.folder, self._path = folder, folder / "journal.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with ExitStack() as refused:  # a folder that is refused is not kept locked
                self._file = refused.enter_context(_locked(self._path))
                if self._path.stat().st_size and not (folder / "configuration.json").exists():
                    raise InputError(
                        f"{str(folder)!r} has a journal without its configuration.json; choose another folder"
                    )
                _require_same(folder / "configuration.json", configuration)
                self.records = {self._key(record): record for record in self._recover()}
                refused.pop_all()
        except OSError as error:
            raise InputError(
                f"cannot write results to {str(folder)!r}: {error.strerror}; choose another folder"
            ) from error

    @staticmethod
    def _key(record: Record) -> tuple[str, str, int]:
        return record["method"], record["problem"], record["sample"]

    def _recover(self) -> list[Record]:
        """Read the whole lines; a last line that was torn by a crash is cut off the file."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.truncate(len(whole))
        records = [_parsed(line, f"{self._path}, line {n}") for n, line in enumerate(whole.splitlines(), 1)]
        for number, record in enumerate(records, 1):
            if not (isinstance(record, dict) and {"method", "problem", "sample"} <= record.keys()):
                raise InputError(
                    f"{self._path}, line {number} is no record; mend or remove it, or choose another folder"
                )
        return records

    def of(self, method: str) -> list[Record]:
        """A method's records."""
        return [record for record in self.records.values() if record["method"] == method]

    def append(self, record: Record) -> None:
        """Write one line and flush it."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        self.records[self._key(record)] = record

    def close(self) -> None:
        self._file.close()


def _parsed(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise InputError(f"{place} is damaged, it holds no JSON; mend or remove it, or choose another folder") from None


def _require_same(path: Path, configuration: Mapping[str, Any]) -> None:
    """Write the configuration of a new folder, in one piece; compare it with that of an old one."""
    if not path.exists():
        whole = path.with_suffix(".part")
        whole.write_text(_canonical(configuration) + "\n", encoding="utf-8")
        whole.replace(path)
        return
    stored, current = _parsed(path.read_bytes(), str(path)), json.loads(_canonical(configuration))
    if not isinstance(stored, dict):
        raise InputError(f"{path} is damaged, it holds no configuration; choose another folder")
    absent = "absent"
    pairs = {k: (stored.get(k, absent), current.get(k, absent)) for k in sorted({*stored, *current})}
    differing = [f"{k} ({there!r} there, {now!r} now)" for k, (there, now) in pairs.items() if there != now]
    if differing:
        keys = ", ".join(differing)
        raise InputError(
            f"the results folder {str(path.parent)!r} is of another configuration: {keys}; choose another folder"
        )


def _locked(path: Path) -> BinaryIO:
    """Open for reading and appending, under a lock that the system releases when the process ends."""
    file = path.open("ab+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another process is writing to {str(path.parent)!r}; wait for it, or choose another folder"
        ) from None
    return file
