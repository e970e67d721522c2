"""`ets serve`: what its options offer, and bad ones, which end in one line before the weights are loaded."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from ets.cli import main, parser_of
from ets.commands.serve import Address, offer_of, rewards_named
from ets.types import InputError
from tests.conftest import Refused

REWARD = "def brief(prompt, text):\n    return -len(text) / 100\n\nnumber = 3\n"
SMALL = ["--model", "embedded-small", "--block-size", "8", "--max-length", "24"]
KEPT = ["--reward", "own.py:brief"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with files of rewards and keys."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(REWARD)
    Path("broken.py").write_text("def brief(:\n")
    Path("raising.py").write_text("1 / 0\n")
    Path("absent.py").write_text("import no_such_package\n")
    Path("blank.txt").write_text("\n \n")
    Path("bytes.txt").write_bytes(b"\xff\xfe\xff")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no reward is given; add --reward file.py:function"),
        (["--reward", "nonsense"], "reward is 'nonsense'; choose from majority, share"),
        (["--reward", "=own.py:brief"], "the reward '=own.py:brief' has no name or no code"),
        (["--reward", "kind="], "the reward 'kind=' has no name or no code"),
        (["--reward", "kind=nonsense"], "reward is 'nonsense'; choose from majority, share"),
        ([*KEPT, *KEPT], "two rewards are named 'brief'"),
        (["--reward", "missing.py:brief"], "there is no file missing.py"),
        (["--reward", "own.py:missing"], "own.py has no 'missing'"),
        (["--reward", "own.py:number"], "the reward is 3, which is no function"),
        (["--reward", "broken.py:brief"], "cannot read the reward 'broken.py:brief': SyntaxError"),
        (["--reward", "raising.py:brief"], "cannot read the reward 'raising.py:brief': ZeroDivisionError"),
        (["--reward", "absent.py:brief"], "No module named 'no_such_package'"),
        (["--reward", "majority"], "the reward majority compares answers; add --extract"),
        ([*KEPT, "--methods", "nonsense"], "the method 'nonsense' cannot be served; choose from plain, majority"),
        ([*KEPT, "--methods", "beam"], "the method 'beam' cannot be served"),
        ([*KEPT, "--methods", ","], "no method is served; name at least one"),
        ([*KEPT, "--methods", "majority"], "the method majority compares answers; add --extract"),
        ([*KEPT, "--methods", "refined"], "the method refined spends a budget of tokens; add --tokens"),
        ([*KEPT, "--extract", "("], "no regular expression"),
        ([*KEPT, "--candidates", "0"], "candidates is 0; it must be a whole number of at least 1"),
        ([*KEPT, "--rollouts", "0"], "rollouts is 0"),
        ([*KEPT, "--lam", "0"], "lam is 0.0; it must be a finite number above zero"),
        ([*KEPT, "--block-size", "99"], "--block-size 99 is longer"),
        ([*KEPT, "--temperature", "-1"], "temperature is -1.0"),
        ([*KEPT, "--model", "nowhere"], "no checkpoint at 'nowhere'"),
        ([*KEPT, "--engine", "nonsense"], "unknown engine 'nonsense'; choose from"),
        ([*KEPT, "--chat-template"], "chat template"),
        ([*KEPT, "--system", "Be brief."], "--system needs --chat-template"),
        ([*KEPT, "--endpoint", "localhost"], "'localhost' is no address of a server"),
        ([*KEPT, "--width", "0"], "width is 0"),
        ([*KEPT, "--queue", "-1"], "queue is -1"),
        ([*KEPT, "--seconds", "0"], "seconds is 0.0"),
        ([*KEPT, "--reward-seconds", "nan"], "--reward-seconds is nan"),
        ([*KEPT, "--drain-seconds", "-1"], "--drain-seconds -1.0; give 0 or more"),
        ([*KEPT, "--body-kib", "0"], "--body-kib is 0"),
        ([*KEPT, "--most-texts", "0"], "--most-texts is 0"),
        ([*KEPT, "--most-candidates", "0"], "--most-candidates is 0"),
        ([*KEPT, "--log-prompts", "perhaps"], "perhaps"),
        ([*KEPT, "--port", "many"], "invalid int value: 'many'"),
        ([*KEPT, "--port", "70000"], "port is 70000; choose a number from 0 to 65535"),
        ([*KEPT, "--host", "no.such.host.invalid"], "cannot listen at no.such.host.invalid"),
        ([*KEPT, "--api-key-file", "missing.txt"], "cannot read the keys in missing.txt"),
        ([*KEPT, "--api-key-file", "."], "cannot read the keys in ."),
        ([*KEPT, "--api-key-file", "bytes.txt"], "cannot read the keys in bytes.txt"),
        ([*KEPT, "--api-key-file", "blank.txt"], "blank.txt holds no key; write a key per line"),
        ([*KEPT, "--no-such-option"], "--no-such-option is unknown; see ets serve --help"),
    ],
)
def test_bad_options_are_one_line(words: list[str], message: str, refused: Refused) -> None:
    refused(["serve", *SMALL, "--port", "0", *words], message)


def test_a_port_that_is_taken_is_one_line(refused: Refused) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused(["serve", *SMALL, *KEPT, "--port", port], f"cannot listen at 127.0.0.1:{port}: Address already in use")


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_one_line(package: str, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("ets.commands.serve.find_spec", lambda name: None if name == package else find_spec(name))
    refused(["serve", *SMALL, *KEPT], f"{package} is not installed; in the folder of ets, run: pip install")


def test_the_help_names_every_option_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    shown = capsys.readouterr().out
    for flag in ("reward", "methods", "api-key-file", "queue", "drain-seconds", "most-candidates", "lam", "block-size"):
        assert f"--{flag} " in shown


def offered(*words: str) -> Any:
    return offer_of(parser_of().parse_args(["serve", *SMALL, *words]), Address())


def test_options_become_an_offer() -> None:
    offer = offered(
        "--reward", "kind=own.py:brief", "--reward", "likelihood", "--methods", "plain, ets", "--lam", "0.3"
    )
    assert offer.name == "embedded-small" and offer.methods == ("plain", "ets")
    assert offer.rewards == {"kind": "own.py:brief", "likelihood": "likelihood"}
    assert offer.settings.lam == 0.3 and offer.policy.step_length == 8
    assert offer_of(parser_of().parse_args(["serve", *SMALL, *KEPT]), Address(served_name="own")).name == "own"


def test_rewards_of_certainty_are_recorded_by_the_policy() -> None:
    assert offered("--reward", "entropy").policy.certainty and not offered(*KEPT).policy.certainty


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["a.py:f", "m:g"], {"f": "a.py:f", "g": "m:g"}),
        (["x=a.py:f", "likelihood"], {"x": "a.py:f", "likelihood": "likelihood"}),
        (["x=a=b.py:f"], {"x": "a=b.py:f"}),
    ],
)
def test_names_of_rewards(given: list[str], found: dict[str, str]) -> None:
    """A name ends at the first equals sign: a path may hold others."""
    assert rewards_named(given) == found


def test_two_rewards_of_a_name_are_refused() -> None:
    with pytest.raises(InputError, match="two rewards are named 'f'"):
        rewards_named(["a.py:f", "b.py:f"])
