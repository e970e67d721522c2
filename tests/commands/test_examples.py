"""The examples that the commands' help shows; those of `ets sample` are run in test_sample.py."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ets.cli import COMMANDS, EXAMPLE, main, parser_of

SMALL = "--count 1 --candidates 2 --rollouts 1 --max-length 32 --samples 1"


def examples(name: str) -> list[list[str]]:
    """The words of each, without the first."""
    found = re.findall(rf"^ *ets ({name} (?:.*\\\n)*.*)", COMMANDS[name][2], flags=re.MULTILINE)
    return [shlex.split(words.replace("\\\n", " ")) for words in found]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example_that_it_can_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert examples(name)
    for words in examples(name):
        assert parser_of().parse_args(words).execute is COMMANDS[name][1]
        assert f"ets {' '.join(words[:4])}" in shown


def test_the_examples_of_the_whole_program_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert EXAMPLE in capsys.readouterr().out
    found = re.split(r"^  ets ", EXAMPLE, flags=re.MULTILINE)[1:]
    sampled, shown = (shlex.split(words.replace("\\\n", " "), comments=True) for words in found)
    assert main(sampled) == 0
    assert "most votes of all rollouts: " in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(shown)
    assert end.value.code == 0 and COMMANDS[shown[0]][2] in capsys.readouterr().out


def test_the_example_of_eval_leaves_a_folder_that_the_one_of_view_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ((*words,), (view, folder), answer) = *examples("eval"), *examples("view")
    assert answer == [view, "response.json"]  # `test_view.py` writes and shows one
    assert main([*words, *SMALL.split()]) == 0
    (made,) = Path("results").iterdir()
    assert re.fullmatch("arithmetic-[0-9a-f]{8}", made.name) and re.fullmatch("results/arithmetic-[0-9a-f]{8}", folder)
    capsys.readouterr()
    assert main([view, str(made)]) == 0
    assert capsys.readouterr().out == f"{made / 'report.html'}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: command; see ets --help"),
        (
            ["magic"],
            "argument command: invalid choice: 'magic' (choose from ",
        ),
        (["--magic"], "the following arguments are required: command; see ets --help"),
        (["view"], "the following arguments are required: path; see ets view --help"),
        (["view", "here", "--magic"], "--magic is unknown; see ets view --help"),
        (["eval", "--tokns", "10"], "--tokns is unknown; did you mean --tokens?"),
        (["compare", "--budget", "10", "--tasks=x", "--task-s=y"], "--task-s is unknown; did you mean --task"),
        (["sample", "--temprature=1.0"], "--temprature is unknown; did you mean --temperature?"),
        (["estimate", "--nonsense"], "--nonsense is unknown; see ets estimate --help"),
        (["eval", "--task"], "argument --task/--tasks: expected one argument; see ets eval --help"),
        (["compare", *examples("compare")[0][1:], "--tasks", "chess"], "unknown task 'chess'; choose from arithmetic"),
        (["estimate", *examples("estimate")[0][1:], "--task", "chess"], "unknown task 'chess'; choose from arithmetic"),
    ],
)
def test_words_that_no_command_reads_are_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_what_was_kept(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, name, (*COMMANDS[name][:1], interrupted, *COMMANDS[name][2:]))
    assert main(examples(name)[0]) == 130
    keeps = name in ("eval", "compare")
    kept = "finished problems are kept, and the same command goes on"
    nothing = "nothing was kept, and the same command begins anew"
    assert capsys.readouterr().err == f"\ninterrupted; {kept if keeps else nothing}\n"
