"""The results folder of a run: its configuration, and one JSON line for each chain that has ended.

Every line is flushed when it is written, and the same command continues the run. A chain is a function of (seed,
problem, sample) alone, so a resumed run and an undisturbed run have equal records.

Where several processes share a run, the first process writes the journal of the run, and each other process a part. The
first process copies the parts into the journal; the parts of killed processes are copied by the next run.
"""

from __future__ import annotations

import errno
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
FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBER, _GRADE = (int, float), (int, float, type(None))
_GRADED: dict[str, Any] = {"text": str, "correct": _GRADE, "scores": {str: _NUMBER}}
_DRAWN = _GRADED | {"tokens": list, "logp": _NUMBER, "certainty": (dict, type(None)), "cost": {str: _NUMBER}}
NAMED: dict[str, Any] = {"method": str, "problem": str, "sample": int}
RECORD: dict[str, Any] = {"correct": _GRADE, "depth": _NUMBER, "sample_tokens": _NUMBER, "cost": {str: _NUMBER}}
"""The types of a record's values by name; a record has graded texts too: its own, and `vote`; or `texts`."""


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a hash of the whole configuration."""
    return hashlib.sha256(_canonical(configuration).encode()).hexdigest()[:8]


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Turn an `OSError` of writing to a folder into an `InputError`."""
    try:
        yield
    except OSError as error:
        remedy = "make room, or choose another folder" if error.errno in FULL else "choose another folder"
        raise InputError(f"cannot write results to {str(folder)!r}: {error.strerror}; {remedy}") from error


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
        If the folder is of another version, holds results of another configuration (the message names the keys that
        differ), or if another process is writing to it. A folder without a result takes any configuration.
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
            if self.ranks.first and not self._holds_records():
                _forget(stored)
            _require_same(stored, configuration)
            self.records |= {self._key(record): record for record in _recovered(self._file, self._path)}
            if self.ranks.first:
                self._copy_parts()
            refused.pop_all()

    def _holds_records(self) -> bool:
        """Whether a file of the folder has a complete line, also one that an earlier run has left."""
        return any(b"\n" in path.read_bytes() for path in self.folder.glob("journal*.jsonl"))

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

    def require_records(self) -> None:
        """As `require_record`, for all records."""
        for record in self.records.values():
            require_record(record, str(self._path))

    def append(self, record: Record) -> None:
        """Write one line and flush it."""
        with written_to(self.folder):
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
        with written_to(self.folder):
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
    return records_of(whole, path)


def records_of(content: bytes, path: Path) -> list[Record]:
    """The records of the complete lines of a journal; raises `InputError` for a damaged line."""
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    records = [parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
    for number, record in enumerate(records, 1):
        if not (isinstance(record, dict) and not any(_misfits(record, NAMED))):
            raise InputError(f"{path}, line {number} is no record; correct or remove it, or choose another folder")
    return records


def parsed(content: bytes, place: str) -> Any:
    """The JSON value of a file of a results folder, or of its line; raises `InputError` for a damaged one."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise InputError(
            f"{place} is damaged, it holds no JSON; correct or remove it, or choose another folder"
        ) from None


def _forget(path: Path) -> None:
    """Remove the configuration of a folder without a result, and the traces of chains that never ended."""
    if path.exists():
        _stored(path)  # raises for another version, or a damaged file
        for stale in (path, *path.parent.glob("traces*.jsonl")):
            stale.unlink()


def _require_same(path: Path, configuration: Mapping[str, Any]) -> None:
    """Write the configuration of a new folder in one piece; compare it with the configuration of an old folder."""
    configuration = {**configuration, "version": VERSION}
    if not path.exists():
        whole = path.with_suffix(".part")
        whole.write_text(_canonical(configuration) + "\n", encoding="utf-8")
        whole.replace(path)
        return
    stored, current = _stored(path), json.loads(_canonical(configuration))
    code = stored.pop("own_code", {}), current.pop("own_code", {})
    differing, folder = list(_differences(stored, current)), str(path.parent)
    if differing:
        keys = ", ".join(differing + _changed(*code))
        raise InputError(f"the results folder {folder!r} is of another configuration: {keys}; choose another folder")
    if found := _changed(*code) or _one_sided(*code):
        raise InputError(
            f"the results folder {folder!r} was made with other code: {', '.join(found)}; choose another folder with "
            "--out, or put the code back"
        )


def _stored(path: Path) -> dict[str, Any]:
    """The configuration of an old folder; raises `InputError` for a damaged one, or one of another version."""
    stored = parsed(path.read_bytes(), str(path))
    if not isinstance(stored, dict):
        raise InputError(f"{path} is damaged, it holds no configuration; choose another folder")
    require_version(stored, path.parent)
    return stored


def _differences(there: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """In words, the values that differ by name; a value of two mappings has a name such as `chat.system`."""
    for name in sorted({*there, *now}):
        old, new = there.get(name, "absent"), now.get(name, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{within}{name}.")
        elif old != new:
            yield f"{within}{name} ({_brief(old)} there, {_brief(new)} now)"


def _changed(there: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """In words, which files of a user have changed, from digests by `file.py:name` or `module:name`."""
    names: dict[str, list[str]] = {}
    for place, _, name in (each.rpartition(":") for each in there if there[each] != now.get(each, there[each])):
        names.setdefault(place, []).append(name)
    return [f"{place} has changed ({', '.join(used)})" for place, used in names.items()]


def _one_sided(there: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """In words, the code of a user that one of two configurations lacks."""
    gone, new = [name for name in there if name not in now], [name for name in now if name not in there]
    return [f"{name} (there, not now)" for name in gone] + [f"{name} (now, not there)" for name in new]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= ELIDED else f"{text[:ELIDED]}…"


def require_record(record: Any, place: str) -> None:
    """Raise `InputError` for a record without the values of a run's records, or with values of other types."""
    further = {"texts": [_DRAWN]} if "texts" in record else _GRADED
    vote = {"vote": _GRADED} if "vote" in record else {}
    if (wrong := next(_misfits(record, {**RECORD, **further, **vote}), None)) is not None:
        raise InputError(
            f"{place}: the record of problem {record['problem']!r}, sample {record['sample']}, has {wrong}; remove its "
            "line, and the same command draws it again"
        )


def _misfits(value: Any, form: Any, name: str = "") -> Iterator[str]:
    """In words, the values that do not have the type of a form: a type, `[form]`, or forms by name, `str` for any."""
    if isinstance(form, list) and isinstance(value, list):
        for n, each in enumerate(value):
            yield from _misfits(each, form[0], f"{name}[{n}]")
    elif isinstance(form, dict) and isinstance(value, dict):
        for key, part in ((key, form[str]) for key in value) if str in form else form.items():
            if key in value:
                yield from _misfits(value[key], part, f"{name}.{key}".lstrip("."))
            else:
                yield f"no {key}"
    elif isinstance(form, list | dict) or not isinstance(value, form):
        yield f"{name} {_brief(value)}"


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
