"""Rewards that are `async def` functions: the values of synchronous ones, at every place that takes a reward."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import ets
from ets.cli import main
from ets.event_loop import awaited
from ets.rewards import RowReward, TextReward, cached, guarded, process_reward, weighted_sum
from ets.step import as_reward, reads_prefixes
from ets.types import Chain, InputError, Problem, Text
from tests.laws.tabular import TabularModel

PROBLEM = Problem("p", "ab", doc={"bonus": 2})
ROLLOUTS = [Text((n,), "b" * n, 0.0, True) for n in (1, 3, 3)]


def count(prompt: str, text: str) -> float:
    return float(text.count("b"))


async def count_later(prompt: str, text: str) -> float:
    await asyncio.sleep(0)
    return count(prompt, text)


class Counting:
    """An object with an asynchronous call."""

    async def __call__(self, problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [count("", rollout.text) for rollout in rollouts]


async def of_rollouts(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    return await Counting()(problem, rollouts, chain)


async def of_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
    return [count("", text) for text in texts]


async def of_row(row: Any, text: str) -> float:
    return row["bonus"] - 2 + count("", text)


async def of_steps(prompt: str, steps: Sequence[str]) -> list[float]:
    return [count(prompt, step) for step in steps]


REWARDS: dict[str, Callable[[], Any]] = {
    "(prompt, text)": lambda: count_later,
    "partial": lambda: partial(count_later),
    "(problem, rollouts, chain)": lambda: of_rollouts,
    "object": Counting,
    "cached": lambda: cached(count_later),
    "TextReward": lambda: TextReward(of_texts),
    "cached TextReward": lambda: cached(TextReward(of_texts)),
    "weighted_sum": lambda: weighted_sum((0.5, count_later), (0.5, of_rollouts)),
    "guarded": lambda: guarded(count_later, seconds=60),
    "RowReward": lambda: RowReward(of_row),
    "process_reward": lambda: process_reward(of_steps, separator="\n"),
}


@pytest.mark.parametrize("make", REWARDS.values(), ids=REWARDS)
def test_an_async_reward_has_the_values_of_a_synchronous_one(make: Callable[[], Any]) -> None:
    assert list(as_reward(make())(PROBLEM, ROLLOUTS, None)) == [1, 3, 3]  # type: ignore[arg-type]


def test_a_declaration_stays() -> None:
    assert reads_prefixes(as_reward(ets.of_prefixes(of_rollouts)))
    del of_rollouts.of_prefixes  # type: ignore[attr-defined]


NUMBERS: dict[str, Any] = {"candidates": 3, "rollouts": 2, "lam": 0.5, "seed": 1}


def test_the_front_doors_take_async_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = [ets.sample("ab", model=TabularModel(), reward=each, **NUMBERS) for each in (count, count_later)]
    assert sampled[0].text == sampled[1].text
    assert (sampled[0].trace[0].log_rewards == sampled[1].trace[0].log_rewards).all()
    (tmp_path / "own.py").write_text("async def short(prompt, text):\n    return -len(text) / 100\n")
    words = ["--candidates", "2", "--rollouts", "1", "--block-size", "4", "--max-length", "8"]
    command = ["sample", "--model", "embedded-small", "--prompt", "Question:", "--reward", f"{tmp_path}/own.py:short"]
    assert main([*command, *words]) == 0 and "guide step" in capsys.readouterr().out


def test_the_calls_for_the_texts_of_a_step_run_concurrently_in_one_loop_for_all_threads() -> None:
    busy, most, loops = 0, 0, set()

    async def waiting(prompt: str, text: str) -> float:
        nonlocal busy, most
        loops.add(asyncio.get_running_loop())
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.05)
        busy -= 1
        return 0.0

    def sample(_: int) -> Any:
        return ets.sample("ab", model=TabularModel(), reward=waiting, **NUMBERS)

    with ThreadPoolExecutor(2) as pool:
        assert all(out.valid for out in pool.map(sample, range(2)))
    assert most > 2 and len(loops) == 1


def test_a_running_loop_as_in_a_notebook_is_no_obstacle() -> None:
    async def notebook() -> Any:
        return ets.sample("ab", model=TabularModel(), reward=count_later, **NUMBERS)

    assert asyncio.run(notebook()).valid


def test_an_async_reward_that_raises_is_one_line() -> None:
    async def failing(prompt: str, text: str) -> float:
        raise ConnectionError("no route")

    with pytest.raises(InputError, match=r"raised ConnectionError .*: no route \(test_event_loop.py, line"):
        ets.sample("ab", model=TabularModel(), reward=failing, **NUMBERS)


def test_values_that_are_there_stay_in_their_places() -> None:
    assert awaited([1, count_later("", "bb"), "text"]) == [1, 2.0, "text"]
