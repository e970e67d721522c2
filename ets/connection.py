"""Requests in JSON to a server with OpenAI's interfaces: attempts, time limits, and errors with their remedies."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ets.event_loop import EventLoop
from ets.step import require_counts, require_positive
from ets.types import InputError, one_line

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between one attempt and the next."""
LONGEST_WAIT = 60.0
"""Limit on a server's `Retry-After`, in seconds."""
CONNECTING = 10.0
"""Time limit for a connection, in seconds."""
LEAST_LOGPROBS = 2
"""Log-probabilities per token that a server must allow."""
PASSING = (408, 409, 425, 429, 499)
"""Statuses below 500 that may pass, so that the request is repeated."""
CAUSES = {
    r"answers 40[13]\b": "put the API key into {key}",
    r"context.{0,5}(length|size|window)|max_model_len|max_tokens|too (long|large|many tokens)": (
        "shorten the prompt or max_length, or start the server with a longer context"
    ),
    r"logprob": f"start the server so that it allows {LEAST_LOGPROBS} log-probabilities (vLLM: --max-logprobs)",
    r"answers (408|409|425|429|499)\b": "lower connections, or raise waits",
    r"not answered within": "raise seconds, or start the server again",
    r"answers (3|4)\d\d|answers no JSON": "correct the address{path}, the model or the form of the request",
    r"": "start it again, or correct the address, and repeat the command",
}
"""Remedies by patterns of the problem; the first pattern that matches counts."""


class Refusal(InputError):
    """Raised for an answer with an error status that does not pass."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Passing(Exception):
    """A fault that may pass, and the seconds to wait first."""

    def __init__(self, problem: str, pause: float) -> None:
        super().__init__(problem)
        self.pause = pause


class Connection:
    """Requests in JSON to an address, with retries; for one event loop. For the parameters see `Endpoint`."""

    def __init__(self, address: str, key: str, connections: int, seconds: float, waits: Sequence[float]) -> None:
        require_counts(connections=connections)
        if not isinstance(waits, Sequence):
            raise InputError(f"waits is {waits!r}; give a list of seconds, such as [1, 2, 4]")
        require_positive(seconds=seconds, **{f"wait {n}": wait for n, wait in enumerate(waits, 1)})
        self.address, self._variable, self._seconds, self._waits = _checked(address), key, seconds, tuple(waits)
        self.name = f"the server at {self.address}{_proxy(self.address)}"
        self._key = os.environ.get(key, "").strip()
        if not (self._key.isascii() and (self._key + "-").isprintable()):
            raise InputError(f"the environment variable {key} holds characters that no API key has; set it again")
        try:
            import httpx2
        except ImportError as error:
            raise InputError("httpx2 cannot be imported; run `bash scripts/setup.sh endpoint`") from error
        self._httpx, self._room = httpx2, asyncio.Semaphore(connections)
        self._client = httpx2.AsyncClient(
            base_url=self.address,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(None, connect=min(CONNECTING, seconds)),  # `ask` limits the whole attempt
            # The client drops idle connections before uvicorn, the server of vLLM, does so after 5 seconds.
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=2.0
            ),
        )

    async def ask(
        self, path: str, body: Mapping[str, Any] | None = None, fault: Callable[[Any], str] = lambda answer: ""
    ) -> Any:
        """The JSON answer to a GET request, or to a POST request with a body.

        The request is repeated after a fault that may pass, which includes an answer with a problem by `fault`. Raises
        `InputError` with the address if every attempt fails, and for an answer in another form than JSON; `Refusal` for
        a status that does not pass.
        """
        problem = ""
        for wait in (*self._waits, None):
            pause = 0.0
            try:
                async with self._room, asyncio.timeout(self._seconds):
                    response = await self._client.request("GET" if body is None else "POST", path, json=body)
                answer = self._read(response)
                if not (problem := fault(answer)):
                    return answer
            except TimeoutError:
                problem = f"has not answered within {self._seconds:g} seconds (slow rows need more)"
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                problem = "cannot be reached (the connection was given up)"  # by the client library, as servers die
            except self._httpx.TransportError as error:
                problem = f"cannot be reached ({self._line(str(error) or type(error).__name__)})"
            except _Passing as error:
                problem, pause = str(error), error.pause
            if wait is not None:
                await asyncio.sleep(max(wait * (1 + random.random()), pause))
        raise InputError(f"{self.name} {problem}; tried {len(self._waits) + 1} times; {self._remedy(problem)}")

    async def close(self) -> None:
        await self._client.aclose()

    def _read(self, response: Any) -> Any:
        """The JSON of an answer; raises `_Passing`, `InputError` or `Refusal` for an error."""
        try:
            content = response.json()
        except ValueError:
            content = response
        status, within = response.status_code, ""
        if status == 200 and isinstance(content, dict) and content.get("error"):
            code = content["error"].get("code") if isinstance(content["error"], dict) else None
            status, within = (code if isinstance(code, int) and 400 <= code < 600 else 500), " in a 200"
        if status == 200 and content is not response:
            return content
        problem = f"answers {'no JSON' if status == 200 else status}{within} ({self._reason(response, content)})"
        if status in PASSING or status >= 500:
            raise _Passing(problem, _pause(response))
        raise Refusal(f"{self.name} {problem}; {self._remedy(problem)}", status)

    def _reason(self, response: Any, content: Any) -> str:
        """The server's error message, in OpenAI's form or another; a page without JSON with the program that wrote it.

        A program between client and server, such as nginx, names itself in the header `server` or `via`.
        """
        if content is response:
            writer = response.headers.get("via") or response.headers.get("server") or ""
            text = re.sub(r"<[^>]*>", " ", str(response.text)).strip() or str(response.reason_phrase)
            return self._line(f"{text[:100]}{writer and ', from '}{writer}")
        error = content.get("error", content) if isinstance(content, dict) else content
        return self._line(str(error.get("message", error) if isinstance(error, dict) else error))

    def _remedy(self, problem: str) -> str:
        path = "" if urlsplit(self.address).path else " (does it lack /v1?)"
        found = next(remedy for cause, remedy in CAUSES.items() if re.search(cause, problem, re.IGNORECASE))
        return found.format(key=self._variable, path=path)

    def _line(self, text: str) -> str:
        """One line of a server's message, without the API key."""
        return one_line(text.replace(self._key, "***") if self._key else text)


def served_model(name: str, answer: Any, model: str | None = None) -> dict[str, Any]:
    """The entry of a model, by default of the only one, in a server's list of models; `name` is the server's name."""
    try:
        served = {each["id"]: each for each in answer["data"]}
    except (KeyError, TypeError):
        raise InputError(f"{name} does not list its models; give an OpenAI-compatible server") from None
    names = ", ".join(map(repr, served))
    if model is None and len(served) != 1:
        raise InputError(f"{name} serves {len(served)} models, {names}; name one")
    found = model or next(iter(served))
    if found not in served:
        raise InputError(f"{name} does not serve {found!r}; it has {names}")
    return dict(served[found])


def _checked(address: str) -> str:
    """The address without a slash at its end."""
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise InputError(f"{address!r} is no address of a server; give one such as http://localhost:8000/v1")
    if parts.username or parts.password:
        raise InputError("the server's address holds a user or a password; put an API key into the environment instead")
    return address.rstrip("/")


def _proxy(address: str) -> str:
    """The proxy of the environment between here and an address, in words; empty without one."""
    parts, proxies = urlsplit(address), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.hostname or ""):
        return ""
    host = urlsplit(proxy if "://" in proxy else f"//{proxy}").netloc.rpartition("@")[2]
    return f" through the proxy {host} (NO_PROXY={parts.hostname} leaves it out)"


def _pause(response: Any) -> float:
    """`Retry-After` in seconds; 0 for a date."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(response.headers.get("retry-after", 0))))
    except ValueError:
        return 0.0


def shut_down(connection: Connection, loop: EventLoop) -> None:
    """Close a connection and the event loop of its requests."""
    loop.interrupt()  # a request on a closed connection would be tried again
    loop.wait(connection.close())
    loop.stop()
