"""The README's Python runs as it stands, and so does that of the first steps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.documentation import ROOT, blocks

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands_lead() -> None:
    first = re.search(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    assert first is not None
    assert [line.split("#")[0].strip() for line in first.group(1).splitlines()] == [
        "bash qwen/eval.sh",
        "bash scripts/test.sh",
    ]


def test_python_blocks_run_alone_and_print_the_answers_that_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(BLOCKS) == 3
    for block in BLOCKS:
        exec(block, {})
    drawn, shown = answers(capsys.readouterr().out), answers(README)
    for name in ("plain", "guided"):  # another processor's rounding may change a text
        assert len(shown[name]) == 8 and abs(shown[name].count("42") - drawn[name].count("42")) <= 1
    assert shown["guided"].count("42") > shown["plain"].count("42")
    assert drawn["guided"].count("42") > drawn["plain"].count("42")


def answers(text: str) -> dict[str, list[str]]:
    """The answers of lines such as "plain: 42 none 7", by name."""
    return {name: found.split() for name, found in re.findall(r"^(plain|guided): (.+)$", text, flags=re.MULTILINE)}


def test_the_python_of_the_first_steps_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for block in blocks(ROOT / "docs" / "getting_started.md"):
        if block.file:
            (tmp_path / block.file).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            exec(block.text, {})
    said = capsys.readouterr().out
    assert "#### 42" in said and "\ncost: " in said and "\nguide step 1: " in said


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", re.sub(r"```.*?```", "", README, flags=re.DOTALL)))
def test_local_links_lead_somewhere(link: str) -> None:
    assert link.startswith("http") or (Path(__file__).parents[1] / link).exists()
