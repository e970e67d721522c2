"""The code of docs/rewards.md runs as it stands, apart from the code blocks that `test_code.py` runs."""

from __future__ import annotations

import pytest

from tests.documentation import ROOT, blocks

BLOCKS = [block.text for block in blocks(ROOT / "docs" / "rewards.md") if block.language == "python"]
ELSEWHERE = ("path/to", "code_verifier", "HumanEval")
RUN = [code for code in BLOCKS if not any(word in code for word in ELSEWHERE)]


@pytest.mark.parametrize("code", RUN, ids=range(len(RUN)))
def test_a_block_runs_and_shows_a_result(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(code, {})
    assert capsys.readouterr().out.strip()


def test_most_blocks_run_here() -> None:
    assert len(RUN) == 5 and len(BLOCKS) == 10
