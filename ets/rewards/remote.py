"""Rewards over HTTP: a scorer that answers with numbers, and a judge behind an OpenAI-compatible server.

All requests of a guide step run concurrently, up to `connections`. Lost connections, timeouts and the statuses 429 and
5xx are tried again after `waits`. A server that fails for good ends the run with a `RewardError` that holds the
address; `ets.rewards.guarded` gives the texts of failed calls a value instead. Scores are cached by (problem, text).
"""

from __future__ import annotations

import math
import re
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from ets.chat import prompt_text
from ets.rewards.combining import cached
from ets.rewards.lifting import REMEMBERED, TextReward, pattern_extract
from ets.step import RewardError, require_counts, require_positive
from ets.types import InputError, Problem, one_line

Body: TypeAlias = Callable[[Problem, Sequence[str]], Any]
"""`(problem, texts) -> JSON value`: the request for a batch of texts."""
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between one attempt and the next."""
TOP = 20
"""Log-probabilities per token that servers report at most, by vLLM's and OpenAI's default."""
GRADE = """Grade the reply to the prompt from 1 (useless) to 10 (excellent). Give a reason in one sentence.
Then end with "Grade: " and the number.

Prompt:
{prompt}

Reply:
{text}"""
VERDICT = """Is the reply a correct and helpful answer to the prompt? Say Yes or No, and nothing else.

Prompt:
{prompt}

Reply:
{text}"""
FIELD = re.compile(r"\{(prompt|text|doc\.(\w+))\}")
"""The fields of a judge's template."""


def endpoint(
    url: str,
    *,
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

    A request is a POST with ``{"prompt": …, "texts": [… at most `batch` …]}``. The prompt is `Problem.raw_prompt`:
    text, messages, or token ids. The answer is a list of numbers in the order of the texts, or
    ``{"scores": [0.5, …]}``; for a batch of one also a number, or ``{"score": 0.5}``.

    The law p* ∝ p_ref · exp(r/λ) holds as far as the server gives a text the same score every time.

    Parameters
    ----------
    url : str
    body : callable, optional
        `(problem, texts) -> JSON value`, for servers that expect another request.
    read : callable, optional
        From the answer to a number or numbers. For example ``lambda answer: answer["outputs"]``.
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
        For a malformed address or values out of range.
    RewardError
        At a score, for a server that cannot be reached, refuses a request, or returns anything but a number per text.
    """
    require_counts(batch=batch)
    client = _Client(url, key, connections, seconds, waits)
    write = body or (lambda problem, texts: {"prompt": problem.raw_prompt, "texts": list(texts)})

    def score_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
        batches = [texts[at : at + batch] for at in range(0, len(texts), batch)]
        answers = client.ask([(url, write(problem, part)) for part in batches])
        return [
            score
            for part, answer in zip(batches, answers, strict=True)
            for score in client.numbers(read or _scores, answer, len(part))
        ]

    return cached(TextReward(score_texts), size=size)


def judge(
    address: str,
    *,
    template: str = GRADE,
    grade: str | Callable[[str], float | None] = r"[Gg]rade:\s*\**\s*(-?[0-9]+(?:\.[0-9]+)?)",
    missing: float | None = None,
    model: str | None = None,
    max_tokens: int = 512,
    options: Mapping[str, Any] | None = None,
    key: str = "OPENAI_API_KEY",
    connections: int = 16,
    seconds: float = 120.0,
    waits: Sequence[float] = WAITS,
    size: int = REMEMBERED,
) -> TextReward:
    """The grade in the reply of a language model behind an OpenAI-compatible server (chat completions).

    The judge decodes greedily with seed 0. The law p* ∝ p_ref · exp(r/λ) holds as far as the server gives equal
    requests equal replies; the cache gives a text one grade within a process.

    Parameters
    ----------
    address : str
        Base address of the interface, such as http://localhost:8000/v1.
    template : str
        The judge's user turn, with the fields ``{prompt}``, ``{text}`` and ``{doc.NAME}``, an entry of `Problem.doc`.
        A conversation is written into ``{prompt}`` by `ets.chat.prompt_text`.
    grade : str or callable
        A regular expression whose last match (its first group) is the number, or `reply -> number or None`.
    missing : float, optional
        The reward of a text whose reply has no grade. By default a reply without a grade raises `RewardError`.
    model : str, optional
        The server's name for the model; by default the only model that it lists.
    max_tokens : int
        Most tokens of a reply.
    options : mapping, optional
        Further fields of the request, or other values of its fields; None removes a field. For example
        ``{"chat_template_kwargs": {"enable_thinking": False}}``.
    key, connections, seconds, waits, size
        As for `endpoint`.

    Raises
    ------
    InputError
        For a malformed address, template or pattern, or values out of range.
    RewardError
        At a score, for a server that fails, and for a reply without a grade.
    """
    require_counts(max_tokens=max_tokens)
    find = pattern_extract(grade, "grade") if isinstance(grade, str) else grade
    asked = {"temperature": 0.0, "max_tokens": max_tokens, **(options or {})}
    client = _Judge(address, template, model, asked, key, connections, seconds, waits)

    def value(problem: Problem, choice: Mapping[str, Any]) -> float:
        reply = str(choice["message"]["content"] or "")
        try:
            found = find(reply)
            number = missing if found is None else float(found)
        except (TypeError, ValueError):
            number = missing
        if number is None:
            raise RewardError(
                f"{client.name} gives problem {problem.id!r} a reply without a grade, {one_line(repr(reply))}; change "
                "the template or the pattern, or set missing"
            )
        return number

    return cached(TextReward(client.scorer(value)), size=size)


def verdict(
    address: str,
    *,
    answer: str = "Yes",
    template: str = VERDICT,
    top: int = TOP,
    model: str | None = None,
    options: Mapping[str, Any] | None = None,
    key: str = "OPENAI_API_KEY",
    connections: int = 16,
    seconds: float = 120.0,
    waits: Sequence[float] = WAITS,
    size: int = REMEMBERED,
) -> TextReward:
    """The log-probability, in nats, that a judge's reply begins with the token `answer`.

    The server reports the `top` most probable first tokens (`top_logprobs`). The probabilities of all tokens that equal
    `answer` up to case and surrounding space add up: "Yes", " yes". If none of them is reported, the value is the least
    reported log-probability, which is an upper bound. One token per text is drawn, so a verdict costs less than a grade
    of `judge`, and it is finer.

    Parameters
    ----------
    address, template, model, options, key, connections, seconds, waits, size
        As for `judge`. A model that thinks first must be kept from it by `template` or `options`.
    answer : str
        A verdict of one token.
    top : int
        Tokens that the server reports; vLLM and OpenAI allow 20 by default.

    Raises
    ------
    InputError
        For a malformed address or template, or an empty answer.
    RewardError
        At a score, for a server that fails or reports no `top_logprobs`.
    """
    require_counts(top=top)
    wanted = answer.strip().casefold()
    if not wanted:
        raise InputError(f"answer is {answer!r}; give a verdict of one token, such as 'Yes'")
    asked = {"temperature": 1.0, "max_tokens": 1, "logprobs": True, "top_logprobs": top, **(options or {})}
    client = _Judge(address, template, model, asked, key, connections, seconds, waits)

    def value(problem: Problem, choice: Mapping[str, Any]) -> float:
        try:
            first = choice["logprobs"]["content"][0]["top_logprobs"]
            found = [(str(each["token"]), float(each["logprob"])) for each in first]
        except (KeyError, TypeError, ValueError, IndexError):
            found = []
        if not found:
            raise RewardError(f"{client.name} reports no top_logprobs; start it with them, or take ets.rewards.judge")
        logps = [logp for token, logp in found if token.strip().casefold() == wanted]
        return math.log(math.fsum(map(math.exp, logps))) if logps else min(logp for _, logp in found)

    return cached(TextReward(client.scorer(value)), size=size)


class _Client:
    """Concurrent requests in JSON from any thread, through an event loop that the client owns."""

    def __init__(self, address: str, key: str, connections: int, seconds: float, waits: Sequence[float]) -> None:
        from ets.policies.autoregressive.engine import EventLoop
        from ets.policies.autoregressive.server import Connection, shut_down

        require_counts(connections=connections)
        require_positive(seconds=seconds)
        self.connection = Connection(address, key, connections, seconds, waits)
        self.name, self.address = self.connection.name, self.connection.address
        self._loop = EventLoop("reward")
        weakref.finalize(self, shut_down, self.connection, self._loop)

    def ask(self, requests: Sequence[tuple[str, Any]]) -> list[Any]:
        """The answers to (path or address, body) pairs; None is a GET request. Raises `RewardError` if one fails."""
        try:
            return self._loop.wait_for_all([self.connection.ask(path, body) for path, body in requests])
        except InputError as error:
            raise RewardError(str(error)) from None

    def numbers(self, read: Callable[[Any], Any], answer: Any, count: int) -> list[float]:
        """The numbers in the answer to a request for `count` texts."""
        try:
            found = read(answer)
            listed = found if isinstance(found, list | tuple) else [found]
            if len(listed) != count or any(isinstance(each, bool | str) for each in listed):
                raise ValueError
            return [float(each) for each in listed]
        except (KeyError, IndexError, TypeError, ValueError):
            raise RewardError(
                f"{self.name} answers {one_line(repr(answer))} to a request for {count} texts; it must give a number "
                "for each, or read must find them"
            ) from None


def _scores(answer: Any) -> Any:
    if isinstance(answer, dict):
        return answer["scores"] if "scores" in answer else answer["score"]
    return answer


class _Judge(_Client):
    """Chat completions for a template."""

    def __init__(self, address: str, template: str, model: str | None, asked: Mapping[str, Any], *limits: Any) -> None:
        if not isinstance(template, str) or "{text}" not in template:
            raise InputError(
                f"the template {one_line(repr(template))} has no field {{text}}; put it where the text goes"
            )
        super().__init__(address, *limits)
        self.template, self._model = template, model
        self._asked = {"seed": 0, **asked}
        self._turn = threading.Lock()

    @property
    def model(self) -> str:
        """The server's name for the model."""
        from ets.policies.autoregressive.server import served_model

        with self._turn:
            if self._model is None:
                (answer,) = self.ask([("models", None)])
                self._model = served_model(self.name, answer)["id"]
            return self._model

    def turn(self, problem: Problem, text: str) -> str:
        """The judge's user turn. Raises `RewardError` for a field that `Problem.doc` lacks."""

        def content(field: re.Match[str]) -> str:
            if field[1] == "text":
                return text
            if field[1] == "prompt":
                return prompt_text(problem.raw_prompt)
            if field[2] not in problem.doc:
                raise RewardError(
                    f"the doc of problem {problem.id!r} has no {field[2]!r}; correct the judge's template"
                )
            return str(problem.doc[field[2]])

        return FIELD.sub(content, self.template)

    def scorer(
        self, value: Callable[[Problem, Mapping[str, Any]], float]
    ) -> Callable[[Problem, Sequence[str]], list[float]]:
        """The function of (problem, texts) whose numbers are those of the judge's choices, by `value`."""

        def score_texts(problem: Problem, texts: Sequence[str]) -> list[float]:
            turns = [self.turn(problem, text) for text in texts]
            model = self.model
            answers = self.ask([("chat/completions", self._body(model, turn)) for turn in turns])
            return [value(problem, self._choice(answer)) for answer in answers]

        return score_texts

    def _body(self, model: str, turn: str) -> dict[str, Any]:
        body = {"model": model, "messages": [{"role": "user", "content": turn}], **self._asked}
        return {name: value for name, value in body.items() if value is not None}

    def _choice(self, answer: Any) -> Mapping[str, Any]:
        try:
            choice: Mapping[str, Any] = answer["choices"][0]
            choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise RewardError(
                f"{self.name} gives no chat completion, {one_line(repr(answer))}; give an OpenAI-compatible server"
            ) from None
        return choice
