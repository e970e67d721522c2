"""What an operator offers: bad offers are refused when the server starts, and requests are held to its limits."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ets.chat import Chat
from ets.commands.sample import EMBEDDED
from ets.policies.opening import policies_of
from ets.policies.settings import Weighing
from ets.serving import offer as offers
from ets.serving.offer import Offer, Order
from ets.serving.operation import Limits, Operation
from ets.serving.requests import ChatCompletion, RequestError, TextCompletion, read_request
from ets.testing import TabularPolicy
from ets.types import InputError
from tests.serving.serving import PROMPT, likes_a, offered, opened_small, saved, served

DIFFUSION = policies_of(
    str(EMBEDDED["diffusion"]), None, None, {"block_size": 8, "max_length": 16, "temperature": 1.0}, Weighing()
)


def constant(prompt: Any, text: str) -> float:
    """Another reward."""
    return 0.0


def asked(offer: Offer, **fields: Any) -> Order:
    body = {"model": "tiny", "prompt": PROMPT, **fields}
    return offer.order(read_request(TextCompletion, json.dumps(body).encode()))


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")
def test_the_laws_of_all_requests_share_the_proposals_engine() -> None:
    small = str(EMBEDDED["embedded-small"])
    weighing = Weighing(proposal=small, proposal_engine="vllm")
    opened = policies_of(small, "transformers", None, {"block_size": 8, "max_length": 24}, weighing)
    pairs: list[Any] = [opened({"temperature": temperature}) for temperature in (1.0, 0.7)]
    assert pairs[0].proposal.engine is pairs[1].proposal.engine and not pairs[0].proposal.engine._loaded
    assert [pair.proposal.sampling.temperature for pair in pairs] == [1.0, 0.7]
    pairs[0].close()


def refused(offer: Offer, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        asked(offer, **fields)
    return caught.value


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": []}, "no method is served; name at least one"),
        ({"methods": ["beam"]}, "the method 'beam' cannot be served; choose from plain, majority"),
        ({"methods": ["ets-is"]}, "the method 'ets-is' cannot be served"),
        ({"methods": ["ets", "refined"]}, "the method refined spends a budget of tokens; add --tokens"),
        ({"methods": ["majority"]}, "the method majority compares answers; add --extract"),
        ({"rewards": {"share": "share"}}, "the reward share compares answers; add --extract"),
        ({"rewards": {"a": "nowhere.py:f"}}, "cannot read the reward 'nowhere.py:f'"),
        ({"rewards": {"a": "likelihod"}}, "'likelihod'; choose from"),
        ({"candidates": 0}, "candidates is 0"),
        ({"rollouts": 0}, "rollouts is 0"),
        ({"lam": 0.0}, "lam is 0.0"),
        ({"chat": Chat()}, "has no chat template"),
        ({"chat": Chat(template="nowhere")}, "unknown chat template 'nowhere'"),
        ({"policy": TabularPolicy(), "chat": Chat()}, "the policy has no checkpoint"),
        ({"extract": "("}, "pattern"),
    ],
)
def test_a_bad_offer_is_refused_at_the_start(given: dict[str, Any], message: str) -> None:
    policy = given.pop("policy", None)
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        offered(policy, **given)


def test_without_a_reward_nothing_is_offered() -> None:
    with pytest.raises(InputError, match="no reward is given; add --reward"):
        Offer("tiny", opened_small(), offered().settings, ["ets"], {})


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (Operation, {"width": 0}, "width is 0"),
        (Operation, {"queue": -1}, "queue is -1"),
        (Operation, {"seconds": 0.0}, "seconds is 0.0"),
        (Operation, {"reward_seconds": -1.0}, "reward_seconds is -1.0"),
        (Operation, {"body_kib": 0}, "body_kib is 0"),
        (Operation, {"drain_seconds": -1.0}, "drain_seconds -1.0"),
        (Limits, {"most_candidates": 0}, "most_candidates is 0"),
        (Limits, {"most_texts": 0}, "most_texts is 0"),
    ],
)
def test_settings_out_of_range_are_refused(kind: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(**given)


def test_a_request_without_settings_gets_the_servers() -> None:
    order = asked(offered(methods=("plain", "ets"), rewards={"first": likes_a, "second": constant}))
    assert (order.method, order.reward, order.samples, order.seed) == ("plain", "first", 1, None)
    assert order.problems[0].prompt == PROMPT and order.final


def test_by_default_a_request_may_lower_the_servers_settings_and_not_raise_them() -> None:
    offer = offered(methods=("ets", "refined"), candidates=4, rollouts=2, tokens=300)
    assert asked(offer, ets={"candidates": 1, "rollouts": 1}).method == "ets"
    assert asked(offer, ets={"method": "refined", "tokens": 200}).method == "refined"
    for name, value in (("candidates", 5), ("rollouts", 3)):
        error = refused(offer, ets={name: value})
        assert (str(error), error.param) == (f"{name} is {value}, and this server allows {value - 1}", f"ets.{name}")
    assert refused(offer, ets={"method": "refined", "tokens": 301}).param == "ets.tokens"
    assert asked(offered(candidates=1, limits=Limits(most_candidates=4)), ets={"candidates": 4})


def test_texts_are_counted_over_all_prompts() -> None:
    offer = offered(limits=Limits(most_texts=6))
    assert asked(offer, prompt=["a", "b", "c"], n=2).samples == 2
    assert "the request asks for 9 texts, and this server allows 6" in str(refused(offer, prompt=["a", "b", "c"], n=3))


def test_requests_of_a_law_share_its_policy_and_the_weights() -> None:
    offer = offered()
    first, second = asked(offer, temperature=0.7), asked(offer, temperature=0.7, max_tokens=3, seed=5, stop="x")
    other, own = asked(offer, temperature=0.8), asked(offer)
    assert first.policy is second.policy and own.policy is offer.policy
    assert len({id(each.policy) for each in (first, other, own)}) == 3
    assert first.policy.checkpoint is other.policy.checkpoint is offer.policy.checkpoint  # type: ignore[attr-defined]


def test_the_servers_own_law_by_its_values_is_no_other_law() -> None:
    """Clients send their defaults, and all such requests share forward passes."""
    offer = offered()
    own = asked(offer, temperature=1.0, top_p=1.0, ets={"block_size": offer.policy.horizon.block_size})
    assert own.policy is offer.policy and asked(offer, top_p=0.9).policy is not offer.policy


def test_laws_that_are_not_asked_for_are_given_up_but_the_servers_own() -> None:
    offer = offered()
    first = asked(offer, temperature=0.5).policy
    for n in range(offers.LAWS + 4):
        asked(offer, temperature=1.5 + n / 100)
    assert len(offer._laws) == offers.LAWS
    assert asked(offer).policy is offer.policy and asked(offer, temperature=0.5).policy is not first


def test_steps_of_another_length_are_a_law_of_their_own() -> None:
    offer = offered()
    assert asked(offer, ets={"block_size": 4}).policy.lengths[:3] == (0, 4, 8)  # type: ignore[attr-defined]
    assert "block_size 25 is longer than max_length 24" in str(refused(offer, ets={"block_size": 25}))


def test_a_method_that_needs_variety_is_refused_at_temperature_0() -> None:
    offer = offered(methods=("ets", "plain", "best-of-n", "refined"), tokens=300)
    for method in ("ets", "best-of-n", "refined"):
        assert "at temperature 0 nothing is random" in str(refused(offer, temperature=0, ets={"method": method}))
    assert asked(offer, temperature=0, ets={"method": "plain"}).policy.deterministic


def test_rewards_are_called_by_their_names_alone() -> None:
    code = f"{likes_a.__module__}:{likes_a.__qualname__}"
    offer = offered(rewards={"nice": likes_a})
    assert asked(offer, ets={"reward": "nice"}).reward == "nice"
    for name in (code, "likes_a", "likelihood", "majority", "os:system", ""):
        assert refused(offer, ets={"reward": name}).param == "ets.reward"


def test_a_conversation_is_written_by_the_template_of_the_operator(tmp_path: Path) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "2 + 3?"}], "stop": ["x"]}
    chat = read_request(ChatCompletion, json.dumps(body).encode())
    [problem] = offered(chat=Chat(template=saved(tmp_path), system="Add.", stop=("\n",))).order(chat).problems
    assert problem.prompt == "<|system|>Add.\n<|user|>2 + 3?\n<|assistant|>"
    assert problem.raw_prompt == ({"role": "user", "content": "2 + 3?"},)
    assert set(problem.stop) == {"\n", "x"}
    with pytest.raises(RequestError, match="the model has no chat template; take /v1/completions"):
        offered().order(chat)


def test_a_conversation_that_the_template_cannot_write_is_refused(tmp_path: Path) -> None:
    template = saved(tmp_path, "{{ raise_exception('roles must alternate') }}{{ messages }}")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "2 + 3?"}]}
    with pytest.raises(RequestError, match="cannot write this conversation: roles must alternate") as caught:
        offered(chat=Chat(template=template)).order(read_request(ChatCompletion, json.dumps(body).encode()))
    assert caught.value.status == 400


def test_of_masked_diffusion_the_length_is_a_law_of_its_own() -> None:
    """And what is final is sent: here after the last step alone, since positions are revealed in any order."""
    offer = offered(DIFFUSION)
    assert asked(offer, max_tokens=8).policy.lengths[-1] == 8  # type: ignore[attr-defined]
    assert "block_size 8 does not divide max_length 12" in str(refused(offer, max_tokens=12))
    assert str(refused(offer, max_tokens=10**9)) == "max_tokens is 1000000000, and this server allows 16"
    with served(offer) as server:
        whole = server.complete("1 + 2 =", seed=1, max_tokens=8)
        pieces = [piece["choices"][0] for piece in server.streamed("1 + 2 =", seed=1, max_tokens=8)]
        assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"]
        error = server.post("completions", {"model": "tiny", "prompt": "1 + 2 =", "logprobs": 0})
        assert (error.status_code, error.json()["error"]["param"]) == (400, "logprobs")


def test_a_policy_without_end_tokens_is_served() -> None:
    policy = TabularPolicy(max_length=3, seed=3)
    with served(policy) as server:
        choices = server.complete("a", n=12, seed=1)["choices"]
        texts = [choice["text"] for choice in choices]
        assert len(set(texts)) > 2
        for choice in choices:
            assert choice["finish_reason"] == "length" or len(choice["text"]) < 3
        pieces = [piece["choices"][0] for piece in server.streamed("a", n=12, seed=1)]
        assert [piece["text"] for piece in sorted(pieces, key=lambda piece: piece["index"])] == texts
        answer = server.complete("a", n=12, seed=1, ets={"method": "plain"})
        assert answer["usage"]["ets"]["generated_tokens"] == answer["usage"]["completion_tokens"]
        for fields in ({"temperature": 0.5}, {"max_tokens": 2}, {"ets": {"block_size": 2}}):
            refused = server.post("completions", {"model": "tiny", "prompt": "a", **fields})
            assert refused.status_code == 400 and "the law is fixed" in refused.json()["error"]["message"]


def test_weights_are_loaded_before_the_first_request() -> None:
    offer = offered()
    offer.load()
    checkpoint: Any = offer.policy.checkpoint
    assert "model" in vars(checkpoint) and np.isfinite(next(checkpoint.model.parameters()).sum().item())
