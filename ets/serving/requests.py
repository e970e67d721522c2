"""Requests in OpenAI's form: the fields that the server honours, and the errors that it answers with.

Every other field is refused by its name, unless its value changes nothing: `frequency_penalty` 0 is accepted, and
`frequency_penalty` 0.5 is an error of status 400.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from traceback import extract_tb
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ets.types import Message

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "suffix": ("",),
    "echo": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that the server cannot honour, and values at which they change nothing. None is another such value."""
INERT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
"""Fields that no answer depends on."""
Count = Annotated[int, Field(ge=1)]
C = TypeVar("C", bound="Completion")
SEEDS = 2**63
"""Seeds are below this number, and at least its negative."""
LEAST = 1e-9
"""The least λ, and the least temperature above 0: what is divided by a smaller one may become infinite."""
UNKNOWN = "unknown_parameter"
"""OpenAI's code for a field that is none."""
ROLES = ("system", "developer", "user", "assistant")


class RequestError(Exception):
    """An answer other than a completion.

    Parameters
    ----------
    status : int
        Of HTTP.
    message : str
    param : str, optional
        The field at fault.
    code : str, optional
        OpenAI's code, such as "model_not_found".
    wait : int, optional
        Seconds for the header `Retry-After`.
    """

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.wait = status, param, code, wait

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        return {"error": {"message": str(self), "type": self._type, "param": self.param, "code": self.code}}

    @property
    def outline(self) -> str:
        """The error without its message, which may quote a prompt: its code or type, its field, and what raised it.

        An example: ``reward_error: KeyError (rewards.py, line 7)``.
        """
        known = self.param is not None and self.code != UNKNOWN  # else a client has made the name up
        found = f"{self.code or self._type}{f', {self.param}' if known else ''}"
        if self.__cause__ is None:
            return found
        cause: BaseException = self.__cause__
        while cause.__cause__ is not None:
            cause = cause.__cause__
        at = extract_tb(cause.__traceback__)[-1]
        return f"{found}: {type(cause).__name__} ({Path(at.filename).name}, line {at.lineno})"

    @property
    def _type(self) -> str:
        named = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Guidance(_Fields):
    """The field `ets`: the method of a request, within the limits of the server."""

    method: str | None = None
    reward: str | None = None
    candidates: Count | None = None
    rollouts: Count | None = None
    lam: Annotated[float, Field(ge=LEAST)] | None = None
    tokens: Count | None = None
    block_size: Count | None = None
    trace: bool = False


class StreamOptions(_Fields):
    include_usage: bool = False
    include_obfuscation: bool = False


class Completion(_Fields):
    """The fields of both interfaces."""

    model: str
    n: Count = 1
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Count | None = None
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-SEEDS, lt=SEEDS)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    ets: Guidance = Guidance()

    @model_validator(mode="after")
    def _usage_needs_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                400, "stream_options needs stream; set stream to true, or leave it out", "stream_options"
            )
        return self

    @model_validator(mode="after")
    def _temperature_divides(self) -> Self:
        if self.temperature is not None and 0 < self.temperature < LEAST:
            tiny = f"temperature is {self.temperature}; give 0, or at least {LEAST}"
            raise RequestError(400, tiny, "temperature")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        found = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in found:
            raise RequestError(400, "stop holds an empty string; give the text of a stop string", "stop")
        return found

    @property
    def length_field(self) -> str:
        """The field that holds `max_tokens`."""
        return "max_tokens"

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def asks_logprobs(self) -> bool:
        """Whether the answer holds the log-probabilities of its tokens."""
        raise NotImplementedError


class TextCompletion(Completion):
    """A request to `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=0)] | None = None

    @property
    def asks_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """Each prompt as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [tuple(self.prompt)]
        return [each if isinstance(each, str) else tuple(each) for each in self.prompt]  # type: ignore[arg-type]


class ChatCompletion(Completion):
    """A request to `/v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_completion_tokens is not None:
            if self.max_tokens is not None:
                both = "max_tokens and max_completion_tokens are the same; leave one of them out"
                raise RequestError(400, both, "max_completion_tokens")
            self.max_tokens = self.max_completion_tokens
        return self

    @property
    def length_field(self) -> str:
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    @property
    def asks_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages with their contents as text. Raises `RequestError` for other contents, such as images."""
        if not self.messages:
            raise RequestError(400, "messages is empty; give at least one", "messages")
        return tuple(_plain(n, message) for n, message in enumerate(self.messages))


def _plain(place: int, message: Mapping[str, Any]) -> Message:
    """A message of a role and text; parts of text are joined, and the role developer is system."""

    def refused(problem: str) -> RequestError:
        return RequestError(400, f"messages.{place} has {problem}", "messages")

    for name in message:
        if name not in ("role", "content") and message[name] is not None:
            raise refused(f"{name}, which is not supported; give role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise refused(f"the role {_short(role)}; choose from {', '.join(ROLES)}")
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(texts) < len(content):
            raise refused("a part that is no text; give parts of type text")
        content = "".join(texts)
    if not isinstance(content, str):
        raise refused("no text; give its content as text")
    return {"role": "system" if role == "developer" else role, "content": content}


def read_request(kind: type[C], body: bytes) -> C:
    """The request that a body holds as JSON.

    Raises
    ------
    RequestError
        Of status 400, for JSON that cannot be read, and for fields that are unknown, of another type, out of range, or
        that the server cannot honour.
    """
    values = _json_object(body)
    for name, neutral in NEUTRAL.items():
        if name in values and name not in kind.model_fields:
            value = values.pop(name)
            if value is not None and value not in neutral:
                problem = f"{name} is {_short(value)}, which this server cannot honour; leave it out"
                raise RequestError(400, problem, name)
    absent = {name for name in kind.model_fields if values.get(name) is None}
    values = {name: value for name, value in values.items() if name not in absent.union(INERT)}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = (
            ".".join(map(str, first["loc"][: 2 if first["loc"][:1] in (("ets",), ("stream_options",)) else 1])) or None
        )
        what = f"{param}: {first['msg']}" if param else first["msg"]
        if first["type"] == "extra_forbidden":
            what = f"{param} is no field that this server knows; leave it out"
        elif first["type"] == "missing":
            what = f"{param} is missing; give it"
        raise RequestError(400, what, param, UNKNOWN if first["type"] == "extra_forbidden" else None) from None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
        json.dumps(values, ensure_ascii=False).encode("utf-8")  # raises for a lone surrogate
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RequestError(400, f"the body is no JSON in UTF-8: {reason}") from None
    if not isinstance(values, dict):
        raise RequestError(400, f"the body is a {type(values).__name__}; give a JSON object")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
