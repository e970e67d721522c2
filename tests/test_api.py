"""The one-call interface, as a notebook uses it."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import ets
from ets import demo
from ets.policies.autoregressive.server import TEXT_ONLY, Endpoint
from ets.policies.checkpoint import Checkpoint
from ets.policies.opening import _last_checkpoint
from ets.policies.registry import SETTINGS
from ets.policies.settings import Weighing
from ets.rewards import winner
from ets.settings import Guide, fields_of
from ets.tasks import Arithmetic
from ets.types import InputError, Problem, Text
from tests.documentation import ROOT, blocks
from tests.laws.tabular import TabularModel
from tests.tiny_server import TinyServer

QUESTION = Arithmetic().problems(1, 0)[0].prompt
SMALL: dict[str, Any] = {"candidates": 3, "rollouts": 2, "block_size": 16, "max_length": 48}


def short(prompt: str, text: str) -> float:
    return -len(text) / 100


def test_a_path_and_a_plain_callable_are_enough() -> None:
    out = ets.sample(QUESTION, model=demo.model_path("small"), reward=short, **SMALL)
    assert out.text
    assert out.answer is None
    assert out.valid
    assert 1 <= len(out.trace) <= 3
    assert out.trace[0].log_rewards.shape == (3, 2)
    assert out.cost.prompt == len(Checkpoint(demo.model_path("small")).tokenizer(QUESTION)["input_ids"])
    assert out.cost.generated > 0
    assert out.cost.seconds > 0


def test_a_loaded_pair_gives_what_its_path_gives() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo.model_path("small")
    pair = (AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    texts = [ets.sample(QUESTION, model=model, reward=short, seed=3, **SMALL).text for model in (path, pair)]
    assert texts[0] == texts[1]


def test_a_policy_may_be_the_model() -> None:
    """Any object with the methods of a `Policy`: the text is that of the path and the settings."""
    path = demo.model_path("small")
    policy = ets.TransformersPolicy(ets.Checkpoint(path), ets.Sampling(), ets.Horizon(16, 48))
    numbers: dict[str, Any] = {"candidates": 3, "rollouts": 2, "seed": 3}
    out = ets.sample(QUESTION, model=policy, reward=short, **numbers)
    assert out.text == ets.sample(QUESTION, model=path, reward=short, seed=3, **SMALL).text
    assert ets.sample("ab", model=TabularModel(), reward=liking_b, **numbers).valid
    with pytest.raises(InputError, match=r"temperature is 0.5, but the model is a policy already"):
        ets.sample(QUESTION, model=policy, reward=short, temperature=0.5)


def test_another_step_function_may_advance_the_chains() -> None:
    model = demo.model_path("small")
    step = ets.baselines.retained_rollouts
    out = ets.sample(QUESTION, model=model, reward=short, step=step, seed=3, **SMALL)
    policy = ets.TransformersPolicy(ets.Checkpoint(model), ets.Sampling(), ets.Horizon(16, 48))
    retained = step(short, candidates=3, rollouts=2, lam=0.1)
    (chain,) = ets.run(policy, retained, [Problem("0", QUESTION)], width=1, seed=3)
    assert out.text == chain.state.text and out.trace[0].rollout is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"tempreature": 1.0}, "did you mean temperature"), ({"candidate": 3}, "did you mean candidates")],
)
def test_an_unknown_setting_suggests_the_nearest_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ets.sample(QUESTION, model=demo.model_path("small"), reward=short, **wrong)


def test_the_signature_and_the_docstring_list_every_setting() -> None:
    parameters, text = inspect.signature(ets.sample).parameters, ets.sample.__doc__ or ""
    for name, each in fields_of(Guide, *SETTINGS, Weighing).items():
        assert parameters[name].default == each.default
        assert f"    {name} : default {each.default!r}\n" in text
    assert "{settings}" not in text and "settings" not in parameters


def test_extract_alone_means_the_majority() -> None:
    """Each rollout's reward is 1 if its answer is the majority answer of the rollouts so far, else 0."""
    out = ets.sample(QUESTION, model=demo.model_path("small"), extract=Arithmetic().extract, **SMALL)
    problem, pooled = Problem("0", QUESTION), list[Text]()
    read = partial(Arithmetic().extract, problem)
    assert out.answer == read(out.text)
    for step in out.trace:
        rollouts = [text for row in step.rollouts for text in row]
        pooled += rollouts
        best = winner(read, pooled)
        expected = [float(best is not None and read(text.text) == best) for text in rollouts]
        assert step.log_rewards.ravel() * 0.1 == pytest.approx(expected)


def test_both_readouts_stand_side_by_side() -> None:
    out = ets.sample(QUESTION, model=demo.model_path("small"), extract=Arithmetic().extract, **SMALL)
    rollouts = [text.text for step in out.trace for row in step.rollouts for text in row]
    answers = [Arithmetic().extract(Problem("0", QUESTION), text) for text in rollouts]
    counted = {answer: answers.count(answer) for answer in answers if answer is not None}
    assert out.vote is not None
    assert out.vote.shares == pytest.approx({a: n / sum(counted.values()) for a, n in counted.items()})


def test_a_chain_ends_when_it_is_decided() -> None:
    """Every reward is the greatest: one step is enough, and the text is one of its rollouts."""
    maximum = ets.stopping.all_at_maximum(1.0)
    out = ets.sample(QUESTION, model=demo.model_path("small"), reward=lambda p, t: 1.0, decided=maximum, **SMALL)
    assert len(out.trace) == 1
    assert out.text in [text.text for row in out.trace[0].rollouts for text in row]


def test_prompts_of_a_list_keep_their_order_and_seed_decides() -> None:
    prompts = [problem.prompt for problem in Arithmetic().problems(3, 0)]
    model = demo.model_path("small")
    together = ets.sample(prompts, model=model, reward=short, width=3, **SMALL)
    one_by_one = ets.sample(prompts, model=model, reward=short, width=1, **SMALL)
    assert [out.text for out in together] == [out.text for out in one_by_one]
    other_seed = ets.sample(prompts, model=model, reward=short, seed=1, **SMALL)
    assert [out.text for out in together] != [out.text for out in other_seed]


def test_stop_strings_end_the_text() -> None:
    out = ets.sample(QUESTION, model=demo.model_path("small"), reward=short, stop=[">>"], **SMALL)
    assert ">>" not in out.text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"candidates": 0}, "candidates is 0"),
        ({"rollouts": 0}, "rollouts is 0"),
        ({"lam": 0}, "lam is 0"),
        ({"block_size": 0}, "block_size is 0"),
        ({"max_length": -1}, "max_length is -1"),
        ({"block_size": 64, "max_length": 32}, "block_size 64 is longer than max_length 32"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"reward": None}, "neither a reward nor extract"),
        ({"reward": 3}, "which is no function"),
        ({"reward": lambda: 0.0}, "must accept"),
        ({"stop": "end"}, "pass a list of strings"),
        ({"width": 0}, "width is 0"),
        ({"model": 7}, "model is 7"),
        ({"model": "./nowhere"}, "no checkpoint at './nowhere'"),
    ],
)
def test_bad_arguments_are_named_before_any_weights_are_loaded(
    wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _last_checkpoint.cache_clear()
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
    options: dict[str, Any] = {"model": demo.model_path("small"), "reward": short} | wrong
    with pytest.raises(InputError, match=message) as caught:
        ets.sample("a prompt", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("prompt", "message"), [("", "is empty"), ("a" * 20_000, "leaves no room")])
def test_bad_prompts_are_named_before_any_weights_are_loaded(
    prompt: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _last_checkpoint.cache_clear()
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
    with pytest.raises(InputError, match=message):
        ets.sample(prompt, model=demo.model_path("small"), reward=short)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda prompt, text: 1 / 0, "raised ZeroDivisionError for problem '0'"),
        (lambda prompt, text: float("nan"), "gave nan for problem '0'"),
        (lambda problem, rollouts, chain: [0.0], "needs one number for each of 6 rollouts"),
    ],
)
def test_faulty_rewards_name_the_problem(reward: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ets.sample(QUESTION, model=demo.model_path("small"), reward=reward, **SMALL)


def test_a_proposal_draws_the_rollouts_and_its_weights_are_told() -> None:
    model, small = demo.model_path("reference"), demo.model_path("small")
    out = ets.sample(QUESTION, model=model, proposal=small, reward=short, clip=(0.2, 5), **SMALL)
    assert out.ratios is not None and 0 < out.ratios.rollouts <= out.cost.rewarded
    assert out.cost.scored > 0 and "scored" in str(out) and "effective" in str(out) and "effective" in out._repr_html_()
    assert max(step.log_ratios.max() for step in out.trace) <= 1.61
    assert ets.sample(QUESTION, model=small, reward=short, **SMALL).ratios is None


CANVAS: dict[str, Any] = {"block_size": 6, "max_length": 12, "block_length": 6, "candidates": 2, "rollouts": 2}


def test_a_level_weighs_a_fast_sampler_and_says_towards_what() -> None:
    model, rule = demo.model_path("diffusion"), {"remasking": "largest", "cache": "dual"}
    out = ets.sample(QUESTION, model=model, reward=short, level="1", cache="dual", **CANVAS)
    assert out.ratios is not None and out.cost.scored > 0
    assert "that the fast model chose" in str(out.target) and "p_ref: the exact model's token" in str(out)
    assert str(out.target).endswith("(level 1)") and "(level 1)" in out._repr_html_()
    fast = ets.sample(QUESTION, model=model, reward=short, **rule, **CANVAS)
    assert "every weight is exactly 1 (level 0)" in str(fast.target) and fast.ratios is None
    assert fast.text == ets.sample(QUESTION, model=model, reward=short, level="0", **rule, **CANVAS).text
    exact = ets.sample(QUESTION, model=model, reward=short, **CANVAS)
    assert exact.target is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"level": "1", "cache": "dual", "remasking": "low_confidence"}, "choose largest, margin"),
        ({"clip": (0.1, 10)}, "there is no proposal; name one"),
        ({"level": "1F", "threshold": 0.9}, "support is lost"),
        ({"level": "4"}, "unknown level '4'"),
        ({"proposal": demo.model_path("small")}, "LLaDA has levels instead"),
    ],
)
def test_what_is_wrong_with_a_level_is_said(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ets.sample(QUESTION, model=demo.model_path("diffusion"), reward=short, **CANVAS, **wrong)


def test_a_model_as_its_own_proposal_changes_nothing() -> None:
    model = demo.model_path("small")
    plain = ets.sample(QUESTION, model=model, reward=short, **SMALL)
    same = ets.sample(QUESTION, model=model, proposal=model, reward=short, **SMALL)
    assert same.text == plain.text and same.ratios is not None and same.ratios.spread < 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"step": 3}, "step is 3; it must be a function of a reward"),
        ({"proposal_temperature": 0.5}, "there is no proposal"),
        ({"proposal_engine": "vllm"}, "there is no proposal"),
        ({"proposal": "x", "proposal_engine": "endpoint"}, "choose transformers or vllm"),
        ({"proposal": demo.model_path("small"), "proposal_temperature": 0.0}, "at temperature 0 the proposal"),
        ({"proposal": demo.model_path("small"), "clip": (2, 1)}, "clip is"),
        ({"proposal": "nowhere"}, "no checkpoint at 'nowhere'"),
    ],
)
def test_what_is_wrong_with_a_proposal_is_said_before_weights_are_loaded(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ets.sample(QUESTION, model=demo.model_path("reference"), reward=short, **SMALL, **wrong)


SERVED: dict[str, Any] = {
    "candidates": 4, "rollouts": 2, "block_size": 2, "max_length": 6, "temperature": 2.0, "progress": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Checkpoint) -> Iterator[TinyServer]:
    with TinyServer(tiny_checkpoint) as server:
        yield server


@pytest.fixture(scope="module")
def endpoint(server: TinyServer) -> Iterator[Endpoint]:
    with Endpoint(server.address, server.checkpoint) as endpoint:
        yield endpoint


def liking_b(prompt: str, text: str) -> float:
    return text.count("b") / 10


def drawn(out: Any) -> list[str]:
    """The texts of all its rollouts."""
    return [text.text for step in out.trace for row in step.rollouts for text in row]


def test_a_served_model_takes_what_one_of_this_process_takes(endpoint: Endpoint) -> None:
    """Results in order, with answers, votes, traces and costs; stop strings are cut; the connection stays open."""
    prompts, options = ["ab", "abba", "b"], {"reward": liking_b, "extract": lambda text: text[:1]}
    outs, stopped = (ets.sample(prompts, model=endpoint, stop=stop, **options, **SERVED) for stop in ([], ["bb"]))
    for prompt, out in zip(prompts, outs, strict=True):
        assert out.valid and out.answer == out.text[:1] and out.vote is not None and not out.notes
        assert 1 <= len(out.trace) <= 3 and all(step.log_rewards.shape == (4, 2) for step in out.trace)
        scaled = [value for step in out.trace for value in step.log_rewards.ravel()]
        assert scaled == pytest.approx([text.count("b") for text in drawn(out)]) and any(scaled)  # λ is 0.1
        assert out.cost.prompt >= len(prompt) and out.cost.generated > 0 and out.cost.seconds > 0
    assert len({out.text for out in outs}) > 1
    with_b, without = ([text for out in each for text in drawn(out) if "bb" in text] for each in (outs, stopped))
    assert with_b and not without
    assert endpoint._closing.alive


def test_the_law_and_the_lengths_reach_the_server(server: TinyServer, endpoint: Endpoint) -> None:
    begun = len(server.seen)
    law = {"temperature": 0.7, "top_k": 3, "top_p": 0.9}
    ets.sample("ab", model=endpoint, reward=liking_b, stop=["cc"], **SERVED | law)
    asked = server.seen[begun:]
    sent = {(body["temperature"], body["top_k"], body["top_p"], *body["stop"]) for body in asked}
    assert sent == {(0.7, 3, 0.9, "cc")} and max(body["max_tokens"] for body in asked) <= 6


def test_texts_of_a_served_model_follow_the_seed_and_not_the_width(endpoint: Endpoint) -> None:
    def texts(**options: Any) -> list[str]:
        outs = ets.sample(["ab", "abba", "b"], model=endpoint, reward=liking_b, **SERVED, **options)
        return [text for out in outs for text in drawn(out)]

    assert texts() == texts(width=1) != texts(seed=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"certainty": True}, "certainty is True, which the engine endpoint does not have; leave it out"),
        ({"steps": 4}, "steps is 4, which the engine endpoint does not have; leave it out"),
        ({"cache": "dual"}, "cache is 'dual', which the engine endpoint does not have; leave it out"),
        ({"level": "0"}, "EnginePolicy has no faster sampler; leave the level out"),
        ({"proposal": demo.model_path("small")}, "EnginePolicy takes no proposal; leave it out, or use transf"),
        ({"temperature": 0.001}, "samples at 0 and at 0.01 to 2; choose another temperature"),
        ({"max_length": 600}, "leaves no room"),
    ],
)
def test_what_a_served_model_cannot_do_is_one_line(endpoint: Endpoint, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ets.sample("ab", model=endpoint, reward=liking_b, **SERVED | wrong)
    assert "\n" not in str(caught.value)


def test_a_served_model_may_be_the_proposal(endpoint: Endpoint, tiny_checkpoint: Checkpoint) -> None:
    out = ets.sample("ab", model=tiny_checkpoint, proposal=endpoint, reward=liking_b, **SERVED)
    assert out.ratios is not None and out.ratios.rollouts > 0


def test_a_result_tells_that_its_server_is_approximate(tiny_checkpoint: Checkpoint) -> None:
    with TinyServer(tiny_checkpoint, text_only=True) as server:
        with pytest.warns(UserWarning, match="is approximate"):
            endpoint = Endpoint(server.address, tiny_checkpoint)
        with endpoint:
            out = ets.sample("ab", model=endpoint, reward=liking_b, **SERVED)
    assert out.approximate == TEXT_ONLY
    assert f"approximate: {TEXT_ONLY}" in str(out) and "approximate: text only" in out._repr_html_()


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the configuration and the tokenizer of the served model."""
    folder = tmp_path_factory.mktemp("served")
    tiny_checkpoint.config.save_pretrained(folder)
    tiny_checkpoint.tokenizer.save_pretrained(folder)
    return str(folder)


def test_an_address_is_a_model_for_the_time_of_a_call(server: TinyServer, endpoint: Endpoint, folder: str) -> None:
    """The tokenizer is that of the path that the server lists, or of the model; the waits are an option."""
    expected = ets.sample("ab", model=endpoint, reward=liking_b, **SERVED)
    threads = threading.active_count()
    with TinyServer(server.checkpoint, models={"data": [{"id": "tiny", "root": folder}]}) as listing:
        by_address = ets.sample("ab", model=listing.address, reward=liking_b, waits=(0.01,), **SERVED)
    served = {"endpoint": server.address, "connections": 2, **SERVED}
    by_setting = ets.sample("ab", model=folder, reward=liking_b, **served)
    assert drawn(by_address) == drawn(by_setting) == drawn(expected)
    until = time.monotonic() + 10  # a thread that was closed may take a moment to end
    while threading.active_count() > threads and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= threads
    with pytest.raises(InputError, match=r"serves 'tiny', and its tokenizer cannot be loaded"):
        ets.sample("ab", model=server.address, reward=liking_b, **SERVED)
    with pytest.raises(InputError, match=r"the model is an address, http.*; leave one out"):
        ets.sample("ab", model=server.address, reward=liking_b, **served)
    with pytest.raises(InputError, match=r"cannot be reached .*tried 2 times"):
        ets.sample("ab", model=folder, endpoint="http://127.0.0.1:1/v1", waits=(0.01,), reward=liking_b, **SERVED)


def test_messages_are_prompts_of_a_server_and_the_reward_sees_them_as_they_are(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text("{% for turn in messages %}{{ turn['content'] }}{% endfor %}")
    messages, seen = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ba"}], list[Any]()

    async def reward(prompt: Any, text: str) -> float:
        seen.append(prompt)
        return liking_b("", text)

    out = ets.sample([*messages, messages[0]], model=endpoint, chat=tmp_path / "own.jinja", reward=reward, **SERVED)
    assert out.prompt == "abbaab" and all(list(prompt) == [*messages, messages[0]] for prompt in seen) and seen


def test_a_loaded_pair_is_left_as_it_was_also_by_several_threads() -> None:
    """A frozen layer stays in evaluation mode; nothing is restored while another call still uses the model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = demo.model_path("small")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).train(), AutoTokenizer.from_pretrained(path)
    model.lm_head.eval()
    states, both, ended = list[Any](), threading.Barrier(2), threading.Event()

    def state() -> Any:
        return model.training, model.lm_head.training, model.config._attn_implementation

    before, used = state(), (False, False, "ets_grouped_sdpa")

    def sample(number: int) -> None:
        def reward(prompt: str, text: str) -> float:
            states.append(state())
            return 0.0

        def decided(problem: Problem, rollouts: Any, rewards: Any, chain: Any) -> bool:
            if not chain.trace:
                both.wait(120)
            return number == 0 or not ended.wait(120)  # the second call goes on when the first has ended

        ets.sample(QUESTION, model=(model, tokenizer), reward=reward, decided=decided, **SMALL)
        ended.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(sample, range(2)))
    assert state() == before == (True, False, "sdpa") and set(states) == {used}
    with pytest.raises(InputError, match="nothing"):
        ets.sample(QUESTION, model=(model, tokenizer), reward=_failing, **SMALL)
    assert state() == before


def _failing(prompt: str, text: str) -> float:
    raise ValueError("nothing")


def test_the_server_of_the_documentation_is_sampled_from(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = [
        b.text for b in blocks(ROOT / "docs" / "engines.md") if b.language == "python" and "Endpoint(" in b.text
    ]
    with TinyServer(Checkpoint(demo.model_path(), device="cpu")) as server:
        exec(block.replace("http://localhost:8000/v1", server.address), {})
    assert "\ncost: " in capsys.readouterr().out


def test_the_dtype_is_that_of_the_weights_of_a_model_by_name() -> None:
    name = str(demo.model_path("small"))
    ets.sample("Question: 5 + 4?", model=name, dtype="bfloat16", reward=short, candidates=2, rollouts=1, max_length=4)
    assert _last_checkpoint(name, "bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(InputError, match="dtype is 'bfloat16', but the model is no name of a checkpoint"):
        ets.sample("Question: 5 + 4?", model=ets.Checkpoint(name), dtype="bfloat16", reward=short)
