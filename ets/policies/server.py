"""A JSON interface behind an address: asked many things at a time, and again where that may help."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ets.types import InputError, one_line

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between one attempt and the next."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask us to wait."""
CONNECTING = 10.0
"""Seconds that a connection may take."""


class Server:
    """Asks a server over connections that it keeps; for one event loop.

    A lost connection, 429 (too many requests), 5xx (the server's own faults) and silence are tried again, after longer
    and longer waits. The API key is sent, and nowhere else to be seen: not in errors, not in representations.

    Parameters
    ----------
    address : str
        Where the interface begins, such as http://localhost:8000/v1.
    key : str
        The environment variable that holds the API key, if the server wants one.
    connections : int
        Requests that are under way at once, at most.
    seconds : float
        How long the server may be silent before it is asked again.
    waits : sequence of float
        Seconds between attempts, so one fewer than attempts.

    Raises
    ------
    InputError
        For something that is no address, or a key that cannot be sent.
    """

    def __init__(
        self, address: str, *, key: str, connections: int, seconds: float, waits: Sequence[float] = WAITS
    ) -> None:
        self.address, self._variable, self._seconds, self._waits = _checked(address), key, seconds, tuple(waits)
        self._key = _read_key(key)
        try:
            import httpx2
        except ImportError as error:
            raise InputError("httpx2 cannot be imported; run `bash scripts/setup.sh endpoint`") from error
        self._room = asyncio.Semaphore(connections)
        self._failures = httpx2.TransportError
        self._timeouts = httpx2.TimeoutException
        # Connections are dropped before uvicorn, vLLM's server, drops them: that is after 5 seconds.
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=2.0)
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(seconds, connect=min(CONNECTING, seconds), pool=None),
            limits=limits,
        )

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that the server answers to a GET, or to a POST of a body.

        Raises
        ------
        InputError
            When no attempt was answered, for a refusal (4xx), and for an answer that is no JSON; with the address.
        """
        for wait in (*self._waits, None):
            answer = await self._attempt(path, body)
            if not isinstance(answer, _Failure):
                return answer
            if wait is None:
                raise InputError(
                    f"the server at {self.address} {answer.what}; tried {len(self._waits) + 1} times; {answer.mend}, "
                    "and repeat the command"
                )
            await asyncio.sleep(max(wait * (1 + random.random()), answer.pause))

    async def close(self) -> None:
        await self._client.aclose()

    async def _attempt(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """An answer, or what went wrong in a way that may pass."""
        try:
            async with self._room:
                method = "GET" if body is None else "POST"
                response = await self._client.request(method, f"{self.address}/{path}", json=body)
        except self._timeouts as error:
            silence = f"has not answered within {self._seconds:g} seconds ({type(error).__name__})"
            return _Failure(silence, mend="give it more seconds, or start it again")
        except self._failures as error:
            return _Failure(f"cannot be reached ({self._line(str(error) or type(error).__name__)})")
        status = response.status_code
        if status == 429 or status >= 500:
            return _Failure(f"answers {status} ({self._line(_reason(response))})", _pause(response))
        if status != 200:
            mend = f"put its API key into {self._variable}" if status in (401, 403) else "mend the address or the model"
            raise InputError(f"the server at {self.address} answers {status} ({self._line(_reason(response))}); {mend}")
        try:
            return response.json()
        except ValueError:
            raise InputError(f"the server at {self.address} answers no JSON; give an OpenAI-compatible one") from None

    def _line(self, text: str) -> str:
        """One line of a server's words, which may repeat the key."""
        return one_line(text.replace(self._key, "***") if self._key else text)


@dataclass(frozen=True)
class _Failure:
    """What went wrong, how many seconds the server asks us to wait, and what a user can do."""

    what: str
    pause: float = 0.0
    mend: str = "start it again, or mend the address"


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


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and (key + "-").isprintable()):
        raise InputError(f"the environment variable {variable} holds characters that no API key has; set it again")
    return key


def _reason(response: Any) -> str:
    """What a server says of its refusal, in OpenAI's form or in any other."""
    try:
        said = response.json()
        error = said.get("error", said)
        return str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return str(response.text) or str(response.reason_phrase)


def _pause(response: Any) -> float:
    """Seconds that the server asks us to wait; it may also give a date, which is left to our own waits."""
    try:
        return min(LONGEST_WAIT, max(0.0, float(response.headers.get("retry-after", 0))))
    except ValueError:
        return 0.0
