"""The traces of a saved answer of `ets serve` as one HTML file, by the viewer of a report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ets.report.page import packed_traces, viewer_page
from ets.types import InputError

FIELDS = {"method": str, "problem": str, "sample": int, "prompt": str, "texts": list, "steps": list}
"""The fields of a trace, and their types."""


def write_answer(file: Path, *, whole: bool = False) -> Path:
    """Write the page of an answer into the answer's folder, and return its path.

    Parameters
    ----------
    file : Path
        An answer of `ets serve` to a request with ``"ets": {"trace": true}``, as JSON. For example, the page of
        `response.json` is `response.html`.
    whole : bool
        As for `ets.report.page.write_report`.

    Raises
    ------
    InputError
        For a file that cannot be read, or holds no traces; for a folder that cannot be written.
    """
    answer = _read(file)
    traces = [_labelled(trace) for trace in answer["ets"]["traces"]]
    usage = answer.get("usage") or {}
    spent = {**{name: value for name, value in usage.items() if name != "ets"}, **(usage.get("ets") or {})}
    title = f"{answer.get('model', 'an answer')}: {answer.get('id', file.name)}"
    page = viewer_page("answer.html", title, packed_traces(traces, whole=whole), usage=list(spent.items()))
    path = file.with_suffix(".html")
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; copy the answer to another folder") from None
    return path


def _labelled(trace: dict[str, Any]) -> dict[str, Any]:
    """A trace as the viewer lists it: the number of its prompt, its method and the number of its text."""
    label = f"{trace['method']}, text {trace['sample'] + 1}"
    return {**trace, "problem": f"prompt {int(trace['problem']) + 1}", "label": label}


def _read(file: Path) -> dict[str, Any]:
    ask = 'save the whole answer to a request with "ets": {"trace": true}'
    try:
        answer = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise InputError(f"cannot read the answer {str(file)!r}: {reason}; {ask}") from None
    found = answer.get("ets") if isinstance(answer, dict) else None
    traces = found.get("traces") if isinstance(found, dict) else None
    if not isinstance(traces, list) or not traces or not all(map(_is_trace, traces)):
        raise InputError(f"{str(file)!r} holds no traces of an answer; {ask}")
    return answer


def _is_trace(value: Any) -> bool:
    fields = value if isinstance(value, dict) else {}
    typed = all(isinstance(fields.get(name), kind) for name, kind in FIELDS.items())
    return typed and fields["problem"].isdecimal() and all(isinstance(text, str) for text in fields["texts"])
