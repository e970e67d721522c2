"""Prints, as a Markdown table, the run that each command line of the paper's scripts is here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.scripts.paper_lines import LINES, markdown

if __name__ == "__main__":
    print(markdown(LINES))
