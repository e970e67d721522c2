"""A server with OpenAI's completions interface, such as vLLM's server, as an engine of `EnginePolicy`.

Each row is one request with token ids and a value for every parameter that changes the distribution. A server that
returns the drawn token ids and the log-probabilities of the sampled distribution is exact, like an engine in this
process. A server that returns text alone is approximate, and `Endpoint.approximate` gives the reason.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ets.policies.autoregressive.engine import (
    Answer,
    Engine,
    EnginePolicy,
    EventLoop,
    Request,
    parameters,
    require_temperature,
    tempered,
)
from ets.policies.autoregressive.law import require_autoregressive
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling, ServerResources
from ets.step import require_counts, require_positive
from ets.types import InputError, one_line

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between one attempt and the next."""
LONGEST_WAIT = 60.0
"""Limit on a server's `Retry-After`, in seconds."""
CONNECTING = 10.0
"""Time limit for a connection, in seconds."""
MOST_STOPS = 4
"""Stop strings that OpenAI's interface allows; `Endings` finds the others."""
PROBED = 5
"""Log-probabilities and tokens per probe request."""
TEXT_ONLY = "text only: the server returns no token ids, so tokens and their log-probabilities are read off its text"


class Endpoint(Engine):
    """A model behind an address. `close`, the end of a `with` statement, and the end of the program close it.

    Any number of threads may draw at once.

    Parameters
    ----------
    address : str
        Base address of the interface, such as http://localhost:8000/v1.
    checkpoint : Checkpoint
        The served model by path or hub name; only the tokenizer and the configuration are loaded.
    model : str, optional
        The server's name for the model; by default the only model that the server lists.
    key : str
        The environment variable of the API key, for servers that require a key. Errors and representations hide it.
    connections : int
        Largest number of concurrent requests.
    seconds : float
        Time limit for a row, after which the request is repeated.
    waits : sequence of float
        Seconds between attempts. Lost connections, timeouts and the statuses 429 and 5xx are tried again; a random
        part of the wait spreads the rows, and `Retry-After` may lengthen it.

    Attributes
    ----------
    approximate : str
        The reason why draws follow the law only approximately; empty for an exact server.
    tempered : bool
        Whether reported log-probabilities are those of the sampled distribution, not of the model at temperature 1.

    Raises
    ------
    InputError
        For a malformed address or key, and for a server that is unreachable, does not serve the model, or reports no
        log-probabilities.
    """

    engine_name = "endpoint"

    def __init__(
        self,
        address: str,
        checkpoint: Checkpoint,
        *,
        model: str | None = None,
        key: str = "OPENAI_API_KEY",
        connections: int = 256,
        seconds: float = 1800.0,
        waits: Sequence[float] = WAITS,
    ) -> None:
        require_counts(connections=connections)
        require_positive(seconds=seconds)
        self.checkpoint = checkpoint
        self._connection = Connection(address, key, connections, seconds, waits)
        self.address, self.name = self._connection.address, self._connection.name
        self._loop = EventLoop("endpoint")
        self._closing = weakref.finalize(self, shut_down, self._connection, self._loop)
        try:
            self.model, self._context = self._served(model)
            self.approximate, self.tempered = self._probe()
        except BaseException:
            self.close()
            raise
        if self.approximate:
            warnings.warn(f"{self.name} is approximate ({self.approximate})", stacklevel=2)

    def close(self) -> None:
        self._closing()

    @property
    def context(self) -> int | None:
        return self._context

    def require_law(self, sampling: Sampling) -> None:
        """Raise `InputError` for a temperature out of range, or if the law's log-probabilities are not reported."""
        require_temperature(self.name, sampling)
        plain = sampling.temperature == 0 or (sampling.temperature == 1 and not sampling.truncated)
        if not (self.tempered or plain or self.approximate):
            raise InputError(
                f"{self.name} reports log-probabilities of the untempered model; start it with "
                "--logprobs-mode processed_logprobs, or sample at temperature 1 without top_k and top_p"
            )

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """As `Engine.draw`; raises `InputError` if the server has stopped, or refuses a row."""
        if not self._closing.alive:
            raise InputError(f"the connection to {self.name} has been closed; make another one")
        return self._loop.wait_for_all([self._one(request, sampling, end_ids) for request in requests])

    def interrupt(self, thread: int) -> None:
        self._loop.interrupt(thread)

    async def _one(self, request: Request, sampling: Sampling, end_ids: Sequence[int]) -> Answer:
        answer = await self._connection.ask("completions", self._body(request, sampling, end_ids))
        choice = self._choice(answer)
        if self.approximate:
            tokens, logps = self._from_text(choice, request.room)
        else:
            tokens = list(choice.get("token_ids") or ())
            logps = [math.nan if logp is None else float(logp) for logp in choice["logprobs"]["token_logprobs"]]
        if not tokens or len(tokens) != len(logps):
            raise InputError(f"{self.name} gives {len(tokens)} tokens and {len(logps)} log-probabilities; see its log")
        details = (answer.get("usage") or {}).get("prompt_tokens_details") or {}
        return Answer(tokens, logps, int(details.get("cached_tokens") or 0))

    def _body(self, request: Request, sampling: Sampling, end_ids: Sequence[int], logprobs: int = 1) -> dict[str, Any]:
        # Some parameters exist in vLLM only; other servers may ignore these parameters.
        body = {"model": self.model, "prompt": list(request.tokens), "logprobs": logprobs, "return_token_ids": True}
        stop = {"stop": list(request.stop[:MOST_STOPS])} if request.stop else {}
        return body | parameters(request, sampling, end_ids) | stop

    def _served(self, model: str | None) -> tuple[str, int | None]:
        """The server's name for the model, and the model's context."""
        found = served_model(self.name, self._loop.wait(self._connection.ask("models")), model)
        return found["id"], found.get("max_model_len") or self.checkpoint.context

    def _probe(self) -> tuple[str, bool]:
        """The attributes `approximate` and `tempered`, from two requests."""
        bodies = [self._body(Request((0,), 0, PROBED), Sampling(t), (), logprobs=PROBED) for t in (1.0, 0.5)]
        answers = [self._loop.wait(self._connection.ask("completions", body)) for body in bodies]
        choices = [self._choice(answer, least=1) for answer in answers]
        for choice in choices:
            self._require_tokenizer(choice)
        first = [dict((choice["logprobs"].get("top_logprobs") or [{}])[0] or {}) for choice in choices]
        return "" if choices[0].get("token_ids") else TEXT_ONLY, tempered(*first)

    def _choice(self, answer: Any, least: int = 0) -> dict[str, Any]:
        """The only choice of an answer, with log-probabilities; the list may be empty if the row ended at once."""
        try:
            (choice,) = answer["choices"]
            if len(choice["logprobs"]["token_logprobs"]) < least:
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{self.name} reports no log-probabilities; start it with them enabled") from None
        return dict(choice)

    def _require_tokenizer(self, choice: Mapping[str, Any]) -> None:
        """Raise `InputError` if the checkpoint's tokenizer decodes the server's tokens to another text."""
        tokens, text = choice.get("token_ids") or [], choice.get("text", "")
        ours = self.checkpoint.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        # The server holds back half a character, and some tokenizers drop a leading space.
        if tokens and "\ufffd" not in ours + text and ours.strip() != text.strip():
            raise InputError(
                f"{self.name} decodes the tokens {tokens} to {text!r}, and the tokenizer of "
                f"{self.checkpoint.name!r} to {ours!r}; give the checkpoint that is served"
            )

    def _from_text(self, choice: Mapping[str, Any], room: int) -> tuple[list[int], list[float]]:
        """Tokens and log-probabilities, estimated from the text; a stopped row has drawn an end token."""
        tokenizer = self.checkpoint.tokenizer
        tokens = list(tokenizer(choice["text"], add_special_tokens=False)["input_ids"])[:room]
        if choice.get("finish_reason") == "stop" or not tokens:
            tokens = [*tokens[: room - 1], tokenizer.eos_token_id]
        logps = [logp or 0.0 for logp in choice["logprobs"]["token_logprobs"]]
        aligned = len(logps) == len(tokens)
        return tokens, logps if aligned else [sum(logps) / len(tokens)] * len(tokens)


class Connection:
    """Requests in JSON to an address, with retries; for one event loop. For the parameters see `Endpoint`."""

    def __init__(self, address: str, key: str, connections: int, seconds: float, waits: Sequence[float]) -> None:
        self.address, self._variable, self._seconds, self._waits = _checked(address), key, seconds, tuple(waits)
        self.name = f"the server at {self.address}"
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
            timeout=httpx2.Timeout(seconds, connect=min(CONNECTING, seconds), pool=None),
            # The client drops idle connections before uvicorn, the server of vLLM, does so after 5 seconds.
            limits=httpx2.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=2.0
            ),
        )

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a GET request, or to a POST request with a body.

        Raises `InputError` with the address if every attempt fails, for a refusal (4xx), and for other answers than
        JSON.
        """
        problem = ""
        for wait in (*self._waits, None):
            pause = 0.0
            try:
                async with self._room:
                    response = await self._client.request("GET" if body is None else "POST", path, json=body)
            except self._httpx.TimeoutException as error:
                kind = type(error).__name__
                problem = f"has not answered within {self._seconds:g} seconds ({kind}; slow rows need more)"
            except self._httpx.TransportError as error:
                problem = f"cannot be reached ({self._line(str(error) or type(error).__name__)})"
            else:
                if response.status_code != 429 and response.status_code < 500:
                    return self._read(response)
                problem, pause = f"answers {response.status_code} ({self._reason(response)})", _pause(response)
            if wait is not None:
                await asyncio.sleep(max(wait * (1 + random.random()), pause))
        raise InputError(
            f"{self.name} {problem}; tried {len(self._waits) + 1} times; start it again, or correct the address, and "
            "repeat the command"
        )

    async def close(self) -> None:
        await self._client.aclose()

    def _read(self, response: Any) -> Any:
        status = response.status_code
        if status != 200:
            key = f"put the API key into {self._variable}"
            remedy = key if status in (401, 403) else "correct the address, the model or the form of the request"
            raise InputError(f"{self.name} answers {status} ({self._reason(response)}); {remedy}")
        try:
            return response.json()
        except ValueError:
            raise InputError(f"{self.name} answers no JSON; correct the address") from None

    def _reason(self, response: Any) -> str:
        """The server's error message, in OpenAI's form or another."""
        try:
            content = response.json()
            error = content.get("error", content)
            return self._line(str(error.get("message", error) if isinstance(error, dict) else error))
        except (ValueError, AttributeError):
            return self._line(str(response.text) or str(response.reason_phrase))

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


def make_policy(
    checkpoint: Checkpoint,
    sampling: Sampling,
    horizon: Horizon,
    resources: ServerResources,
    ready: Endpoint | None = None,
) -> EnginePolicy:
    """The policy of the engine "endpoint" in `ets.policies.registry`."""
    require_autoregressive(checkpoint, "endpoint")
    if ready is None:
        if not resources.endpoint:
            raise InputError("endpoint is not set; give the server's address, such as http://localhost:8000/v1")
        limits: dict[str, Any] = {"connections": resources.connections, "seconds": resources.seconds}
        named: dict[str, Any] = {"model": resources.served_model, "key": resources.key_variable}
        ready = Endpoint(resources.endpoint, checkpoint, **named, **limits)
    return EnginePolicy(ready, sampling, horizon)
