"""Every command in the README and in docs/ is run, or at least read.

A `bash` block runs as it stands, in the order of its page, with few problems. A block without a language needs a GPU, a
hub or a server, and its commands are only read: options that do not exist fail.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from ets.cli import parser_of
from scripts.paper_command import parsed, translated
from tests.documentation import PAGES, ROOT, Block, blocks, name_of
from tests.scripts.test_eval_sh import bash

LANGUAGES = {"", "bash", "python", "bibtex"}
HEAVY = [name for name in ("lm_eval", "math_verify") if find_spec(name) is None]

SCRIPTS = "tests/scripts/test_eval_sh.py::"
ELSEWHERE = {  # what other tests run, at a small size
    "bash qwen/eval.sh": SCRIPTS + "test_the_demonstration_runs_from_any_directory_with_changed_variables",
    "bash llada/eval.sh": SCRIPTS + "test_the_masked_diffusion_demonstration_runs_with_changed_variables",
    "bash qwen_vllm/eval.sh": SCRIPTS + "test_the_demonstration_runs_through_vllm_and_leaves_nothing_running",
}
NOT_RUN = {  # by its beginning: why
    "bash scripts/test.sh": "continuous integration runs it, and with it this test",
    "python scripts/train_demo.py": "it trains for 15 to 38 minutes, and writes over the embedded models",
}
SMALLER = {  # numbers of problems and of samples, in what a block says
    r"NUM_PROBLEMS=\d+": "NUM_PROBLEMS=2",
    r"--(count|samples) \d+": r"--\1 2",
    r"--problems \d+": "--problems 1",
    r"--candidates 2,4": "--candidates 2",
}
HERE = {  # the repository and this interpreter's environment, seen from another folder
    r"\.venv/": f"{sys.prefix}/",
    r"(?<![\w/])(qwen|llada|scripts|benchmarks|tests|ets)/(?=\w)": rf"{ROOT}/\1/",
}


def is_run_here(block: Block) -> bool:
    return block.language == "bash" and any(
        not is_run_elsewhere(command) and not command.startswith(tuple(NOT_RUN)) for command in block.commands
    )


def is_run_elsewhere(command: str) -> bool:
    """Whether another test runs it, perhaps with other values of its variables."""
    return re.sub(r"^([A-Z_]+=\S+ )+", "", command) in ELSEWHERE


BLOCKS = {name_of(page): blocks(page) for page in PAGES}
RUN = [page for page, found in BLOCKS.items() if any(map(is_run_here, found))]
COMMANDS = [c for found in BLOCKS.values() for block in found if block.language == "bash" for c in block.commands]
READ = {
    page: [
        command
        for block in found
        for command in block.commands
        if not block.language or command.startswith(tuple(NOT_RUN)) or is_run_elsewhere(command)
    ]
    for page, found in BLOCKS.items()
}


@pytest.mark.parametrize("page", RUN)
def test_the_shell_blocks_of_a_page_run_in_order(page: str, tmp_path: Path) -> None:
    if page == "docs/paper.md" and HEAVY:
        pytest.skip(f"no {' and '.join(HEAVY)} here; `bash scripts/setup.sh benchmarks`")
    for block in BLOCKS[page]:
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        if is_run_here(block):
            done = run(block.text, tmp_path)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
            assert done.stdout.strip() and "Traceback" not in done.stderr


def run(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A block from another folder: on this interpreter, with few problems."""
    for pattern, here in (SMALLER | HERE).items():
        text = re.sub(pattern, here, text)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return bash("-eu", "-c", text, folder=folder, PATH=path, OUT="out", OMP_NUM_THREADS="1")


def test_what_other_tests_run_is_run_there() -> None:
    for command, test in ELSEWHERE.items():
        path, name = test.split("::")
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")
        assert any(command in page.read_text(encoding="utf-8") for page in PAGES), f"no page has {command}"


def test_what_is_not_run_stands_on_a_page() -> None:
    for beginning in NOT_RUN:
        assert any(command.startswith(beginning) for command in COMMANDS)


def test_no_block_is_overlooked_for_its_language() -> None:
    found = {(page, block.language) for page, of_page in BLOCKS.items() for block in of_page}
    assert [(page, language) for page, language in found if language not in LANGUAGES] == []


def test_a_python_block_has_all_its_names_or_says_that_it_goes_on(tmp_path: Path) -> None:
    for page, found in BLOCKS.items():
        for number, block in enumerate(found):
            if block.language == "python" and not block.text.startswith("# after the blocks above\n"):
                (tmp_path / f"{page.replace('/', '-')}-{number}.py").write_text(block.text, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", [page for page, commands in READ.items() if commands])
def test_commands_that_are_not_run_are_spelled_right(page: str, tmp_path: Path) -> None:
    for command in READ[page]:
        if "…" not in command:
            read(command, tmp_path)


def read(command: str, folder: Path) -> None:
    """Parse a command of ours, without running it; those of others are not ours to judge."""
    script = re.search(r"\b(qwen|llada|qwen_vllm|aime24)/\w+\.(sh|py)\b", command)
    if script and script[2] == "sh":
        read_script(shlex.split(command), script[0], folder)
    elif script:
        read_paper_form(shlex.split(command.partition(script[0])[2]))
    elif re.match(r"(python -m )?ets ", command):
        read_ets(shlex.split(command))
    elif program := re.match(r"python (\S+\.py) ", command):
        source = (ROOT / program[1]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r" (--[a-z-]+)", command))


def read_script(words: list[str], script: str, folder: Path) -> None:
    """What an eval.sh would run, for each preset."""
    assert (ROOT / script).exists()
    variables = dict(word.split("=", 1) for word in words[: words.index("bash")])
    done = bash(str(ROOT / script), *words[words.index(script) + 1 :], folder=folder, PRINT_ONLY="1", **variables)
    assert done.returncode == 0, f"{words}\n{done.stderr}"
    for line in done.stdout.splitlines():
        read_ets(shlex.split(line))


def read_ets(words: list[str]) -> None:
    parser_of().parse_args(words[words.index("ets") + 1 :])


def read_paper_form(words: list[str]) -> None:
    """The paper's command form, and the call of `ets eval` that it becomes."""
    call, _ = translated(parsed(words))
    read_ets(["ets", *call])
