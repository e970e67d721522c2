"""Faults of one request: a reward that dies or hangs, a client that goes, a full queue; no other request notices."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.settings import Horizon, Sampling
from ets.serving.work import Desk, Work
from ets.types import Draw, Keys, State
from tests.serving.serving import NAME, Served, always, events, likes_a, served, until

GATE = threading.Event()
"""Held rewards and held draws wait for it. Every test begins with a closed gate, and ends with an open one."""


@pytest.fixture(autouse=True)
def gate() -> Iterator[threading.Event]:
    GATE.clear()
    yield GATE
    GATE.set()


def raising(error: BaseException) -> Callable[[str], float]:
    def reward(text: str) -> float:
        raise error

    return reward


def held(text: str) -> float:
    GATE.wait(10)
    return 0.0


FAULTS: dict[str, Callable[[str], Any]] = {
    "raise": lambda text: 1 / 0,
    "exit": lambda text: sys.exit("enough"),
    "interrupt": raising(KeyboardInterrupt()),
    "cancel": raising(asyncio.CancelledError()),
    "nan": lambda text: float("nan"),
    "inf": lambda text: float("inf"),
    "none": lambda text: None,
    "text": lambda text: "0.5",
    "hold": held,
}


def faulty(prompt: str, text: str) -> Any:
    """A reward with the fault that the prompt names; any other prompt has a sound one."""
    fault = FAULTS.get(prompt)
    return likes_a(prompt, text) if fault is None else fault(text)


def one_number(problem: Any, rollouts: Sequence[Any], chain: Any) -> Any:
    return [0.5]


def later(problem: Any, rollouts: Sequence[Any], chain: Any) -> Any:
    """A reward whose fault shows after the first guide step."""
    return [faulty(problem.raw_prompt if chain.trace else "sound", each.text) for each in rollouts]


REWARDS = {"faulty": faulty, "sound": likes_a, "one-number": one_number, "later": later}
SOUND = ("Question: Mia has 3 eggs.", "Question: Tom has 5 eggs.", "Question: Ann has 8 eggs.")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(rewards=REWARDS, reward_seconds=0.6) as server:
        yield server


@pytest.fixture(scope="module")
def alone(server: Served) -> list[Any]:
    """The answers to the sound prompts, one after the other."""
    return [server.complete(each, seed=n)["choices"] for n, each in enumerate(SOUND)]


def post(server: Served, prompt: str, **fields: Any) -> httpx2.Response:
    return server.post("completions", {"model": NAME, "prompt": prompt, **fields})


def failed(response: httpx2.Response | dict[str, Any]) -> dict[str, Any]:
    """The error, after its shape has been checked."""
    body = response if isinstance(response, dict) else response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return dict(body["error"])


@pytest.mark.parametrize(
    ("prompt", "reward", "code", "reason"),
    [
        ("raise", "faulty", "reward_error", "the reward raised ZeroDivisionError for problem '0': division by zero"),
        (
            "exit",
            "faulty",
            "reward_error",
            "the reward raised SystemExit for problem '0': enough",
        ),
        ("interrupt", "faulty", "reward_error", "KeyboardInterrupt()"),
        ("cancel", "faulty", "reward_error", "CancelledError()"),
        ("nan", "faulty", "reward_error", "the reward gave nan"),
        ("inf", "faulty", "reward_error", "the reward gave inf"),
        ("none", "faulty", "reward_error", "None counts as nan"),
        ("text", "faulty", "reward_error", "a reward is text; return a number"),
        ("any", "one-number", "reward_error", "it needs one number for each of 2 rollouts"),
        ("hold", "faulty", "reward_timeout", "the reward 'faulty' took longer than 0.6 s"),
    ],
)
def test_a_reward_that_fails_fails_its_own_request(
    server: Served, alone: list[Any], prompt: str, reward: str, code: str, reason: str
) -> None:
    """The other requests get the texts that they get alone."""
    with ThreadPoolExecutor(8) as threads:
        bad = threads.submit(post, server, prompt, ets={"reward": reward})
        good = [threads.submit(post, server, each, seed=n) for n, each in enumerate(SOUND)]
        assert [each.result().json()["choices"] for each in good] == alone
        response = bad.result()
    assert response.status_code == 500 and failed(response)["type"] == "server_error"
    assert failed(response)["code"] == code and reason in failed(response)["message"]
    assert "\n" not in failed(response)["message"] and server.service.desk.working == 0


def late_fault(server: Served, prompt: str) -> dict[str, Any]:
    """The fields of a stream whose fault comes after its first text."""
    seeds = range(50)
    seed = next(n for n in seeds if len(list(server.streamed(prompt, seed=n, ets={"reward": "sound"}))) > 2)
    return {"seed": seed, "ets": {"reward": "later"}}


@pytest.mark.parametrize(("prompt", "code"), [("raise", "reward_error"), ("exit", "reward_error")])
def test_a_stream_ends_with_the_error_of_its_reward(server: Served, prompt: str, code: str) -> None:
    """After the text of the first guide step; an error in that step has its own status."""
    first, *_, last = server.streamed(prompt, **late_fault(server, prompt))
    assert first["choices"][0]["text"] and failed(last)["code"] == code
    early = post(server, prompt, stream=True, ets={"reward": "faulty"})
    assert early.status_code == 500 and failed(early)["code"] == code


def test_a_stream_with_a_hanging_reward_ends_at_its_limit(server: Served) -> None:
    first, *_, last = server.streamed("hold", **late_fault(server, "hold"))
    assert first["choices"][0]["text"] and failed(last)["code"] == "reward_timeout"


def test_hanging_threads_are_counted_and_hold_no_place(gate: threading.Event) -> None:
    with served(rewards=REWARDS, reward_seconds=0.3, width=1) as server:
        assert [post(server, "hold").status_code for _ in range(3)] == [500, 500, 500]
        assert httpx2.get(f"{server.root}/health").json() == {"status": "ok", "working": 0, "waiting": 0, "stuck": 3}
        assert server.metric("ets_requests_stuck") == 3
        assert post(server, SOUND[0]).status_code == 200
        gate.set()
        until(lambda: httpx2.get(f"{server.root}/health").json()["stuck"] == 0)


def test_the_server_forgets_requests_that_have_ended(server: Served) -> None:
    """Also where nobody asks for its health."""
    for _ in range(6):
        server.complete("any", max_tokens=8)
    gc.collect()
    assert sum(type(each) is Work for each in gc.get_objects()) <= 3


class Held(TransformersPolicy):
    """Texts of six tokens, a token in each guide step; the draws wait for the gate after `free` guide steps."""

    drawn = 0
    free = 1

    def extend(self, states: Sequence[State], keys: Keys) -> list[Draw]:
        self.drawn += 1
        if self.drawn > self.free:
            GATE.wait(10)
        return super().extend(states, keys)


@pytest.fixture
def held_policy(tiny_checkpoint: Any) -> Held:
    return Held(tiny_checkpoint, Sampling(), Horizon(1, 6), end_ids=())


def statuses(caplog: pytest.LogCaptureFixture) -> list[int]:
    return [json.loads(record.message)["status"] for record in caplog.records if record.name == "ets.serving"]


def requested(server: Served, **fields: Any) -> socket.socket:
    """A connection with a request whose answer has not been read."""
    body = json.dumps({"model": NAME, "prompt": "a", **fields}).encode()
    host, port = server.root.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("method", ["ets", "plain"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_work_for_a_client_that_goes_ends_within_a_guide_step(
    method: str, stream: bool, held_policy: Held, caplog: pytest.LogCaptureFixture
) -> None:
    """The client goes during the draw of the second guide step: nothing is drawn after that, and all is counted."""
    caplog.set_level(logging.INFO, "ets.serving")
    with served(always(held_policy), width=1, methods=(method,)) as server:
        connection = requested(server, stream=stream)
        while stream and b'"text"' not in connection.recv(4096):
            pass
        until(lambda: held_policy.drawn == 2)
        connection.close()
        until(lambda: server.service.desk.working == 0)
        until(lambda: statuses(caplog) == [499])
        assert httpx2.get(f"{server.root}/health").json()["stuck"] == 1
        before = held_policy.ledger.generated
        GATE.set()
        until(lambda: server.service.stuck == 0)
        step = 2 if method == "ets" else 1  # a token for each candidate
        assert held_policy.drawn == 2 and held_policy.ledger.generated == before + step
        assert server.metric('ets_tokens_total{kind="generated"}') == held_policy.ledger.generated
        assert server.complete("a")["choices"][0]["finish_reason"] == "length"


def test_a_client_that_goes_while_it_waits_leaves_the_queue(
    held_policy: Held, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ets.serving")
    held_policy.free = 0
    with served(always(held_policy), width=1) as server:
        first, second = requested(server), requested(server)
        until(lambda: server.service.desk.waiting == 1 and held_policy.drawn == 1)
        second.close()
        until(lambda: server.service.desk.waiting == 0)
        assert statuses(caplog) == [499] and server.service.desk.working == 1
        GATE.set()
        assert b"200 OK" in first.recv(4096)
        first.close()
        until(lambda: server.service.desk.working == 0)
        assert held_policy.drawn == 6  # those of the first request


def test_a_full_queue_refuses_and_says_when_to_come_back(held_policy: Held) -> None:
    held_policy.free = 0
    with served(always(held_policy), width=1, queue=1) as server, ThreadPoolExecutor(2) as threads:
        under_way = [threads.submit(server.complete, "a") for _ in range(2)]
        until(lambda: server.service.desk.waiting == 1 and server.service.desk.working == 1)
        for stream in (False, True):
            refused = post(server, "a", stream=stream)
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
            assert failed(refused)["type"] == "rate_limit_error" and failed(refused)["code"] == "queue_full"
        GATE.set()
        assert all(each.result()["choices"] for each in under_way)
        assert server.complete("a")["choices"]


def test_a_free_place_is_taken_at_once() -> None:
    """A request that comes a moment later finds the queue empty."""

    async def entered(desk: Desk) -> None:
        async with desk.place(time.monotonic() + 10):
            await asyncio.sleep(0.01)

    async def one_after_the_other() -> None:
        desk = Desk(1, 1)
        first = asyncio.create_task(entered(desk))
        await asyncio.sleep(0)
        await asyncio.gather(first, entered(desk))
        assert desk.working == desk.waiting == 0

    asyncio.run(one_after_the_other())


def test_a_queue_of_none_still_serves(held_policy: Held) -> None:
    GATE.set()
    with served(always(held_policy), width=1, queue=0) as server:
        assert server.complete("a")["choices"]


def test_requests_that_take_too_long_end_at_work_and_in_the_queue(held_policy: Held) -> None:
    with served(always(held_policy), width=1, seconds=0.6) as server, ThreadPoolExecutor(2) as threads:
        late = list(threads.map(lambda _: post(server, "a"), range(2)))
        assert [each.status_code for each in late] == [504, 504]
        messages = sorted(failed(each)["message"] for each in late)
        assert messages[0].startswith("the request took longer than 0.6 s")
        assert messages[1].startswith("the request waited too long for its turn")
        GATE.set()
        assert server.complete("a")["choices"]


def test_a_stream_that_takes_too_long_ends_with_the_error(held_policy: Held) -> None:
    """The events are text, then the error, then [DONE]; without any text the error has its own status."""
    with served(always(held_policy), seconds=0.6) as server:
        first, last = server.streamed("a")
        assert first["choices"][0]["text"] and failed(last)["code"] == "timeout"
        assert held_policy.drawn == 2  # the later draw waits
        early = post(server, "a", stream=True)
        assert early.status_code == 504 and failed(early)["code"] == "timeout"
        GATE.set()


def test_requests_under_way_and_later_ones_are_answered_while_the_server_ends(held_policy: Held) -> None:
    """A draw and a reward that hang do not hold the answers back."""
    with served(always(held_policy), rewards=REWARDS, width=2) as server, ThreadPoolExecutor(4) as threads:
        stream = server.streamed("a")
        assert next(stream)["choices"][0]["text"]
        whole = threads.submit(post, server, "hold", ets={"reward": "faulty"})
        waiting = threads.submit(post, server, "a")
        until(lambda: server.service.desk.waiting == 1)
        server.service.end()
        assert failed(next(stream))["code"] == "ended" and list(stream) == []
        for response in (whole.result(), waiting.result(), post(server, "a")):
            assert response.status_code == 503 and failed(response)["code"] == "ended"
        GATE.set()


def test_the_events_of_a_stream_end_once(server: Served) -> None:
    body = {"model": NAME, "prompt": "raise", "stream": True, **late_fault(server, "raise")}
    with httpx2.stream("POST", f"{server.address}/completions", json=body, timeout=30) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines.count("data: [DONE]") == 1 and lines[-1] == "data: [DONE]"
    assert len(list(events(lines))) == len(lines) - 1
