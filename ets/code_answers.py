"""From what a model wrote to a program: completions of a function, and answers in fences."""

from __future__ import annotations

import ast
import re
import warnings
from itertools import islice
from textwrap import dedent, indent
from threading import Lock

from ets.types import InputError

COMPLETION_STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint", "\nassert ", "\n```")
"""Where the completion of a function's body has run on into something else."""
STOPS = {"completion": COMPLETION_STOPS, "answer": ()}
"""Where a generation ends, by what it is: of an answer in words and fences, `program_of` takes the program."""
LONGEST = 50_000
"""Longer texts (in characters) are no answers."""

_FENCE = "```"
_PYTHON = ("", "python", "python3", "py")
_RUN_ON = re.compile("|".join(map(re.escape, COMPLETION_STOPS)))
_CODE_BEGINS = re.compile(r"^(?:import |from |def |async def |class |@|[A-Za-z_]\w* *=)", re.MULTILINE)
_FUNCTION = re.compile(r"^(?:def|async def|class) ", re.MULTILINE)
_RETURN = re.compile(r"^return\b", re.MULTILINE)
_MARGIN = re.compile(r"^[ \t]+", re.MULTILINE)
_ONE_AT_A_TIME = Lock()  # threads that silence warnings at once may leave them silenced
_STATEMENTS = (ast.Assert, ast.Expr, ast.If, ast.For, ast.While, ast.With)


def stops_named(name: str) -> tuple[str, ...]:
    """Raises `InputError` for a name that is not in `STOPS`."""
    if name not in STOPS:
        raise InputError(f"stops is {name!r}; choose from {', '.join(STOPS)}")
    return STOPS[name]


def program_of(prompt: str, entry_point: str, text: str) -> str | None:
    """The program that a text stands for, or None if it holds no code for the function.

    Understood are the function's body as a continuation of the prompt, cut where it runs on into something else;
    the whole function; and either of them in a fence. Of several fences the last one that holds the whole function,
    complete, counts. What follows a function and is no Python is dropped, and so are statements that only show it
    off (`print(f(3))`, asserts, `if __name__ == "__main__"`). A function that is cut off is no answer.

    Parameters
    ----------
    prompt : str
        Imports, helpers, and the function's head and docstring: a valid program by itself.
    entry_point : str
        The function's name.
    text : str
        Everything up to a last `</think>` is left out.
    """
    text = text.rpartition("</think>")[2].replace("\r\n", "\n").replace("\r", "\n").lstrip("\n")
    if len(text) > LONGEST:
        return None
    if re.match(r" \S", text):  # some tokenizers put one space before everything
        text = text[1:]
    prompt = prompt if prompt.endswith("\n") else prompt + "\n"
    head, *fenced = text.split(_FENCE)
    closing = bool(head.strip()) and (_indented(head) or (len(fenced) == 1 and not fenced[0].strip()))
    if fenced and not (closing and _unfenced(prompt, entry_point, head)):
        return _fenced(prompt, entry_point, fenced[::2])
    return _unfenced(prompt, entry_point, head)


def _unfenced(prompt: str, entry_point: str, text: str) -> str | None:
    found = _definition(entry_point, text)
    if _indented(text) or not found or _RETURN.search(text[: found.start()]):
        return _completed(prompt, text)
    return _whole(prompt, entry_point, text)


def _fenced(prompt: str, entry_point: str, blocks: list[str]) -> str | None:
    opened = [block.partition("\n") for block in blocks]
    codes = [dedent(_without_tabs(code)) for info, _, code in opened if info.strip().lower() in _PYTHON]
    whole = [_whole(prompt, entry_point, code) for code in codes if _definition(entry_point, code)]
    bodies = (_completed(prompt, code) for code in codes if not _definition(entry_point, code))
    return next((program for program in [*reversed(whole), *bodies] if program), None)


def _whole(prompt: str, entry_point: str, text: str) -> str | None:
    """The prompt, then the function, from the first line of code from which it parses.

    The prompt's own version is taken away: it must not answer in the place of a function that is missing.
    """
    for begin in islice(_CODE_BEGINS.finditer(text), 20):
        code = _parsing("", text[begin.start() :])
        if code and _definition(entry_point, code):
            return f"{prompt}\ndel {entry_point}\n{_without_show(entry_point, code)}"
    return None


def _completed(prompt: str, body: str) -> str | None:
    """The prompt and the body; the indentation of its first line, or of all of it, is mended if it must be."""
    unit = _MARGIN.findall(prompt)[-1]
    cut, mended = (_RUN_ON.split(version, maxsplit=1)[0] for version in (body, _without_tabs(body)))
    if _indented(body):
        variants = [cut, indent(dedent(mended), unit)]
    elif re.search(r"\breturn\b", body):  # else it is talk rather than code
        at_margin = _parsing("", body, body=True) if _RETURN.search(body) or not _FUNCTION.search(body) else None
        variants = [indent(at_margin or "", unit)]  # not cut, because all of it stands at the margin
    else:
        return None
    programs = (_parsing(prompt, variant) for variant in [*variants, unit + mended.lstrip()])
    return next((prompt + code for code in programs if code), None)


def _parsing(before: str, code: str, body: bool = False) -> str | None:
    """The code without the unindented parts from which on it is no Python; None if nothing is left.

    A part begins at an unindented line; so a function that is cut off goes as a whole. Only in a body, unindented
    parts may return.
    """
    lines = code.split("\n")
    while any(line.strip() and not line.lstrip().startswith("#") for line in lines):
        remaining = "\n".join(lines).rstrip() + "\n"
        wrong = _first_fault(before + remaining, body)
        if wrong is None:
            return remaining
        parts = (place for place, line in enumerate(lines) if line[:1].strip() and place < wrong - before.count("\n"))
        lines = lines[: max(parts, default=0)]
    return None


def _first_fault(program: str, body: bool) -> int | None:
    """The line, from 1, where it stops to be Python; None if it is Python."""
    try:
        returns = [node.lineno for node in _parse(program).body if isinstance(node, ast.Return) and not body]
    except SyntaxError as error:
        return max(1, error.lineno or 1)
    except (ValueError, RecursionError, MemoryError):  # null characters, or nested too deeply to be code
        return 1
    return returns[0] if returns else None


def _without_show(entry_point: str, code: str) -> str:
    """Without the statements beside the definitions that print, test, or call the function."""
    lines = code.split("\n")
    for node in _parse(code).body:
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if isinstance(node, _STATEMENTS) and names & {entry_point, "print", "input", "__name__"}:
            lines[node.lineno - 1 : node.end_lineno] = [""] * len(lines[node.lineno - 1 : node.end_lineno])
    return "\n".join(lines)


def _parse(program: str) -> ast.Module:
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of generated code, for example about its escape sequences
        return ast.parse(program)


def _definition(entry_point: str, code: str) -> re.Match[str] | None:
    name = re.escape(entry_point)
    return re.search(rf"^(?:(?:async )?def {name}\b|{name}\s*(?::[^=\n]*)?=(?!=))", code, re.MULTILINE)


def _indented(text: str) -> bool:
    """Whether its first line is."""
    return bool(re.match(r"\s*\n[ \t]+\S|[ \t]{2,}\S|\t", text))


def _without_tabs(code: str) -> str:
    """At the margin only: a tab may stand in a string."""
    return _MARGIN.sub(lambda margin: margin.group().expandtabs(4), code)
