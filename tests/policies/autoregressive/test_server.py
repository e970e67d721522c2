"""The endpoint policy: laws through a tiny real server, faults to order, and vLLM's own server with the embedded model.

Everything goes over the loopback address. What a draw is depends on its seed alone, so a run that met faults must give
what an undisturbed one gives.
"""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ets import demo
from ets.evaluation.journal import Journal
from ets.importance import ImportanceSampling
from ets.kernel import energy_guided
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.law import MOST_BYTES
from ets.policies.autoregressive.server import TEXT_ONLY, Endpoint
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.autoregressive.truncation import probabilities
from ets.policies.checkpoint import Checkpoint
from ets.policies.settings import Horizon, Sampling
from ets.randomness import derive
from ets.rejection import exact
from ets.rewards import per_text, verifier
from ets.runner import run
from ets.suffix_moves import refined
from ets.tasks.arithmetic import Arithmetic
from ets.testing import check_law, check_policy, judge_law
from ets.types import Chain, InputError, Keys, Problem, StepFn
from ets.walk import lengths_of
from tests.conftest import causal_oracle, random_qwen3, tiny_tokenizer
from tests.laws.suffix_moves import BudgetedWalk, by_outcome
from tests.tiny_server import BLANKS, FOREVER, HANG_UP, NO_JSON, TinyServer

PROBLEMS = [Problem("p", "abc"), Problem("q", (1, 3, 3, 2, 1)), Problem("r", "b")]
LEVEL = 1e-4
DRAWS = 400
QUICK = (0.01, 0.02)
ERROR = {"error": {"message": "CUDA out of memory", "code": 503}}
EMPTY: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
ABORTED = {"choices": [{"text": "", "finish_reason": "abort", "token_ids": [], "logprobs": EMPTY}]}


@pytest.fixture
def server(tiny_checkpoint: Any) -> Iterator[TinyServer]:
    with TinyServer(tiny_checkpoint) as server:
        yield server


def policy_at(
    server: TinyServer, sampling: Sampling | None = None, max_length: int = 4, block: int = 2, **options: Any
) -> Any:
    endpoint = Endpoint(server.address, server.checkpoint, **{"waits": QUICK, **options})
    return EnginePolicy(endpoint, sampling or Sampling(), Horizon(block, max_length))


def keys(count: int, salt: int = 0) -> Keys:
    return derive(np.arange(count, dtype=np.uint64), salt)


def texts(policy: Any, count: int = 20, salt: int = 0) -> list[str]:
    return [draw.text.text for draw in policy.finish(policy.start(PROBLEMS[:1]) * count, keys(count, salt))]


def test_laws_log_probabilities_and_costs_hold_over_a_server(server: TinyServer) -> None:
    """At a level of 1e-4 with 400 draws per law; a temperature that is off by 0.3 would be seen."""
    policy = policy_at(server, Sampling(0.7), connections=16)
    oracle = causal_oracle(policy, 0.7)
    check_policy(policy, oracle, PROBLEMS, draws=DRAWS, level=LEVEL)
    drawn = [draw.state.tokens for draw in policy.finish(policy.start(PROBLEMS[:1]) * DRAWS, keys(DRAWS, 20))]
    wrong = causal_oracle(policy, 1.0).finish_law(PROBLEMS[0], ())
    assert not judge_law(drawn, wrong, level=LEVEL).passed
    assert policy.engine.approximate == ""


def test_a_served_proposal_goes_on_from_candidates_with_exact_ratios(server: TinyServer) -> None:
    reference = TransformersPolicy(server.checkpoint, Sampling(1.0), Horizon(2, 4))
    policy = policy_at(server, Sampling(0.7), connections=16)
    pair = ImportanceSampling(reference, policy)
    begun = [draw.state for draw in pair.extend(pair.start(PROBLEMS[:1]) * 50, keys(50, 40)) if not draw.state.done]
    own, other = (causal_oracle(policy, temperature) for temperature in (1.0, 0.7))
    for before, draw in zip(begun, pair.finish(begun, keys(len(begun), 41)), strict=True):
        after = draw.state.tokens[len(before.tokens) :]
        p, q = (each.finish_law(PROBLEMS[0], before.tokens)[draw.state.tokens] for each in (own, other))
        assert after and draw.text.log_ratio == pytest.approx(math.log(p / q), abs=1e-6)


def test_moves_and_rejection_follow_their_exact_laws_over_a_server(server: TinyServer) -> None:
    """At a level of 1e-4 with 700 chains per law; so the moves leave p* invariant. A move without λ is seen."""
    policy = policy_at(server, connections=16, block=1, max_length=2)
    problem, lam, highest = PROBLEMS[0], 0.5, 1.2

    def liking(text: str) -> float:
        return 0.6 * text.count("a") - 0.5 * text.count("b")

    def law_at(scale: float, budget: int) -> BudgetedWalk:
        def weight(tokens: tuple[int, ...]) -> float:
            return math.exp(liking(policy.endings.text(tokens, ())) / scale)

        return BudgetedWalk(causal_oracle(policy), problem, weight, len, lengths_of(policy), budget, 0.0, 1)

    def drawn(step: StepFn) -> list[Chain]:
        return list(run(policy, step, [problem], width=700, seed=0, samples=700))

    reward = per_text(lambda _, text: liking(text))
    moved = [chain.state.tokens for chain in drawn(refined(reward, lam=lam, budget=6, start=0.0))]
    check_law(moved, by_outcome(law_at(lam, 6).law()), level=LEVEL)
    assert not judge_law(moved, by_outcome(law_at(2 * lam, 6).law()), level=LEVEL).passed
    accepted, rejected = law_at(lam, 7).searched(math.exp(highest / lam), 4)
    whole = {(True, x): p for x, p in by_outcome(accepted).items()}
    whole |= {(False, x): p for x, p in by_outcome(law_at(lam, 7).law(rejected)).items()}
    chains = drawn(exact(reward, lam=lam, highest=highest, limit=4, budget=7))
    check_law([(chain.exact, chain.state.tokens) for chain in chains], whole, level=LEVEL)


def test_moves_over_a_server_depend_on_their_chain_alone(server: TinyServer) -> None:
    reward = per_text(lambda _, text: text.count("a"))
    step, found = refined(reward, lam=1.0, budget=30, tries=2), list[Any]()
    for width, connections in ((1, 1), (12, 16)):
        policy = policy_at(server, connections=connections)
        chains = list(run(policy, step, PROBLEMS, width=width, seed=0, samples=4))
        assert sum(chain.cost.generated for chain in chains) == policy.ledger.generated
        found.append({(chain.problem.id, chain.sample): (chain.state.text, chain.cost.generated) for chain in chains})
    assert found[0] == found[1] and len({text for text, _ in found[0].values()}) > 3


def test_no_more_requests_than_connections_are_under_way(server: TinyServer) -> None:
    policy = policy_at(server, connections=4)
    server.faults = [0.05] * 40
    texts(policy, 40)
    assert 1 < server.busiest <= 4


def test_everything_that_changes_the_distribution_is_sent(server: TinyServer) -> None:
    policy = policy_at(server, Sampling(0.7, top_k=3, top_p=0.9))
    begun = len(server.seen)
    policy.extend(policy.start(PROBLEMS[:2]), keys(2))
    first, second = sorted(server.seen[begun:], key=lambda body: len(body["prompt"]))
    assert first["seed"] != second["seed"] and 0 <= first["seed"] < 2**63
    del first["seed"]
    assert first == {
        "model": "tiny",
        "prompt": [1, 2, 3],
        "max_tokens": 2,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 3,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": 1,
        "stop_token_ids": [0],
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "return_token_ids": True,
    }


def test_a_row_that_goes_on_with_its_key_has_a_seed_of_its_own(server: TinyServer) -> None:
    policy = policy_at(server)
    begun = [draw.state for draw in policy.extend(policy.start(PROBLEMS[:1]) * 20, keys(20))]
    rows = [n for n, state in enumerate(begun) if not state.done]
    policy.extend([begun[n] for n in rows], keys(20)[rows])
    seeds = [body["seed"] for body in server.seen[-20 - len(rows) :]]
    assert rows and len(set(seeds)) == len(seeds)


def test_a_row_that_the_server_stopped_while_it_was_thinking_goes_on(server: TinyServer) -> None:
    """The tags are b and a: in "bba" the stop string stands within a section, which the server does not know."""
    problem = Problem("s", "abc", stop=("ba",), thinking=("b", "a"))
    policy, seen = policy_at(server, max_length=12), len(server.seen)
    draws = policy.finish(policy.start([problem]) * 400, keys(400))
    for draw in draws:
        tokens, stop = list(draw.state.tokens), problem.stop
        assert draw.text.text == policy.endings.text(tokens, stop, problem.thinking)
        ended = [n for n in range(1, len(tokens) + 1) if policy.endings.reached(tokens[:n], stop, problem.thinking)]
        assert ended == [len(tokens)] or (not ended and len(tokens) == 12)
    assert any("bba" in draw.text.text for draw in draws) and len(server.seen) > seen + 400


def test_while_a_section_is_open_no_stop_string_is_asked_for(server: TinyServer) -> None:
    policy, seen = policy_at(server, max_length=12), len(server.seen)
    policy.finish(policy.start([Problem("s", "aab", stop=("c",), thinking=("b", "a"))]), keys(1))
    assert "stop" not in server.seen[seen]


def test_a_fifth_stop_string_and_one_across_a_guide_step_are_cut_by_us(server: TinyServer) -> None:
    stop = ("aa", "cc", "ca", "ac", "ab")
    policy, problem = policy_at(server, max_length=12), Problem("s", "abc", stop=stop)
    begun = [draw.state for draw in policy.extend(policy.start([problem]) * 200, keys(200))]
    going = [state for state in begun if not state.done]
    draws = policy.finish(going, keys(len(going), 1))
    assert all(len(body.get("stop", [])) <= 4 for body in server.seen)
    for draw in draws:
        tokens = list(draw.state.tokens)
        whole = policy.endings.decode(tokens)
        assert draw.state.done and draw.text.text == policy.endings.text(tokens, stop)
        assert not any(policy.endings.reached(tokens[:n], stop) for n in range(1, len(tokens)))
        assert tokens[-1] == 0 or any(string in whole for string in stop) or len(tokens) == 12
    across = [draw for draw in draws if len(draw.state.tokens) == 3 and draw.state.tokens[-1]]
    assert across and all(policy.endings.decode(draw.state.tokens[1:]) in stop for draw in across)
    assert any(draw.cost.generated > 1 for draw in across)


@pytest.mark.parametrize(
    "faults",
    [
        [500, 500],
        [429, 503],
        [408, 409],
        [425, 499],
        [HANG_UP, HANG_UP],
        [FOREVER, 500],
        [BLANKS, 500],
        [ERROR, ABORTED],
    ],
    ids=["500", "429", "408", "425", "hang up", "slow", "blanks", "error in 200, aborted"],
)
def test_faults_that_pass_are_tried_again_and_change_nothing(server: TinyServer, faults: list[Any]) -> None:
    undisturbed = texts(policy_at(server))
    slow = FOREVER in faults or BLANKS in faults
    policy = policy_at(server, **({"seconds": 2.0} if slow else {}))
    asked, server.faults = len(server.seen), list(faults)
    begun = time.monotonic()
    assert texts(policy) == undisturbed
    again = len(server.seen) - asked - 20
    assert not server.faults and again >= len(faults)
    assert again == len(faults) or slow  # then what a busy machine is slow to answer is asked again, too
    if 429 in faults:  # which said how long to wait
        assert time.monotonic() - begun >= 0.3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (500, r"answers 500 \(as told\); tried 3 times"),
        (FOREVER, "has not answered within 1 seconds"),
        (BLANKS, "has not answered within 1 seconds"),
        (ERROR, r"answers 503 in a 200 \(CUDA out of memory\); tried 3 times; start it again"),
        (ABORTED, r"ends a row early, after 0 tokens \(abort\); tried 3 times"),
        (HANG_UP, "cannot be reached"),
        (404, r"answers 404 \(as told\); correct the address, the model or the form"),
        (NO_JSON, r"answers no JSON \(OK, from BaseHTTP.*\); correct the address"),
        (
            {"error": {"message": "no such key", "code": 401}},
            r"answers 401 in a 200 \(no such key\); put the API key into",
        ),
    ],
)
def test_faults_that_stay_are_one_line_with_the_address(server: TinyServer, fault: Any, said: str) -> None:
    policy = policy_at(server, **({"seconds": 1.0} if fault in (FOREVER, BLANKS) else {}))
    server.faults = [fault] * 100
    with pytest.raises(InputError, match=said) as error:
        texts(policy)
    assert server.address in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("heard", "said"),
    [
        (
            lambda body: body | {"seed": 0},
            r"the same for 8 of 8 seeds, by chance with less than 1e-06: use a server that respects seed",
        ),
        (
            lambda body: body | {"prompt": body["prompt"][-2:]},
            "another prompt than it was sent: 2 tokens in place of 3",
        ),
        (
            lambda body: body | {"prompt": [0, *body["prompt"]]},
            "another prompt than it was sent: 2 tokens in place of 1",
        ),
        (lambda body: body | {"max_tokens": body["max_tokens"] + 3}, "draws [0-9] tokens for max_tokens"),
    ],
    ids=["fixed seed", "cut prompt", "longer prompt", "max_tokens"],
)
@pytest.mark.parametrize("text_only", [False, True])
@pytest.mark.filterwarnings("ignore:.* is approximate")
def test_a_server_that_does_something_else_is_refused(
    server: TinyServer, heard: Callable[[dict[str, Any]], dict[str, Any]], said: str, text_only: bool
) -> None:
    server.hears, server.text_only = heard, text_only
    with pytest.raises(InputError, match=said) as error:
        texts(policy_at(server))
    assert server.address in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_of_other_tokens_is_refused_by_its_ids_alone(server: TinyServer) -> None:
    server.says = lambda body, choice: choice | {"prompt_token_ids": body["prompt"][::-1]}
    with pytest.raises(InputError, match="another prompt than it was sent: 3 tokens in place of 3"):
        texts(policy_at(server))


@pytest.mark.filterwarnings("ignore:.* is approximate")
@pytest.mark.parametrize("text_only", [False, True])
def test_a_fixed_seed_that_the_probe_has_not_seen_is_refused_at_a_guide_step(
    server: TinyServer, text_only: bool
) -> None:
    """Log-probabilities of the untempered model, of which a cold law is no function, say nothing of chance."""
    server.text_only = text_only
    policy = policy_at(server, Sampling(2.0), max_length=8, block=8)
    server.hears = lambda body: body | {"seed": 0 if body["temperature"] else body["seed"]}
    with pytest.raises(InputError, match=r"the same for 20 of 20 seeds, by chance with less than 1e-12"):
        texts(policy)
    assert policy.greedy(policy.start(PROBLEMS[:1]) * 20, keys(20))
    if text_only:
        policy.engine.tempered = False
        assert len(set(texts(policy))) == 1


def test_a_law_that_hardly_varies_is_no_fixed_seed(server: TinyServer) -> None:
    """All draws are equal, as they are with probability 0.99: nothing is known about the seeds."""
    sure = {"tokens": ["a"], "token_logprobs": [math.log(0.99)], "top_logprobs": [{"a": -0.01, "b": -4.6}]}
    server.says = lambda body, choice: choice | {"text": "a", "token_ids": [1], "logprobs": sure}
    assert policy_at(server, Sampling(1.0)).engine.approximate == ""


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("This model's maximum context length is 256 tokens", "shorten the prompt or max_length, or start the server"),
        ("the request exceeds the available context size", "shorten the prompt or max_length, or start the server"),
        ("Requested sample logprobs of 2, greater than max allowed: 1", "allows 2 log-probabilities"),
        ("unknown model", "correct the address, the model or the form of the request"),
    ],
)
@pytest.mark.parametrize("status", [400, 500])
def test_the_remedy_is_that_of_the_cause(
    server: TinyServer, status: int, message: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = policy_at(server)
    server.faults = [{"error": {"message": message, "code": status}}] * 3
    if status == 500 and "unknown" in message:
        remedy = "start it again, or correct the address"
    with pytest.raises(InputError, match=remedy) as error:
        texts(policy, 1)
    assert message in str(error.value)


def test_the_probe_needs_two_log_probabilities(server: TinyServer) -> None:
    policy_at(server)
    assert {body["logprobs"] for body in server.seen} == {2}
    assert len({body["seed"] for body in server.seen if body["temperature"] == 1}) == 8


def test_an_address_without_v1_and_a_page_of_a_program_in_between_are_named(server: TinyServer) -> None:
    with pytest.raises(InputError, match=r"models answers|answers 404 .*\(does it lack /v1\?\)"):
        Endpoint(server.host, server.checkpoint, waits=QUICK)


def test_a_proxy_of_the_environment_is_named_without_its_password(
    tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TinyServer(tiny_checkpoint) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
        with pytest.raises(InputError, match=rf"through the proxy 127\.0\.0\.1:{proxy.port} \(NO_PROXY=there") as error:
            Endpoint("http://there/v1", tiny_checkpoint, waits=QUICK)
    assert "secret" not in str(error.value)


def test_a_server_need_not_list_its_models_if_the_name_is_given(tiny_checkpoint: Any) -> None:
    with TinyServer(tiny_checkpoint, models=None) as server:
        assert texts(policy_at(server, model="tiny"))
        assert server.seen[-1]["model"] == "tiny"
        with pytest.raises(InputError, match=r"answers 404 .*or give the server's name of the model \(served_model\)"):
            policy_at(server)


def test_the_checkpoint_may_be_a_folder_or_what_the_server_lists(tiny_checkpoint: Any, tmp_path: Path) -> None:
    tiny_checkpoint.config.save_pretrained(tmp_path)
    tiny_checkpoint.tokenizer.save_pretrained(tmp_path)
    with TinyServer(tiny_checkpoint) as server:
        with Endpoint(server.address, tmp_path) as endpoint:
            assert endpoint.checkpoint.name == str(tmp_path)
        with pytest.raises(InputError, match=r"serves 'tiny', and its tokenizer cannot be loaded .*Endpoint\(address"):
            Endpoint(server.address)
        server.models = {"data": [{"id": "tiny", "root": str(tmp_path)}]}
        with Endpoint(server.address) as endpoint:
            assert endpoint.checkpoint.name == str(tmp_path) and endpoint.model == "tiny"


def test_waits_are_seconds(server: TinyServer) -> None:
    for waits, said in (((1.0, -1.0), "wait 2 is -1.0"), (5.0, "waits is 5.0; give a list of seconds")):
        with pytest.raises(InputError, match=said):
            policy_at(server, waits=waits)


def test_a_dead_server_is_named(server: TinyServer, tiny_checkpoint: Any) -> None:
    policy = policy_at(server)
    server.die()
    for refused in (lambda: texts(policy), lambda: policy_at(server)):
        with pytest.raises(InputError, match=f"the server at {server.address} cannot be reached .*tried 3 times"):
            refused()


def test_a_run_whose_server_dies_keeps_what_has_ended_and_goes_on(tiny_checkpoint: Any, tmp_path: Path) -> None:
    step = energy_guided(per_text(lambda problem, text: text.count("b")), candidates=2, rollouts=2, lam=0.5)
    problems = [Problem(f"p{n}", "abc"[: 1 + n % 3]) for n in range(12)]

    def evaluate(server: TinyServer, folder: Path) -> dict[str, Any]:
        """As `ets eval` does; a second call goes on where the first one ended."""
        journal = Journal(folder, {"seed": 0})
        known = {(record["problem"], record["sample"]) for record in journal.of("ets")}
        try:
            for chain in run(policy_at(server), step, problems, width=2, seed=0, done=known):
                record = {"method": "ets", "problem": chain.problem.id, "sample": chain.sample}
                journal.append(record | {"text": chain.state.text, "steps": len(chain.trace)})
            return {record["problem"]: record for record in journal.of("ets")}
        finally:
            journal.close()

    with TinyServer(tiny_checkpoint) as server:
        undisturbed = evaluate(server, tmp_path / "undisturbed")
        mortal = TinyServer(tiny_checkpoint)
        mortal.lives = len(server.seen) // 2
        with pytest.raises(InputError, match=mortal.address):
            evaluate(mortal, tmp_path / "disturbed")
        kept = (tmp_path / "disturbed" / "journal.jsonl").read_text().splitlines()
        assert 0 < len(kept) < len(problems)
        assert all(undisturbed[record["problem"]] == record for record in map(json.loads, kept))
        with TinyServer(tiny_checkpoint, port=mortal.port) as again:
            assert evaluate(again, tmp_path / "disturbed") == undisturbed


def test_the_key_is_sent_and_never_shown(
    tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with TinyServer(tiny_checkpoint, key="sk-right") as server:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
        monkeypatch.setenv("TINY_KEY", "sk-wrong")
        policy = policy_at(server)
        assert texts(policy)
        with pytest.raises(InputError, match="put the API key into TINY_KEY") as error:
            policy_at(server, key="TINY_KEY")
        monkeypatch.setenv("TINY_KEY", "sk-broken\nline")
        with pytest.raises(InputError, match="TINY_KEY holds characters that no API key has") as broken:
            policy_at(server, key="TINY_KEY")
    shown = [str(error.value), str(broken.value), repr(policy), repr(policy.engine), caplog.text]
    shown += [repr(vars(policy.engine))]
    assert "***" in shown[0] and not any("sk-" in text for text in shown)


def test_a_server_without_token_ids_is_approximate_and_says_so_once(tiny_checkpoint: Any) -> None:
    with TinyServer(tiny_checkpoint, text_only=True) as server:
        with pytest.warns(UserWarning, match="is approximate") as warned:
            policy = policy_at(server, Sampling(0.7), max_length=6)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draws = policy.finish(policy.start(PROBLEMS[:1]) * 50, keys(50))
    assert sum("is approximate" in str(each.message) for each in warned) == 1 and policy.engine.approximate == TEXT_ONLY
    exact = causal_oracle(policy, 0.7).finish_law(PROBLEMS[0], ())
    for draw in draws:  # a letter is a token, so nothing is lost here
        assert draw.logp == pytest.approx(np.log(exact[draw.state.tokens]), abs=1e-6)
    assert any(draw.state.tokens[-1] == 0 for draw in draws)
    reference = TransformersPolicy(tiny_checkpoint, Sampling(1.0), Horizon(2, 6))
    with pytest.raises(
        InputError, match=r"is approximate \(.*\), so its ratios would be wrong; choose another proposal"
    ):
        ImportanceSampling(reference, policy)


def test_llama_cpps_form_of_log_probabilities_is_read(tiny_checkpoint: Any) -> None:
    """Its answers have ids of tokens, whatever the tokenizer makes of the text."""
    with TinyServer(tiny_checkpoint, content=True) as server:
        with pytest.warns(UserWarning, match="is approximate"):
            policy = policy_at(server, Sampling(0.7), max_length=6)
        assert policy.engine.tempered
        server.says = lambda body, choice: choice | {"text": "?"}
        draws = policy.finish(policy.start(PROBLEMS[:1]) * 50, keys(50))
    exact = causal_oracle(policy, 0.7).finish_law(PROBLEMS[0], ())
    for draw in draws:
        assert draw.logp == pytest.approx(np.log(exact[draw.state.tokens]), abs=1e-6)
    assert any(draw.state.tokens[-1] == 0 for draw in draws)


def half_at_the_end(body: dict[str, Any], choice: dict[str, Any]) -> dict[str, Any]:
    """The letter c stands for the first half of a character; one more token, of any kind, completes it.

    So a row may not end behind an odd number of letters c in a row.
    """
    text = choice["text"]
    odd = choice["finish_reason"] == "length" and (len(text) - len(text.rstrip("c"))) % 2
    return choice | {"text": text[:-1] + "\ufffd"} if odd else choice


@pytest.mark.filterwarnings("ignore:.* is approximate")
def test_a_row_goes_on_to_the_end_of_a_character_and_keeps_the_law(tiny_checkpoint: Any) -> None:
    """The first two tokens of 2,000 rows at level 1e-6: letters c at the end are as frequent as by the model.

    To draw an incomplete character again would make them rarer.
    """
    with TinyServer(tiny_checkpoint, text_only=True) as server:
        policy = policy_at(server, max_length=12)
        server.says = half_at_the_end
        before = len(server.seen)
        parts = np.split(keys(2000), 4)
        begun = [draw for part in parts for draw in policy.extend(policy.start(PROBLEMS[:1]) * 500, part)]
        longer = [body for body in server.seen[before:] if body["max_tokens"] == 2 + MOST_BYTES]
    exact = causal_oracle(policy).extend_law(PROBLEMS[0], ())
    assert len(longer) > 20 and all(draw.state.done or len(draw.state.tokens) in (2, 3, 4, 5) for draw in begun)
    assert not any("\ufffd" in draw.text.text for draw in begun)
    assert sum(draw.cost.generated for draw in begun) >= sum(len(draw.state.tokens) for draw in begun) + len(longer)
    drawn = [draw.state.tokens[:2] for draw in begun]
    assert judge_law(drawn, exact, level=1e-6).passed
    seeds = [body["seed"] for body in server.seen[before:]]
    assert len(set(seeds)) == len(seeds) - len(longer)  # the same seed draws the same tokens again


@pytest.mark.filterwarnings("ignore:.* is approximate")
def test_a_row_without_a_whole_character_ends_where_nothing_fits_and_is_refused_elsewhere(tiny_checkpoint: Any) -> None:
    with TinyServer(tiny_checkpoint, text_only=True) as server:
        policy = policy_at(server, max_length=12)
        server.says = lambda body, choice: choice | {"text": "\ufffd", "finish_reason": "length"}
        with pytest.raises(InputError, match="returns no whole character after 2 tokens and 4 more"):
            policy.extend(policy.start(PROBLEMS[:1]), keys(1))
        (draw,) = policy_at_length(policy, 4).finish(policy.start(PROBLEMS[:1]), keys(1))
    assert draw.state.done and draw.text.text == ""


def policy_at_length(policy: Any, max_length: int) -> Any:
    return policy.at_law(policy.sampling, Horizon(2, max_length))


@pytest.mark.filterwarnings("ignore:.* is approximate")
def test_an_empty_text_ends_a_row_only_if_the_server_has_stopped(tiny_checkpoint: Any) -> None:
    with TinyServer(tiny_checkpoint, text_only=True) as server:
        policy, turns = policy_at(server), iter(range(1000))
        server.says = lambda body, choice: (
            choice | {"text": "", "finish_reason": "length"} if body["max_tokens"] == 2 and next(turns) < 20 else choice
        )
        draws = policy.extend(policy.start(PROBLEMS[:1]) * 20, keys(20))
    assert any(not draw.state.done for draw in draws) and all(draw.state.tokens for draw in draws)


def test_a_row_that_ends_at_once_may_come_without_any_log_probability(tiny_checkpoint: Any) -> None:
    with TinyServer(tiny_checkpoint, text_only=True, silent_end=True) as server:
        with pytest.warns(UserWarning, match="is approximate"):
            policy = policy_at(server, max_length=4)
        draws = policy.finish(policy.start(PROBLEMS[:1]) * 50, keys(50))
    ended = [draw for draw in draws if draw.state.tokens == (0,)]
    assert ended and all(draw.logp == 0 and draw.state.done for draw in ended)


def test_an_engine_is_no_scorer(server: TinyServer, make_tiny: Any) -> None:
    reference, drawn = make_tiny(Sampling()), policy_at(server)
    with pytest.raises(InputError, match="a EnginePolicy cannot score what a proposal drew; leave the proposal out"):
        ImportanceSampling(drawn, reference)


def test_log_probabilities_of_the_untempered_model_are_refused_where_they_matter(tiny_checkpoint: Any) -> None:
    with TinyServer(tiny_checkpoint, tempered=False) as server:
        for sampling in (Sampling(0.7), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.5)):
            with pytest.raises(InputError, match="start it with --logprobs-mode processed_logprobs"):
                policy_at(server, sampling)
        assert texts(policy_at(server, Sampling(1.0))) and texts(policy_at(server, Sampling(0.0)))


def test_what_does_not_fit_is_refused(server: TinyServer, tiny_checkpoint: Any) -> None:
    for address in ("localhost:8000/v1", "ftp://localhost", "http://", "http://localhost:port/v1"):
        with pytest.raises(InputError, match="is no address of a server"):
            Endpoint(address, tiny_checkpoint)
    with pytest.raises(InputError, match="holds a user or a password") as error:
        Endpoint("http://me:secret@localhost/v1", tiny_checkpoint)
    assert "secret" not in str(error.value)
    with pytest.raises(InputError, match="does not serve 'large'; it has 'tiny'"):
        policy_at(server, model="large")
    other = Checkpoint.loaded(random_qwen3(4, end=0), tiny_tokenizer(("<end>", "x", "y", "z")))
    with pytest.raises(InputError, match="give the checkpoint that is served"):
        Endpoint(server.address, other)
    with pytest.raises(InputError, match="samples at 0 and at"):
        policy_at(server, Sampling(2.5))
    policy = policy_at(server)
    with pytest.raises(InputError, match="leaves no room"):
        policy.start([Problem("long", (1,) * 512)])


def test_a_draw_can_be_ended_by_another_thread(server: TinyServer) -> None:
    """Long before the server answers, and without ending another thread's; so does closing the endpoint."""
    policy, beside = policy_at(server), policy_at(server)
    beside.engine = policy.engine
    for end in (lambda thread: policy.interrupt(thread), lambda thread: policy.close()):
        with ThreadPoolExecutor(1) as pool:
            server.faults = [120.0] * 20
            waiting = pool.submit(texts, policy)
            while server.faults:
                time.sleep(0.01)
            assert len(texts(beside)) == 20
            end(next(iter(pool._threads)).ident)
            with pytest.raises(CancelledError):
                waiting.result()
        assert server.busy >= 20


def test_threads_share_an_endpoint_until_it_is_closed(server: TinyServer) -> None:
    policy = policy_at(server)
    expected = [texts(policy, salt=1), texts(policy, salt=2)]
    with ThreadPoolExecutor(2) as pool:
        others = [policy.beside(), policy.beside()]
        assert list(pool.map(texts, others, (20, 20), (1, 2))) == expected
    policy.close()
    with pytest.raises(InputError, match="has been closed"):
        texts(policy)


def next_law(checkpoint: Checkpoint, tokens: Sequence[int], sampling: Sampling) -> dict[int, float]:
    with torch.inference_mode():
        logits = checkpoint.model(torch.tensor([tokens])).logits[0, -1]
    return dict(enumerate(probabilities(sampling, logits).tolist()))


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")
def test_ets_through_vllms_server(vllm_address: str) -> None:
    """The law of a token (2,000 draws, level 1e-4), log-probabilities, greedy texts, costs, and a few problems."""
    checkpoint, task, sampling = Checkpoint(demo.model_path(), device="cpu"), Arithmetic(), Sampling(0.7, top_k=40)
    question = tuple(checkpoint.tokenizer(task.problems(67)[66].prompt)["input_ids"][:33])  # "... Then she loses"
    with Endpoint(vllm_address, checkpoint) as endpoint:
        assert not endpoint.approximate and endpoint.tempered
        policy = EnginePolicy(endpoint, sampling, Horizon(1, 1))
        draws = policy.finish(policy.start([Problem("p", question)]) * 2_000, keys(2_000))
        check_law([d.state.tokens[0] for d in draws], next_law(checkpoint, question, sampling), level=LEVEL)
        wrong = next_law(checkpoint, question, Sampling(1.0))
        assert not judge_law([d.state.tokens[0] for d in draws], wrong, level=LEVEL).passed

        horizon = Horizon(32, 96)
        policy = EnginePolicy(endpoint, Sampling(0.7), horizon)
        theirs = TransformersPolicy(checkpoint, Sampling(0.7), horizon)
        both = [each.greedy(each.start(task.problems(2)), keys(2)) for each in (policy, theirs)]
        for mine, other in zip(*both, strict=True):
            assert mine.text.text == other.text.text and mine.logp == pytest.approx(other.logp, abs=1e-3)

        right = verifier(task.extract, lambda problem, answer: answer == problem.doc["answer"])
        step = energy_guided(right, candidates=4, rollouts=2, lam=0.1)
        chains = list(run(policy, step, task.problems(4), width=4, seed=0))
    assert len(chains) == 4 and all(chain.state.done and chain.valid for chain in chains)
    assert all(0 < chain.cost.prompt < 32 * len(chain.trace[0].candidates) * 4 for chain in chains)
    assert sum(task.grade(chain.problem, chain.state.text) for chain in chains) >= 2
