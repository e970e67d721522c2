"""docs/my_server.md: its programs and its command run as they stand, against a server of the embedded model."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from ets import demo
from ets.cli import main
from ets.policies.checkpoint import Checkpoint
from tests.documentation import ROOT, blocks
from tests.tiny_server import TinyServer

PAGE = ROOT / "docs" / "my_server.md"
PYTHON = [block.text for block in blocks(PAGE) if block.language == "python"]
TEMPLATE = "{% for turn in messages %}{{ turn['content'] }}{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tokenizer, with a chat template, and the configuration of the served model."""
    folder, served = tmp_path_factory.mktemp("served"), Checkpoint(demo.model_path())
    served.tokenizer.chat_template = TEMPLATE
    served.tokenizer.save_pretrained(folder)
    served.config.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def server(folder: str) -> Iterator[TinyServer]:
    models = {"data": [{"id": "embedded", "root": folder}]}
    with TinyServer(Checkpoint(demo.model_path(), device="cpu"), models=models) as server:
        yield server


def here(text: str, server: TinyServer, folder: str) -> str:
    for told, found in (
        ("http://localhost:8000", server.host),
        ("http://localhost:9000", server.host),
        ("path/to/folder", folder),
        ("path/to/rewards.py", f"{folder}/rewards.py"),
    ):
        text = text.replace(told, found)
    return text


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_a_program_runs_and_shows_a_text(
    code: str, server: TinyServer, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    exec(here(code, server, folder), names)
    assert capsys.readouterr().out.strip()
    if "right_sums" in code:
        assert names["right_sums"]("", names["out"].text) > 0.5  # type: ignore[operator,attr-defined]


def test_the_command_runs(server: TinyServer, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [command for block in blocks(PAGE) for command in block.commands if command.startswith("ets sample")]
    Path(folder, "rewards.py").write_text("def right_sums(prompt, text):\n    return text.count('=')\n")
    words = shlex.split(here(command, server, folder))
    assert words.pop(0) == "ets" and main(words) == 0
    without = [word for word in words if word not in ("--model", folder)]
    assert len(without) == len(words) - 2 and main(without) == 0
    shown = capsys.readouterr().out
    assert shown.count("cost: ") == 2


def test_a_command_without_a_model_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--prompt", "a", "--reward", "likelihood"]) == 2
    assert "no model is given; add --model, or --endpoint with the address of a server" in capsys.readouterr().err
