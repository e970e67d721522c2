"""A judge over HTTP: a model behind an OpenAI-compatible server grades texts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ets.chat import prompt_text
from ets.rewards.combining import cached
from ets.rewards.lifting import REMEMBERED, TextReward, pattern_extract
from ets.rewards.remote import WAITS, Client, with_fields
from ets.step import RewardError, require_counts
from ets.types import InputError, Problem, one_line

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


class _Judge(Client):
    """Chat completions for a template."""

    def __init__(self, address: str, template: str, model: str | None, asked: Mapping[str, Any], *limits: Any) -> None:
        if not isinstance(template, str) or "{text}" not in template:
            raise InputError(
                f"the template {one_line(repr(template))} has no field {{text}}; put it where the text goes"
            )
        super().__init__(address, model, *limits)
        self.template, self._asked = template, {"seed": 0, **asked}

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
            bodies = [{"model": model, "messages": [{"role": "user", "content": turn}]} for turn in turns]
            answers = self.ask([("chat/completions", with_fields(body, self._asked)) for body in bodies])
            return [value(problem, self._choice(answer)) for answer in answers]

        return score_texts

    def _choice(self, answer: Any) -> Mapping[str, Any]:
        try:
            choice: Mapping[str, Any] = answer["choices"][0]
            choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise RewardError(
                f"{self.name} gives no chat completion, {one_line(repr(answer))}; give an OpenAI-compatible server"
            ) from None
        return choice
