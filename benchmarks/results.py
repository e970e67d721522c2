"""Write docs/results.md: every method at three budgets, on both embedded models. `python benchmarks/results.py`

It takes hours; the journals are kept in results/comparison, so the same command goes on where it was interrupted, and a
larger --count adds problems to what is there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ets.cli import main as ets

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("results_template.md")


@dataclass(frozen=True)
class Family:
    """One comparison: its name in the page, the task, how many problems, and the other options of `ets compare`."""

    name: str
    task: str
    count: int
    options: str


FAMILIES = (
    Family(
        "autoregressive",
        "arithmetic",
        1000,
        "--model embedded --shots 0 --candidates 2,4,8 --rollouts 2 --lam 0.1 --block-size 16 --max-length 96 "
        "--temperature 1.9 --seed 0 --width 64 --seeds 4 --scan-rollouts 1,2,4 --scan-guide-steps 1,3,6",
    ),
    Family(
        "masked-diffusion",
        "sums",
        60,
        "--engine masked-diffusion --model embedded --shots 0 --candidates 2,3,4 --rollouts 2 --lam 0.1 --cache dual "
        "--gen-length 24 --steps 24 --block-length 8 --guide-steps 4 --cfg 0 --remasking low_confidence "
        "--temperature 2.4 --seed 0 --width 60 --seeds 4 --scan-rollouts 1,2,4 --scan-guide-steps 1,2,4",
    ),
)
"""The demonstrations' settings, but for K and, in masked diffusion, the cache."""


def command(family: Family, count: int, folder: Path) -> list[str]:
    """The words of `ets compare`."""
    given = ["--tasks", family.task, "--count", str(count), "--out", str(folder / family.name)]
    return ["compare", *given, *family.options.split()]


PLOTS = {"accuracy_by_cost": "Accuracy against cost", "scaling": "Scaling in M, K and I"}


def section(family: Family, count: int, journals: Path, pictures: Path) -> str:
    """A family's part of the page; its plots, as far as they were reached, are copied beside it."""
    folder = journals / family.name
    words = " ".join(["ets", *command(family, count, Path("results/comparison"))])
    parts = [f"`{words}`", (folder / "table.md").read_text(encoding="utf-8").strip()]
    for plot, title in PLOTS.items():
        if (folder / f"{plot}.png").exists():
            shutil.copy(folder / f"{plot}.png", pictures / f"{family.name}_{plot}.png")
            parts.append(f"![{title}](results/{family.name}_{plot}.png)")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for family in FAMILIES:
        parser.add_argument(f"--{family.name}-count", type=int, default=family.count, help="problems")
    parser.add_argument("--journals", type=Path, default=ROOT / "results" / "comparison")
    parser.add_argument("--page-only", action="store_true", help="write the page from what the last runs reached")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    options = parser.parse_args(arguments)
    counts = {family.name: getattr(options, f"{family.name}_count".replace("-", "_")) for family in FAMILIES}
    for family in () if options.page_only else FAMILIES:
        if status := ets(command(family, counts[family.name], options.journals)):
            return status
    pictures = options.page.parent / "results"
    pictures.mkdir(parents=True, exist_ok=True)
    page = TEMPLATE.read_text(encoding="utf-8")
    for family in FAMILIES:
        text = section(family, counts[family.name], options.journals, pictures)
        page = page.replace(f"{{{{ {family.name} }}}}", text)
    options.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
