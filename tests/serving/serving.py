"""A server over a tiny model, in a thread of the test's process, and its clients."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx2
import uvicorn

from ets.chat import Chat
from ets.commands.sample import EMBEDDED
from ets.evaluation.methods import MethodSettings
from ets.policies.opening import policies_of
from ets.policies.settings import Weighing
from ets.serving.app import Service, make_app
from ets.serving.offer import Offer
from ets.serving.operation import Limits, Operation
from ets.serving.server import bound
from ets.types import InputError, Policy

Named: TypeAlias = str | Callable[..., Any]
NAME = "tiny"
"""The model's name for clients."""
CHATML = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template for tokenizers without one."""
CLIENT = httpx2.Client(timeout=60, trust_env=False, verify=False, limits=httpx2.Limits(max_keepalive_connections=0))
"""Its connections are closed after each answer. `httpx2.post` would read the machine's certificates each time."""
PROMPT = "Question: Tom has 5 eggs. He buys 4. How many eggs does Tom have now?\nAnswer:"
"""A prompt in the language of the embedded model."""


def likes_a(prompt: Any, text: str) -> float:
    """A reward."""
    return 0.3 * text.count("a") - 0.5 * text.count("b")


def opened_small(**law: Any) -> Callable[[Mapping[str, Any]], Policy]:
    """The policies of the embedded model `small`; by default texts of 24 tokens, in guide steps of 8, at T = 1."""
    values = {"block_size": 8, "max_length": 24, "temperature": 1.0, **law}
    return policies_of(str(EMBEDDED["embedded-small"]), None, None, values, Weighing())


def always(policy: Policy) -> Callable[[Mapping[str, Any]], Policy]:
    """One policy for all requests, which may ask for no law of their own, as an engine of `file.py:function`."""

    def opened(law: Mapping[str, Any]) -> Policy:
        if law:
            raise InputError(f"the law is fixed, and the request sets {', '.join(law)}; leave it out")
        return policy

    return opened


def offered(
    policy: Policy | Callable[[Mapping[str, Any]], Policy] | None = None,
    *,
    methods: Sequence[str] = ("ets", "plain"),
    rewards: Mapping[str, Named] | None = None,
    limits: Limits | None = None,
    tokens: int | None = None,
    extract: str | None = None,
    chat: Chat | None = None,
    name: str = NAME,
    **settings: Any,
) -> Offer:
    """An offer over a policy, over policies by law, or by default over the embedded model `small`.

    Parameters
    ----------
    policy : Policy or callable
    rewards : mapping of str to callable or str
        By the names that clients use: a function of a module, or what `ets.rewards.registry.named_reward` takes.
    settings
        Of `MethodSettings`; M = 2, K = 1 and λ = 1 by default.
    """
    opened = opened_small() if policy is None else always(policy) if isinstance(policy, Policy) else policy
    guide = MethodSettings(**{"candidates": 2, "rollouts": 1, "lam": 1.0, **settings})
    named = {key: _code(each) for key, each in (rewards or {"likes-a": likes_a}).items()}
    return Offer(name, opened, guide, methods, named, tokens=tokens, extract=extract, limits=limits, chat=chat)


def _code(reward: Named) -> str:
    return reward if isinstance(reward, str) else f"{reward.__module__}:{reward.__qualname__}"


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Parameters
    ----------
    address : str
        With `/v1`, as OpenAI's clients want it.
    service : Service
    """

    address: str
    service: Service

    @property
    def root(self) -> str:
        """The address of `/health` and `/metrics`, without the last slash."""
        return self.address.removesuffix("/v1")

    def post(self, path: str, body: Any, **headers: str) -> httpx2.Response:
        """POST JSON, or bytes as they are, to a path below `/v1`."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"content-type": "application/json", **headers}
        return CLIENT.post(f"{self.address}/{path}", content=content, headers=sent)

    def complete(self, prompt: Any = PROMPT, **fields: Any) -> dict[str, Any]:
        """The answer of `/v1/completions`; raises for an error."""
        found = self.post("completions", {"model": self.service.offer.name, "prompt": prompt, **fields})
        assert found.status_code == 200, found.text
        return found.json()

    def streamed(self, prompt: Any = PROMPT, **fields: Any) -> Iterator[dict[str, Any]]:
        """The events of `/v1/completions`, as they come; the connection is closed with the iterator."""
        body = {"model": self.service.offer.name, "prompt": prompt, "stream": True, **fields}
        with CLIENT.stream("POST", f"{self.address}/completions", json=body) as response:
            assert response.status_code == 200, response.read()
            yield from events(response.iter_lines())

    def metric(self, line: str) -> float:
        """A value of `/metrics` by its name and labels; 0 for one that has not been counted."""
        for each in self.service.metrics.text().decode().splitlines():
            name, _, value = each.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The JSON values of server-sent events, until `[DONE]`; raises for a stream that ends without it."""
    for line in lines:
        if line == "data: [DONE]":
            return
        if line:
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream ended without [DONE]")


@contextmanager
def served(
    offer: Offer | Policy | Callable[[Mapping[str, Any]], Policy] | None = None,
    *,
    keys: Sequence[str] = (),
    methods: Sequence[str] = ("ets", "plain"),
    rewards: Mapping[str, Named] | None = None,
    offering: Mapping[str, Any] | None = None,
    **operation: Any,
) -> Iterator[Served]:
    """Serve at a free port of the loopback address; `offering` holds further arguments of `offered`.

    Examples
    --------
    >>> with served(TabularPolicy(), rewards={"likes-a": likes_a}, queue=0) as server:
    ...     server.complete("a", n=2)["choices"]
    """
    if not isinstance(offer, Offer):
        offer = offered(offer, methods=methods, rewards=rewards, **(offering or {}))
    service = Service(offer, Operation(**operation), keys)
    with bound("127.0.0.1", 0) as listening:
        config = uvicorn.Config(
            make_app(service), log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            until(lambda: server.started)
            yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", service)
        finally:
            service.end()
            server.should_exit = True
            thread.join(20)
        assert not thread.is_alive(), "the server does not end"


def until(reached: Callable[[], object], seconds: float = 20) -> None:
    """Wait for a condition; fails after a time."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"not reached in {seconds} s"
        time.sleep(0.01)


def saved(folder: Path, text: str = CHATML) -> str:
    """The path of a file with a chat template."""
    file = folder / "chat.jinja"
    file.write_text(text, encoding="utf-8")
    return str(file)
