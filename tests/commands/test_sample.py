"""`ets sample`: one text from the command line, the same as the library gives."""

from __future__ import annotations

import inspect
import io
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

import ets
from ets import demo
from ets.cli import main
from ets.commands.sample import EXAMPLE
from ets.policies.registry import ENGINES
from ets.policies.settings import Weighing
from ets.rewards.registry import named_reward
from ets.settings import Guide, fields_of, flag
from ets.types import InputError, Problem, Text

PROMPT = "Question: Tom has 5 eggs. He buys 4. How many eggs does Tom have now?\nAnswer:"
SMALL: dict[str, Any] = {"candidates": 3, "rollouts": 2, "block_size": 16, "max_length": 48}
OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
REWARD = "import math\n\ndef short(prompt, text):\n    return -len(text) / 100\n\nnumber = 3\n"
STEPS = """import ets

def as_ets(reward, *, candidates, rollouts, lam):
    return ets.energy_guided(reward, candidates=candidates, rollouts=rollouts, lam=lam)

def retained(reward, **guide):
    return ets.baselines.retained_rollouts(reward, **guide)
"""
ENGINE = """import ets

def make(model, *, block_size, max_length):
    horizon = ets.Horizon(block_size, max_length)
    return ets.TransformersPolicy(ets.Checkpoint(model), ets.Sampling(), horizon)

def nothing(model, **settings):
    return None
"""


def sampled(*words: str, prompt: bool = True) -> int:
    return main(["sample", "--model", "embedded-small", *OPTIONS, *(("--prompt", PROMPT) if prompt else ()), *words])


def test_it_prints_what_the_library_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own.py").write_text(REWARD)
    assert sampled("--reward", f"{tmp_path}/own.py:short", "--seed", "4", "--temperature", "0.8", "--top-k", "9") == 0
    law: dict[str, Any] = {"seed": 4, "temperature": 0.8, "top_k": 9}
    model = demo.model_path("small")
    expected = ets.sample(PROMPT, model=model, reward=lambda prompt, text: -len(text) / 100, **SMALL, **law)
    shown = capsys.readouterr().out
    without_time = re.compile(r"[\d.]+ s$", re.MULTILINE)
    assert without_time.sub("", shown.removesuffix("\n")) == without_time.sub("", str(expected))


def test_the_truncation_may_be_the_checkpoint_s(capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model's generation_config names no top_k, so that it is transformers' own default."""
    texts = []
    for top_k in ("checkpoint", "50"):
        assert sampled("--reward", "likelihood", "--temperature", "2", "--top-k", top_k) == 0
        texts.append(capsys.readouterr().out.partition("cost:")[0])
    assert texts[0] == texts[1]
    assert sampled("--reward", "likelihood", "--top-k", "few") == 2
    assert "'few' is no number; give a number, or checkpoint" in capsys.readouterr().err


def test_answers_are_read_by_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert sampled("--extract", "#### (-?[0-9]+)") == 0
    shown = capsys.readouterr().out
    assert "most votes of all rollouts: " in shown and "cost: " in shown and "guide step 1: chose" in shown


@pytest.mark.parametrize("name", ["likelihood", "likelihood-per-token", "entropy", "self-certainty"])
def test_ready_made_rewards_have_names(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert sampled("--reward", name) == 0
    assert "effective sample size" in capsys.readouterr().out


def test_a_module_where_the_command_is_run_can_hold_the_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_reward_module.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    reward: Any = named_reward("my_reward_module:short", None)
    text = Text((1, 2), "four", -1.0, True)
    assert reward(Problem("0", PROMPT), [text], None) == [-0.04]


def test_prompts_come_from_a_file_or_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_text(f"{PROMPT}\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n"))
    texts = []
    for source in (["--prompt", PROMPT], ["--prompt-file", str(tmp_path / "prompt.txt")], []):
        assert sampled("--reward", "likelihood", *source, prompt=False) == 0
        texts.append(capsys.readouterr().out.splitlines()[0])
    assert texts[0] == texts[1] == texts[2] != ""


def test_masked_diffusion_and_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "trace.html"
    prompt = "Question: Mia has 6 <shells>. She finds 3. Then she loses 4. How many?\nAnswer:"
    numbers = shlex.split("--candidates 3 --rollouts 1 --block-size 12 --max-length 24 --block-length 8 --steps 12")
    command = ["sample", "--model", "diffusion", *numbers, "--prompt", prompt, "--reward", "likelihood"]
    assert main([*command, "--html", str(page)]) == 0
    assert f"trace: {page}" in capsys.readouterr().out
    written = page.read_text(encoding="utf-8")
    assert written.startswith("<!doctype html>") and "&lt;shells&gt;" in written and written.count("guide step") >= 2
    assert not re.search(r"<script|(src|href)\s*=|url\(", written)  # nothing comes from elsewhere


def test_a_proposal_draws_the_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    assert sampled("--reward", "likelihood", "--proposal", "embedded") == 0
    assert "scored" in capsys.readouterr().out


def test_help_has_a_flag_for_every_setting_of_local_engines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--help-all"])
    shown = capsys.readouterr().out
    local = (ENGINES["transformers"], ENGINES["masked-diffusion"])
    for name, each in fields_of(Guide, *(owner for engine in local for owner in engine.settings), Weighing).items():
        assert inspect.signature(ets.sample).parameters[name].default == each.default
        assert name == "certainty" or f"{flag(name)} " in shown  # rewards of certainty set it


def test_a_step_of_a_user_advances_the_chains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A function that hands on to ETS gives the same text; a function of rollouts alone has its guide settings."""
    (tmp_path / "steps.py").write_text(STEPS)
    texts = []
    for words in ((), ("--step", f"{tmp_path}/steps.py:as_ets"), ("--step", f"{tmp_path}/steps.py:retained")):
        assert sampled("--reward", "likelihood", "--temperature", "2", *words) == 0
        texts.append(capsys.readouterr().out.partition("cost:")[0])
    assert texts[0] == texts[1] != texts[2]
    assert sampled("--reward", "likelihood", "--step", f"{tmp_path}/steps.py:missing") == 2
    assert "steps.py has no 'missing'" in capsys.readouterr().err


def test_an_engine_of_a_user_makes_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engines.py").write_text(ENGINE)
    texts = []
    for words in ((), ("--engine", f"{tmp_path}/engines.py:make")):
        assert sampled("--reward", "likelihood", *words) == 0
        texts.append(capsys.readouterr().out.partition("cost:")[0])
    assert texts[0] == texts[1]
    for name, further, message in (
        ("make", ("--top-k", "4"), "--top-k is 4, which the engine"),
        ("nothing", (), "made a NoneType; it must be a policy: start, extend, finish"),
    ):
        assert sampled("--reward", "likelihood", "--engine", f"{tmp_path}/engines.py:{name}", *further) == 2
        assert message in capsys.readouterr().err


def test_the_examples_of_the_help_run(
    tmp_path: Path, chat_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is piped in as printf would print it, the rest as it stands; the last one has a folder of its own."""
    piped, alone, chat = re.findall(r"ets (sample (?:.*\\\n)*.*)", EXAMPLE)
    printed = re.search(r"printf '(.*)'", EXAMPLE)
    assert printed is not None
    prompt = printed.group(1).replace("\\n", "\n")
    monkeypatch.chdir(tmp_path)
    Path("prompt.txt").write_text(prompt)
    Path("rewards.py").write_text(REWARD)
    monkeypatch.setattr("sys.stdin", io.StringIO(prompt))
    Path("chat-model").symlink_to(chat_model)
    for command in (piped, alone, chat):
        assert main(shlex.split(command.replace("\\\n", " "))) == 0
    assert "trace: trace.html" in capsys.readouterr().out and Path("trace.html").exists()


def test_the_command_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ *ets (sample .*)", readme, flags=re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("my_reward.py").write_text(REWARD)
    monkeypatch.setattr("sys.stdin", io.StringIO(PROMPT))
    assert main(shlex.split(command)) == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "the reward majority compares answers; add --extract"),
        (["--extract", "("], "no regular expression"),
        (["--reward", "nonsense"], "reward is 'nonsense'; choose from majority, share"),
        (["--reward", "no_such_module:f"], "cannot read the reward 'no_such_module:f': ModuleNotFoundError"),
        (["--reward", "missing.py:f"], "cannot read the reward 'missing.py:f': there is no file missing.py"),
        (["--reward", "own.py:missing"], "own.py has no 'missing'"),
        (["--reward", "own.py:number"], "the reward is 3, which is no function"),
        (["--reward", "broken.py:f"], "cannot read the reward 'broken.py:f': SyntaxError"),
        (["--reward", "raising.py:f"], "division by zero"),
        (["--reward", "likelihood", "--html", "nowhere/x.html"], "the folder of nowhere/x.html does not exist"),
        (["--reward", "likelihood", "--html", "."], ". is a folder; name a file"),
        (["--reward", "likelihood", "--block-size", "99"], "--block-size 99 is longer"),
        (["--reward", "likelihood", "--steps", "4"], "steps is 4"),
        (["--reward", "likelihood", "--model", "nowhere"], "no checkpoint at 'nowhere'"),
        (["--reward", "likelihood", "--prompt-file", "x"], "not allowed with argument --prompt"),
        (["--candidates", "many"], "invalid int value: 'many'"),
    ],
)
def test_bad_input_is_one_line(
    wrong: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(REWARD)
    Path("broken.py").write_text("def f(:\n")
    Path("raising.py").write_text("def f(prompt, text):\n    return 1 / 0\n")
    assert sampled(*wrong) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize(("words", "message"), [(["--prompt-file", "x"], "cannot read the prompt"), ([], "no prompt")])
def test_a_missing_prompt_is_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert sampled("--reward", "likelihood", *words, prompt=False) == 2
    assert message in capsys.readouterr().err


def test_code_that_raises_on_import_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise RuntimeError('two\\nlines')\n")
    with pytest.raises(InputError, match="RuntimeError: two lines; give code"):
        named_reward(f"{tmp_path}/own.py:f", None)


def test_a_reward_may_be_an_object_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (
        "from ets.rewards import process_reward",
        "steps = process_reward(lambda prompt, steps: [0.5] * len(steps))",
    )
    (tmp_path / "own.py").write_text("\n".join(lines))
    assert sampled("--reward", f"{tmp_path / 'own.py'}:steps") == 0
    assert "guide step 1: chose" in capsys.readouterr().out
