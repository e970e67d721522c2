"""Rewards over HTTP: the numbers of vLLM's scoring interfaces, or of any service that answers with numbers.

All requests of a guide step run concurrently, up to `connections`. Faults that may pass, such as lost connections and
the status 503, are tried again after `waits`, as by `ets.policies.autoregressive.server.Endpoint`. A server that fails
for good ends the run with a `RewardError` that holds the address; `ets.rewards.guarded` gives the texts of failed calls
a value instead. Scores are cached by (problem, text).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from ets.chat import prompt_text, text_before_reply, with_reply
from ets.connection import Connection, served_model, shut_down
from ets.event_loop import EventLoop
from ets.rewards.combining import cached
from ets.rewards.lifting import REMEMBERED, TextReward
from ets.step import RewardError, require_counts
from ets.types import InputError, Problem, one_line

Body: TypeAlias = Callable[[Problem, Sequence[str]], Any]
"""`(problem, texts) -> JSON value`: the request for a batch of texts."""
Label: TypeAlias = int | str | None
"""A class: by number, by name, or the only one."""
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between one attempt and the next."""


@dataclass(frozen=True)
class Form:
    """A request for the scores of texts, and the place of the scores in the answer.

    Parameters
    ----------
    write : callable
        `(problem, texts) -> JSON value`.
    read : callable
        `(answer, label) ->` a number, or a list with a number or a list of numbers for each text.
    named : bool
        Whether the request names the model.
    labels : tuple of type
        Types of labels.
    batch : int, optional
        Most texts of a request; by default any number.
    """

    write: Body
    read: Callable[..., Any]
    named: bool = True
    labels: tuple[type, ...] = (int,)
    batch: int | None = None


def _texts(problem: Problem, texts: Sequence[str]) -> Any:
    return {"prompt": problem.raw_prompt, "texts": list(texts)}


def _pairs(problem: Problem, texts: Sequence[str]) -> Any:
    return {"text_1": prompt_text(problem.raw_prompt), "text_2": list(texts)}


def _wholes(problem: Problem, texts: Sequence[str]) -> Any:
    before = text_before_reply(problem)
    return {"input": [before + text for text in texts]}


def _turns(problem: Problem, texts: Sequence[str]) -> Any:
    (text,) = texts
    return {"messages": with_reply(problem.raw_prompt, text)}


def _entries(answer: Any) -> list[Any]:
    """The entries of an answer of vLLM, in the order of the texts."""
    found = {entry["index"]: entry for entry in answer["data"]}
    return [found[index] for index in range(len(answer["data"]))]


def _scores(answer: Any, label: Label = None) -> Any:
    if isinstance(answer, dict):
        return answer["scores"] if "scores" in answer else answer["score"]
    return answer


def _score(answer: Any, label: Label) -> Any:
    return [entry["score"] for entry in _entries(answer)]


def _classes(answer: Any, label: Label) -> Any:
    named = isinstance(label, str)
    return [float(entry["label"] == label) if named else entry["probs"] for entry in _entries(answer)]


def _pooled(answer: Any, label: Label) -> Any:
    rows = [entry["data"] for entry in _entries(answer)]
    return [row[-1] if isinstance(row[-1], list) else row for row in rows]


FORMS: dict[str, Form] = {
    "texts": Form(_texts, _scores, named=False, labels=()),
    "score": Form(_pairs, _score, labels=()),
    "classify": Form(_wholes, _classes, labels=(int, str)),
    "classify-chat": Form(_turns, _classes, labels=(int, str), batch=1),
    "pooling": Form(_wholes, _pooled),
    "pooling-chat": Form(_turns, _pooled, batch=1),
}
"""The forms of `endpoint`: `texts` is the form of a service for ets, the others are vLLM's."""


def endpoint(
    url: str,
    *,
    form: str = "texts",
    label: Label = None,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    body: Body | None = None,
    read: Callable[[Any], Any] | None = None,
    batch: int = 16,
    key: str = "REWARD_API_KEY",
    connections: int = 16,
    seconds: float = 60.0,
    waits: Sequence[float] = WAITS,
    size: int = REMEMBERED,
) -> TextReward:
    """The scores that an HTTP server gives to texts: JSON in, numbers out.

    A request is a POST for at most `batch` texts, in a form of this list. PROMPT is `Problem.raw_prompt`: text,
    messages, or token ids. In vLLM's forms PROMPT is text, by `ets.chat.prompt_text`.

    - ``texts``, for a service of your own: ``{"prompt": PROMPT, "texts": [TEXT, …]}``. The answer is a list of numbers
      in the order of the texts, or ``{"scores": [0.5, …]}``; for one text also ``0.5``, or ``{"score": 0.5}``.
    - ``score``, vLLM's ``/score``: ``{"text_1": PROMPT, "text_2": [TEXT, …]}``. The answer is
      ``{"data": [{"index": 0, "score": 0.5}, …]}``, ordered by its indices.
    - ``classify``, vLLM's ``/classify``: ``{"input": [PROMPT + TEXT, …]}``. The answer is
      ``{"data": [{"index": 0, "label": "good", "probs": [0.1, 0.9]}, …]}``.
    - ``pooling``, vLLM's ``/pooling``: ``{"input": [PROMPT + TEXT, …]}``. The answer is
      ``{"data": [{"index": 0, "data": [0.5]}, …]}``; in a list of lists, one for each token, the last token counts.
    - ``classify-chat`` and ``pooling-chat``: ``{"messages": […]}``, the prompt's turns and the text as the assistant's
      turn, which the server writes by the reward model's chat template. Each text is a request.

    The law p* ∝ p_ref · exp(r/λ) holds as far as the server gives a text the same score every time.

    Parameters
    ----------
    url : str
        The whole address, such as http://localhost:8000/score.
    form : str
        A form of the list.
    label : int or str, optional
        For models with several classes, the number of the class, from 0. In the forms of ``/classify`` also a name:
        the reward is 1 for a text whose most probable class has the name, else 0.
    model : str, optional
        The server's name for the model, for vLLM's forms; by default the only model in the server's ``/v1/models``.
    options : mapping, optional
        Further fields of the request; None removes a field. For example ``{"use_activation": False}``: vLLM then
        gives logits, in place of the sigmoid of one class or the softmax of several.
    body : callable, optional
        `(problem, texts) -> JSON value`, for servers that expect another request than the form's.
    read : callable, optional
        From the answer to a number or numbers, in place of the form's: ``lambda answer: answer["outputs"]``.
    batch : int
        Texts per request.
    key : str
        The environment variable of an API key, sent as a bearer token if it is set.
    connections : int
        Largest number of concurrent requests.
    seconds : float
        Time limit for an attempt.
    waits : sequence of float
        Seconds between attempts: one attempt more than waits.
    size : int
        Cached scores.

    Raises
    ------
    InputError
        For a malformed address, an unknown form, a label that the form does not have, or values out of range.
    RewardError
        At a score, for a server that cannot be reached, refuses a request, or returns anything but a number per text.
    """
    chosen = _form(form, label)
    require_counts(batch=batch)
    client = Client(url, model, key, connections, seconds, waits)
    client.models = _models(client.address)
    write, most = body or chosen.write, min(batch, chosen.batch or batch)

    def request(problem: Problem, texts: Sequence[str]) -> Any:
        content = write(problem, texts)
        named = {"model": client.model} if chosen.named else {}
        return with_fields({**named, **content}, options or {}) if named or options else content

    def values(answer: Any, count: int) -> list[float]:
        return client.numbers(read or partial(chosen.read, label=label), answer, count, label, form)

    def score_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
        batches = [texts[at : at + most] for at in range(0, len(texts), most)]
        answers = client.ask([(url, request(problem, part)) for part in batches])
        return [value for part, answer in zip(batches, answers, strict=True) for value in values(answer, len(part))]

    return cached(TextReward(score_texts), size=size)


def _form(form: str, label: Label) -> Form:
    """A form by name, which must have the label."""
    if form not in FORMS:
        raise InputError(f"unknown form {form!r}; choose from {', '.join(FORMS)}, or give body and read")
    kinds = FORMS[form].labels
    valid = label is None or (isinstance(label, kinds) and not isinstance(label, bool))
    if not valid or (isinstance(label, int) and label < 0):
        wanted = " or ".join({int: "the number of a class, from 0", str: "its name"}[kind] for kind in kinds)
        raise InputError(f"label is {label!r}, and the form {form!r} takes {wanted or 'none'}")
    return FORMS[form]


def _models(url: str) -> str:
    """The address of a server's list of models, by the address of one of its interfaces."""
    parts = urlsplit(url)
    above = parts.path.rpartition("/")[0].removesuffix("/v1")
    return urlunsplit((parts.scheme, parts.netloc, f"{above}/v1/models", "", ""))


def with_fields(body: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A request with further fields, or other values of its fields; None removes a field."""
    return {name: value for name, value in {**body, **options}.items() if value is not None}


class Client:
    """Concurrent requests in JSON from any thread, through an event loop that the client owns.

    `model` is the server's name for the model, by default the only one in the list at the address `models`.
    """

    def __init__(
        self,
        address: str,
        model: str | None,
        key: str,
        connections: int,
        seconds: float,
        waits: Sequence[float],
    ) -> None:
        self.connection = Connection(address, key, connections, seconds, waits)
        self.name, self.address = self.connection.name, self.connection.address
        self.models = f"{self.address}/models"
        self._model, self._turn = model, threading.Lock()
        self._loop = EventLoop("reward")
        weakref.finalize(self, shut_down, self.connection, self._loop)

    @property
    def model(self) -> str:
        """The server's name for the model."""
        with self._turn:
            if self._model is None:
                try:
                    (answer,) = self.ask([(self.models, None)])
                except RewardError as error:
                    raise RewardError(f"{error}; give model to skip this request for its name, {self.models}") from None
                self._model = served_model(self.name, answer)["id"]
            return self._model

    def ask(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        """The answers to (path or address, body) pairs; None is a GET request. Raises `RewardError` if one fails."""
        try:
            return self._loop.wait_for_all([self.connection.ask(path, body) for path, body in requests])
        except InputError as error:
            raise RewardError(str(error)) from None

    def numbers(self, read: Callable[[Any], Any], answer: Any, count: int, label: Label, form: str) -> list[float]:
        """The numbers in the answer to a request for `count` texts."""
        try:
            found = read(answer)
            listed = found if isinstance(found, list | tuple) else [found]
            if len(listed) != count:
                raise ValueError
            return [self._number(each, label) for each in listed]
        except RewardError:
            raise
        except (KeyError, IndexError, TypeError, ValueError):
            raise RewardError(
                f"{self.name} answers {one_line(repr(answer))} to a request for {count} texts; it must give a number "
                f"for each in the form {form!r} (of {', '.join(FORMS)}), or read must find them"
            ) from None

    def _number(self, found: Any, label: Label) -> float:
        """A number, or the number of the label's class in a list."""
        if isinstance(found, list | tuple):
            at = 0 if label is None and len(found) == 1 else label
            if not isinstance(at, int) or at >= len(found):
                classes = f"{len(found)} classes, numbered from 0"
                raise RewardError(f"{self.name} gives {classes}, and label is {label!r}; give the number of one")
            found = found[at]
        if isinstance(found, bool | str):
            raise ValueError
        return float(found)
