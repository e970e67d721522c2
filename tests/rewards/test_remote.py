"""Rewards over HTTP, through a tiny real server with faults to order; everything goes over the loopback address."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import ets
from ets import demo
from ets.policies.checkpoint import Checkpoint
from ets.rewards import endpoint, guarded, judge, verdict
from ets.step import RewardError
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, Text
from tests.tiny_server import FOREVER, HANG_UP, NO_JSON, TinyServer

QUESTION = "Question: Tom has 5 eggs. He buys 4. How many eggs does Tom have now?\nAnswer:"
PROBLEM = Problem("p", QUESTION, doc={"right": 9})
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])
NUMBER = r"#### (-?[0-9]+)"
QUICK: dict[str, Any] = {"waits": (0.01, 0.02)}
ENDS: list[Any] = [
    (500, r"answers 500 \(as told\); tried 3 times; start it again"),
    (HANG_UP, "cannot be reached"),
    (NO_JSON, "answers no JSON; correct the address"),
    (404, r"answers 404 \(as told\); correct the address"),
    (FOREVER, r"has not answered within 0\.3 seconds"),
]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(demo.model_path("small"))


@pytest.fixture
def server(checkpoint: Checkpoint) -> Iterator[TinyServer]:
    with TinyServer(checkpoint) as server:
        yield server


def made(kind: str, server: TinyServer, **options: Any) -> Any:
    """A reward of each kind at a server."""
    if kind == "endpoint":
        return endpoint(server.scorer, **QUICK | options)
    if kind == "judge":
        return judge(
            server.address, **{"template": "{prompt}{text}", "grade": NUMBER, "missing": -1.0} | QUICK | options
        )
    return verdict(server.address, **{"template": "{prompt}{text}", "answer": "9"} | QUICK | options)


KINDS = ("endpoint", "judge", "verdict")


def scores(reward: Any, *contents: str, problem: Problem = PROBLEM) -> list[float]:
    return list(reward(problem, [Text((1,), content, -1.0, True) for content in contents], CHAIN))


def test_an_endpoint_gets_prompt_and_texts_and_gives_a_number_for_each(server: TinyServer) -> None:
    """The server's scores are log-probabilities; batches of two."""
    texts = [" Tom has 5 + 4", " 9", " He", " Tom", " #### 9"]
    assert scores(endpoint(server.scorer, batch=2), *texts, texts[0]) == pytest.approx(
        [server._score(QUESTION, text) for text in (*texts, texts[0])]
    )
    assert sorted(body["texts"] for body in server.seen) == sorted([texts[:2], texts[2:4], texts[4:]])
    assert all(body["prompt"] == QUESTION for body in server.seen)


def test_an_endpoint_s_request_and_answer_may_have_another_form(server: TinyServer) -> None:
    reward = endpoint(
        server.scorer,
        body=lambda problem, texts: {"prompt": "Question", "texts": list(texts), "right": problem.doc["right"]},
        read=lambda answer: [-score for score in answer["scores"]],
    )
    assert scores(reward, " Tom") == [-server._score("Question", " Tom")] and server.seen[0]["right"] == 9


@pytest.mark.parametrize("answer", [[1.0], {"scores": [1.0, None]}, {"scores": "ab"}, {"grade": 1}, [True, False]])
def test_an_answer_without_a_number_for_each_text_is_one_line(server: TinyServer, answer: Any) -> None:
    reward = endpoint(server.scorer, read=lambda found: ets.rewards.remote._scores(answer))
    with pytest.raises(
        RewardError, match=r"/score answers .* to a request for 2 texts; it must give a number"
    ) as error:
        scores(reward, "a", "b")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("answer", "score"), [(0.5, 0.5), ({"score": 2}, 2.0), ([1.5], 1.5), ({"scores": [3]}, 3.0)])
def test_a_batch_of_one_may_be_a_number(server: TinyServer, answer: Any, score: float) -> None:
    assert scores(endpoint(server.scorer, read=lambda found: ets.rewards.remote._scores(answer)), "a") == [score]


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


@pytest.mark.parametrize("kind", KINDS)
def test_equal_texts_are_asked_about_once(server: TinyServer, kind: str) -> None:
    reward = made(kind, server)
    first = scores(reward, "a", "b", "a")
    asked = len(server.seen)
    assert scores(reward, "b", "a") == [first[1], first[0]] and first[0] == first[2] and len(server.seen) == asked


@pytest.mark.parametrize("kind", KINDS)
def test_requests_run_together_up_to_the_connections(server: TinyServer, kind: str) -> None:
    reward = made(kind, server, connections=3, **({"batch": 1} if kind == "endpoint" else {}))
    server.faults = [0.05] * 9
    scores(reward, *"abcdefghi")
    assert server.busiest == 3 and len(server.seen) == 9


@pytest.mark.parametrize(
    ("kind", "fault"), [*((kind, 503) for kind in KINDS), *(("judge", fault) for fault in (429, HANG_UP, 0.6))]
)
def test_a_server_s_faults_are_tried_again(server: TinyServer, kind: str, fault: Any) -> None:
    undisturbed = scores(made(kind, server), "a")
    server.faults = [fault]
    assert scores(made(kind, server, seconds=0.3), "a") == undisturbed and not server.faults


@pytest.mark.parametrize(
    ("kind", "fault", "message"),
    [*((kind, *ENDS[0]) for kind in KINDS), *(("endpoint", *end) for end in ENDS[1:])],
)
def test_a_server_that_fails_ends_a_run_with_its_address(
    server: TinyServer, kind: str, fault: Any, message: str
) -> None:
    server.faults = [fault] * 3
    reward = made(kind, server, seconds=0.3, waits=(0.01, 0.01))
    options: dict[str, Any] = {"model": TabularPolicy(), "candidates": 1, "rollouts": 1, "lam": 1.0}
    with pytest.raises(RewardError, match=message) as error:
        ets.sample("a", reward=reward, **options)
    assert f"http://127.0.0.1:{server.port}" in str(error.value) and "\n" not in str(error.value)


def test_a_guard_gives_the_texts_of_a_failed_call_a_value_that_is_not_cached(server: TinyServer) -> None:
    reward = guarded(made("endpoint", server, waits=()), on_error=-9.0)
    server.faults = [500]
    with pytest.warns(UserWarning, match="the reward failed for problem 'p'"):
        assert scores(reward, "a", "b") == [-9.0, -9.0]
    assert scores(reward, "a")[0] != -9.0 and reward.failures == 1


def test_a_key_is_sent_and_never_shown(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWARD_API_KEY", "secret-1")
    with TinyServer(checkpoint, key="secret-1") as server:
        assert scores(made("endpoint", server), "a")[0] < 0
        monkeypatch.setenv("REWARD_API_KEY", "secret-2")
        with pytest.raises(RewardError, match=r"answers 401 .*; put the API key into REWARD_API_KEY") as error:
            scores(made("endpoint", server), "a")
        assert "secret" not in str(error.value)


def test_bad_input_is_one_line_before_anything_is_asked(server: TinyServer) -> None:
    address = server.address
    cases: list[tuple[Any, str]] = [
        (lambda: endpoint("localhost:8000"), "'localhost:8000' is no address of a server"),
        (lambda: endpoint(address, batch=0), "batch is 0"),
        (lambda: endpoint(address, seconds=0), "seconds is 0"),
        (lambda: judge(address, template="{prompt}"), "has no field {text}; put it where the text goes"),
        (lambda: judge(address, grade="("), "grade is '(', which is no regular expression"),
        (lambda: judge(address, connections=0), "connections is 0"),
        (lambda: verdict(address, answer=" "), "answer is ' '; give a verdict of one token"),
        (lambda: verdict(address, top=0), "top is 0"),
        (
            lambda: scores(made("judge", server, template="{text}{doc.other}"), "a"),
            "has no 'other'; correct the judge's template",
        ),
        (lambda: scores(made("judge", server), "a", problem=Problem("p", (1, 2))), "is token ids"),
    ]
    for make, message in cases:
        with pytest.raises(InputError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not server.seen
