"""Chat prompts from the command line; the folder and the report show them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from ets.cli import main
from tests.conftest import Refused

DATA = Path(__file__).parents[1] / "data"
MESSAGES = '[{"role": "user", "content": "Tom has 5 eggs."}]'
TURN = "<s><|im_start|>user\nTom has 5 eggs.<|im_end|>\n<|im_start|>assistant\n"
SMALL = ["--candidates", "2", "--rollouts", "1", "--block-size", "8", "--max-length", "16"]
TASK = """--count 2 --shots 0 --lam 0.1 --pool chain --temperature 1.5 --seed 0 --width 4 --samples 2
    --methods plain,ets"""
OWN = """
from ets.types import Problem

class Talk:
    name = "talk"

    def problems(self, count, shots):
        example = {"role": "user", "content": "2+3"}, {"role": "assistant", "content": "5"}
        return [Problem("talk-0", "", messages=(*example, {"role": "user", "content": "4+4"}))]

    def extract(self, problem, text):
        return text or None

    def grade(self, problem, text):
        return "8" in text
"""


def sampled(model: Path | str, *words: str) -> int:
    return main(["sample", "--model", str(model), *SMALL, "--reward", "likelihood", *words])


def evaluated(
    model: Path | str, folder: Path, *words: str, task: str = "arithmetic", command: str = "eval"
) -> list[str]:
    return [command, "--task", task, "--model", str(model), *SMALL, *TASK.split(), "--out", str(folder), *words]


def stored(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "configuration.json").read_text())
    return found


def test_messages_come_as_json_in_an_option_a_file_or_standard_input(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "messages.json").write_text(MESSAGES)
    monkeypatch.setattr("sys.stdin", io.StringIO(MESSAGES))
    page, texts = tmp_path / "page.html", []
    for source in (
        ("--json", "--prompt", MESSAGES), ("--json", "--prompt-file", str(tmp_path / "messages.json")), ("--json",),
        ("--chat-template", "--prompt", "Tom has 5 eggs."),
    ):  # fmt: skip
        assert sampled(chat_model, *source, "--html", str(page)) == 0
        texts.append(capsys.readouterr().out.partition("cost:")[0])
        assert TURN.replace("<", "&lt;").replace(">", "&gt;") in page.read_text()
    assert len(set(texts)) == 1
    assert sampled(chat_model, "--json", "--prompt", "[5, 6, 7]") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json", "--prompt", "Tom"), "the prompt is no JSON"),
        (("--json", "--prompt", "[[1], [2]]"), "the prompt holds 2 prompts; give one"),
        (("--json", "--prompt", '[{"role": "user"}]'), "message 1 has None as content"),
        (("--prompt", "Tom", "--system", "a"), "--system needs --chat-template"),
        (("--prompt", "Tom", "--thinking", "off"), "--thinking needs --chat-template"),
        (("--json", "--prompt", "[5, 99999]"), "has the token id 99999"),
        (("--prompt", "Tom", "--chat-template"), "has no chat template"),
        (("--json", "--prompt", MESSAGES), "has no chat template"),
    ],
)
def test_prompts_that_cannot_be_made_are_one_line(words: tuple[str, ...], message: str, refused: Refused) -> None:
    refused(["sample", "--model", "embedded-small", *SMALL, "--reward", "likelihood", *words], message)


def test_a_run_of_chat_prompts_says_so_in_its_folder_and_its_report(chat_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert main(evaluated(chat_model, folder, "--chat-template", "--system", "Be <brief>.", "--thinking", "off")) == 0
    found = stored(folder)
    assert found["prompt_kind"] == "chat template"
    assert found["chat"] == {"template": "the tokenizer's", "system": "Be <brief>.", "thinking": False}
    assert found["prompt"].startswith("<s><|im_start|>system\nBe <brief>.<|im_end|>\n<|im_start|>user\nQuestion: ")
    page = (folder / "report.html").read_text()
    assert "by: chat template" in page and "&lt;|im_start|&gt;system\nBe &lt;brief&gt;." in page
    assert main(evaluated(chat_model, tmp_path / "bare")) == 0
    assert stored(tmp_path / "bare")["prompt_kind"] == "text, without a chat template"


def test_worked_examples_of_a_benchmark_are_turns_on_request(chat_model: Path, tmp_path: Path) -> None:
    turns = {}
    for name, words in (("one", ()), ("several", ("--fewshot-as-multiturn",))):
        more = ("--chat-template", "--data", str(DATA), "--shots", "2", "--system", "S", *words)
        assert main(evaluated(chat_model, tmp_path / name, *more, task="gsm8k")) == 0
        prompt = stored(tmp_path / name)["prompt"]
        turns[name] = [prompt.count(f"<|im_start|>{role}\n") for role in ("system", "user", "assistant")]
        assert prompt.count("Question: ") == 3
    assert turns == {"one": [1, 1, 1], "several": [1, 3, 3]}


def test_a_task_of_one_s_own_may_ask_in_messages(chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert main(evaluated(chat_model, tmp_path / "run", task=f"{tmp_path}/own.py:Talk")) == 0
    assert stored(tmp_path / "run")["prompt"].count("<|im_start|>assistant\n") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--chat-template",), "has no chat template"),
        (("--fewshot-as-multiturn",), "--fewshot-as-multiturn needs --chat-template"),
        (("--thinking", "off"), "--thinking needs --chat-template"),
        (("--chat-template", "--chat-stop", ""), "--chat-stop is empty"),
        (("--chat-template", "--fewshot-as-multiturn"), "writes its worked examples as text"),
    ],
)
def test_templates_that_do_not_fit_are_one_line(
    words: tuple[str, ...], message: str, tmp_path: Path, refused: Refused
) -> None:
    for command in ("eval", "estimate"):
        refused(evaluated("embedded-small", tmp_path, *words, command=command), message)


def test_a_run_of_few_problems_goes_on_with_more(chat_model: Path, tmp_path: Path) -> None:
    for count in ("2", "3"):
        assert main(evaluated(chat_model, tmp_path, "--chat-template", "--count", count)) == 0
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 3 * 2  # ETS, and a pool of two samples, of each problem


NOTED = """
import json

def noted(prompt, text):
    with open({path!r}, "a") as file:
        print(json.dumps(prompt), file=file)
    return 0.0
"""


def test_rewards_of_prompt_and_text_get_the_prompt_as_it_was_given(chat_model: Path, tmp_path: Path) -> None:
    """By `ets sample` and by `ets eval`, of text and of messages: never the text of the template."""
    notes, own = tmp_path / "notes.jsonl", tmp_path / "own.py"
    (tmp_path / "noted.py").write_text(NOTED.format(path=str(notes)))
    own.write_text(OWN)
    reward = f"{tmp_path / 'noted.py'}:noted"

    def given(*words: str) -> list[Any]:
        notes.unlink(missing_ok=True)
        assert main([*words, "--reward", reward]) == 0
        return [json.loads(line) for line in notes.read_text().splitlines()]

    sample = ["sample", "--model", str(chat_model), *SMALL]
    assert set(given(*sample, "--chat-template", "--prompt", "Tom has 5 eggs.")) == {"Tom has 5 eggs."}
    assert all(prompt == json.loads(MESSAGES) for prompt in given(*sample, "--json", "--prompt", MESSAGES))
    texts = given(*evaluated(chat_model, tmp_path / "a", "--chat-template"))
    assert texts and all(prompt.startswith("Question:") and "<|im_start|>" not in prompt for prompt in texts)
    turns = given(*evaluated(chat_model, tmp_path / "b", task=f"{own}:Talk"))
    assert turns and all(prompt[-1] == {"role": "user", "content": "4+4"} for prompt in turns)
