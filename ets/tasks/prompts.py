"""Tasks of prompts without right answers: the reward grades a text. The prompts are the lines of a JSONL file.

An example line::

    {"prompt": "Describe a harbour in three sentences.", "words": ["rope", "gull"]}
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ets.chat import as_messages
from ets.types import InputError, Problem, not_installed

READY = Path(__file__).parent / "rows"
"""The prompts of the ready tasks."""
EXAMPLE = '{"prompt": "…"} or {"messages": [{"role": "user", "content": "…"}]}'


class Prompts:
    """A task whose prompts have no right answer, so that the mean reward compares the methods.

    Parameters
    ----------
    path : str or Path
        A file of JSON lines. A row has `prompt` or `messages`, optionally `id` and `stop` (a list of strings), and any
        further fields. A reward sees the whole row as `problem.doc`.
    name : str, optional
        By default the name of the file.
    reward : str
        The reward if the command line names none, as `module:function`.
    packages : sequence of str
        The packages that the reward imports, of the extra `real`.
    """

    answers = False

    def __init__(self, path: str | Path, name: str = "", reward: str = "", packages: Sequence[str] = ()) -> None:
        self.path, self.reward, self.packages = Path(path), reward, packages
        self.name = name or self.path.stem

    def problems(self, count: int | None = None, shots: int | None = None) -> list[Problem]:
        """The first `count` prompts, or all.

        Raises
        ------
        InputError
            For a line that is no row, with its number; numbers out of range; or a package that is not installed.
        """
        if shots:
            raise InputError(f"shots is {shots}, but {self.name} has no worked examples; leave shots out")
        for package in self.packages:
            if find_spec(package) is None:
                raise not_installed(package, "real")
        problems = read_prompts(self.path, self.name)
        if count is not None and not 0 < count <= len(problems):
            raise InputError(f"{count} prompts of {self.name} asked for; choose 1 to {len(problems)}")
        return problems[:count]

    def extract(self, problem: Problem, text: str) -> None:
        """None: no text has an answer."""

    def grade(self, problem: Problem, text: str) -> bool:
        """False: no text is right or wrong."""
        return False


def ready(name: str, *packages: str, reward: str = "") -> Prompts:
    """A task whose prompts come with the package; its reward is `ets.tasks.NAME:NAME`, by default of the same name."""
    module = reward or name.replace("-", "_")
    return Prompts(READY / f"{name}.jsonl", name, f"ets.tasks.{module}:{module}", packages)


def read_prompts(path: Path, name: str) -> list[Problem]:
    """The problems of a file of JSON lines; a row without an id has the name and the number of its line as its id.

    Raises
    ------
    InputError
        For a file that cannot be read or holds no row, or for the first line that is no row.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InputError(f"cannot read the prompts {str(path)!r}: {reason}; name a file of JSON lines") from error
    problems = []
    for number, line in enumerate(lines, 1):
        place = f"line {number} of {str(path)!r}"
        if line.strip():
            try:
                problems.append(replace(_problem(line, f"{name}-{number}"), place=place))
            except InputError as error:
                raise InputError(f"{place}: {error}") from error
    if not problems:
        raise InputError(f"{str(path)!r} holds no prompts; write lines such as {EXAMPLE}")
    (known, times), *_ = Counter(problem.id for problem in problems).most_common(1)
    if times > 1:
        raise InputError(f"{times} rows of {str(path)!r} have the id {known!r}; give each row another id")
    return problems


def _problem(line: str, name: str) -> Problem:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON ({error}); write one object on each line, such as {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise InputError(f"{str(row)[:60]!r} is no object; write {EXAMPLE}")
    if ("prompt" in row) == ("messages" in row):
        both = "both prompt and messages" if "prompt" in row else "neither prompt nor messages"
        raise InputError(f"{both}; give one of them: {EXAMPLE}")
    prompt, messages = row.get("prompt", ""), row.get("messages", ())
    if "prompt" in row and not (isinstance(prompt, str) and prompt.strip()):
        raise InputError(f"prompt is {prompt!r}; give text, or messages for a conversation")
    if "messages" in row and not (isinstance(messages, list) and messages):
        raise InputError(f"messages is {messages!r}; give a list such as [{{'role': 'user', 'content': '…'}}]")
    stop, known = row.get("stop", []), row.get("id", name)
    if not isinstance(stop, list) or not all(isinstance(each, str) and each for each in stop):
        raise InputError(f"stop is {stop!r}; give a list of strings")
    return Problem(known, prompt, tuple(stop), row, as_messages(messages))
