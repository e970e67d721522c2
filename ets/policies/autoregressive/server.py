"""A server with OpenAI's completions interface, such as vLLM's server, as an engine of `EnginePolicy`.

Each row is one request with token ids and a value for every parameter that changes the distribution. A server that
returns the drawn token ids and the log-probabilities of the sampled distribution is exact, like an engine in this
process. A server that returns text alone is approximate, and `Endpoint.approximate` gives the reason.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ets.connection import LEAST_LOGPROBS, WAITS, Connection, Refusal, served_model, shut_down
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
from ets.types import InputError, counted, one_line

MOST_STOPS = 4
"""Stop strings that OpenAI's interface allows; `Endings` finds the others."""
PROBED = 5
"""Tokens per probe request."""
SEEDS = 8
"""Probe requests at temperature 1 that differ in their seeds alone."""
PROBE_LEVEL, DRAW_LEVEL = 1e-6, 1e-12
"""Probabilities below which equal draws of different seeds are no coincidence: at the start, and of a guide step."""
COMPLETE = ("stop", "length", None)
"""The `finish_reason` of a complete row."""
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
