"""Rows of several problems in one batch: the chains of one policy, fewer forward passes, threads that take turns."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ets.cli import main
from ets.groups import run_in_groups
from ets.kernel import energy_guided
from ets.policies.autoregressive import cache as kv_cache
from ets.policies.autoregressive import live_rows
from ets.policies.autoregressive.cache import RowCache
from ets.policies.autoregressive.live_rows import Interrupted
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.autoregressive.truncation import draw_tokens
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.rewards import per_text
from ets.runner import run
from ets.types import InputError, Problem
from tests.conftest import ALPHABET, random_qwen3, tiny_tokenizer
from tests.hooks import what_is_read
from tests.policies.autoregressive.hybrids import RECURRENT, random_model

PROBLEMS = [Problem(f"problem-{n}", "ab"[n % 2] * (1 + n % 3), stop=("ab", "cc")) for n in range(8)]
"""Texts end at stop strings alone, or at 30 tokens."""
STEP = energy_guided(per_text(lambda _, text: text.count("b")), candidates=3, rollouts=2, lam=0.5)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_qwen3(len(ALPHABET), end=None, spread=0.2)


def policy_of(model: Any, block: int = 10, length: int = 30, **options: Any) -> TransformersPolicy:
    checkpoint = Checkpoint.loaded(model, tiny_tokenizer())
    return TransformersPolicy(checkpoint, Sampling(), Horizon(block, length), end_ids=(), **options)


def joined(policy: TransformersPolicy, members: int, step: Any = STEP) -> list[tuple[Any, Any]]:
    return [(member, step) for member in policy.joined(members)]


def tokens_of(chains: Any) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(chain.problem.id, chain.sample): chain.state.tokens for chain in chains}


OPTIONS: dict[str, Any] = {"seed": 1, "samples": 1}


@pytest.mark.parametrize(("saved", "patience"), [(0, 1), (10**6, 8)])
@pytest.mark.parametrize("options", [{}, {"look_every": 4}, {"memory_gib": 2e-5}, {"one_by_one": True}])
def test_joined_policies_draw_the_chains_of_one(
    model: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], saved: int, patience: int
) -> None:
    monkeypatch.setitem(kv_cache.SAVED, "cpu", saved)
    monkeypatch.setattr(live_rows, "PATIENCE", patience)
    policy = policy_of(model, **options)
    alone = tokens_of(run(policy_of(model), STEP, PROBLEMS, width=4, **OPTIONS))
    assert len({len(tokens) for tokens in alone.values()}) > 2
    assert tokens_of(run_in_groups(joined(policy, 4), PROBLEMS, width=4, **OPTIONS)) == alone


@pytest.mark.parametrize("family", [*RECURRENT, "DeepSeek V3.2", "Gemma 4", "Jamba"])
def test_joined_policies_fork_the_states_of_every_kind_of_layer(family: str) -> None:
    model = random_model(family, len(ALPHABET), end=0)
    alone = tokens_of(run(policy_of(model), STEP, PROBLEMS[:6], width=3, **OPTIONS))
    assert tokens_of(run_in_groups(joined(policy_of(model), 3), PROBLEMS[:6], width=3, **OPTIONS)) == alone


def test_rows_of_several_problems_share_forward_passes_and_their_cost(model: Any) -> None:
    """The lockstep of one policy waits for the slowest rollout of four problems, at each guide step."""
    alone, other = policy_of(model, 20, 100), policy_of(model, 20, 100)
    policies = [policy for policy, _ in joined(other, 4)]
    list(run(alone, STEP, PROBLEMS, width=4, **OPTIONS))
    with what_is_read(model) as shapes:
        chains = list(run_in_groups([(policy, STEP) for policy in policies], PROBLEMS, width=4, **OPTIONS))
    tokens = [rows for rows, columns in shapes if columns == 1]
    assert max(tokens) > 3 * 2 and len(shapes) < 0.9 * alone.ledger.forwards
    ledgers = [policy.ledger for policy in policies]
    for name in ("candidate", "rollout", "generated"):
        assert sum(getattr(ledger, name) for ledger in ledgers) == getattr(alone.ledger, name)
    assert sum(ledger.forwards for ledger in ledgers) == pytest.approx(len(shapes))
    assert sum(chain.cost.forwards for chain in chains) == pytest.approx(len(shapes))


def test_batches_are_the_same_in_every_run(model: Any) -> None:
    """The order in which the threads read their first prompts may differ."""

    def drawn() -> tuple[list[tuple[int, int]], dict[Any, float]]:
        with what_is_read(model) as shapes:
            chains = list(run_in_groups(joined(policy_of(model), 4), PROBLEMS, width=4, **OPTIONS))
        return shapes[4:], {(chain.problem.id, chain.sample): chain.state.logp for chain in chains}

    drawn()  # tests the model once
    assert drawn() == drawn()


def test_joined_policies_may_be_used_for_another_run(model: Any) -> None:
    groups = joined(policy_of(model), 3)
    first, second = (tokens_of(run_in_groups(groups, PROBLEMS, width=3, **OPTIONS)) for _ in range(2))
    assert first == second


def test_rows_that_do_not_fit_wait_for_memory(model: Any) -> None:
    policy, keys = policy_of(model, block=30), np.arange(64, dtype=np.uint64)
    whole = policy.finish(policy.start(PROBLEMS[1:2]) * 64, keys)
    limited = policy_of(model, block=30, memory_gib=8 * policy._reader.bytes_of(30 + 2) / 2**30)
    with what_is_read(model) as shapes:
        drawn = limited.finish(limited.start(PROBLEMS[1:2]) * 64, keys)
    assert [draw.state.tokens for draw in drawn] == [draw.state.tokens for draw in whole]
    assert max(rows for rows, columns in shapes if columns == 1) == 8


def test_running_out_of_memory_while_rows_leave_the_batch_cuts_no_text(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, keys = policy_of(model, block=30), np.arange(16, dtype=np.uint64)
    expected = policy.finish(policy.start(PROBLEMS[1:2]) * 16, keys)
    keep, calls = RowCache.keep, itertools.count()

    def short_of_memory(cache: RowCache, rows: Any) -> list[int]:
        if next(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return keep(cache, rows)

    monkeypatch.setattr(RowCache, "keep", short_of_memory)
    with pytest.warns(UserWarning, match="out of memory"):
        drawn = policy.finish(policy.start(PROBLEMS[1:2]) * 16, keys)
    assert [draw.state.tokens for draw in drawn] == [draw.state.tokens for draw in expected]


def test_rewards_and_the_work_of_a_paused_batch_run_one_at_a_time(model: Any) -> None:
    running: list[int] = []

    def work() -> None:
        running.append(threading.get_ident())
        time.sleep(0.001)
        assert running.pop() == threading.get_ident() and not running

    def reward(prompt: str, text: str) -> float:
        work()
        return float(text.count("b"))

    groups = joined(policy_of(model), 4, energy_guided(reward, candidates=2, rollouts=2, lam=0.5))
    chains = 0
    for _ in run_in_groups(groups, PROBLEMS, width=4, **OPTIONS):
        with groups[0][0].paused():
            work()
        chains += 1
    assert chains == 8


def test_an_error_of_one_problem_ends_all_threads(model: Any) -> None:
    def reward(prompt: str, text: str) -> float:
        if prompt == "bb":
            raise ValueError("no")
        return 0.0

    before = threading.active_count()
    step = energy_guided(reward, candidates=2, rollouts=2, lam=0.5)
    with pytest.raises(InputError, match="the reward raised ValueError"):
        list(run_in_groups(joined(policy_of(model), 4, step), PROBLEMS, width=4, **OPTIONS))
    assert threading.active_count() == before


def test_an_error_of_the_model_ends_all_threads_and_is_raised(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("the card fell off the bus")

    before = threading.active_count()
    monkeypatch.setattr(live_rows, "draw_tokens", broken)
    with pytest.raises(RuntimeError, match="fell off"):
        list(run_in_groups(joined(policy_of(model), 4), PROBLEMS, width=4, **OPTIONS))
    assert threading.active_count() == before


def test_after_an_interruption_a_policy_draws_as_before(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    expected = tokens_of(run(policy_of(model), STEP, PROBLEMS[:4], width=2, seed=1))
    policy = policy_of(model)
    with monkeypatch.context() as patched:
        patched.setattr(live_rows, "draw_tokens", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(run(policy, STEP, PROBLEMS[:4], width=2, seed=1))
    assert tokens_of(run(policy, STEP, PROBLEMS[:4], width=2, seed=1)) == expected


def test_a_joint_batch_can_be_interrupted_within_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the end, its rows would take half a minute."""
    checkpoint = Checkpoint.loaded(random_qwen3(len(ALPHABET), end=None), tiny_tokenizer())
    policies = TransformersPolicy(checkpoint, Sampling(), Horizon(4, 2000), end_ids=()).joined(2)
    begun, raised = threading.Event(), list[BaseException]()

    def slow(*args: Any) -> Any:
        begun.set()
        time.sleep(0.02)
        return draw_tokens(*args)

    def draws(policy: TransformersPolicy) -> None:
        try:
            policy.finish(policy.start(PROBLEMS[:1]), np.arange(1, dtype=np.uint64))
        except Interrupted as error:
            raised.append(error)

    monkeypatch.setattr(live_rows, "draw_tokens", slow)
    threads = [threading.Thread(target=draws, args=(policy,), daemon=True) for policy in policies]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    policies[0].interrupt(0)
    for thread in threads:
        thread.join(timeout=10)
    assert len(raised) == 2


def test_an_evaluation_at_the_problems_own_pace_draws_the_same_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = """eval --task arithmetic --model embedded-small --count 4 --shots 0 --methods ets,majority
        --candidates 2 --rollouts 2 --lam 0.1 --pool chain --block-size 16 --max-length 32 --temperature 1.0
        --width 3 --out"""

    def texts(name: str) -> set[str]:
        main([*command.split(), str(tmp_path / name)])
        lines = (tmp_path / name / "journal.jsonl").read_text().splitlines()
        return {str((row["method"], row["problem"], row.get("text"))) for row in map(json.loads, lines)}

    together, joined_to = texts("together"), list[int]()
    begin = TransformersPolicy.joined
    monkeypatch.setattr(TransformersPolicy, "joins", True)
    monkeypatch.setattr(TransformersPolicy, "joined", lambda self, n: joined_to.append(n) or begin(self, n))
    assert texts("joined") == together and joined_to == [3, 3]
