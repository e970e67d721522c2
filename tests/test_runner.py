"""Chains that advance together, over policies that can be enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import pytest

from ets.baselines import plain
from ets.kernel import energy_guided
from ets.runner import run
from ets.testing import TabularPolicy, check_law
from ets.types import Chain, Cost, Draw, InputError, Keys, Policy, Problem, State, StepFn, Text
from tests.laws.masked_tabular import TabularMaskedDiffusion

PROBLEMS = [Problem(f"problem-{n}", f"prompt {n}") for n in range(5)]


@dataclass
class RecordingPolicy(TabularPolicy):
    """Remembers what it was asked to start, and counts a forward pass for each call."""

    started: list[str] = field(default_factory=list)

    def start(self, problems: Sequence[Problem]) -> list[State]:
        self.started += [problem.id for problem in problems]
        return super().start(problems)

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        draws = super().extend(states, keys)
        self.ledger += Cost(forwards=1)
        return draws

    def finish(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        draws = super().finish(states, keys)
        self.ledger += Cost(forwards=1)
        return draws


def new_policy() -> RecordingPolicy:
    return RecordingPolicy(vocabulary=4, block_size=2, max_length=6, seed=3)


def new_diffusion() -> TabularMaskedDiffusion:
    return TabularMaskedDiffusion(vocabulary=3, gen_length=4, block_length=2, steps=4, guide_steps=4, seed=3)


def count_of_a(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
    return [float(text.text.count("a")) for text in rollouts]


def guided() -> StepFn:
    return energy_guided(count_of_a, candidates=3, rollouts=2, lam=0.5)


def history(chain: Chain) -> Any:
    """A chain's tokens and, for each step, its choice, its texts, its weights and the positions that it paid for."""
    return chain.state.tokens, [
        (
            step.choice,
            [text.tokens for text in step.candidates],
            [text.tokens for row in step.rollouts for text in row],
            step.log_weights.tolist(),
            replace(step.cost, forwards=0, seconds=0, reward_seconds=0),
        )
        for step in chain.trace
    ]


MakePolicy: TypeAlias = Callable[[], Policy]


def histories(make: MakePolicy, **options: Any) -> dict[tuple[str, int], Any]:
    chains = list(run(make(), guided(), PROBLEMS, **{"width": 4, "seed": 11, "samples": 4} | options))
    result = {(chain.problem.id, chain.sample): history(chain) for chain in chains}
    assert len(result) == len(chains)
    return result


@pytest.fixture(scope="module", params=[new_policy, new_diffusion])
def make(request: pytest.FixtureRequest) -> MakePolicy:
    return request.param


@pytest.fixture(scope="module")
def alone(make: MakePolicy) -> dict[tuple[str, int], Any]:
    """Every chain by itself."""
    return histories(make, width=1)


@pytest.mark.parametrize("width", [3, 64])
def test_chains_do_not_depend_on_the_width(alone: dict[tuple[str, int], Any], make: MakePolicy, width: int) -> None:
    assert len(alone) == 20
    assert make is new_diffusion or len({len(trace) for _, trace in alone.values()}) > 1  # rooms become free unevenly
    assert histories(make, width=width) == alone


def test_chains_depend_on_the_seed_and_the_sample(alone: dict[tuple[str, int], Any], make: MakePolicy) -> None:
    other = histories(make, seed=12)
    assert sum(other[place] == chain for place, chain in alone.items()) <= 2  # short ones may agree by chance
    assert len({str(alone["problem-1", sample]) for sample in range(4)}) == 4


def test_done_chains_are_left_out_and_the_others_are_unchanged(
    alone: dict[tuple[str, int], Any], make: MakePolicy
) -> None:
    done = {("problem-0", 0), ("problem-2", 1), ("problem-2", 2), *(("problem-3", n) for n in range(4))}
    assert histories(make, done=done) == {place: chain for place, chain in alone.items() if place not in done}


def test_problems_that_are_done_are_not_started() -> None:
    policy, done = new_policy(), {("problem-1", 0), ("problem-1", 1)}
    assert len(list(run(policy, plain(), PROBLEMS, width=2, seed=0, samples=2, done=done))) == 8
    assert policy.started == ["problem-0", "problem-2", "problem-3", "problem-4"]


@pytest.mark.parametrize(("width", "samples"), [(1, 3), (2, 5), (7, 3), (64, 4)])
def test_samples_of_a_problem_share_a_start_state_also_across_refills(width: int, samples: int) -> None:
    policy, step = new_policy(), guided()
    starts: dict[str, list[State]] = {problem.id: [] for problem in PROBLEMS}

    def noting(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        for chain in chains:
            if not chain.trace:
                starts[chain.problem.id].append(chain.state)
        return step(policy, chains)

    assert len(list(run(policy, noting, PROBLEMS, width=width, seed=0, samples=samples))) == 5 * samples
    assert policy.started == [problem.id for problem in PROBLEMS]
    for states in starts.values():
        assert len(states) == samples and all(state is states[0] for state in states)


def test_no_more_than_width_chains_advance_together_and_room_is_refilled() -> None:
    sizes, step = [], guided()

    def noting(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        sizes.append(len(chains))
        return step(policy, chains)

    chains = list(run(new_policy(), noting, PROBLEMS, width=6, seed=0, samples=4))
    assert sum(sizes) == sum(len(chain.trace) for chain in chains)
    full = sizes.count(6)
    assert full > 20 / 6 and sizes[:full] == [6] * full  # all rooms are taken until nobody waits
    assert sizes[full:] == sorted(sizes[full:], reverse=True)


def test_problems_are_read_as_room_becomes_free() -> None:
    endless: Iterator[Problem] = (Problem(str(n), f"prompt {n}") for n in itertools.count())
    chains = run(new_policy(), plain(), endless, width=3, seed=0)
    assert [chain.problem.id for chain in itertools.islice(chains, 6)] == [str(n) for n in range(6)]
    assert next(endless).id == "6"


def test_forward_passes_and_seconds_of_the_chains_add_up() -> None:
    policy, steps, step = new_policy(), itertools.count(), guided()

    def counting(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        next(steps)
        return step(policy, chains)

    clock = map(float, itertools.count()).__next__  # a step takes one second
    chains = run(policy, counting, PROBLEMS, width=6, seed=0, samples=3, clock=clock)
    total = Cost.total(chain.cost for chain in chains)
    assert total.forwards == pytest.approx(policy.ledger.forwards) and policy.ledger.forwards > 0
    assert total.seconds == pytest.approx(next(steps))
    assert (total.candidate, total.rollout, total.generated) == (
        policy.ledger.candidate,
        policy.ledger.rollout,
        policy.ledger.generated,
    )


def test_chains_that_advance_together_pay_by_their_token_positions() -> None:
    policy = new_policy()
    chains = list(run(policy, plain(), PROBLEMS, width=64, seed=0, samples=4))  # one step, so one bill
    total = sum(chain.cost.positions for chain in chains)
    seconds = sum(chain.cost.seconds for chain in chains)
    assert len({chain.cost.positions for chain in chains}) > 1 and seconds > 0
    for chain in chains:
        share = chain.cost.positions / total
        assert chain.cost.forwards == pytest.approx(share) and chain.cost.seconds == pytest.approx(share * seconds)


def test_chains_of_a_step_without_positions_pay_equally() -> None:
    def free(policy: Policy, chains: Sequence[Chain]) -> list[Chain]:
        advanced = plain()(policy, chains)
        return [replace(c, trace=(replace(c.trace[0], cost=Cost(generated=1)),)) for c in advanced]

    chains = list(run(new_policy(), free, PROBLEMS, width=64, seed=0))
    assert [chain.cost.forwards for chain in chains] == [pytest.approx(1 / 5)] * 5
    assert [chain.cost.generated for chain in chains] == [1] * 5


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", None])
@pytest.mark.parametrize("name", ["width", "samples"])
def test_a_bad_width_or_number_of_samples_is_named(name: str, value: Any) -> None:
    options = {"width": 2, "samples": 2} | {name: value}
    with pytest.raises(InputError, match=f"^{name} is "):
        list(run(new_policy(), plain(), PROBLEMS, seed=0, **options))


def test_chains_that_end_at_minus_infinity_are_marked_invalid() -> None:
    def forbid(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [-np.inf if "a" in text.text else 0.0 for text in rollouts]

    step = energy_guided(forbid, candidates=2, rollouts=1, lam=0.5)
    chains = list(run(new_policy(), step, PROBLEMS, width=64, seed=0, samples=40))
    assert [chain.valid for chain in chains] == ["a" not in chain.state.text for chain in chains]
    assert {chain.valid for chain in chains} == {True, False}


def test_a_step_without_any_weight_picks_uniformly_at_level_1e_4_and_says_so() -> None:
    def forbid_all(problem: Problem, rollouts: Sequence[Text], chain: Chain) -> list[float]:
        return [-np.inf] * len(rollouts)

    step = energy_guided(forbid_all, candidates=4, rollouts=1, lam=0.5)
    chains = list(run(new_policy(), step, PROBLEMS[:1], width=1000, seed=0, samples=3000))
    steps = [step for chain in chains for step in chain.trace]
    assert all(step.uninformed for step in steps) and not any(chain.valid for chain in chains)
    check_law((step.choice for step in steps), dict.fromkeys(range(4), 0.25), level=1e-4)


def test_a_step_with_some_weight_is_informed() -> None:
    chains = list(run(new_policy(), guided(), PROBLEMS, width=64, seed=0))
    assert not any(step.uninformed for chain in chains for step in chain.trace)


@pytest.mark.parametrize("returned", ["nothing", "too few chains", "chains without a further step"])
def test_a_step_function_that_does_not_advance_its_chains_is_named(returned: str) -> None:
    def step(policy: Policy, chains: Sequence[Chain]) -> Any:
        return {"nothing": None, "too few chains": []}.get(returned, list(chains))

    with pytest.raises(InputError, match="must return the 1 chains that it got, in the same order"):
        next(run(RecordingPolicy(), step, [Problem("p", "a")], width=1, seed=0))
