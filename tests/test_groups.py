"""Groups of chains in threads: the chains of one run, and an end that leaves no thread behind."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from ets import groups as groups_module
from ets.groups import run_in_groups
from ets.kernel import energy_guided
from ets.runner import run
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Policy, Problem, StepFn, Text

PROBLEMS = [Problem(f"problem-{n}", f"prompt {n}") for n in range(12)]


def group() -> tuple[TabularPolicy, StepFn]:
    def count_of_a(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [float(text.text.count("a")) for text in rollouts]

    policy = TabularPolicy(vocabulary=4, block_size=2, max_length=6, seed=3)
    return policy, energy_guided(count_of_a, candidates=3, rollouts=2, lam=0.5)


def test_groups_draw_the_chains_of_one_run() -> None:
    groups = [group() for _ in range(3)]
    options = {"width": 6, "seed": 1, "samples": 2, "done": {("problem-3", 1)}}
    found = {(c.problem.id, c.sample): c for c in run_in_groups(groups, PROBLEMS, **options)}
    expected = {(c.problem.id, c.sample): c for c in run(*group(), PROBLEMS, **options)}
    assert len(found) == 23 and {k: c.state.tokens for k, c in found.items()} == {
        k: c.state.tokens for k, c in expected.items()
    }
    assert sum(policy.ledger.generated for policy, _ in groups) == sum(c.cost.generated for c in found.values())


def test_groups_are_under_way_at_once() -> None:
    """Each group's first step waits until the other one has begun its own."""
    both = threading.Barrier(2, timeout=120)

    def meeting(policy: Policy, step: StepFn) -> tuple[Policy, StepFn]:
        waited = iter([both.wait])

        def wait_once(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
            for wait in waited:
                wait()
            return step(policy, chains)

        return policy, wait_once

    groups = [meeting(*group()) for _ in range(2)]
    assert len(list(run_in_groups(groups, PROBLEMS, width=2, seed=1))) == 12


def test_steps_under_way_share_the_seconds_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step from second 0 to 6, another from 2 to 10: 2 + 4/2 and 4/2 + 4 seconds."""
    seconds = iter([0.0, 0.0, 2.0, 6.0, 10.0])
    monkeypatch.setattr(groups_module.time, "perf_counter", lambda: next(seconds))
    shared = groups_module._Shared([])
    one, other = shared.clock(begun=1), shared.clock(begun=1)
    assert (shared.clock(begun=-1) - one, shared.clock(begun=-1) - other) == (4.0, 6.0)


def test_the_seconds_of_all_chains_are_not_more_than_passed() -> None:
    """Four groups whose steps sleep at once; without the shared clock the sum is almost four times as much."""

    def slow(policy: Policy, step: StepFn) -> tuple[Policy, StepFn]:
        def slowed(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
            time.sleep(0.01)
            return step(policy, chains)

        return policy, slowed

    begun = time.perf_counter()
    chains = list(run_in_groups([slow(*group()) for _ in range(4)], PROBLEMS, width=4, seed=1))
    passed = time.perf_counter() - begun
    assert 0 < sum(chain.cost.seconds for chain in chains) < 1.5 * passed


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.usefixtures("no_threads_left")
def test_an_error_in_one_group_is_raised_and_ends_the_others() -> None:
    problems = itertools.chain(PROBLEMS, PROBLEMS[:1])
    with pytest.raises(InputError, match="two problems have the id 'problem-0'"):
        list(run_in_groups([group(), group()], problems, width=2, seed=1))


@pytest.mark.usefixtures("no_threads_left")
def test_a_reader_that_leaves_ends_the_threads() -> None:
    endless = (Problem(str(number), "prompt") for number in itertools.count())
    chains = run_in_groups([group(), group()], endless, width=2, seed=1)
    assert next(chains).state.done
    chains.close()
