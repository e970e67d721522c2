"""Write docs/results.md: all methods at equal tokens, one reward a table. `python benchmarks/results.py`

The journals are kept in results/comparison, so the same command goes on where it was interrupted, and a larger --count
adds problems to those that are there.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ets.cli import main as ets

ROOT = Path(__file__).parents[1]
TEMPLATE = Path(__file__).with_name("results_template.md")
FOLDER = Path("results/comparison")
"""Of the journals, in the repository: a reward is named by its path there."""


@dataclass(frozen=True)
class Family:
    """A model with its task.

    Parameters
    ----------
    name : str
        In the page.
    task : str
    count : int
        Problems.
    methods : str
        With a comma between them. A fixed reward leaves ets-stopped out.
    options : str
        The other options of `ets compare`.
    """

    name: str
    task: str
    count: int
    methods: str
    options: str


@dataclass(frozen=True)
class Table:
    """A comparison by one reward.

    Parameters
    ----------
    family : Family
    title : str
        In the page.
    reward : str
    lam : float
    """

    family: Family
    title: str
    reward: str
    lam: float

    @property
    def name(self) -> str:
        """The table's folder, and its place in the template."""
        return f"{self.family.name}-{self.reward.rpartition(':')[2]}".replace("_", "-")

    def command(self, count: int, folder: Path) -> list[str]:
        """The words of `ets compare`."""
        methods = [
            name for name in self.family.methods.split(",") if name != "ets-stopped" or self.reward == "majority"
        ]
        given = ["--tasks", self.family.task, "--count", f"{count}", "--reward", self.reward, "--lam", f"{self.lam:g}"]
        given += ["--methods", ",".join(methods), *self.family.options.split()]
        return ["compare", *given, "--out", str(folder / self.name)]


ALONE = "plain,majority,adaptive-majority,confident-majority,weighted-majority,best-of-n,one-step,iterated-sir"
STEPPED = "ets,ets-stopped,retained,refined,lookahead,particles,power,greedy"
AUTOREGRESSIVE = Family(
    "autoregressive",
    "arithmetic",
    60,
    f"{ALONE},{STEPPED}",
    "--model embedded --shots 0 --budgets 300,900 --rollouts 1 --block-size 16 --max-length 96 --temperature 1.9 "
    "--seed 0 --width 60 --repeats 2 --against one-step --traces 0",
)
MASKED_DIFFUSION = Family(
    "masked-diffusion",
    "sums",
    30,
    f"{ALONE},{STEPPED}",
    "--engine masked-diffusion --model embedded --shots 0 --budgets 3000 --rollouts 1 --cache dual --gen-length 24 "
    "--steps 24 --block-length 8 --guide-steps 4 --cfg 0 --remasking low_confidence --temperature 2.4 --seed 0 "
    "--width 30 --repeats 2 --against one-step --traces 0",
)
"""The demonstrations' settings, except for K and, in masked diffusion, the cache."""
REWARDS = "benchmarks/demo_rewards.py"
TABLES = (
    Table(AUTOREGRESSIVE, "The likelihood", "likelihood", 1 / 3),
    Table(AUTOREGRESSIVE, "A graded reward", f"{REWARDS}:graded", 0.05),
    Table(AUTOREGRESSIVE, "A verifier", f"{REWARDS}:right_answer", 0.2),
    Table(AUTOREGRESSIVE, "Self-consistency", "majority", 0.1),
    Table(MASKED_DIFFUSION, "A graded reward", f"{REWARDS}:graded", 0.05),
    Table(MASKED_DIFFUSION, "Self-consistency", "majority", 0.1),
)
PLOTS = {"accuracy_by_cost": "Accuracy against cost", "pass_at_k": "pass@k and maj@k of the complete samples"}


def section(table: Table, count: int, pictures: Path) -> str:
    """A table's part of the page; its plots are copied to the folder of pictures."""
    folder = FOLDER / table.name
    parts = [f"`ets {' '.join(table.command(count, FOLDER))}`"]
    text = (folder / "table.md").read_text(encoding="utf-8").strip()
    parts.append(re.sub("^### ", "#### ", text, flags=re.MULTILINE))
    for plot, title in PLOTS.items():
        if (folder / f"{plot}.png").exists():
            shutil.copy(folder / f"{plot}.png", pictures / f"{table.name}_{plot}.png")
            parts.append(f"![{title}](results/{table.name}_{plot}.png)")
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tables that are missing, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for family in (AUTOREGRESSIVE, MASKED_DIFFUSION):
        parser.add_argument(f"--{family.name}-count", type=int, default=family.count, help="problems")
    parser.add_argument("--page-only", action="store_true", help="write the page from the tables of the last runs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    options = parser.parse_args(arguments)
    page = options.page.resolve()
    with contextlib.chdir(ROOT):
        return _written(vars(options), page)


def _written(options: dict[str, object], page: Path) -> int:
    pictures, text = page.parent / "results", TEMPLATE.read_text(encoding="utf-8")
    pictures.mkdir(parents=True, exist_ok=True)
    for table in TABLES:
        count = int(str(options[f"{table.family.name}-count".replace("-", "_")]))
        if not options["page_only"] and (status := ets(table.command(count, FOLDER))):
            return status
        text = text.replace(f"{{{{ {table.name} }}}}", f"### {table.title}\n\n{section(table, count, pictures)}")
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
