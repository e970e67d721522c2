"""docs/choosing.md: what it claims of exact laws holds in a run of its script, and in the committed numbers."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "choosing" / "figures.json"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The module; it imports those that stand beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        before = set(sys.modules)
        yield importlib.import_module("choosing")
        for name in set(sys.modules) - before:
            if name.startswith("choosing"):
                del sys.modules[name]


@pytest.fixture(scope="module")
def smallest(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with one table, one problem, and few settings of the demonstration."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        for name, few in {"LAMS": (0.1, 1.0), "PAIRS": ((3, 1), (1, 3)), "BLOCKS": (96, 48)}.items():
            patch.setattr(script.choosing_demo, name, few)
        assert script.main(["--count", "1", "--tables", "1", "--page", str(folder / "choosing.md")]) == 0
    return folder


@pytest.fixture(params=["run", "committed"])
def laws(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The exact part: of the smallest run, and of what stands in the page."""
    path = COMMITTED if request.param == "committed" else request.getfixturevalue("smallest") / "choosing/figures.json"
    return json.loads(path.read_text())["laws"]


def falls(values: list[float]) -> bool:
    return all(later < earlier for earlier, later in pairwise(values))


def test_it_writes_a_page_with_pictures(smallest: Path) -> None:
    page = (smallest / "choosing.md").read_text()
    pictures = sorted(smallest.glob("choosing/*.png"))
    assert len(pictures) == 4 and all(f"choosing/{picture.name}" in page for picture in pictures)
    assert "{" not in page


def test_the_committed_page_is_that_of_the_committed_numbers(script: Any) -> None:
    assert (ROOT / "docs" / "choosing.md").read_text() == script.page(json.loads(COMMITTED.read_text()))


def test_what_p_star_is_worth_falls_with_lambda(laws: dict[str, Any]) -> None:
    for of in laws.values():
        for column in ("reward", "kl", "moved", "sampled", "distance"):
            assert falls([row[column] for row in of["lam"]])
        assert all(row["plain"] < row["sampled"] < row["reward"] for row in of["lam"])


def test_a_small_lambda_takes_the_best_candidate(laws: dict[str, Any]) -> None:
    for of in laws.values():
        assert of["limit"] == pytest.approx(of["best"], abs=0.02) and of["limit"] <= of["best"]


def test_more_candidates_come_closer(laws: dict[str, Any]) -> None:
    for of in laws.values():
        settings = {(row["lam"], row["guide_steps"]) for row in of["steps"]}
        for setting in settings:
            assert falls([row["distance"] for row in of["steps"] if (row["lam"], row["guide_steps"]) == setting])


def test_one_rollout_is_closest_at_the_same_number_of_rollouts(laws: dict[str, Any]) -> None:
    for of in laws.values():
        for lam in {row["lam"] for row in of["pairs"]}:
            assert falls([row["distance"] for row in reversed(of["pairs"]) if row["lam"] == lam])


def test_at_the_same_tokens_rollouts_pay_for_a_rare_pass_and_not_at_a_large_lambda(laws: dict[str, Any]) -> None:
    closest = {
        (name, row["lam"]): min((r for r in of["shared"] if r["lam"] == row["lam"]), key=lambda r: r["distance"])
        for name, of in laws.items()
        for row in of["shared"]
    }
    assert closest["pass", 0.05]["rollouts"] in (2, 3)
    assert all(row["rollouts"] == 1 for (_, lam), row in closest.items() if lam == 0.5)


def test_the_tables_differ_on_rollouts_for_a_graded_reward_at_a_small_lambda(script: Any) -> None:
    exact, closest = script.choosing_laws, []
    for seed in range(3):
        distances = {}
        for rollouts in (1, 2):
            candidates = round(exact.SHARED / exact.tokens(1, rollouts, exact.GUIDE_STEPS))
            laws = exact._laws(exact.graded, 0.05, candidates, rollouts, exact.GUIDE_STEPS, seed)
            distances[rollouts] = exact.total_variation(*laws[1:])
        closest.append(min(distances, key=distances.__getitem__))
    assert closest == [2, 1, 1]


def test_guide_steps_pay_where_the_reward_is_earned_on_the_way_and_lambda_is_small(laws: dict[str, Any]) -> None:
    closest = {}
    for name, of in laws.items():
        for row in of["steps"]:  # by tokens: the largest budget comes last
            closest.setdefault((name, row["lam"]), {})[row["guide_steps"]] = row["distance"]
    best = {setting: min(distances, key=distances.__getitem__) for setting, distances in closest.items()}
    assert {setting for setting, steps in best.items() if steps > 1} == {("graded", 0.05)}


def test_what_the_page_says_of_the_demonstration_is_in_its_numbers() -> None:
    demo = json.loads(COMMITTED.read_text())["demo"]
    for question in ("pairs", "steps"):
        for name in {row["reward"] for row in demo[question]}:
            rows = [row for row in demo[question] if row["reward"] == name]
            assert max(row["low"] for row in rows) < min(row["high"] for row in rows)
            if question == "pairs":
                assert max(rows, key=lambda row: row["right"])["candidates"] > 2
    assert all(row["tokens"] == pytest.approx(row["formula"], rel=0.05) for row in demo["steps"])
