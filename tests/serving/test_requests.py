"""Requests that are refused: each by a status of the 400s, in OpenAI's shape, with a message that names the fault."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from ets.chat import Chat
from ets.serving.operation import Limits
from ets.serving.requests import ChatCompletion, RequestError, TextCompletion, read_request
from tests.serving.serving import CLIENT, NAME, PROMPT, Served, offered, saved, served, until

KEY = "sk-right"
TEXT, CHAT = "completions", "chat/completions"
USER = {"role": "user", "content": "2 + 3?"}
SMALLEST: dict[str, dict[str, Any]] = {
    TEXT: {"model": NAME, "prompt": PROMPT},
    CHAT: {"model": NAME, "messages": [USER]},
}
BODIES: list[tuple[bytes, str]] = [
    (b"", "the body is no JSON in UTF-8"),
    (b'{"model": ', "the body is no JSON in UTF-8"),
    (b'{"model": "tiny", "prompt": "\xff"}', "the body is no JSON in UTF-8"),
    (json.dumps(SMALLEST[TEXT]).encode("utf-16"), "the body is no JSON in UTF-8"),
    (b'{"model": "tiny", "prompt": "\\ud800"}', "surrogates not allowed"),
    (b'{"model": "tiny", "prompt": "a", "\\udfff": 1}', "surrogates not allowed"),
    (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "NaN is no JSON number"),
    (b'{"model": "tiny", "prompt": "a", "temperature": -Infinity}', "-Infinity is no JSON number"),
    (b'{"model": "tiny", "prompt": "a", "temperature": 1e400}', "temperature: Input should be a finite number"),
    (b'{"model": "tiny", "prompt": "a", "n": 1' + 5000 * b"0" + b"}", "the body is no JSON in UTF-8"),
    (100_000 * b"[", "it is nested too deeply"),
    (b'{"model": "tiny", "prompt": ' + 20_000 * b'{"a": ' + b"1" + 20_001 * b"}", "it is nested too deeply"),
    (b"[]", "the body is a list; give a JSON object"),
    (b'"tiny"', "the body is a str; give a JSON object"),
    (b"model=tiny&prompt=a", "the body is no JSON in UTF-8"),
]
FIELDS: list[tuple[str, dict[str, Any], str | None, str]] = [
    # wrong types and values out of range
    (TEXT, {"model": 5}, "model", "model: Input should be a valid string"),
    (TEXT, {"n": 0}, "n", "n: Input should be greater than or equal to 1"),
    (TEXT, {"n": -3}, "n", "n: Input should be greater than or equal to 1"),
    (TEXT, {"n": 1.5}, "n", "n: Input should be a valid integer"),
    (TEXT, {"n": "2"}, "n", "n: Input should be a valid integer"),
    (TEXT, {"n": True}, "n", "n: Input should be a valid integer"),
    (TEXT, {"n": 10**30}, "n", "this server allows 4"),
    (TEXT, {"prompt": [PROMPT] * 3, "n": 2}, "n", "the request asks for 6 texts, and this server allows 4"),
    (TEXT, {"max_tokens": 0}, "max_tokens", "max_tokens: Input should be greater than or equal to 1"),
    (TEXT, {"temperature": -1}, "temperature", "temperature: Input should be greater than or equal to 0"),
    (TEXT, {"temperature": 5e-324}, "temperature", "temperature is 5e-324; give 0, or at least 1e-09"),
    (TEXT, {"temperature": 0}, None, "at temperature 0 nothing is random"),
    (TEXT, {"temperature": "hot"}, "temperature", "temperature: Input should be a valid number"),
    (TEXT, {"top_p": 0}, "top_p", "top_p: Input should be greater than 0"),
    (TEXT, {"top_p": 1.5}, "top_p", "top_p: Input should be less than or equal to 1"),
    (TEXT, {"top_k": 0}, "top_k", "top_k: Input should be greater than or equal to 1"),
    (TEXT, {"seed": 2**63}, "seed", "seed: Input should be less than"),
    (TEXT, {"seed": -(10**400)}, "seed", "seed: Input should be greater than or equal to"),
    (TEXT, {"stop": ""}, "stop", "stop holds an empty string"),
    (TEXT, {"stop": ["x", ""]}, "stop", "stop holds an empty string"),
    (TEXT, {"stop": [1]}, "stop", "stop: Input should be a valid string"),
    (TEXT, {"stream": "yes"}, "stream", "stream: Input should be a valid boolean"),
    (TEXT, {"stream_options": {"include_usage": True}}, "stream_options", "stream_options needs stream"),
    (TEXT, {"stream": True, "stream_options": {"often": 1}}, "stream_options.often", "no field that this server knows"),
    # fields that cannot be honoured
    (TEXT, {"logprobs": 5}, "logprobs", "logprobs: Input should be less than or equal to 0"),
    (TEXT, {"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is 0.5, which this server cannot"),
    (CHAT, {"presence_penalty": -2}, "presence_penalty", "presence_penalty is -2, which this server cannot honour"),
    (TEXT, {"logit_bias": {"50256": -100}}, "logit_bias", 'logit_bias is {"50256": -100}, which this server cannot'),
    (TEXT, {"echo": True}, "echo", "echo is true, which this server cannot honour"),
    (TEXT, {"best_of": 3}, "best_of", "best_of is 3, which this server cannot honour"),
    (TEXT, {"suffix": "the end"}, "suffix", 'suffix is "the end", which this server cannot honour'),
    (CHAT, {"logprobs": True, "top_logprobs": 3}, "top_logprobs", "top_logprobs is 3, which this server cannot"),
    (CHAT, {"logprobs": 1}, "logprobs", "logprobs: Input should be a valid boolean"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "which this server cannot honour"),
    (CHAT, {"response_format": {"type": "json_object"}}, "response_format", "which this server cannot honour"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities", "which this server cannot honour"),
    (TEXT, {"prompts": ["a"]}, "prompts", "prompts is no field that this server knows; leave it out"),
    (TEXT, {"messages": [USER]}, "messages", "messages is no field that this server knows"),
    (CHAT, {"prompt": "a"}, "prompt", "prompt is no field that this server knows"),
    # prompts
    (TEXT, {"prompt": None}, "prompt", "prompt is missing; give it"),
    (TEXT, {"prompt": []}, "prompt", "prompt is empty; give at least one"),
    (TEXT, {"prompt": ""}, None, "is empty; give at least one token"),
    (TEXT, {"prompt": [""]}, None, "is empty; give at least one token"),
    (TEXT, {"prompt": [[]]}, None, "is empty; give at least one token"),
    (TEXT, {"prompt": ["a", 1]}, "prompt", "prompt: Input should be a valid string"),
    (TEXT, {"prompt": [1, True]}, "prompt", "prompt: Input should be a valid string"),
    (TEXT, {"prompt": [1.5]}, "prompt", "prompt: Input should be a valid string"),
    (TEXT, {"prompt": [1, -1]}, None, "has the token id -1"),
    (TEXT, {"prompt": [10**9]}, None, "has the token id 1000000000"),
    (TEXT, {"prompt": [[3], [10**400]]}, None, "has the token id 1000"),
    (TEXT, {"prompt": 2100 * "5 eggs. "}, None, "which leaves no room for a generation of 24"),
    (TEXT, {"max_tokens": 25}, "max_tokens", "max_tokens is 25, and this server allows 24"),
    (CHAT, {"max_completion_tokens": 10**12}, "max_completion_tokens", "this server allows 24"),
    (
        CHAT,
        {"max_tokens": 8, "max_completion_tokens": 8},
        "max_completion_tokens",
        "are the same; leave one of them out",
    ),
    # messages
    (CHAT, {"messages": []}, "messages", "messages is empty; give at least one"),
    (CHAT, {"messages": "2 + 3?"}, "messages", "messages: Input should be a valid list"),
    (CHAT, {"messages": ["2 + 3?"]}, "messages", "messages: Input should be a valid dictionary"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages", "messages.0 has no text; give its content as text"),
    (CHAT, {"messages": [{"content": "2 + 3?"}]}, "messages", "messages.0 has the role null; choose from"),
    (
        CHAT,
        {"messages": [USER, {"role": "robot", "content": "a"}]},
        "messages",
        'messages.1 has the role "robot"; choose from',
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": 5}]},
        "messages",
        "messages.0 has no text; give its content as text",
    ),
    (CHAT, {"messages": [{**USER, "name": "Ann"}]}, "messages", "messages.0 has name, which is not supported"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        "messages",
        "messages.0 has a part that is no text",
    ),
    (
        CHAT,
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": []}]},
        "messages",
        "messages.1 has tool_calls, which is not supported",
    ),
    # the method, its settings and the reward
    (TEXT, {"ets": "best"}, "ets", "ets: Input should be"),
    (TEXT, {"ets": {"width": 2}}, "ets.width", "ets.width is no field that this server knows"),
    (
        TEXT,
        {"ets": {"method": "greedy"}},
        "ets.method",
        "the method 'greedy' is not served; choose from ets, plain, refined",
    ),
    (TEXT, {"ets": {"reward": "file.py:f"}}, "ets.reward", "the reward 'file.py:f' is not served"),
    (TEXT, {"ets": {"reward": "os:getpid"}}, "ets.reward", "the reward 'os:getpid' is not served; choose from likes-a"),
    (TEXT, {"ets": {"candidates": 9}}, "ets.candidates", "candidates is 9, and this server allows 8"),
    (TEXT, {"ets": {"candidates": 0}}, "ets.candidates", "ets.candidates: Input should be greater than or equal to 1"),
    (TEXT, {"ets": {"rollouts": 2}}, "ets.rollouts", "rollouts is 2, and this server allows 1"),
    (TEXT, {"ets": {"tokens": 10**9}}, "ets.tokens", "the method ets has no budget of tokens"),
    (TEXT, {"ets": {"method": "refined", "tokens": 10**9}}, "ets.tokens", "tokens is 1000000000, and this server"),
    (TEXT, {"ets": {"lam": 0}}, "ets.lam", "ets.lam: Input should be greater than or equal to 0.000000001"),
    (TEXT, {"ets": {"lam": 1e-320}}, "ets.lam", "ets.lam: Input should be greater than or equal to 0.000000001"),
    (TEXT, {"ets": {"block_size": 10**30}}, None, "give at most 9223372036854775807"),
    (TEXT, {"ets": {"method": "refined", "trace": True}}, "ets.trace", "the method refined has no trace"),
    (TEXT, {"ets": {"trace": "yes"}}, "ets.trace", "ets.trace: Input should be a valid boolean"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    chat = Chat(template=saved(tmp_path_factory.mktemp("chat")))
    limits = Limits(most_candidates=8, most_texts=4)
    offer = offered(methods=("ets", "plain", "refined"), tokens=200, chat=chat, limits=limits)
    with served(offer, keys=[KEY], body_kib=256) as running:
        yield running


def refused(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer, which has OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and isinstance(error["type"], str)
    assert "\n" not in error["message"] and "Traceback" not in error["message"]
    return error


def ask(server: Served, path: str, body: Any) -> httpx2.Response:
    return server.post(path, body, authorization=f"Bearer {KEY}")


@pytest.mark.parametrize(("body", "message"), BODIES)
def test_a_body_that_cannot_be_read_is_refused(server: Served, body: bytes, message: str) -> None:
    assert message in refused(ask(server, TEXT, body))["message"]


@pytest.mark.parametrize(("path", "fields", "param", "message"), FIELDS)
def test_a_field_that_cannot_be_honoured_is_refused_by_its_name(
    server: Served, path: str, fields: dict[str, Any], param: str | None, message: str
) -> None:
    error = refused(ask(server, path, {**SMALLEST[path], **fields}))
    assert message in error["message"]
    assert error["param"] == param and error["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_another_model_is_not_found(server: Served, path: str) -> None:
    error = refused(ask(server, path, {**SMALLEST[path], "model": "gpt-5"}), 404)
    assert error["message"] == "the model 'gpt-5' is not served; take 'tiny'"
    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize("missing", ["model", "prompt or messages"])
def test_a_missing_field_is_named(server: Served, path: str, missing: str) -> None:
    body = dict(SMALLEST[path])
    name = missing if missing in body else next(name for name in body if name != "model")
    del body[name]
    error = refused(ask(server, path, body))
    assert (error["message"], error["param"]) == (f"{name} is missing; give it", name)


@pytest.mark.parametrize("depth", [200, 900, 950, 980, 990, 1000])
@pytest.mark.parametrize("field", ["prompt", "ets", "tools", "unknown", "stop"])
def test_a_depth_near_the_interpreters_limit_is_refused(server: Served, depth: int, field: str) -> None:
    deep = f'{{"model": "tiny", "prompt": "a", "{field}": {depth * "["}{depth * "]"}}}'
    refused(ask(server, TEXT, deep.encode()))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("POST", "/v1/completions/", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/models/gpt-5", 404),
        ("GET", "/v1/models/%ff%00", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/", 404),
    ],
)
def test_a_wrong_path_or_verb_is_refused(server: Served, method: str, path: str, status: int) -> None:
    found = CLIENT.request(method, server.root + path, headers={"authorization": f"Bearer {KEY}"})
    error = refused(found, status)
    assert "is not served" in error["message"] if "models/" in path else "there is /v1/chat" in error["message"]


@pytest.mark.parametrize(
    "header", [None, "", KEY, "Bearer", "Bearer x y", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer sk-righ", "Bearer é"]
)
def test_without_a_key_nothing_is_read_or_answered(server: Served, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for method, path in (
        ("POST", TEXT),
        ("POST", CHAT),
        ("GET", "models"),
        ("GET", "models/tiny"),
        ("GET", "../metrics"),
    ):
        found = CLIENT.request(method, f"{server.address}/{path}", content=b"{", headers=headers)
        error = refused(found, 401)
        assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
        assert KEY not in found.text


def test_keys_are_compared_in_constant_time(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((len(given), len(key)))
        return given == key

    monkeypatch.setattr("ets.serving.app.hmac.compare_digest", compare)
    refused(server.post(TEXT, b"{", authorization="Bearer no"), 401)
    refused(ask(server, TEXT, b"{"), 400)
    assert compared == [(32, 32), (32, 32)]  # digests, so that the length of a key is no matter either


def test_health_needs_no_key(server: Served) -> None:
    found = CLIENT.get(f"{server.root}/health")
    assert found.json() == {"status": "ok", "working": 0, "waiting": 0, "stuck": 0}


def test_a_large_body_is_refused(server: Served) -> None:
    large = {**SMALLEST[TEXT], "user": 300 * 1024 * "a"}
    assert "the body is larger than 262144 bytes" in refused(ask(server, TEXT, large), 413)["message"]


def test_a_large_body_is_refused_before_it_has_come(server: Served) -> None:
    """By its length alone, and a body in chunks as soon as it is too long."""
    host, port = server.root.removeprefix("http://").split(":")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n"
    chunk = f"{200_000:x}\r\n".encode() + 200_000 * b" " + b"\r\n"
    for sent in (
        f"{head}Content-Length: 9999999999\r\n\r\n".encode(),
        f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + 2 * chunk,
    ):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(sent)
            assert connection.recv(20).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    with served(seconds=0.2) as server:
        host, port = server.root.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
            assert connection.recv(20).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_during_its_body_is_no_fault() -> None:
    with served() as server:
        host, port = server.root.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n{")
        gone = 'ets_requests_total{path="/v1/completions",status="499"}'
        until(lambda: server.metric(gone) == 1)


def test_what_is_no_http_is_refused(server: Served) -> None:
    host, port = server.root.removeprefix("http://").split(":")
    for sent in (b"\x16\x03\x01\x02\x00", b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n"):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(sent)
            assert connection.recv(20).startswith(b"HTTP/1.1 400 ")


def test_values_that_change_nothing_are_accepted(server: Served) -> None:
    """And null, which is the same as leaving a field out."""
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "best_of": 1,
        "echo": False,
        "suffix": None,
        "user": "a",
    }
    absent = dict.fromkeys(("n", "stream", "stream_options", "stop", "seed", "logprobs", "temperature", "ets"))
    found = ask(server, TEXT, {**SMALLEST[TEXT], **neutral, "logit_bias": {}, **absent})
    assert found.status_code == 200 and len(found.json()["choices"]) == 1
    found = ask(
        server, CHAT, {**SMALLEST[CHAT], "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}}
    )
    assert found.status_code == 200


def test_requests_that_were_refused_cost_nothing_and_leave_no_place_taken(server: Served) -> None:
    before = server.metric('ets_tokens_total{kind="generated"}')
    for path, fields, _, _ in FIELDS[:20]:
        ask(server, path, {**SMALLEST[path], **fields})
    assert server.metric('ets_tokens_total{kind="generated"}') == before
    assert (server.service.desk.working, server.service.desk.waiting) == (0, 0)


def test_contents_of_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "2 +"}, {"type": "text", "text": " 3?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": None}]
    asked = read_request(ChatCompletion, json.dumps({"model": "m", "messages": messages}).encode())
    assert asked.conversation == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 3?"})


def test_prompts_are_texts_or_token_ids() -> None:
    def prompts(given: Any) -> Any:
        return read_request(TextCompletion, json.dumps({"model": "m", "prompt": given}).encode()).prompts

    assert prompts("a") == ["a"] and prompts(["a", "b"]) == ["a", "b"]
    assert prompts([1, 2]) == [(1, 2)] and prompts([[1, 2], [3]]) == [(1, 2), (3,)]


def test_max_completion_tokens_is_max_tokens() -> None:
    asked = read_request(ChatCompletion, json.dumps({**SMALLEST[CHAT], "max_completion_tokens": 7}).encode())
    assert (asked.max_tokens, asked.length_field) == (7, "max_completion_tokens")


def test_an_outline_of_an_error_quotes_nothing() -> None:
    try:
        {}["the prompt"]
    except KeyError as cause:
        error = RequestError(500, "KeyError: 'the prompt'", code="reward_error")
        error.__cause__ = cause
    assert error.outline.startswith("reward_error: KeyError (test_requests.py, line ")
    assert RequestError(400, "temperature: hot", "temperature").outline == "invalid_request_error, temperature"
