"""Programs in generated texts: completions of a function, and answers in fences."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from textwrap import dedent, indent
from threading import Lock

from ets.thinking import THINKING, Tags, after_thinking, without_special

COMPLETION_STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint", "\nassert ", "\n```")
"""Strings that end the completion of a function's body."""
LONGEST = 50_000
"""Longer texts (in characters) are no answers."""

_OPENING = re.compile(r"(?P<margin>[ \t]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_GLUED = re.compile(r"(?P<margin>)[^`]*[\s:](?P<fence>`{3,})(?P<info>python3?|py)[ \t]*$", re.IGNORECASE)
_INLINE = re.compile(r"```(?:(?:python3?|py)[ \t]+)?([^`\n]+)```")
_PYTHON = re.compile(r"\{?\.?(?:|i?python[\d.]*|py3?)\}?", re.IGNORECASE)
_RUN_ON = re.compile("|".join(map(re.escape, COMPLETION_STOPS)))
_CODE_BEGINS = re.compile(r"^(?:import |from |def |async def |class |@|[A-Za-z_]\w* *=)", re.MULTILINE)
_FUNCTION = re.compile(r"^(?:def|async def|class) ", re.MULTILINE)
_RETURN = re.compile(r"^return\b", re.MULTILINE)
_INDENTED = re.compile(r"^(?: {2,}|\t)\S", re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
_MARGIN = re.compile(r"^[ \t]+", re.MULTILINE)
_ONE_AT_A_TIME = Lock()  # catch_warnings is not thread-safe
_STATEMENTS = (ast.Assert, ast.Expr, ast.If, ast.For, ast.While, ast.With, ast.Try)
_ASSIGNMENTS = (ast.Assign, ast.AnnAssign, ast.AugAssign)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_IMPORTS = (ast.Import, ast.ImportFrom)


def program_of(prompt: str, entry_point: str, text: str, thinking: Tags | None = THINKING) -> str | None:
    """Return the program in a text, or None without code for the function.

    A text holds the function's body as a continuation of the prompt (cut at `COMPLETION_STOPS`), or the whole function.
    Both may stand in a fence of CommonMark. The last fence with the complete function counts, with the necessary
    helpers from other fences. Dropped are: text after a function that is no Python; statements that show the function
    (`print(f(3))`, asserts, `if __name__ == "__main__"`) or read an input; unused imports. A function that is cut off
    is no answer.

    Parameters
    ----------
    prompt : str
        Imports, helpers, and the function's head and docstring: a valid program.
    entry_point : str
        The function's name.
    text : str
        Only the part after the last thinking section and before a model's end token counts.
    thinking : (str, str), optional
        The tags around thinking sections, or None.
    """
    answer = after_thinking(text, thinking)
    if answer is None or len(answer) > LONGEST:
        return None
    answer = without_special(answer.replace("\r\n", "\n").replace("\r", "\n")).lstrip("\n")
    if re.match(r" \S", answer):  # some tokenizers start a text with a space
        answer = answer[1:]
    prompt = prompt if prompt.endswith("\n") else prompt + "\n"
    head, blocks = _blocks(answer)
    closing = bool(head.strip()) and (_indented(head) or (len(blocks) == 1 and not blocks[0][1].strip()))
    if blocks and not (closing and _unfenced(prompt, entry_point, head)):
        return _fenced(prompt, entry_point, blocks)
    return _unfenced(prompt, entry_point, head)


def _blocks(text: str) -> tuple[str, list[tuple[str, str]]]:
    """The text before the first fence, and the (language, code) of each block.

    As in CommonMark, a fence fills a line, the first word after the fence is the language, and a fence of at least the
    same length or the end of the text closes the block. In addition, a fence may end a line of text.
    """
    lines, blocks = text.split("\n"), list[tuple[str, str]]()
    at = first = next(_openings(lines, 0), len(lines))
    while at < len(lines):
        opened = _opened(lines[at])
        assert opened is not None
        code, end = _content(lines, at + 1, opened["fence"], opened["margin"])
        blocks.append(((opened["info"].split() or [""])[0], code))
        at = next(_openings(lines, end), len(lines))
    inline = _INLINE.findall(text)
    if not blocks and inline:
        return text.partition("```")[0], [("", code.strip()) for code in inline]
    return "\n".join([*lines[:first], ""]) if blocks else text, blocks


def _opened(line: str) -> re.Match[str] | None:
    return _OPENING.match(line) or _GLUED.match(line)


def _openings(lines: list[str], start: int) -> Iterator[int]:
    return (at for at in range(start, len(lines)) if _opened(lines[at]))


def _content(lines: list[str], start: int, fence: str, margin: str) -> tuple[str, int]:
    """The code in a fence, without the margin of the fence, and the index of the line after the block."""
    closing = re.compile(rf"[ \t]{{0,{len(margin) + 3}}}{re.escape(fence)}{re.escape(fence[0])}*[ \t]*$")
    code: list[str] = []
    for at in range(start, len(lines)):
        line = lines[at]
        line = line[len(margin) :] if line.startswith(margin) else line.lstrip()
        if closing.match(lines[at]):
            return "\n".join(code), at + 1
        if line.endswith(fence) and line.count(fence) == 1 and line.strip() != fence:
            return "\n".join([*code, line[: -len(fence)]]), at + 1
        code.append(line)
    return "\n".join(code), len(lines)


def _unfenced(prompt: str, entry_point: str, text: str) -> str | None:
    found = _definition(entry_point, text)
    if _indented(text) or not found or _RETURN.search(text[: found.start()]):
        return _completed(prompt, text) or _after_talk(prompt, text)
    return _whole(prompt, entry_point, text)


def _after_talk(prompt: str, text: str) -> str | None:
    """A body that follows a line of prose."""
    indented = _INDENTED.search(text)
    if indented is None or _FUNCTION.search(text):
        return None
    talk = text[: indented.start()].rstrip().rpartition("\n")[2]
    if not talk or _first_fault(f"{talk}\n    pass\n", body=True) is None:
        return None
    return _completed(prompt, text[indented.start() :])


def _fenced(prompt: str, entry_point: str, blocks: list[tuple[str, str]]) -> str | None:
    codes = [_without_tabs(code) for language, code in blocks if _PYTHON.fullmatch(language)]
    at_margin = [dedent(code) for code in codes]
    whole = (
        _whole(prompt, entry_point, code, [other for other in at_margin if other is not code])
        for code in reversed(at_margin)
        if _definition(entry_point, code)
    )
    bodies = (
        _completed(prompt, code)
        for code, moved in zip(codes, at_margin, strict=True)
        if not _definition(entry_point, moved)
    )
    return next((program for program in chain(whole, bodies) if program), None)


def _whole(prompt: str, entry_point: str, text: str, others: Sequence[str] = ()) -> str | None:
    """The prompt and the function, from the first line of code that parses, with helpers from other blocks.

    The program deletes the prompt's version of the function, which must not replace a missing function.
    """
    for begin in islice(_CODE_BEGINS.finditer(text), 20):
        code = _parsing("", text[begin.start() :])
        if code and _definition(entry_point, code):
            kept = _without_show(entry_point, _helpers(entry_point, code, others) + code)
            hoisted = "".join(f"{line}\n" for line in _FUTURE.findall(kept))
            return f"{hoisted}{prompt}\ndel {entry_point}\n{_FUTURE.sub('', kept)}"
    return None


def _helpers(entry_point: str, code: str, others: Sequence[str]) -> str:
    """The definitions, imports and constants of other blocks that the code needs, directly or indirectly."""
    missing = _used([_parse(code)]) - _bound(_parse(code).body) - {entry_point}
    nodes = [node for other in others for node in _parse(_parsing("", other) or "").body if _is_helper(node)]
    taken: list[ast.stmt] = []
    while found := [node for node in nodes if node not in taken and _bound([node]) & missing]:
        taken += found
        missing |= _used(found)
    return "".join(f"{ast.unparse(node)}\n" for node in nodes if node in taken)


def _is_helper(node: ast.stmt) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return not any(isinstance(part, ast.Call) for part in ast.walk(node))
    return isinstance(node, (*_DEFINITIONS, *_IMPORTS))


def _used(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that nodes read, and `stdin` in `sys.stdin`."""
    parts = [part for node in nodes for part in ast.walk(node)]
    names = {part.id for part in parts if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Store)}
    return names | {part.attr for part in parts if isinstance(part, ast.Attribute) and part.attr == "stdin"}


def _bound(nodes: Iterable[ast.stmt]) -> set[str]:
    """The names that statements define at the top level."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, _DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, _IMPORTS):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        else:
            names |= {
                part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
    return names


def _completed(prompt: str, body: str) -> str | None:
    """The prompt and the body; corrects the indentation of the first line or of all lines if necessary."""
    unit = _MARGIN.findall(prompt)[-1]
    cut, expanded = (_RUN_ON.split(version, maxsplit=1)[0] for version in (body, _without_tabs(body)))
    if _indented(body):
        variants = [cut, indent(dedent(expanded), unit)]
    elif re.search(r"\breturn\b", body):  # without a return, the text is prose
        at_margin = _parsing("", body, body=True) if _RETURN.search(body) or not _FUNCTION.search(body) else None
        variants = [indent(at_margin or "", unit)]  # not cut, as the whole body stands at the margin
    else:
        return None
    programs = (_parsing(prompt, variant) for variant in [*variants, unit + expanded.lstrip()])
    return next((prompt + code for code in programs if code), None)


def _parsing(before: str, code: str, body: bool = False) -> str | None:
    """The longest head of the code that is Python and ends before an unindented line, or None.

    So a function that is cut off is removed completely. Unindented returns are allowed in a body only.
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
    """The first line (from 1) that is no Python, or None."""
    try:
        returns = [node.lineno for node in _parse(program).body if isinstance(node, ast.Return) and not body]
    except SyntaxError as error:
        return max(1, error.lineno or 1)
    except (ValueError, RecursionError, MemoryError):  # null characters, or nested too deeply to be code
        return 1
    return returns[0] if returns else None


def _without_show(entry_point: str, code: str) -> str:
    """The code without unused imports and without top-level statements that print, test, call or read an input."""
    lines, removed = code.split("\n"), {"input", "stdin"}
    nodes = _parse(code).body
    for node in nodes:
        if _is_show(entry_point, node, removed):
            removed |= _bound([node]) - {entry_point}
            _blank(lines, node)
    kept = _parse("\n".join(lines)).body
    used = _used(kept)
    for node in kept:
        if isinstance(node, _IMPORTS) and not _bound([node]) & {*used, "*", "annotations"}:
            _blank(lines, node)
    return "\n".join(lines)


def _is_show(entry_point: str, node: ast.stmt, removed: set[str]) -> bool:
    used = _used([node])
    if isinstance(node, _STATEMENTS):
        return bool(used & {entry_point, "print", "__name__", *removed})
    if isinstance(node, _ASSIGNMENTS) and entry_point not in _bound([node]):
        calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
        return bool(used & removed) or any(isinstance(call, ast.Name) and call.id == entry_point for call in calls)
    return False


def _blank(lines: list[str], node: ast.stmt) -> None:
    lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)


def _parse(program: str) -> ast.Module:
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for example about escape sequences in generated code
        return ast.parse(program)


def _definition(entry_point: str, code: str) -> re.Match[str] | None:
    name = re.escape(entry_point)
    return re.search(rf"^(?:(?:async )?def {name}\b|{name}\s*(?::[^=\n]*)?=(?!=))", code, re.MULTILINE)


def _indented(text: str) -> bool:
    """Whether the first line is indented."""
    return bool(re.match(r"\s*\n[ \t]+\S|[ \t]{2,}\S|\t", text))


def _without_tabs(code: str) -> str:
    """Expand tabs in margins only: a tab may be part of a string."""
    return _MARGIN.sub(lambda margin: margin.group().expandtabs(4), code)
