"""The page of the step functions: its Python runs as it stands, and it names all that there is."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pytest

from ets import baselines, stopping
from ets.baselines.power import power_sampling
from ets.runner import run
from ets.testing import check_law
from ets.types import Problem
from tests.laws.tabular import TabularModel

PAGE = Path(__file__).parents[2] / "docs" / "baselines.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_python_blocks_run_in_order_and_tell_costs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" '")[0] for line in lines] == ["best of 8", "majority of 8", "particle filter", "rejection"]
    assert all("Cost(" in line for line in lines)


def test_its_own_step_function_draws_from_the_law_it_states_at_level_1e_4() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[1].split("\n\n\nfor ")[0], names)
    policy, problem = TabularModel(vocabulary=3, block_size=1, max_length=3, seed=4), Problem("p", "a prompt")
    step = names["rejection"](lambda text: "b" in text, tries=3)  # type: ignore[operator]
    chains = list(run(policy, step, [problem], width=1000, seed=0, samples=3000))
    law = {x: p for x, p in policy.oracle.finish_law(problem, ()).items() if "b" in policy.spelled(x)}
    total = sum(law.values())
    assert 0.1 < total < 0.9
    check_law([c.state.tokens for c in chains if c.valid], {x: p / total for x, p in law.items()}, level=1e-4)
    refused = np.mean([not chain.valid for chain in chains])
    assert abs(refused - (1 - total) ** 3) < 0.04  # more than four standard deviations


@pytest.mark.parametrize("name", [*baselines.__all__, "all_at_maximum", "vote_decided"])
def test_every_step_function_stands_there_with_its_signature(name: str) -> None:
    if name.startswith("require_"):  # checks, no step functions
        return
    parameters = inspect.signature(getattr(baselines, name, getattr(stopping, name, power_sampling))).parameters
    stated = re.findall(rf"`(?:ets\.baselines\.)?{name}\(([^`]*)\)`", TEXT)
    if name in ("log_normaliser", "acceptance_rate"):
        assert stated == ["chain.trace"]
        return
    given = [part.strip().split("=")[0] for part in stated[0].split(",")] if stated[0] else []
    assert [part for part in given if part != "*"] == list(parameters)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_local_links_lead_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists()
