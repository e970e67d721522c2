"""Rewards over HTTP, through a tiny real server with faults to order; everything goes over the loopback address."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import pytest

import ets
from ets import demo
from ets.policies.checkpoint import Checkpoint
from ets.rewards import endpoint, guarded, judge, reward_model, verdict
from ets.rewards.reward_model import Classifier
from ets.step import RewardError
from ets.testing import TabularPolicy
from ets.types import Chain, InputError, Problem, Text
from tests.rewards.test_reward_model import saved
from tests.tiny_server import FOREVER, HANG_UP, NO_JSON, TinyServer
from tests.vllm_server import POOLING, vllm_server

QUESTION = "Question: Tom has 5 eggs. He buys 4. How many eggs does Tom have now?\nAnswer:"
PROBLEM = Problem("p", QUESTION, doc={"right": 9})
CHAIN = Chain(PROBLEM, 0, 1, TabularPolicy().start([PROBLEM])[0])
LETTERS = Problem("letters", "ab")
GIVEN = ["c", "abcabc", "bb", "cab", "ac"]
Graded: TypeAlias = Callable[[int], tuple[TinyServer, Path]]
NUMBER = r"#### (-?[0-9]+)"
QUICK: dict[str, Any] = {"waits": (0.01, 0.02)}
ENDS: list[Any] = [
    (500, r"answers 500 \(as told\); tried 3 times; start it again"),
    (HANG_UP, "cannot be reached"),
    (NO_JSON, "answers no JSON .*; correct the address"),
    (404, r"answers 404 \(as told\); correct the address"),
    (FOREVER, r"has not answered within 0\.3 seconds"),
]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(demo.model_path("small"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Reward models by their number of classes."""
    return {labels: saved(tmp_path_factory.mktemp(f"labels-{labels}"), labels=labels) for labels in (1, 3)}


@pytest.fixture
def graded(checkpoint: Checkpoint, folders: dict[int, Path]) -> Iterator[Graded]:
    """`graded(labels)`: a server of a reward model, and the folder of the model."""
    with ExitStack() as open_servers:

        def make(labels: int) -> tuple[TinyServer, Path]:
            classifier = Classifier(str(folders[labels]), 16, "cpu", False, None)
            return open_servers.enter_context(TinyServer(checkpoint, classifier=classifier)), folders[labels]

        yield make


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


def whole_scores(folder: Path, *texts: str, template: bool, problem: Problem = LETTERS) -> list[float]:
    """The logits of a reward model in this process."""
    return list(reward_model(folder, template=template).score_texts(problem, texts))


@pytest.mark.parametrize("form", ["score", "classify", "classify-chat", "pooling", "pooling-chat"])
def test_each_form_of_vllm_gives_the_logits_of_the_reward_model(graded: Graded, form: str) -> None:
    """The server answers in reverse order; requests name the model that it lists."""
    server, folder = graded(1)
    path, _, chat = form.partition("-")
    reward = endpoint(f"{server.host}/{path}", form=form, batch=3, options={"use_activation": False}, **QUICK)
    expected = whole_scores(folder, *GIVEN, template=bool(chat))
    assert scores(reward, *GIVEN, problem=LETTERS) == pytest.approx(expected, abs=1e-5)
    assert len({round(score, 3) for score in expected}) == len(GIVEN)
    assert len(server.seen) == (len(GIVEN) if chat else 2) and {body["model"] for body in server.seen} == {"tiny"}


@pytest.mark.parametrize("form", ["score", "classify", "classify-chat"])
def test_each_form_of_vllm_takes_a_conversation(graded: Graded, form: str) -> None:
    """As text, or as turns."""
    server, folder = graded(1)
    turns = tuple({"role": role, "content": text} for role, text in (("user", "c"), ("assistant", "b"), ("user", "a")))
    problem, texts = Problem("p", "written by a template", messages=turns), ["cab", "b"]
    reward = endpoint(f"{server.host}/{form.partition('-')[0]}", form=form, model="named", **QUICK)
    found = scores(reward, *texts, problem=problem)
    if form == "classify-chat":
        logits = whole_scores(folder, *texts, template=True, problem=problem)
        assert found == pytest.approx([1 / (1 + math.exp(-logit)) for logit in logits], abs=1e-6)
        return
    before = "user: c\n\nassistant: b\n\nuser: a"
    (body,) = server.seen
    request = {"text_1": before, "text_2": texts} if form == "score" else {"input": [f"{before}\n{t}" for t in texts]}
    assert body == {"model": "named", **request}


@pytest.mark.parametrize("form", ["classify", "classify-chat", "pooling"])
def test_a_label_chooses_a_class(graded: Graded, form: str) -> None:
    server, folder = graded(3)
    classifier = Classifier(str(folder), 16, "cpu", form == "classify-chat", None)
    rows = classifier.outputs([classifier.encode(classifier.whole(LETTERS, text), special=True) for text in GIVEN])
    url = f"{server.host}/{form.partition('-')[0]}"
    for label in range(3):
        found = scores(endpoint(url, form=form, label=label, **QUICK), *GIVEN, problem=LETTERS)
        assert found == pytest.approx([float(row.softmax(-1)[label]) for row in rows], abs=1e-6)
    for label in (None, 3):
        with pytest.raises(
            RewardError, match=rf"gives 3 classes, numbered from 0, and label is {label}; give"
        ) as error:
            scores(endpoint(url, form=form, label=label, **QUICK), "a", problem=LETTERS)
        assert "\n" not in str(error.value)


def test_a_class_s_name_is_worth_one_where_the_class_is_most_probable(graded: Graded) -> None:
    server, folder = graded(3)
    classifier = Classifier(str(folder), 16, "cpu", False, None)
    rows = classifier.outputs([classifier.encode(classifier.whole(LETTERS, text), special=True) for text in GIVEN])
    best = [int(row.argmax()) for row in rows]
    found = scores(
        endpoint(f"{server.host}/classify", form="classify", label=f"LABEL_{best[0]}", **QUICK), *GIVEN, problem=LETTERS
    )
    assert found == [float(each == best[0]) for each in best] and 0 < sum(found) < len(GIVEN)


def test_the_last_token_of_a_pooled_text_counts() -> None:
    answer = {"data": [{"index": 1, "data": [[0.5], [0.25]]}, {"index": 0, "data": [[1.0]]}]}
    assert ets.rewards.remote.FORMS["pooling"].read(answer, None) == [[1.0], [0.25]]


@pytest.mark.parametrize(
    ("url", "models"),
    [
        ("http://a:1/score", "http://a:1/v1/models"),
        ("http://a:1/v1/classify", "http://a:1/v1/models"),
        ("https://a/proxy/score?x=1", "https://a/proxy/v1/models"),
        ("http://a:1", "http://a:1/v1/models"),
    ],
)
def test_the_list_of_models_is_of_the_same_server(url: str, models: str) -> None:
    assert ets.rewards.remote._models(url) == models


def test_a_form_that_does_not_fit_is_one_line(graded: Graded, server: TinyServer) -> None:
    """Refused requests, answers of another form, and servers without a list of models."""
    reward_server, _ = graded(1)
    cases: list[tuple[str, dict[str, Any], str]] = [
        (f"{reward_server.host}/score", {"form": "classify"}, r"answers 400 \(Field required\); correct .* the form"),
        (f"{reward_server.host}/score", {}, r"answers 400 \(Field required\); correct .* the form of the request"),
        (
            server.scorer,
            {"form": "score", "body": ets.rewards.remote.FORMS["texts"].write},
            r"answers \{'scores'.* it must give a number for each in the form 'score' \(of texts, score, classify",
        ),
        (f"{server.host}/a/score", {"form": "score"}, "answers 404 .*; give model to skip .*/a/v1/models$"),
    ]
    for url, options, message in cases:
        with pytest.raises(RewardError, match=message) as error:
            scores(endpoint(url, **QUICK, **options), "a", "b")
        assert "\n" not in str(error.value)


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")
def test_rewards_through_vllms_server_are_the_logits_of_the_reward_model(tmp_path: Path) -> None:
    folder = saved(tmp_path, width=64)
    with vllm_server(POOLING | {"--model": str(folder)}) as address:
        host = address.removesuffix("/v1")
        for form in ("score", "classify", "classify-chat", "pooling", "pooling-chat"):
            path, _, chat = form.partition("-")
            reward = endpoint(f"{host}/{path}", form=form, options={"use_activation": False})
            expected = whole_scores(folder, *GIVEN, template=bool(chat))
            assert scores(reward, *GIVEN, problem=LETTERS) == pytest.approx(expected, abs=1e-3)
        with pytest.raises(RewardError, match=r"answers 400 .*; correct the address, the model or the form"):
            scores(endpoint(f"{host}/score", **QUICK), "a", problem=LETTERS)


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
        (lambda: endpoint(address, form="rank"), "unknown form 'rank'; choose from texts, score, classify,"),
        (lambda: endpoint(address, form="score", label=1), "label is 1, and the form 'score' takes none"),
        (lambda: endpoint(address, form="classify", label=-1), "takes the number of a class, from 0 or its name"),
        (lambda: endpoint(address, form="pooling", label="good"), "takes the number of a class, from 0"),
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
        (
            lambda: scores(endpoint(server.scorer, form="score"), "a", problem=Problem("p", (1, 2))),
            "is token ids",
        ),
    ]
    for make, message in cases:
        with pytest.raises(InputError) as caught:
            make()
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not server.seen
