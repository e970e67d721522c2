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
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np

from ets.event_loop import EventLoop
from ets.policies.autoregressive.engine import (
    Answer,
    Engine,
    EnginePolicy,
    Request,
    parameters,
    require_temperature,
    tempered,
)
from ets.policies.autoregressive.law import INCOMPLETE, MOST_BYTES, require_autoregressive
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling, ServerResources
from ets.randomness import derive
from ets.step import require_counts, require_positive
from ets.types import InputError, counted, one_line

WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds between one attempt and the next."""
LONGEST_WAIT = 60.0
"""Limit on a server's `Retry-After`, in seconds."""
CONNECTING = 10.0
"""Time limit for a connection, in seconds."""
MOST_STOPS = 4
"""Stop strings that OpenAI's interface allows; `Endings` finds the others."""
PROBED = 5
"""Tokens per probe request."""
SEEDS = 8
"""Probe requests at temperature 1 that differ in their seeds alone."""
PROBE_LEVEL, DRAW_LEVEL = 1e-6, 1e-12
"""Probabilities below which equal draws of different seeds are no coincidence: at the start, and of a guide step."""
LEAST_LOGPROBS = 2
"""Log-probabilities per token that a server must allow."""
PASSING = (408, 409, 425, 429, 499)
"""Statuses below 500 that may pass, so that the request is repeated."""
COMPLETE = ("stop", "length", None)
"""The `finish_reason` of a complete row."""
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
TEXT_ONLY = "text only: the server returns no token ids, so tokens and their log-probabilities are read off its text"


class Endpoint(Engine):
    """A model behind an address. `close`, the end of a `with` statement, and the end of the program close it.

    Any number of threads may draw at once.

    Parameters
    ----------
    address : str
        Base address of the interface, such as http://localhost:8000/v1.
    checkpoint : Checkpoint, str or Path, optional
        The served model by path or hub name; only the tokenizer and the configuration are loaded. By default the path
        or name that the server lists.
    model : str, optional
        The server's name for the model; by default the only model that the server lists.
    key : str
        The environment variable of the API key, for servers that require a key. Errors and representations hide it.
    connections : int
        Largest number of concurrent requests.
    seconds : float
        Time limit for an attempt at a row, after which the request is repeated.
    waits : sequence of float
        Seconds between attempts. Lost connections, timeouts, the statuses of `PASSING` and 5xx, an error in an answer
        of status 200 and an aborted row are tried again; a random part of the wait spreads the rows, and `Retry-After`
        may lengthen it.

    Attributes
    ----------
    approximate : str
        The reason why draws follow the law only approximately; empty for an exact server.
    tempered : bool
        Whether reported log-probabilities are those of the sampled distribution, not of the model at temperature 1.

    Raises
    ------
    InputError
        For a malformed address or key, and for a server that is unreachable, does not serve the model, reports no
        log-probabilities, or draws the same for all seeds.
    """

    engine_name = "endpoint"

    def __init__(
        self,
        address: str,
        checkpoint: Checkpoint | str | Path | None = None,
        *,
        model: str | None = None,
        key: str = "OPENAI_API_KEY",
        connections: int = 256,
        seconds: float = 1800.0,
        waits: Sequence[float] = WAITS,
    ) -> None:
        self._connection = Connection(address, key, connections, seconds, waits)
        self.address, self.name = self._connection.address, self._connection.name
        self._loop = EventLoop("endpoint")
        self._closing = weakref.finalize(self, shut_down, self._connection, self._loop)
        try:
            found = self._served(model)
            self.model, self.checkpoint = found["id"], self._checkpoint(checkpoint, found)
            self._context = found.get("max_model_len") or self.checkpoint.context
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
        if not (sampling.temperature == 0 or self._reports(sampling) or self.approximate):
            raise InputError(
                f"{self.name} reports log-probabilities of the untempered model; start it with "
                "--logprobs-mode processed_logprobs, or sample at temperature 1 without top_k and top_p"
            )

    def draw(self, requests: Sequence[Request], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """As `Engine.draw`; raises `InputError` if the server has stopped, or refuses a row."""
        if not self._closing.alive:
            raise InputError(f"the connection to {self.name} has been closed; make another one")
        answers = self._loop.wait_for_all([self._one(request, sampling, end_ids) for request in requests])
        if sampling.temperature and self._reports(sampling):
            drawn: dict[tuple[int, ...], list[tuple[Any, float]]] = {}
            for request, answer in zip(requests, answers, strict=True):
                drawn.setdefault(request.tokens, []).append((tuple(answer.tokens), sum(answer.logps)))
            for rows in drawn.values():
                self._require_variety(rows, DRAW_LEVEL)
        return answers

    def _reports(self, sampling: Sampling) -> bool:
        """Whether the log-probabilities of random draws are those of the sampled distribution."""
        return self.tempered or (sampling.temperature == 1 and not sampling.truncated)

    def interrupt(self, thread: int) -> None:
        self._loop.interrupt(thread)

    async def _one(self, request: Request, sampling: Sampling, end_ids: Sequence[int]) -> Answer:
        row = await self._row(self._body(request, sampling, end_ids))
        if self.approximate:
            return await self._whole(row, request, sampling, end_ids)
        tokens, logps = row.tokens or [], row.logps
        if len(tokens) != len(logps) or not tokens:
            raise InputError(f"{self.name} gives {len(tokens)} tokens and {len(logps)} log-probabilities; see its log")
        return Answer(tokens, logps, row.cached)

    async def _whole(self, row: Row, request: Request, sampling: Sampling, end_ids: Sequence[int]) -> Answer:
        """The answer of a row of text. A row that ends within a character goes on to the character's end.

        The same seed draws the same tokens again, and up to `further` more. The end of the row is therefore the first
        place without an incomplete character, and the law stays that of the model: to draw such a character again by
        another seed would make long characters rarer.
        """
        if row.reason == "stop" or row.text.rstrip(INCOMPLETE) == row.text != "":
            return Answer(*self._from_text(row, request.room), row.cached)
        begun, drawn = row, row.count
        if request.further:
            longer = replace(request, room=request.room + request.further)
            row = await self._row(self._body(longer, sampling, end_ids))
            drawn += row.count
        end = end_of_character(begun.text, row.text)
        if end is None and row.reason == "stop":
            return Answer(*self._from_text(row, request.room + request.further), row.cached, begun.count)
        if end is None and request.further == MOST_BYTES:
            raise InputError(
                f"{self.name} returns no whole character after {request.room} tokens and {MOST_BYTES} more; use a "
                "server that returns token_ids"
            )
        text = row.text[:end] if end else begun.text.rstrip(INCOMPLETE)
        tokens = self._until_whole(row.tokens, request.room if end else 0) if row.tokens else self._encoded(text)
        cut = replace(row, text=text, reason="length", tokens=tokens, logps=row.logps[: len(tokens)])
        return Answer(*self._from_text(cut, len(tokens)), row.cached, max(0, drawn - len(tokens)), whole=end is None)

    def _until_whole(self, tokens: Sequence[int], least: int) -> list[int]:
        """The fewest tokens, but `least` of them, that end with a whole character; with 0, the most that do."""
        counts = range(least, len(tokens)) if least else range(len(tokens), 0, -1)
        return list(tokens[: next((n for n in counts if not self._decoded(tokens[:n]).endswith(INCOMPLETE)), None)])

    def _decoded(self, tokens: Sequence[int]) -> str:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.checkpoint.tokenizer.decode(tokens, **options))

    def _encoded(self, text: str) -> list[int]:
        return list(self.checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _row(self, body: Mapping[str, Any]) -> Row:
        """The row that the server draws for a request, which the answer must fit."""
        answer = await self._connection.ask("completions", body, aborted)
        row = read_row(self.name, answer)
        if row.read not in (None, len(body["prompt"]), tuple(body["prompt"])):
            count = row.read if isinstance(row.read, int) else len(row.read or ())
            raise InputError(
                f"{self.name} has read another prompt than it was sent: {count} tokens in place of "
                f"{len(body['prompt'])}; start it so that it neither cuts nor changes prompts"
            )
        if row.count > body["max_tokens"]:
            raise InputError(
                f"{self.name} draws {row.count} tokens for max_tokens {body['max_tokens']}; use a server that respects "
                "max_tokens"
            )
        return row

    def _body(self, request: Request, sampling: Sampling, end_ids: Sequence[int], logprobs: int = 1) -> dict[str, Any]:
        # Some parameters exist in vLLM only; other servers may ignore these parameters.
        body = {"model": self.model, "prompt": list(request.tokens), "logprobs": logprobs, "return_token_ids": True}
        stop = {"stop": list(request.stop[:MOST_STOPS])} if request.stop else {}
        return body | parameters(request, sampling, end_ids) | stop

    def _served(self, model: str | None) -> dict[str, Any]:
        """The server's entry of the model; with a name, the server need not list its models."""
        try:
            answer = self._loop.wait(self._connection.ask("models"))
        except Refusal as error:
            if error.status in (404, 405, 501):
                if model is not None:
                    return {"id": model}
                raise InputError(f"{error}, or give the server's name of the model (served_model)") from None
            raise
        return served_model(self.name, answer, model)

    def _checkpoint(self, given: Checkpoint | str | Path | None, served: Mapping[str, Any]) -> Checkpoint:
        if given is not None:
            return given if isinstance(given, Checkpoint) else Checkpoint(str(given))
        name = str(served.get("root") or served["id"])
        try:
            return Checkpoint(name)
        except InputError as error:
            raise InputError(
                f"{self.name} serves {name!r}, and its tokenizer cannot be loaded ({error}); give a folder with the "
                "tokenizer as well: Endpoint(address, folder), or --model"
            ) from None

    def _probe(self) -> tuple[str, bool]:
        """The attributes `approximate` and `tempered`, from requests at temperature 1 and one at 0.5."""
        seeds = derive(np.arange(SEEDS, dtype=np.uint64), PROBED) >> np.uint64(1)  # as large as those of rows
        drawn = [(Request((0,), int(seed), PROBED), Sampling(1.0)) for seed in seeds]
        cold = (Request((0,), int(seeds[0]), PROBED), Sampling(0.5))
        bodies = [self._body(*each, (), logprobs=LEAST_LOGPROBS) for each in (*drawn, cold)]
        rows = self._loop.wait_for_all([self._row(body) for body in bodies])
        if not any(row.logps for row in rows):
            raise InputError(f"{self.name} reports no log-probabilities; start it with them enabled")
        for row in rows:
            self._require_tokenizer(row)
        self._require_variety([(tuple(row.tokens or ()) or row.text, sum(row.logps)) for row in rows[:-1]], PROBE_LEVEL)
        warm = next((row.top for row in rows if row.top), {})
        return "" if rows[0].exact else TEXT_ONLY, tempered(warm, rows[-1].top)

    def _require_variety(self, drawn: Sequence[tuple[Any, float]], level: float) -> None:
        """Raise `InputError` for draws of different seeds, (outcome, log-probability), that are equal not by chance."""
        if count := repeats(drawn, level):
            raise InputError(
                f"{self.name} draws the same for {count} of {len(drawn)} seeds, by chance with less than {level:g}: "
                "use a server that respects seed and temperature, without a cache of answers"
            )

    def _require_tokenizer(self, row: Row) -> None:
        """Raise `InputError` if the checkpoint's tokenizer decodes the server's tokens to another text."""
        tokens, text = row.tokens or [], row.text
        shown = tokens[:-1] if set(tokens[-1:]) & self.checkpoint.end_ids else tokens
        ours, whole = self._decoded(shown), self._decoded(tokens)
        # The server holds back half a character, and some tokenizers drop a leading space.
        if tokens and INCOMPLETE not in ours + text and text.strip() not in (ours.strip(), whole.strip()):
            raise InputError(
                f"{self.name} decodes the tokens {tokens} to {text!r}, and the tokenizer of "
                f"{self.checkpoint.name!r} to {ours!r}; give the checkpoint that is served"
            )

    def _from_text(self, row: Row, room: int) -> tuple[list[int], list[float]]:
        """Tokens, at most `room`, and log-probabilities, estimated from the text; a stopped row has an end token."""
        tokenizer, tokens = self.checkpoint.tokenizer, row.tokens or self._encoded(row.text)[:room]
        if row.reason == "stop" and tokens[-1:] != [tokenizer.eos_token_id]:
            tokens = [*tokens[: room - 1], tokenizer.eos_token_id]
        logps = [0.0 if math.isnan(logp) else logp for logp in row.logps]
        aligned = len(logps) == len(tokens) or not tokens
        return tokens, logps[: len(tokens)] if aligned else [sum(logps) / len(tokens)] * len(tokens)


def end_of_character(begun: str, text: str) -> int | None:
    """The end of the first whole character of `text` behind the whole characters of `begun`, or None."""
    places = range(len(begun.rstrip(INCOMPLETE)), len(text))
    return next((place + 1 for place in places if text[place] != INCOMPLETE), None)


def repeats(drawn: Sequence[tuple[Any, float]], level: float) -> int:
    """How often an outcome of (outcome, log-probability) repeats, if less probable than `level` by chance; else 0."""
    logps: dict[Any, float] = {}
    for outcome, logp in drawn:  # equal texts may come from other tokens
        logps[outcome] = max(logp, logps.get(outcome, -math.inf))
    for outcome, count in Counter(outcome for outcome, _ in drawn).items():
        if math.log(math.comb(len(drawn), count)) + (count - 1) * logps[outcome] < math.log(level):
            return count
    return 0


@dataclass(frozen=True)
class Row:
    """A drawn row of a server's answer.

    `read` is the prompt that the server reports, or the prompt's number of tokens. `tokens` is None if the server
    reports none. `top` holds the most probable first tokens with their log-probabilities. `count` is the number of
    drawn tokens by the largest of the server's reports. `exact` is whether the answer has a list of all tokens.
    """

    text: str
    reason: str | None
    tokens: list[int] | None
    logps: list[float]
    top: dict[str, float]
    read: int | tuple[int, ...] | None
    count: int
    cached: int
    exact: bool


def read_row(name: str, answer: Any) -> Row:
    """The row of an answer, with log-probabilities in OpenAI's form, or in llama.cpp's (`logprobs.content`).

    Raises `InputError` for an answer in another form.
    """
    try:
        (choice,) = answer["choices"]
        found, usage = choice["logprobs"], answer.get("usage") or {}
        exact = choice.get("token_ids") is not None
        if "content" in found:
            entries = found["content"] or []
            ids = [entry["id"] for entry in entries] if all("id" in entry for entry in entries) else None
            logps = [entry["logprob"] for entry in entries]
            top = {each["token"]: each["logprob"] for each in (entries[0].get("top_logprobs") or [] if entries else [])}
        else:
            ids, logps = None, found["token_logprobs"] or []
            top = dict((found.get("top_logprobs") or [{}])[0] or {})
        tokens = list(map(int, choice["token_ids"])) if exact else ids
        read = choice.get("prompt_token_ids")
        return Row(
            text=str(choice.get("text", "")),
            reason=choice.get("finish_reason"),
            tokens=tokens,
            logps=[math.nan if logp is None else float(logp) for logp in logps],
            top=top,
            read=tuple(read) if read else usage.get("prompt_tokens") if any(usage.values()) else None,
            count=max(len(tokens or ()), len(logps), usage.get("completion_tokens") or 0),
            cached=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
            exact=exact,
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError(f"{name} reports no log-probabilities; start it with them enabled") from None


def aborted(answer: Any) -> str:
    """The problem of an answer whose row the server has not completed; empty for other answers."""
    try:
        row = read_row("", answer)
    except InputError:
        return ""
    if row.reason in COMPLETE and (row.reason == "stop" or row.count):
        return ""
    return f"ends a row early, after {counted(row.count, 'token')} ({one_line(row.reason)})"


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


def make_policy(
    checkpoint: Checkpoint,
    sampling: Sampling,
    horizon: Horizon,
    resources: ServerResources,
    ready: Endpoint | None = None,
) -> EnginePolicy:
    """The policy of the engine "endpoint" in `ets.policies.registry`."""
    require_autoregressive(checkpoint, "endpoint")
    return EnginePolicy(ready or endpoint_of(resources, checkpoint), sampling, horizon)


def endpoint_of(resources: ServerResources, checkpoint: Checkpoint | None = None) -> Endpoint:
    """The server of the settings; raises `InputError` without an address."""
    if not resources.endpoint:
        raise InputError("endpoint is not set; give the server's address, such as http://localhost:8000/v1")
    options = {"model": resources.served_model, "key": resources.key_variable}
    waits = {} if resources.waits is None else {"waits": resources.waits}
    limits: dict[str, Any] = {"connections": resources.connections, "seconds": resources.seconds, **waits}
    return Endpoint(resources.endpoint, checkpoint, **options, **limits)  # type: ignore[arg-type]
