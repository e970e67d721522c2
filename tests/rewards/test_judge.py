"""A judge over HTTP, through a tiny real server; what judges share with other rewards over HTTP is in `test_remote`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ets import demo
from ets.policies.checkpoint import Checkpoint
from ets.rewards import judge
from ets.step import RewardError
from ets.types import Problem
from tests.rewards.test_remote import NUMBER, QUESTION, made, scores
from tests.tiny_server import TinyServer


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(demo.model_path("small"))


@pytest.fixture
def server(checkpoint: Checkpoint) -> Iterator[TinyServer]:
    with TinyServer(checkpoint) as server:
        yield server


def test_a_judge_s_reply_holds_the_grade(server: TinyServer) -> None:
    """The embedded model does the sum of its turn, with a number that the text gives; the result is the grade."""
    template = "Question: Tom has {text} eggs. He buys {doc.right}. How many eggs does Tom have now?\nAnswer:"
    turns = [template.format(text=number, doc=SimpleNamespace(right=9)) for number in (5, 6)]
    asked = {"max_tokens": 64, "temperature": 0.0, "seed": 0}
    replies = [server._reply({"messages": [{"content": turn, "role": "user"}], **asked}) for turn in turns]
    grades = [float(re.findall(NUMBER, reply["message"]["content"])[-1]) for reply in replies]
    assert scores(judge(server.address, template=template, grade=NUMBER, max_tokens=64), "5", "6") == grades
    assert sorted(body["messages"][0]["content"] for body in server.seen) == turns
    assert all(body["model"] == "tiny" and body["temperature"] == 0 for body in server.seen)


def test_a_template_s_fields_are_filled_once(server: TinyServer) -> None:
    """A text that holds a field's name stays as it is; conversations become one text."""
    turns = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"})
    reward = made("judge", server, template="{prompt}|{text}|{other}", options={"max_tokens": 1, "seed": None})
    scores(reward, "{prompt}{doc.right}", problem=Problem("p", "<template>", messages=turns))
    (body,) = server.seen
    assert body["messages"][0]["content"] == "system: Be brief.\n\nuser: 2 + 3?|{prompt}{doc.right}|{other}"
    assert body["max_tokens"] == 1 and "seed" not in body


def test_a_reply_without_a_grade_is_one_line_or_a_value(server: TinyServer) -> None:
    nothing: Any = {"grade": "no such words", "options": {"max_tokens": 2}}
    assert scores(made("judge", server, **nothing, missing=-3), "a") == [-3]
    with pytest.raises(RewardError, match=r"a reply without a grade, '.*; change the template") as error:
        scores(made("judge", server, **nothing, missing=None), "a")
    assert "\n" not in str(error.value)
    by_function = made("judge", server, grade=lambda reply: len(reply), options={"max_tokens": 2})
    assert scores(by_function, "a")[0] > 0


def test_a_verdict_is_a_log_probability_of_the_model(server: TinyServer) -> None:
    texts = [" Tom has 5 + 4 = <<5+4=9>>", " Tom has 5 + 4 = <<5+4="]
    tokenizer = server.checkpoint.tokenizer
    laws = [server._logps(tuple(tokenizer(QUESTION + text)["input_ids"]), 1.0) for text in texts]
    equal = [i for i in range(len(laws[0])) if tokenizer.decode([i]).strip() == "9"]
    expected = [math.log(sum(math.exp(law[i]) for i in equal)) for law in laws]
    assert scores(made("verdict", server, top=len(laws[0])), *texts) == pytest.approx(expected)
    assert expected[0] > -0.1
    least = sorted(laws[1])[-2]
    assert scores(made("verdict", server, top=2, answer="Xyz"), texts[1]) == pytest.approx([least])
    assert all(body["max_tokens"] == 1 and body["logprobs"] for body in server.seen)


def test_tokens_of_one_verdict_add_up(server: TinyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to case and surrounding space."""
    listed = [{"token": token, "logprob": math.log(p)} for token, p in ((" Yes", 0.5), ("yes", 0.25), ("No", 0.125))]
    choice = {"message": {"content": ""}, "logprobs": {"content": [{"top_logprobs": listed}]}}
    monkeypatch.setattr(server, "_reply", lambda body: choice)
    assert scores(made("verdict", server, answer="Yes"), "a") == pytest.approx([math.log(0.75)])
    choice["logprobs"] = {"content": []}
    with pytest.raises(RewardError, match="reports no top_logprobs; start it with them, or take"):
        scores(made("verdict", server, answer="Yes"), "a")
