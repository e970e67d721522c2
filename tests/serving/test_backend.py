"""A server in front of another one, which dies, is silent, or comes back on the same port."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from ets.cli import parser_of
from ets.commands.serve import Address, offer_of
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.server import Endpoint
from ets.policies.settings import Horizon, Sampling
from ets.types import Policy
from tests.serving.serving import NAME, Served, likes_a, served, until
from tests.tiny_server import FOREVER, TinyServer

QUICK = (0.01, 0.02)
"""Waits before further attempts, in seconds."""


@pytest.fixture
def backend(tiny_checkpoint: Any) -> Iterator[TinyServer]:
    with TinyServer(tiny_checkpoint) as backend:
        yield backend


def over(backend: TinyServer, waits: tuple[float, ...] = QUICK) -> Callable[[Mapping[str, Any]], Policy]:
    """Policies over a server: texts of 6 tokens, in guide steps of 2."""
    endpoint = Endpoint(backend.address, backend.checkpoint, waits=waits)
    return lambda law: EnginePolicy(endpoint, Sampling(), Horizon(2, 6))


def post(server: Served, **fields: Any) -> Any:
    return server.post("completions", {"model": NAME, "prompt": "ab", "seed": 3, **fields})


def back(dead: TinyServer) -> TinyServer:
    """A server at the port of a dead one, as soon as that one has left it."""
    found: list[TinyServer] = []

    def listens() -> bool:
        try:
            found.append(TinyServer(dead.checkpoint, port=dead.port))
        except OSError:
            return False
        return True

    until(listens)
    return found[0]


def long_seed(server: Served) -> int:
    """A seed whose text needs all three guide steps."""
    return next(n for n in range(50) if len(list(server.streamed("ab", seed=n))) == 3)


def test_requests_under_way_fail_cleanly_when_the_backend_dies(backend: TinyServer) -> None:
    """And requests after it has come back are answered."""
    with served(over(backend)) as server, ThreadPoolExecutor(4) as threads:
        expected = server.complete("ab", seed=3)["choices"]
        backend.lives = 4
        for response in threads.map(lambda n: post(server, n=4, seed=n), range(4)):
            error = response.json()["error"]
            assert response.status_code == 502 and error["type"] == "server_error" and error["code"] == "model_error"
            assert error["message"].startswith(f"the model failed: the server at {backend.address} cannot be reached")
        assert backend.dead and post(server).status_code == 502
        assert server.service.desk.working == server.service.stuck == 0
        with back(backend):
            assert server.complete("ab", seed=3)["choices"] == expected


def test_a_stream_ends_with_the_error_of_the_backend(backend: TinyServer) -> None:
    """What has been sent is final: it is the beginning of the undisturbed text."""
    with served(over(backend)) as server:
        seed = long_seed(server)
        whole = server.complete("ab", seed=seed)["choices"][0]["text"]
        begun = len(backend.seen)
        stream = server.streamed("ab", seed=seed)
        backend.lives = len(backend.seen) - begun + 6  # 2 candidates and 2 rollouts, and half of the next step
        *pieces, last = stream
        assert last["error"]["code"] == "model_error" and backend.dead
        text = "".join(piece["choices"][0]["text"] for piece in pieces)
        assert text and whole.startswith(text) and text != whole


def test_requests_go_on_when_the_backend_comes_back(backend: TinyServer, tiny_checkpoint: Any, tmp_path: Path) -> None:
    """Through the command's own options, with the waits of the command; the answers are those without the fault."""
    tiny_checkpoint.model.save_pretrained(tmp_path)
    tiny_checkpoint.tokenizer.save_pretrained(tmp_path)
    words = [
        "serve",
        "--model",
        str(tmp_path),
        "--endpoint",
        backend.address,
        "--served-name",
        NAME,
        "--methods",
        "ets",
    ]
    words += ["--reward", f"likes-a={likes_a.__module__}:{likes_a.__name__}", "--candidates", "2", "--rollouts", "1"]
    options = parser_of().parse_args([*words, "--block-size", "2", "--max-length", "6"])
    offer = offer_of(options, Address(served_name=NAME))
    with served(offer) as server, ThreadPoolExecutor(4) as threads:
        expected = [server.complete("ab", seed=n)["choices"] for n in range(4)]
        backend.lives = 5
        under_way = [threads.submit(server.complete, "ab", seed=n) for n in range(4)]
        until(lambda: backend.dead)
        assert not all(each.done() for each in under_way)
        with back(backend) as again:
            assert [each.result()["choices"] for each in under_way] == expected
            assert again.seen and server.service.desk.working == 0
    offer.policy.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_silent_backend_ends_with_the_time_limit_of_the_request(backend: TinyServer, stream: bool) -> None:
    """Its threads end too: a draw over a server is interrupted."""
    with served(over(backend), seconds=0.5) as server:
        backend.faults = [FOREVER] * 2
        response = post(server, stream=stream)
        assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
        until(lambda: server.service.stuck == 0)
        assert server.complete("ab")["choices"]


def test_a_client_that_goes_interrupts_the_draw(backend: TinyServer) -> None:
    with served(over(backend)) as server:
        backend.faults = [FOREVER] * 2
        begun = len(backend.seen)
        with pytest.raises(httpx2.TimeoutException):
            httpx2.post(f"{server.address}/completions", json={"model": NAME, "prompt": "ab"}, timeout=0.5)
        until(lambda: server.service.desk.working == server.service.stuck == 0)
        assert len(backend.seen) == begun + 2  # the candidates of the first guide step


def test_the_end_of_the_server_interrupts_draws(backend: TinyServer) -> None:
    """The answer says so: it is no failure of the model."""
    with served(over(backend)) as server, ThreadPoolExecutor(1) as threads:
        backend.faults = [FOREVER] * 2
        under_way = threads.submit(post, server)
        until(lambda: backend.busy == 2)
        server.service.end()
        assert under_way.result().status_code == 503 and under_way.result().json()["error"]["code"] == "ended"
        until(lambda: server.service.stuck == 0)


@pytest.mark.parametrize(("status", "reason"), [(500, "answers 500"), (429, "answers 429"), (400, "answers 400")])
def test_an_error_of_the_backend_is_one_of_the_model(backend: TinyServer, status: int, reason: str) -> None:
    """A client has done nothing wrong: it gets status 502, whatever the status of the server behind."""
    with served(over(backend, waits=())) as server:
        backend.faults = [status]
        response = post(server)
        assert response.status_code == 502 and reason in response.json()["error"]["message"]
        assert "\n" not in response.json()["error"]["message"]
        assert server.complete("ab")["choices"]
