"""The page of differences: its counts follow from what it says is computed twice, and its links lead somewhere."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
formulas = importlib.import_module("work_formulas")
sys.path.pop(0)
PAGE = ROOT / "docs" / "differences.md"
TEXT = PAGE.read_text(encoding="utf-8")
M, K, BLOCK, LENGTH = 8, 3, 32, 128


def plain_way(prompt: int) -> int:
    """Every row is read from the prompt on, but for its last token; those of the last step, too, go on for a block."""
    ends = range(BLOCK, LENGTH + 1, BLOCK)
    candidates = sum(M * (prompt + end - 1) for end in ends)
    return candidates + sum(M * K * (prompt + max(LENGTH, end + BLOCK) - 1) for end in ends)


def test_the_counts_are_those_of_the_two_ways() -> None:
    rows = re.findall(r"\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d.]+) \|", TEXT)
    assert [row[0] for row in rows] == ["200", "1,000"]
    for row in rows:
        prompt, plain, ours = (int(cell.replace(",", "")) for cell in row[:3])
        assert plain == plain_way(prompt)
        work = sum(formulas.TokenWork(BLOCK, LENGTH).steps(prompt, M, K, [LENGTH]), formulas.Work())
        assert ours == work.positions and row[3] == f"{plain / ours:.1f}"


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", TEXT))
def test_links_lead_somewhere(link: str) -> None:
    file, _, anchor = link.partition("#")
    if link.startswith("https://"):
        return
    text = (PAGE.parent / file).read_text(encoding="utf-8")
    headings = [re.sub(r"[^\w -]", "", line).strip().lower() for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    assert not anchor or anchor in [heading.replace(" ", "-") for heading in headings]
