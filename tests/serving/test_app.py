"""Answers over real HTTP, to the clients that people use: OpenAI's own, curl, and lm-eval."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ets.chat import Chat
from ets.runner import run
from ets.serving.operation import Limits
from ets.serving.requests import TextCompletion
from ets.types import Chain, Cost
from tests.serving.serving import PROMPT, Served, events, likes_a, offered, saved, served, until

openai = pytest.importorskip("openai")

STOPS = ["16 eggs.\nN", ">>16", "gives away", "5+4=9>>9 eggs"]
"""Several tokens each, and likely after the prompt: guide steps of one token end in the middle of one."""
OTHER = PROMPT.replace("Tom has 5", "Ann has 7")
SECRET = "Zanzibar"
GATE = threading.Event()


def likes_length(prompt: Any, text: str) -> float:
    """A reward."""
    return float(len(text))


def quotes(prompt: Any, text: str) -> float:
    """A reward that fails, with a message that holds the prompt."""
    known: dict[str, float] = {}
    return known[f"{prompt}{text}"]


def forbids(prompt: Any, text: str) -> float:
    """A reward."""
    return -math.inf


def waits(problem: Any, rollouts: Any, chain: Chain) -> list[float]:
    """A reward that waits in the second guide step."""
    if len(chain.trace) == 1:
        assert GATE.wait(20)
    return [0.0 for _ in rollouts]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    chat = Chat(template=saved(tmp_path_factory.mktemp("chat")))
    rewards = {"likes-a": likes_a, "likes-length": likes_length, "quotes": quotes, "waits": waits}
    rewards |= {"forbids": forbids}
    limits = Limits(most_candidates=4, most_rollouts=2)
    offer = offered(methods=("ets", "plain", "best-of-n", "retained"), rewards=rewards, limits=limits, chat=chat)
    with served(offer) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0, timeout=60) as made:
        yield made


def drawn(server: Served, **fields: Any) -> list[Chain]:
    """The chains of a request to `/v1/completions`, drawn by `ets.runner.run` without a server."""
    order = server.service.offer.order(TextCompletion(model="tiny", **fields))
    width = len(order.problems) * order.samples
    found = run(order.policy, order.step, order.problems, width=width, seed=order.seed or 0, samples=order.samples)
    return sorted(found, key=lambda chain: (int(chain.problem.id), chain.sample))


def test_a_completion_is_that_of_the_library(server: Served, client: Any) -> None:
    answer = client.completions.create(model="tiny", prompt=[PROMPT, OTHER], n=2, seed=7)
    chains = drawn(server, prompt=[PROMPT, OTHER], n=2, seed=7)
    assert [choice.text for choice in answer.choices] == [chain.state.text for chain in chains]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) > 1
    assert (answer.object, answer.model) == ("text_completion", "tiny") and answer.id.startswith("cmpl-")
    assert {choice.finish_reason for choice in answer.choices} <= {"stop", "length"}


def test_a_chat_is_answered_under_its_template(server: Served, client: Any) -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 3?"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, n=2, seed=7)
    chains = drawn(server, prompt="<|system|>Add.\n<|user|>2 + 3?\n<|assistant|>", n=2, seed=7)
    assert [choice.message.content for choice in answer.choices] == [chain.state.text for chain in chains]
    assert {choice.message.role for choice in answer.choices} == {"assistant"}
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")


def test_the_texts_of_a_prompt_differ_and_their_order_does_not_depend_on_n(client: Any) -> None:
    def texts(n: int, seed: int) -> list[str]:
        answer = client.completions.create(model="tiny", prompt=PROMPT, n=n, seed=seed)
        return [choice.text for choice in answer.choices]

    many = texts(8, 1)
    assert len(set(many)) > 2
    assert texts(3, 1) == many[:3]  # reproducible, and in order
    assert texts(8, 2) != many


def test_without_a_seed_answers_differ(client: Any) -> None:
    answers = [client.completions.create(model="tiny", prompt=PROMPT, n=8) for _ in range(2)]
    first, second = [[choice.text for choice in answer.choices] for answer in answers]
    assert first != second


def test_usage_is_what_the_library_spends(server: Served, client: Any) -> None:
    generated = 'ets_tokens_total{kind="generated"}'
    before = server.metric(generated), server.metric("ets_positions_total")
    asked: dict[str, Any] = {"prompt": PROMPT, "n": 3, "seed": 5}
    answer = client.completions.create(model="tiny", **asked, extra_body={"ets": {"rollouts": 2}})
    chains = drawn(server, **asked, ets={"rollouts": 2})
    cost, spent = Cost.total(chain.cost for chain in chains), answer.usage.ets
    assert spent["generated_tokens"] == cost.generated and spent["reward_calls"] == cost.rewarded
    names = ("prompt", "candidate", "rollout", "scored")
    assert [spent[f"{name}_positions"] for name in names] == [getattr(cost, name) for name in names]
    assert spent["positions"] == sum(spent[f"{name}_positions"] for name in names) == cost.positions
    assert spent["forwards"] == pytest.approx(cost.forwards, abs=1e-3)
    assert answer.usage.completion_tokens == sum(len(chain.state.tokens) for chain in chains)
    assert answer.usage.prompt_tokens == len(chains[0].state.prompt)  # type: ignore[attr-defined]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert server.metric(generated) - before[0] == cost.generated
    assert server.metric("ets_positions_total") - before[1] == cost.positions


@pytest.mark.parametrize("method", ["ets", "plain", "best-of-n", "retained"])
def test_a_streamed_text_is_the_text(client: Any, method: str) -> None:
    asked: dict[str, Any] = {"model": "tiny", "n": 3, "seed": 11, "extra_body": {"ets": {"method": method}}}
    whole = client.completions.create(prompt=PROMPT, **asked)
    pieces = [piece.choices[0] for piece in client.completions.create(prompt=PROMPT, stream=True, **asked)]
    assert joined([(piece.index, piece.text) for piece in pieces]) == {c.index: c.text for c in whole.choices}
    ends = {piece.index: piece.finish_reason for piece in pieces if piece.finish_reason}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    several = {piece.index for piece in pieces if piece.finish_reason is None and piece.text}
    assert several == (set() if method == "best-of-n" else {0, 1, 2})  # a step is sent as soon as it is final

    messages = [{"role": "user", "content": "2 + 3?"}]
    chat = client.chat.completions.create(messages=messages, **asked)
    parts = [part.choices[0] for part in client.chat.completions.create(messages=messages, stream=True, **asked)]
    texts = joined([(part.index, part.delta.content or "") for part in parts])
    assert texts == {choice.index: choice.message.content for choice in chat.choices}
    assert [part.delta.role for part in parts[:3]] == ["assistant"] * 3


def test_a_text_that_the_reward_forbids_is_not_sent(client: Any) -> None:
    """A reward of -inf for every text leaves nothing to choose from: the reason is OpenAI's content_filter."""
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "n": 3}
    forbidden: dict[str, Any] = {"extra_body": {"ets": {"reward": "forbids"}}}
    answer = client.completions.create(**asked, **forbidden)
    assert answer.usage.ets["invalid_texts"] == 3
    assert [(choice.text, choice.finish_reason) for choice in answer.choices] == [("", "content_filter")] * 3
    last = [piece.choices[0] for piece in client.completions.create(**asked, **forbidden, stream=True)][-1]
    assert (last.text, last.finish_reason) == ("", "content_filter")
    assert client.completions.create(**asked).usage.ets["invalid_texts"] == 0


def joined(pieces: list[tuple[int, str]]) -> dict[int, str]:
    found: dict[int, str] = {}
    for index, text in pieces:
        found[index] = found.get(index, "") + text
    return found


def test_the_first_guide_step_is_sent_while_the_second_is_under_way(server: Served) -> None:
    GATE.clear()
    fields = {"seed": 3, "ets": {"reward": "waits"}}
    stream = server.streamed(**fields)
    first = next(stream)["choices"][0]
    assert first["text"] and first["finish_reason"] is None
    GATE.set()
    rest = [piece["choices"][0] for piece in stream]
    assert rest[-1]["finish_reason"] and len(rest) > 1


def test_a_stream_ends_with_its_usage_on_request(client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "seed": 2}
    whole = client.completions.create(**asked)
    *pieces, last = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert last.choices == [] and all(piece.usage is None and piece.choices for piece in pieces)
    assert timeless(last.usage) == timeless(whole.usage)
    assert len({piece.id for piece in (*pieces, last)}) == 1


def timeless(usage: Any) -> dict[str, Any]:
    """A usage without seconds."""
    found = usage.model_dump()
    found["ets"] = {name: value for name, value in found["ets"].items() if "seconds" not in name}
    return found


@pytest.mark.parametrize("block_size", [1, 3])
def test_no_part_of_a_stop_string_is_sent(client: Any, block_size: int) -> None:
    stopped = 0
    for seed in range(6):
        guidance = {"method": "plain", "block_size": block_size}
        asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "n": 4, "seed": seed}
        asked |= {"stop": STOPS, "extra_body": {"ets": guidance}}
        whole = client.completions.create(**asked)
        pieces = [piece.choices[0] for piece in client.completions.create(stream=True, **asked)]
        assert joined([(piece.index, piece.text) for piece in pieces]) == {c.index: c.text for c in whole.choices}
        assert not any(stop in choice.text for choice in whole.choices for stop in STOPS)
        for piece in pieces:
            if piece.finish_reason:
                assert piece.finish_reason == whole.choices[piece.index].finish_reason
        stopped += sum(choice.finish_reason == "stop" for choice in whole.choices)
    assert stopped > 4


@pytest.mark.parametrize("length", [1, 5, 24])
def test_max_tokens_ends_a_text(client: Any, length: int) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, n=3, seed=1, max_tokens=length)
    assert answer.usage.completion_tokens <= 3 * length
    if length < 6:
        assert answer.usage.completion_tokens == 3 * length
        assert {choice.finish_reason for choice in answer.choices} == {"length"}


def test_requests_of_several_lengths_share_the_model(server: Served) -> None:
    found: dict[int, dict[str, Any]] = {}

    def ask(length: int) -> None:
        found[length] = server.complete(seed=length, max_tokens=length)

    threads = [threading.Thread(target=ask, args=(length,)) for length in (3, 9, 17)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for length, answer in found.items():
        assert answer["usage"]["completion_tokens"] <= length
        [chain] = drawn(server, prompt=PROMPT, seed=length, max_tokens=length)
        assert answer["choices"][0]["text"] == chain.state.text


def test_a_temperature_and_a_truncation_change_the_law(client: Any) -> None:
    def text(**fields: Any) -> str:
        plain = {"extra_body": {"ets": {"method": "plain"}, **fields.pop("extra", {})}}
        return client.completions.create(model="tiny", prompt=PROMPT, **fields, **plain).choices[0].text

    greedy = text(temperature=0)
    assert text(temperature=0) == text(top_p=1e-6) == text(extra={"top_k": 1}) == greedy
    assert len({text(temperature=2.0, seed=seed) for seed in range(4)}) == 4


def test_logprobs_are_those_of_the_model(server: Served, client: Any) -> None:
    import torch

    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "n": 2, "seed": 4}
    answer = client.completions.create(**asked, logprobs=0)
    chains = drawn(server, prompt=PROMPT, n=2, seed=4)
    policy: Any = server.service.offer.policy
    for choice, chain in zip(answer.choices, chains, strict=True):
        state: Any = chain.state
        ids = torch.tensor([[*state.prompt, *state.tokens]])
        with torch.inference_mode():
            laws = policy.checkpoint.model(ids).logits[0].double().log_softmax(-1)
        count = len(choice.logprobs.tokens)
        wanted = [laws[len(state.prompt) + n - 1, state.tokens[n]].item() for n in range(count)]
        assert choice.logprobs.token_logprobs == pytest.approx(wanted, abs=1e-3)
        assert "".join(choice.logprobs.tokens) == choice.text
        lengths = [len("".join(choice.logprobs.tokens[:n])) for n in range(count)]
        assert choice.logprobs.text_offset == lengths
    assert client.completions.create(**asked).choices[0].logprobs is None


def test_streamed_logprobs_are_the_logprobs(client: Any) -> None:
    messages = [{"role": "user", "content": "2 + 3?"}]
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "seed": 4, "logprobs": True}
    whole = client.chat.completions.create(**asked).choices[0]
    found = []
    for piece in client.chat.completions.create(**asked, stream=True):
        if piece.choices[0].logprobs is not None:
            found += piece.choices[0].logprobs.content
    assert [each.token for each in found] == [each.token for each in whole.logprobs.content]
    assert [each.logprob for each in found] == [each.logprob for each in whole.logprobs.content]
    assert all(bytes(each.bytes).decode() == each.token for each in found)


def test_the_method_and_the_reward_are_chosen_by_request(server: Served, client: Any) -> None:
    def mean_length(**guidance: Any) -> float:
        answer = client.completions.create(model="tiny", prompt=PROMPT, n=8, seed=1, extra_body={"ets": guidance})
        return sum(len(choice.text) for choice in answer.choices) / 8

    long = {"reward": "likes-length", "candidates": 4, "rollouts": 2, "lam": 0.05}
    assert mean_length(**long) > 1 + mean_length(method="plain")
    [listed] = client.models.list().data
    assert listed.id == "tiny" and listed.ets["methods"] == ["ets", "plain", "best-of-n", "retained"]
    assert client.models.retrieve("tiny").ets["rewards"] == ["likes-a", "likes-length", "quotes", "waits", "forbids"]


def test_the_trace_of_each_text_comes_on_request(client: Any) -> None:
    guidance = {"candidates": 3, "rollouts": 2, "trace": True}
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "n": 2, "seed": 4, "extra_body": {"ets": guidance}}
    answer = client.completions.create(**asked)
    traces = answer.ets["traces"]
    named = [(trace["problem"], trace["sample"], trace["method"]) for trace in traces]
    assert named == [("0", n, "ets") for n in (0, 1)]
    for trace, choice in zip(traces, answer.choices, strict=True):
        assert trace["prompt"] == PROMPT
        assert all(len(step["texts"]) == len(step["weights"]) == 3 for step in trace["steps"])
        assert [len(step["texts"]) for step in trace["steps"]] == [3] * len(trace["steps"])
        chosen = [trace["texts"][step["texts"][step["choice"]]] for step in trace["steps"]]
        assert "".join(chosen) == choice.text
    rewarded = sum(max(len(row), 1) for trace in traces for step in trace["steps"] for row in step["rollouts"])
    assert answer.usage.ets["reward_calls"] == rewarded
    *pieces, last = client.completions.create(**asked, stream=True)
    assert last.ets["traces"] == traces and last.choices == []
    assert not any(hasattr(piece, "ets") for piece in pieces)


def test_errors_are_the_clients_exceptions(server: Served, client: Any) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT}
    with pytest.raises(openai.BadRequestError, match="best_of is 3, which this server cannot honour") as caught:
        client.completions.create(**asked, best_of=3)
    assert (caught.value.param, caught.value.code, caught.value.type) == ("best_of", None, "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(**{**asked, "model": "gpt-5"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="a")
    with pytest.raises(openai.InternalServerError, match=r"the reward 'quotes' failed: .* raised KeyError") as broken:
        client.completions.create(**asked, extra_body={"ets": {"reward": "quotes"}})
    assert broken.value.code == "reward_error"
    with pytest.raises(openai.InternalServerError, match="the reward 'quotes' failed"):
        list(client.completions.create(**asked, stream=True, extra_body={"ets": {"reward": "quotes"}}))


def test_a_key_and_a_place_are_the_clients_exceptions() -> None:
    GATE.clear()
    offer = offered(rewards={"waits": waits})
    with served(offer, keys=["right", "also"], width=1, queue=0) as server:
        asked: dict[str, Any] = {"model": "tiny", "prompt": PROMPT}
        with openai.OpenAI(base_url=server.address, api_key="right", max_retries=0) as client:
            for key in ("right", "also"):
                keyed = client.with_options(api_key=key)
                assert keyed.completions.create(**asked, extra_body={"ets": {"method": "plain"}}).choices
            wrong = client.with_options(api_key="wrong")
            with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
                wrong.completions.create(**asked)
            first = threading.Thread(target=lambda: client.completions.create(**asked))
            first.start()
            until(lambda: server.service.desk.working)
            with pytest.raises(openai.RateLimitError, match="1 requests are worked on and 0 wait") as full:
                client.completions.create(**asked)
            assert full.value.code == "queue_full" and int(full.value.response.headers["retry-after"]) >= 1
            GATE.set()
            first.join()


def test_a_fault_of_the_server_has_openais_shape(server: Served, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(asked: Any) -> None:
        raise RuntimeError(PROMPT)

    monkeypatch.setattr(server.service.offer, "order", broken)
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="tiny", prompt=PROMPT)
    assert caught.value.body == {
        "message": "the server failed: RuntimeError",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_gets_answers_streams_and_errors(server: Served) -> None:
    def curl(body: dict[str, Any], *options: str) -> str:
        address, json_type = f"{server.address}/chat/completions", "Content-Type: application/json"
        command = ["curl", "-s", "-N", *options, address, "-H", json_type, "-d", json.dumps(body)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    asked = {"model": "tiny", "messages": [{"role": "user", "content": "2 + 3?"}], "seed": 1}
    answer = json.loads(curl(asked))
    lines = curl({**asked, "stream": True}).splitlines()
    assert lines[-2:] == ["data: [DONE]", ""] and lines[1::2] == [""] * (len(lines) // 2)
    texts = [event["choices"][0]["delta"].get("content", "") for event in events(lines)]
    assert "".join(texts) == answer["choices"][0]["message"]["content"]
    assert curl({**asked, "n": 0}, "-o", os.devnull, "-w", "%{http_code} %{content_type}") == "400 application/json"


def test_lm_eval_evaluates_a_task(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its `local-completions`, with several prompts in a request and several requests at a time."""
    lm_eval = pytest.importorskip("lm_eval")
    for package in ("tenacity", "aiohttp", "datasets"):
        pytest.importorskip(package)
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    prompts = [PROMPT.replace("5", str(n)) for n in (3, 5, 6, 7, 9)]
    rows = "\n".join(json.dumps({"prompt": prompt, "answer": "x"}) for prompt in prompts)
    (tmp_path / "rows.jsonl").write_text(rows)
    generation = {"until": ["\n"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 24}
    task = {
        "task": "sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": generation,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    model = {"model": "tiny", "base_url": f"{server.address}/completions", "tokenizer_backend": None}
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={**model, "num_concurrent": 2},
        batch_size=2,
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
    )
    answers = {each["arguments"][0][0]: each["resps"][0][0] for each in found["samples"]["sums"]}
    assert set(answers) == set(prompts) and not any("\n" in text for text in answers.values())
    seeded = [drawn(server, prompt=prompt, seed=1234, max_tokens=24, stop=["\n"])[0].state.text for prompt in prompts]
    first_of_its_request = [answers[prompt] == text for prompt, text in zip(prompts, seeded, strict=True)]
    assert sum(first_of_its_request) >= 3  # of 3 requests


@pytest.mark.parametrize("shown", [False, True])
def test_prompts_and_texts_are_in_the_log_on_request_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], shown: bool
) -> None:
    """Also those of requests that fail, whatever the reward's error quotes."""
    caplog.set_level(logging.INFO)
    prompt, texts = f"{SECRET} {PROMPT}", []
    offer = offered(rewards={"likes-a": likes_a, "quotes": quotes}, chat=Chat(template=saved(tmp_path)))
    with served(offer, log_prompts=shown) as server:
        for number, fields in enumerate(({}, {"stop": SECRET}, {"n": 2, "seed": 1}, {"ets": {"reward": "quotes"}})):
            texts.append(server.post("completions", {"model": "tiny", "prompt": prompt, **fields}))
            assert texts[-1].status_code == (500 if number == 3 else 200)
        list(server.streamed(prompt, seed=2))
        for content in (prompt, {"text": prompt}, [{"type": SECRET}], 300 * prompt):
            messages = [{"role": "user", "content": content}]
            server.post("chat/completions", {"model": "tiny", "messages": messages})
        for fields in ({"model": SECRET}, {"suffix": SECRET}, {SECRET: 1}, {"prompt": [SECRET, 1]}):
            assert server.post("completions", {"model": "tiny", "prompt": prompt, **fields}).status_code in (400, 404)
    records = [json.loads(each.getMessage()) for each in caplog.records if each.name == "ets.serving"]
    assert len(records) == 13 and {record["status"] for record in records} == {200, 400, 404, 500}
    output = capfd.readouterr()
    everything = caplog.text + output.out + output.err
    assert (SECRET in everything) == shown
    logged = [record["texts"] for record in records if record.get("texts")]
    assert len(logged) == (5 if shown else 0)  # those of a stream too
    if not shown:
        assert texts[0].json()["choices"][0]["text"] not in everything
        [failed] = [record for record in records if record["status"] == 500]
        assert failed["error"].startswith("reward_error: KeyError (test_app.py, line ")
        assert failed["reward"] == "quotes"
