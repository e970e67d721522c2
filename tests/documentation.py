"""The pages that are read, and the blocks of code in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("" for none), its text, and the name under which the page says to save it."""

    language: str
    text: str
    file: str | None

    @property
    def commands(self) -> list[str]:
        """Its lines without comments, continued lines joined."""
        lines = re.sub(r" *\\\n *", " ", self.text).splitlines()
        return [command for line in lines if (command := re.sub(r"(^| )#(?= ).*", "", line).strip())]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    """All of a page's, in order."""
    text = page.read_text(encoding="utf-8")
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return [Block(fence[1], fence[2], _file_before(text[: fence.start()])) for fence in fences]


def _file_before(text: str) -> str | None:
    """As in "Save this as `my_reward.py`:", if the paragraph before a block ends like that."""
    said = re.search(r"[Ss]ave (?:this|it) as\s+`(\w+\.py)`[^\n]*:\n\n\Z", text)
    return said[1] if said else None
