"""Objects in user code that a command line names: `module:name` or `file.py:name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from traceback import extract_tb
from typing import Any

from ets.types import InputError, one_line


def named_object(name: str, what: str) -> Any:
    """Import a module or a file, and return the object of a name.

    Parameters
    ----------
    name : str
        `module:name`, of a module that is installed or in the working directory, or `file.py:name`.
    what : str
        The kind of the object, for errors: "reward".

    Raises
    ------
    InputError
        For a missing file, code that cannot be imported, or a missing name.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise InputError(f"the {what} {name!r} names no code; give file.py:name or module:name, or leave it out")
    if place.endswith(".py") and not Path(place).expanduser().is_file():
        raise InputError(f"cannot read the {what} {name!r}: there is no file {place}")
    try:
        module = _of_file(Path(place).expanduser()) if place.endswith(".py") else _module(place)
    except (Exception, SystemExit) as error:  # a script may end in sys.exit
        reason = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"cannot read the {what} {name!r}: {reason}; give code that can be imported") from error
    if not hasattr(module, attribute):
        raise InputError(f"{place} has no {attribute!r}; name a {what} that is in it")
    return getattr(module, attribute)


@contextmanager
def running(part: str) -> Iterator[None]:
    """Turn an error of a user's code, or its `sys.exit`, into an InputError of one line with the error's place.

    `part` names the code, such as "problems of the task 'mine.py:Mine'".
    """
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        place = extract_tb(error.__traceback__)[-1]
        reason = one_line(f"{type(error).__name__}: {error}")
        raise InputError(f"{part} raised {reason} ({Path(place.filename).name}, line {place.lineno})") from error


def code_digest(name: str, what: str) -> str:
    """16 hexadecimal digits of a hash of the file that `module:name` or `file.py:name` names.

    Other modules that the file imports do not count: results folders do not notice when they change.
    """
    named_object(name, what)  # raises where there is nothing to read
    place = name.rpartition(":")[0]
    file = Path(place).expanduser() if place.endswith(".py") else Path(inspect.getfile(_module(place)))
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _module(name: str) -> Any:
    if "" not in sys.path:
        sys.path.insert(0, "")
    return importlib.import_module(name)


def _of_file(path: Path) -> Any:
    stat = path.stat()
    return _file_module(path.resolve(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=32)
def _file_module(path: Path, *version: int) -> Any:
    """The module of a file, which runs once for each version of the file: a reward may load a model there."""
    name = f"ets_own_{path.stem}"  # a file may be called random.py or numpy.py, which others import
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses read sys.modules
    spec.loader.exec_module(module)
    return module
