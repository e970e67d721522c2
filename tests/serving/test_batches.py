"""Draws of threads in shared batches: the same results, shares of the cost, and no thread that stops another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from ets import baselines
from ets.demo import model_path
from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.runner import run
from ets.serving import batches as module
from ets.serving.batches import Batches, Ended, ModelError, RequestPolicy, alone
from ets.suffix_moves import refined
from ets.testing import TabularPolicy
from ets.types import Chain, Cost, Draw, InputError, Keys, Policy, Problem, State, StepFn

LONG, SOON = 60.0, 30.0
"""A patience that no test waits for, and a time in which everything else ends."""
QUESTIONS = ("Question: Tom has 5 eggs. He buys 4.", "Question: Mia has 14 shells.", "Question: Ben has 3 cards.")


def liking(prompt: Any, text: str) -> float:
    return 0.3 * text.count("a") + 0.1 * text.count("1")


STEPS: dict[str, StepFn] = {
    "ets": energy_guided(liking, candidates=3, rollouts=2, lam=0.2),
    "particles": baselines.particle_filter(liking, particles=3, lam=0.2),
    "best-of-n": baselines.best_of_n(liking, samples=4),
    "refined": refined(liking, lam=0.2, budget=120),
}


class Watched(TabularPolicy):
    """A table that records its calls, waits at each for `open`, and raises `failure` for the problem "bad"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.open, self.begun = threading.Event(), threading.Event()
        self.open.set()
        self.seen: list[tuple[str, list[str]]] = []
        self.failure: BaseException = RuntimeError("out of memory")

    def start(self, problems: Sequence[Problem]) -> list[State]:
        self._see("start", problems)
        return super().start(problems)

    def extend(self, states: Sequence[Any], keys: Keys) -> list[Draw]:
        self._see("extend", [state.problem for state in states])
        return super().extend(states, keys)

    def finish(self, states: Sequence[Any], keys: Keys) -> list[Draw]:
        self._see("finish", [state.problem for state in states])
        return super().finish(states, keys)

    def _see(self, kind: str, problems: Sequence[Problem]) -> None:
        self.begun.set()
        assert self.open.wait(SOON)
        ids = [problem.id for problem in problems]
        self.seen.append((kind, ids))
        if kind != "start" and "bad" in ids:
            raise self.failure


@pytest.fixture
def batches() -> Iterator[Batches]:
    with Batches() as made:
        yield made


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches wait for all threads that are expected to draw, however busy the machine is."""
    monkeypatch.setattr(module, "LEAST", LONG)
    monkeypatch.setattr(module, "MOST", LONG)


def threads(*works: Callable[[], object]) -> list[object]:
    """What the functions return or raise, each from its own thread."""
    found: list[object] = [None] * len(works)

    def work(n: int) -> None:
        try:
            found[n] = works[n]()
        except BaseException as error:
            found[n] = error

    begun = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(works))]
    for thread in begun:
        thread.start()
    for thread in begun:
        thread.join(3 * SOON)
        assert not thread.is_alive(), "a thread waits for ever"
    return found


def key(*numbers: int) -> Keys:
    return np.array(numbers, np.uint64)


def busy(policy: Watched) -> None:
    """Return as soon as the policy has been called."""
    assert policy.begun.wait(SOON)


def waiting(batches: Batches, count: int) -> None:
    """Return as soon as so many calls wait."""
    with batches._changed:
        assert batches._changed.wait_for(lambda: len(batches._waiting) == count, SOON)


def problem(name: str) -> Problem:
    return Problem(name, (1,))


def drawn(chains: Sequence[Chain]) -> list[tuple[Any, ...]]:
    """What chains hold, without the seconds and the forward passes that they share."""
    return [
        (c.problem.id, c.sample, c.state.tokens, [(s.choice, s.cost.generated, s.cost.positions) for s in c.trace])
        for c in sorted(chains, key=lambda chain: (chain.problem.id, chain.sample))
    ]


class Request:
    """The chains of a thread: a policy, a method, and a seed that no other thread has."""

    def __init__(self, policy: Policy, method: str, seed: int, prompts: Sequence[Any]) -> None:
        self.policy, self.step, self.seed = policy, STEPS[method], seed
        self.problems = [Problem(str(n), prompt) for n, prompt in enumerate(prompts)]

    def over(self, policy: Policy) -> list[Chain]:
        return list(run(policy, self.step, self.problems, width=4, seed=self.seed, samples=2))

    def through(self, batches: Batches) -> tuple[RequestPolicy, list[Chain]]:
        policy = batches.policy(self.policy)
        try:
            return policy, self.over(policy)
        finally:
            batches.leave()


def test_chains_of_threads_equal_those_of_run(batches: Batches, patient: None) -> None:
    """Four methods under two laws, at once: token for token, with the costs of each guide step."""
    checkpoint = Checkpoint(model_path("small"), torch.float64, "cpu")
    laws = [TransformersPolicy(checkpoint, Sampling(temperature), Horizon(8, 24)) for temperature in (1.0, 0.6)]
    requests = [
        Request(law, method, seed, QUESTIONS[: 1 + seed % 3])
        for seed, (law, method) in enumerate((law, method) for law in laws for method in STEPS)
    ]
    found: Any = threads(*(lambda r=request: r.through(batches) for request in requests))
    spent = [law.ledger for law in laws]
    for request, (policy, chains) in zip(requests, found, strict=True):
        assert drawn(chains) == drawn(request.over(request.policy))
        assert policy.ledger.positions == sum(chain.cost.positions for chain in chains)
        prompts = request.policy.start(request.problems)
        assert policy.prompt_tokens == sum(len(state.prompt) for state in prompts)  # type: ignore[attr-defined]
    assert batches.batches < 0.8 * batches.calls, "the threads share no passes"
    assert len({str(drawn(chains)) for _, chains in found}) == len(requests)  # or nothing was compared
    for law, whole in zip(laws, spent, strict=True):
        shares = Cost.total(policy.ledger for policy, _ in found if policy.policy is law)
        assert shares.forwards == pytest.approx(whole.forwards)
        for name in ("prompt", "candidate", "rollout", "generated", "row_forwards", "vocabulary"):
            assert getattr(shares, name) == getattr(whole, name), name


def test_threads_meet_at_the_beginning_of_a_guide_step(batches: Batches, patient: None) -> None:
    """A request that joins later draws its candidates in the batch of the others' next guide step."""
    policy, late = Watched(), threading.Event()

    def request(name: str) -> None:
        mine = batches.policy(policy)
        (state,) = mine.start([problem(name)])
        mine.extend([state], key(1))
        if name == "first":
            late.set()
            waiting(batches, 1)
        mine.finish([state], key(2))
        mine.extend([state], key(3))
        batches.leave()

    def join() -> None:
        assert late.wait(SOON)
        request("late")

    threads(lambda: request("first"), join)
    assert [(kind, sorted(ids)) for kind, ids in policy.seen] == [
        ("start", ["first"]),
        ("extend", ["first"]),
        ("start", ["late"]),
        ("finish", ["first"]),
        ("extend", ["first", "late"]),
        ("finish", ["late"]),
        ("extend", ["late"]),
    ]


@pytest.mark.parametrize("failure", [RuntimeError("out of memory"), SystemExit(3), InputError("no such token")])
def test_a_row_that_fails_fails_its_call_alone(batches: Batches, patient: None, failure: BaseException) -> None:
    policy, plain = Watched(), TabularPolicy()
    policy.failure = failure
    states = {name: policy.start([problem(name)])[0] for name in ("a", "bad", "b")}
    policy.open.clear()
    policy.seen.clear()
    mine = {name: batches.policy(policy) for name in (*states, "first")}

    def draw(name: str) -> list[Draw]:
        try:
            return mine[name].extend([states[name]] * 2, key(7, 8))
        finally:
            batches.leave()

    def first() -> None:
        mine["first"].start([problem("first")])
        batches.leave()

    def open_later() -> None:
        waiting(batches, 3)
        policy.open.set()

    def delayed(name: str) -> list[Draw]:
        busy(policy)  # with `first`
        return draw(name)

    policy.begun.clear()
    a, bad, b, _, _ = threads(*(lambda n=name: delayed(n) for name in states), first, open_later)
    assert ("extend", ["a", "a", "bad", "bad", "b", "b"]) in [
        (kind, sorted(ids, key=["a", "bad", "b"].index)) for kind, ids in policy.seen if kind == "extend"
    ]
    expected = [draw.state.tokens for draw in plain.extend(plain.start([problem("a")]) * 2, key(7, 8))]
    for found in (a, b):
        assert isinstance(found, list) and [draw.state.tokens for draw in found] == expected
    assert isinstance(bad, ModelError if isinstance(failure, InputError) else type(failure)), bad
    assert mine["bad"].ledger == Cost() and mine["a"].ledger.generated > 0


def test_a_prompt_that_cannot_be_continued_stays_an_input_error(batches: Batches) -> None:
    class Refusing(TabularPolicy):
        def start(self, problems: Sequence[Problem]) -> list[State]:
            raise InputError("the prompt is too long")

    with pytest.raises(InputError, match="too long"):
        batches.policy(Refusing()).start([problem("p")])


def test_too_few_results_are_given_to_nobody(batches: Batches) -> None:
    class Short(TabularPolicy):
        def extend(self, states: Sequence[Any], keys: Keys) -> list[Draw]:
            return super().extend(states, keys)[1:]

    policy = Short()
    with pytest.raises(ModelError, match="1 results for 2 rows"):
        batches.policy(policy).extend(policy.start([problem("p")]) * 2, key(1, 2))


def test_a_stream_of_rollouts_does_not_starve_candidates(batches: Batches) -> None:
    """Rollouts go before candidates, even under other laws; but a call that was overtaken goes first, by age."""
    laws, order = [Watched(seed=n) for n in range(5)], list[str]()
    extended, any_begun = threading.Event(), threading.Event()
    for law in laws:
        law.open.clear()
        law.begun = any_begun

    def stream(n: int) -> None:
        mine = batches.policy(laws[n])
        (state,) = TabularPolicy.start(laws[n], [problem("p")])
        for _ in range(40):
            mine.finish([state], key(1))
            order.append("finish")
            if extended.is_set():
                break
        batches.leave()

    def candidate() -> None:
        mine = batches.policy(laws[4])
        (state,) = TabularPolicy.start(laws[4], [problem("p")])
        mine.extend([state], key(1))
        order.append("extend")
        extended.set()
        batches.leave()

    def release() -> None:
        assert any_begun.wait(SOON)
        waiting(batches, 4)  # and the first one is with the model
        for law in laws:
            law.open.set()

    threads(*(lambda n=n: stream(n) for n in range(4)), candidate, release)
    before = order.index("extend")
    assert 1 <= before <= 8, order


def test_rollouts_go_before_candidates(batches: Batches) -> None:
    policy = Watched()
    (state,) = policy.start([problem("p")])
    policy.open.clear()
    policy.seen.clear()
    policy.begun.clear()

    def after(count: int, kind: str) -> None:
        busy(policy)
        waiting(batches, count)
        mine = batches.policy(policy)
        getattr(mine, kind)([state], key(1))
        batches.leave()

    def first() -> None:
        batches.policy(policy).start([problem("first")])
        batches.leave()

    def release() -> None:
        waiting(batches, 2)
        policy.open.set()

    threads(first, lambda: after(0, "extend"), lambda: after(1, "finish"), release)
    assert [kind for kind, _ in policy.seen] == ["start", "finish", "extend"]


def test_the_end_reaches_waiting_and_later_draws() -> None:
    policy, batches = Watched(), Batches()
    policy.open.clear()

    def draw() -> object:
        return batches.policy(policy).start([problem("p")])

    def second() -> object:
        busy(policy)
        return draw()

    def close() -> None:
        busy(policy)
        waiting(batches, 1)
        closing = threading.Thread(target=batches.close)
        closing.start()
        while not batches._closed:
            pass
        policy.open.set()
        closing.join(SOON)
        assert not closing.is_alive()

    done, ended, _ = threads(draw, second, close)
    assert isinstance(done, list) and isinstance(ended, Ended)
    (late,) = threads(draw)
    assert isinstance(late, Ended)


def test_an_ended_request_draws_no_more(batches: Batches) -> None:
    policy = Watched()
    for mine in (batches.policy(policy), alone(policy)):
        (state,) = mine.start([problem("p")])
        mine.ended = True
        for method in (mine.extend, mine.finish):
            with pytest.raises(Ended):
                method([state], key(1))
    assert [kind for kind, _ in policy.seen] == ["start", "start"]


def test_no_batch_waits_for_a_thread_that_has_left(batches: Batches, patient: None) -> None:
    """Or each of the others' batches would wait for its patience, here 60 s."""
    policy, left = TabularPolicy(), threading.Event()

    def leaves() -> None:
        batches.policy(policy).start([problem("p")])
        batches.leave()
        left.set()

    def goes_on() -> None:
        assert left.wait(SOON)
        batches.policy(policy).start([problem("q")])
        batches.leave()

    done = threading.Event()
    threading.Thread(target=lambda: (threads(leaves, goes_on), done.set()), daemon=True).start()
    assert done.wait(SOON)


def test_a_batch_waits_for_the_first_draw_of_a_thread_that_has_joined(batches: Batches, patient: None) -> None:
    """Or the requests that come together would begin one after another."""
    policy, joined, begun = Watched(), threading.Event(), threading.Event()

    def early() -> None:
        assert joined.wait(SOON)
        begun.set()
        batches.policy(policy).start([problem("early")])
        batches.leave()

    def late() -> None:
        batches.join()
        joined.set()
        assert begun.wait(SOON)
        waiting(batches, 1)
        batches.policy(policy).start([problem("late")])
        batches.leave()

    threads(early, late)
    assert [(kind, sorted(ids)) for kind, ids in policy.seen] == [("start", ["early", "late"])]


def test_a_thread_that_hangs_stops_no_other(batches: Batches) -> None:
    """The others wait for it once, for the time of their patience."""
    policy, hanging, over = TabularPolicy(), threading.Event(), threading.Event()

    def hangs() -> None:
        batches.policy(policy).start([problem("p")])
        hanging.set()
        over.wait(3 * SOON)

    threading.Thread(target=hangs, daemon=True).start()
    assert hanging.wait(SOON)
    request, done = Request(policy, "ets", 3, [(1,), (2,)]), threading.Event()
    threading.Thread(target=lambda: (request.through(batches), done.set()), daemon=True).start()
    assert done.wait(SOON)
    over.set()


def test_a_request_tells_whether_its_thread_waits_for_the_model(batches: Batches) -> None:
    policy = Watched()
    policy.open.clear()
    mine = batches.policy(policy)
    begun = mine.since
    assert not mine.drawing

    def look() -> tuple[bool, float]:
        busy(policy)
        found = mine.drawing, mine.since
        policy.open.set()
        return found

    _, (drawing, since) = threads(lambda: mine.start([problem("p")]), look)
    assert drawing and begun < since < mine.since and not mine.drawing
