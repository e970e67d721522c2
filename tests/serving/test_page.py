"""docs/serve.md: its first steps run as they stand, and its tables name what the code has."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pydantic import BaseModel

from ets.cli import parser_of
from ets.evaluation.methods import METHODS
from ets.serving.metrics import Metrics
from ets.serving.requests import INERT, NEUTRAL, ChatCompletion, Guidance, TextCompletion
from tests.documentation import ROOT, blocks
from tests.serving.test_server import process_of

PAGE = ROOT / "docs" / "serve.md"
BLOCKS = blocks(PAGE)
COMMANDS = [command for block in BLOCKS for command in block.commands]
SERVED = [command[command.index("serve") :] for command in COMMANDS if re.search(r"\bets serve --model", command)]


def section(heading: str) -> str:
    return PAGE.read_text(encoding="utf-8").split(f"\n{heading}\n")[1].split("\n## ")[0]


def named_in(heading: str) -> set[str]:
    """The names in the first columns of the tables of a section."""
    rows = re.findall(r"^\| (`.*?) \|", section(heading), flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.skipif(find_spec("openai") is None or shutil.which("curl") is None, reason="no openai or no curl here")
def test_the_first_steps_run(tmp_path: Path) -> None:
    (saved,) = (block for block in BLOCKS if block.file == "rewards.py")
    (tmp_path / "rewards.py").write_text(saved.text)
    with process_of(tmp_path, *shlex.split(SERVED[0])[1:], "--port", "0") as (process, line, address):
        assert line == f"serving embedded at {address}/v1\n"

        def run(*words: str) -> str:
            words = tuple(word.replace("http://127.0.0.1:8001", address) for word in words)
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            return done.stdout

        first, traced = (command for command in COMMANDS if command.startswith("curl "))
        assert '"finish_reason"' in run("bash", "-c", f"{first} --no-progress-meter")
        whole, streamed = (block.text for block in BLOCKS if "OpenAI(" in block.text)
        assert "generated_tokens" in run(sys.executable, "-c", whole)
        assert len(run(sys.executable, "-c", streamed).splitlines()) > 4
        run("bash", "-c", traced)
        (view,) = (command for command in COMMANDS if command.startswith("ets view"))
        assert run(sys.executable, "-m", *view.split())
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.parametrize("command", SERVED)
def test_the_options_of_each_command_exist(command: str) -> None:
    """Also those of the examples for systemd and containers."""
    parser_of().parse_args(shlex.split(command))


def test_the_options_in_the_text_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of().parse_args(["serve", "--help"])
    known = capsys.readouterr().out
    named = set(
        re.findall(r"`(--[a-z-]+)", re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL))
    )
    assert [option for option in named if f"{option} " not in known] == [] and len(named) > 15


def test_the_tables_name_every_field() -> None:
    def fields(*kinds: type[BaseModel]) -> set[str]:
        return {name for kind in kinds for name in kind.model_fields}

    asked = fields(ChatCompletion, TextCompletion) - {"stream_options"} | {"stream_options.include_usage"}
    assert named_in("## Fields of a request") == asked | set(NEUTRAL) | set(INERT)
    assert named_in("## The field `ets`") == fields(Guidance)


def test_the_table_names_every_method_that_is_served() -> None:
    """Methods whose text only grows stand in rows that stream."""
    assert named_in("## Methods") == {name for name, method in METHODS.items() if method.of_one_prompt}
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", section("## Methods"), re.MULTILINE)
    growing = {name for row, streams in rows if "guide step" in streams for name in re.findall(r"`([^`]+)`", row)}
    assert growing == {name for name, method in METHODS.items() if method.by_steps is not None and method.of_one_prompt}


def test_the_table_names_every_metric() -> None:
    metrics = Metrics(lambda: 0, lambda: 0, lambda: 0)
    metrics.request("/v1/completions", 200, 1.0)
    metrics.answer(1, 1)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)", metrics.text().decode(), flags=re.MULTILINE))
    expected = {name for name in kinds if not name.endswith("_created")}
    named = {name.partition("{")[0] for name in named_in("## Running it") if name.startswith("ets_")}
    assert named == expected
