"""The results folder of a run: its configuration, and one JSON line for each chain that has ended.

Every line is flushed when it is written, and the same command continues the run. A chain is a function of (seed,
problem, sample) alone, so a resumed run and an undisturbed run have equal records.

Where several processes share a run, the first process writes the journal of the run, and each other process a part. The
first process copies the parts into the journal; the parts of killed processes are copied by the next run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ets.evaluation.ranks import ALONE, Ranks
from ets.types import InputError

Record = dict[str, Any]
VERSION = 4
"""The version of a results folder, in its configuration and in its summary."""
ELIDED = 60
"""Characters of a value in an error."""


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a hash of the whole configuration."""
    return hashlib.sha256(_canonical(configuration).encode()).hexdigest()[:8]


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of writing to a folder into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write results to {str(folder)!r}: {error.strerror}; choose another folder") from error


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2)


class Journal:
    """The records of a results folder, on disk and in memory.

    A journal is a context manager, which closes it. Several processes open, exchange and leave it together; a part is
    removed at the end if no error ended the block.

    Parameters
    ----------
    folder : Path
        Created if it does not exist.
    configuration : mapping
        Everything that the results depend on, as JSON values, without the problems: a record names its problem.
    ranks : Ranks
        The place of this process among the processes of the run.

    Raises
    ------
    InputError
        If the folder holds results of another version or configuration (the message names the keys that differ), or
        if another process is writing to it.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any], ranks: Ranks = ALONE) -> None:
        self.folder, self.ranks = folder, ranks
        self._path = folder / ("journal.jsonl" if ranks.first else f"journal-{ranks.rank}.jsonl")
        self.records: dict[tuple[str, str, int], Record] = {}
        if not ranks.first:
            ranks.wait()  # until the first process has opened the folder and copied old parts
        with written_to(folder):
            self._open(configuration)
        if ranks.first:
            ranks.wait()
        self._own = list(self.records.values())
        self.exchange()

    def _open(self, configuration: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        stored = self.folder / "configuration.json"
        with ExitStack() as refused:  # a refused folder is unlocked
            self._file = refused.enter_context(_locked(self._path))
            if self._path.stat().st_size and not stored.exists():
                raise InputError(
                    f"{str(self.folder)!r} has a journal without its configuration.json; choose another folder"
                )
            _require_same(stored, configuration)
            self.records |= {self._key(record): record for record in _recovered(self._file, self._path)}
            if self.ranks.first:
                self._copy_parts()
            refused.pop_all()

    def _copy_parts(self) -> None:
        """Copy the parts that processes of an earlier run have left."""
        for path in sorted(self.folder.glob("journal-*.jsonl")):
            with _locked(path) as part:
                self._copy(_recovered(part, path))
                path.unlink()

    def _copy(self, records: Iterable[Record]) -> None:
        """Keep records of other processes in memory, and in the first process on disk, before the parts are removed."""
        new = {self._key(record): record for record in records if self._key(record) not in self.records}
        self.records |= new
        if new and self.ranks.first:
            self._file.writelines(map(_line, new.values()))
            self._file.flush()
            os.fsync(self._file.fileno())

    @staticmethod
    def _key(record: Record) -> tuple[str, str, int]:
        return record["method"], record["problem"], record["sample"]

    def of(self, method: str) -> list[Record]:
        """A method's records."""
        return [record for record in self.records.values() if record["method"] == method]

    def require_asked(self, asked: Mapping[str, str]) -> None:
        """Raise `InputError` if a record answers a different problem with the same id.

        Parameters
        ----------
        asked : mapping of str to str
            By id, the digest of each problem. A journal may hold further problems, or lack some.
        """
        for record in self.records.values():
            if record.get("asked") != asked.get(record["problem"], record.get("asked")):
                raise InputError(
                    f"the results folder {str(self.folder)!r} holds results of another problem {record['problem']!r}; "
                    "choose another folder"
                )

    def append(self, record: Record) -> None:
        """Write one line and flush it."""
        self._file.write(_line(record))
        self._file.flush()
        self.records[self._key(record)] = record
        self._own.append(record)

    def exchange(self) -> None:
        """Send the appended records to the other processes, and receive theirs; waits for all processes."""
        own, self._own = self._own, []
        for records in self.ranks.gather(own):
            self._copy(records)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.ranks.wait()  # until the first process has everything on disk
                if not self.ranks.first:
                    self._path.unlink()
        finally:
            self.close()

    def close(self) -> None:
        self._file.close()


def _line(record: Record) -> bytes:
    """A record as a line. An answer may be any hashable value: a value that JSON does not have becomes text."""
    return json.dumps(record, default=str).encode() + b"\n"


def _recovered(file: BinaryIO, path: Path) -> list[Record]:
    """The records of the complete lines; an incomplete last line is cut off the file."""
    file.seek(0)
    content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    file.truncate(len(whole))
    records = [_parsed(line, f"{path}, line {number}") for number, line in enumerate(whole.splitlines(), 1)]
    for number, record in enumerate(records, 1):
        if not (isinstance(record, dict) and {"method", "problem", "sample"} <= record.keys()):
            raise InputError(f"{path}, line {number} is no record; correct or remove it, or choose another folder")
    return records


def _parsed(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise InputError(
            f"{place} is damaged, it holds no JSON; correct or remove it, or choose another folder"
        ) from None


def _require_same(path: Path, configuration: Mapping[str, Any]) -> None:
    """Write the configuration of a new folder in one piece; compare it with the configuration of an old folder."""
    configuration = {**configuration, "version": VERSION}
    if not path.exists():
        whole = path.with_suffix(".part")
        whole.write_text(_canonical(configuration) + "\n", encoding="utf-8")
        whole.replace(path)
        return
    stored, current = _parsed(path.read_bytes(), str(path)), json.loads(_canonical(configuration))
    if not isinstance(stored, dict):
        raise InputError(f"{path} is damaged, it holds no configuration; choose another folder")
    require_version(stored, path.parent)
    absent = "absent"
    pairs = {k: (stored.get(k, absent), current.get(k, absent)) for k in sorted({*stored, *current})}
    differing = [f"{k} ({_brief(there)} there, {_brief(now)} now)" for k, (there, now) in pairs.items() if there != now]
    if differing:
        keys = ", ".join(differing)
        raise InputError(
            f"the results folder {str(path.parent)!r} is of another configuration: {keys}; choose another folder"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= ELIDED else f"{text[:ELIDED]}…"


def _locked(path: Path) -> BinaryIO:
    """Open for reading and appending, with a lock that the system releases when the process ends."""
    file = path.open("ab+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(
            f"another process is writing to {str(path.parent)!r}; wait for it, or choose another folder"
        ) from None
    return file


def require_version(content: Any, folder: Path) -> None:
    """Raise `InputError` for the JSON content of a results folder of another version."""
    version = content.get("version", "none") if isinstance(content, Mapping) else "none"
    if version != VERSION:
        raise InputError(
            f"the results folder {str(folder)!r} has version {version}, and this ets reads "
            f"version {VERSION}; finish it with the ets that began it, or choose another folder"
        )


def known_fields(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON values of a dataclass without those of fields that only an earlier ets wrote."""
    return {field.name: content[field.name] for field in fields(kind) if field.name in content}
