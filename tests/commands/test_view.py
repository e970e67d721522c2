"""`ets view`, and the traces that `ets eval` keeps for it."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import pytest

from ets.cli import main
from ets.evaluation.traces import Traces, read_traces
from ets.report.answer import write_answer
from ets.serving.operation import Limits
from ets.types import InputError
from tests.report.browser import CHROMIUM, Browser
from tests.serving.serving import PROMPT, offered, served

RUN = """
eval --task arithmetic --model embedded-small --count 3 --shots 0 --methods plain,ets --samples 2 --candidates 2
--rollouts 2 --lam 0.1 --pool chain --block-size 16 --max-length 32 --temperature 1.0 --seed 0 --width 2
"""
TRACE = {"method": "ets", "problem": "0", "sample": 0, "prompt": "</script>x", "texts": ["a"], "steps": []}
"""A trace of an answer, without steps."""


def traced(folder: Path) -> list[str]:
    return [json.loads(line)["problem"] for line in (folder / "traces.jsonl").read_text().splitlines() if line]


def test_a_run_keeps_traces_of_its_first_problems_and_its_report_can_be_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN.split(), "--out", str(tmp_path), "--traces", "2"]) == 0
    assert f"to look at: {tmp_path / 'report.html'}" in capsys.readouterr().out
    first = json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])
    assert len(traced(tmp_path)) == 2 and len(first["effective"]) == first["guide_steps"]
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").unlink()
    assert main(["view", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").read_bytes() == page


def test_a_run_that_goes_on_keeps_each_trace_once(tmp_path: Path) -> None:
    assert main([*RUN.split(), "--out", str(tmp_path)]) == 0
    kept, journal = traced(tmp_path), tmp_path / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    ets = [n for n, line in enumerate(lines) if json.loads(line)["method"].startswith("ets-")]
    journal.write_text("".join(line for n, line in enumerate(lines) if n != ets[-1]))
    (tmp_path / "traces.jsonl").write_text("".join((tmp_path / "traces.jsonl").read_text().splitlines(True)[:-1]) + "{")
    assert main([*RUN.split(), "--out", str(tmp_path)]) == 0
    found = [line for line in (tmp_path / "traces.jsonl").read_text().splitlines() if line not in ("", "{")]
    assert sorted(json.loads(line)["problem"] for line in found) == sorted(kept) and len(kept) == 3


def test_traces_of_killed_processes_are_copied(tmp_path: Path) -> None:
    (tmp_path / "traces.jsonl").write_text('{"torn')
    (tmp_path / "traces-1.jsonl").write_text('{"method": "ets", "problem": "b", "texts": [], "steps": []}\n')
    with Traces(tmp_path, ["a"]):
        assert [trace["problem"] for trace in read_traces(tmp_path)] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["traces.jsonl"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write results to '.*file/run': Not a directory; choose another"):
        Traces(tmp_path / "file" / "run", ["a"]).__enter__()


def test_without_traces_there_is_no_file(tmp_path: Path) -> None:
    assert main([*RUN.split(), "--out", str(tmp_path), "--traces", "0"]) == 0
    assert not (tmp_path / "traces.jsonl").exists() and (tmp_path / "report.html").exists()


def answered(file: Path, **fields: object) -> Path:
    """A saved answer to two prompts with two texts each."""
    offer = offered(limits=Limits(most_candidates=3))
    with served(offer) as server:
        body = server.complete([PROMPT, "2 + 3 =</script>"], n=2, ets={"trace": True, "candidates": 3, **fields})
    file.write_text(json.dumps(body), encoding="utf-8")
    return file


def test_the_traces_of_an_answer_become_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = answered(tmp_path / "response.json")
    assert main(["view", str(file)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'response.html'}\n"
    page = (tmp_path / "response.html").read_text(encoding="utf-8")
    answer = json.loads(file.read_text(encoding="utf-8"))
    [letters] = re.findall(r'<script id="packed" type="text/plain">([A-Za-z0-9+/=]+)</script>', page)
    packed = json.loads(gzip.decompress(base64.b64decode(letters)))
    shown = packed["traces"]
    assert (packed["kept"], packed["limit"]) == (4, None)
    named = [(trace["problem"], trace["label"]) for trace in shown]
    assert named == [(f"prompt {n}", f"ets, text {m}") for n in (1, 2) for m in (1, 2)]
    for trace, choice in zip(shown, answer["choices"], strict=True):
        assert "".join(trace["texts"][step["texts"][step["choice"]]] for step in trace["steps"]) == choice["text"]
    assert f"<title>tiny: {answer['id']}</title>" in page
    for name, value in answer["usage"]["ets"].items():
        assert f"<td>{name}</td><td>{value}</td>" in page
    assert page.count("<script") == 2 and "http" not in page.replace("http-equiv", "")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install one, or name it in CHROMIUM")
def test_in_a_browser_the_texts_of_an_answer_are_listed(tmp_path: Path) -> None:
    file = answered(tmp_path / "response.json")
    with Browser(write_answer(file)) as browser:
        ready = "new Promise((done) => { setInterval(() => document.querySelector('.step') && done(true), 50); })"
        assert browser.evaluate(ready)
        names = "[...document.querySelectorAll('#which option')].map((each) => each.textContent).join('; ')"
        listed = [f"prompt {n} · ets, text {m}" for n in (1, 2) for m in (1, 2)]
        assert browser.evaluate(names) == "; ".join(listed)
        pieces = browser.evaluate(
            "[...document.querySelectorAll('.path a')].map((a) => a.lastChild.textContent).join('')"
        )
        assert pieces == json.loads(file.read_text(encoding="utf-8"))["choices"][0]["text"]
        assert browser.evaluate("document.querySelectorAll('.step:first-child .candidate').length") == 3


def test_an_answer_is_no_page_by_itself(tmp_path: Path) -> None:
    """Texts cannot leave their place in the page, whatever an answer holds."""
    bad = {"id": "<script>1</script>", "model": "<b>", "usage": {"<i>": "<u>"}, "ets": {"traces": [{**TRACE}]}}
    (tmp_path / "bad.json").write_text(json.dumps(bad))
    assert main(["view", str(tmp_path / "bad.json")]) == 0
    page = (tmp_path / "bad.html").read_text(encoding="utf-8")
    assert not any(mark in page for mark in ("<script>1", "<b>", "<i>", "<u>", "</script>x"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        200_000 * b"[",
        b'{"ets": null}',
        b'{"ets": {"traces": []}}',
        b'{"ets": {"traces": [{}]}}',
        json.dumps({"ets": {"traces": [{**TRACE, "texts": [1]}]}}).encode(),
        json.dumps({"ets": {"traces": [{**TRACE, "problem": "first"}]}}).encode(),
    ],
)
def test_a_file_without_traces_is_one_line(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "answer.json").write_bytes(content)
    assert main(["view", str(tmp_path / "answer.json")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.endswith(
        'save the whole answer to a request with "ets": {"trace": true}'
    )
    assert not (tmp_path / "answer.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["view", "nowhere"], "'nowhere' holds no finished run of ets eval or ets compare; name its results folder"),
        ([*RUN.split(), "--traces", "-1"], "--traces is -1; give a number of problems, or 0 for none"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
