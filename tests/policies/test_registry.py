"""One set of arguments for both kinds of model: the policy by the architecture, and what each kind refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ets
from ets.api import Result
from ets.models import MASKED_DIFFUSION
from ets.path_weights import PathWeights
from ets.policies.autoregressive.engine import EnginePolicy
from ets.policies.autoregressive.server import Endpoint
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.denoise import Schedule
from ets.policies.diffusion.levels import LEVELS, target_of
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.policies.opening import _last_checkpoint
from ets.policies.registry import ENGINES, fast_sampler_of, law_of, minimum_votes, own_policy, policy_of
from ets.policies.settings import Caching, Horizon, Sampling, Unmasking
from ets.types import InputError, Problem
from tests.tiny_server import TinyServer

SMALL: dict[str, Any] = {"block_size": 2, "max_length": 4, "temperature": 1.0}


def liking_b(prompt: str, text: str) -> float:
    return 0.5 * text.count("b") - 0.25 * len(text)


def llada_of(checkpoint: Checkpoint, **options: Any) -> MaskedDiffusionPolicy:
    policy = policy_of(lambda: checkpoint, **{**SMALL, **options})
    assert isinstance(policy, MaskedDiffusionPolicy)
    return policy


@pytest.fixture(scope="module")
def folder(tiny_llada: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llada")
    tiny_llada.model.save_pretrained(path)
    tiny_llada.tokenizer.save_pretrained(path)
    return path


def test_the_architecture_decides(tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint) -> None:
    policy = policy_of(lambda: tiny_checkpoint, top_k=3, top_p=0.9, **SMALL)
    assert type(policy) is TransformersPolicy
    assert (policy.sampling, policy.horizon) == (Sampling(1.0, 3, 0.9), Horizon(2, 4))
    assert type(policy_of(lambda: tiny_llada, **SMALL)) is MaskedDiffusionPolicy


def test_the_word_checkpoint_stands_for_its_own_truncation(tiny_checkpoint: Checkpoint) -> None:
    own = tiny_checkpoint.truncation
    policy = policy_of(lambda: tiny_checkpoint, top_k="checkpoint", top_p=0.9, **SMALL)
    assert isinstance(policy, TransformersPolicy)
    assert policy.sampling == Sampling(1.0, own["top_k"], 0.9) and own["top_k"] == 50
    with pytest.raises(InputError, match="top_k is 'most'"):
        policy_of(never, top_k="most", **SMALL)


def test_a_policy_at_another_law_shares_its_model_and_its_engine(
    tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint
) -> None:
    law = Sampling(0.7, 20, 0.8)
    policy = policy_of(lambda: tiny_checkpoint, **SMALL)
    other = policy.at_law(law)
    assert isinstance(policy, TransformersPolicy) and isinstance(other, TransformersPolicy)
    assert (other.sampling, other.horizon, other.checkpoint) == (law, policy.horizon, policy.checkpoint)
    with TinyServer(tiny_checkpoint) as server:
        served = policy_of(lambda: tiny_checkpoint, engine="endpoint", endpoint=server.address, **SMALL)
        again = served.at_law(law)
        assert isinstance(served, EnginePolicy) and isinstance(again, EnginePolicy)
        assert again.sampling == law and again.engine is served.engine
    assert not hasattr(policy_of(lambda: tiny_llada, **SMALL), "at_law")


def never() -> Checkpoint:
    raise AssertionError("the checkpoint was opened")


def test_masked_diffusion_gets_its_arguments(tiny_llada: Checkpoint) -> None:
    options: dict[str, Any] = {"steps": 8, "block_length": 8, "cfg": 1.5, "remasking": "margin", "temperature": 0.5}
    policy = llada_of(tiny_llada, max_length=16, block_size=4, **options)
    assert policy.unmasking == Unmasking(0.5, "margin", 1.5)
    assert policy.schedule == Schedule(16, 8, 8, guide_steps=4)


def test_masked_diffusion_may_be_a_fast_sampler(tiny_llada: Checkpoint) -> None:
    policy = llada_of(tiny_llada, threshold=0.9, cache="dual", refresh=2)
    assert (policy.unmasking, policy.caching) == (Unmasking(1.0, threshold=0.9), Caching("dual", 2))
    assert llada_of(tiny_llada, factor=1.5, cache="prefix").caching == Caching("prefix")
    assert llada_of(tiny_llada, factor=1.5).unmasking == Unmasking(1.0, factor=1.5)


def test_a_fast_sampler_has_the_policy_s_settings_but_for_those_that_are_given(tiny_llada: Checkpoint) -> None:
    exact = llada_of(tiny_llada, temperature=0.5, threshold=0.9, cache="prefix", stop_at_end=True, memory_gib=1.0)
    same = fast_sampler_of(exact)
    assert isinstance(same, MaskedDiffusionPolicy) and same is not exact
    assert (same.unmasking, same.schedule, same.caching, same.memory_gib) == (
        exact.unmasking, exact.schedule, exact.caching, 1.0,
    )  # fmt: skip
    other: Any = fast_sampler_of(exact, remasking="largest", temperature=0.7, factor=1.0, refresh=2)
    assert other.unmasking == Unmasking(0.7, "largest", stop_at_end=True, factor=1.0)
    assert other.caching == Caching("prefix", 2)
    assert fast_sampler_of(exact, cache="dual").caching == Caching("dual")  # type: ignore[union-attr]


@pytest.mark.parametrize("level", ["1", "1F"])
def test_a_fast_sampler_is_weighed_at_its_level(tiny_llada: Checkpoint, level: str) -> None:
    """With the policy's own checkpoint, or with another one."""
    rule: dict[str, Any] = {} if level == "1F" else {"remasking": "largest"}
    pair = fast_sampler_of(llada_of(tiny_llada), level, cache="dual", clip=(0.5, 2.0), **rule)
    assert isinstance(pair, PathWeights)
    assert pair.target == LEVELS[level] == target_of(level)
    assert pair.sampler.checkpoint is tiny_llada  # type: ignore[attr-defined]
    another = Checkpoint.loaded(tiny_llada.model, tiny_llada.tokenizer)
    smaller: Any = fast_sampler_of(llada_of(tiny_llada), level, checkpoint=lambda: another, **rule)
    assert smaller.sampler.checkpoint is another and smaller.weigher.exact.checkpoint is tiny_llada
    drawn = pair.finish(pair.start([Problem("p", "ab")]) * 20, np.arange(20, dtype=np.uint64))
    ratios = [draw.text.log_ratio for draw in drawn]
    assert min(ratios) < 0 < max(ratios)
    assert all(math.log(0.25) <= ratio <= math.log(4) or ratio == -math.inf for ratio in ratios)


def test_level_0_is_a_policy_of_its_own_that_nothing_weighs(tiny_llada: Checkpoint) -> None:
    assert target_of("0").startswith("the fast sampler itself")
    with pytest.raises(InputError, match="unknown level '3'; choose from 0, 1, 1F"):
        target_of("3")
    with pytest.raises(InputError, match=r"clip is .* at level 0 every weight is exactly 1; leave it out"):
        fast_sampler_of(llada_of(tiny_llada), cache="dual", clip=(0.1, 10))


@pytest.mark.parametrize(
    ("level", "fast", "message"),
    [
        ("3", {"cache": "dual"}, "unknown level '3'"),
        ("1", {"cache": "dual"}, "level 1 takes the positions as given, but remasking 'low_confidence'"),
        ("1F", {"threshold": 0.9}, "support is lost and the weights do not average to 1"),
        ("0", {"cache": "double"}, "unknown cache 'double'; choose from dual, prefix"),
        ("0", {"refresh": 2}, "refresh is 2, but there is no cache to refresh"),
        ("0", {"threshold": 0.9, "factor": 1.0}, "exclude each other"),
        ("1", {"cache": "dual", "temperature": 0, "remasking": "largest"}, "at temperature 0"),
    ],
)
def test_a_pair_that_does_not_work_is_refused(
    tiny_llada: Checkpoint, level: str, fast: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        fast_sampler_of(llada_of(tiny_llada), level, **fast)


def test_an_autoregressive_model_has_no_faster_sampler(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(InputError, match="TransformersPolicy has no faster sampler; leave the level out"):
        fast_sampler_of(policy_of(lambda: tiny_checkpoint, **SMALL))


def test_defaults_are_the_familys(tiny_llada: Checkpoint) -> None:
    """One token per step; the family's block where it divides the length, and the whole canvas where it does not."""
    assert MASKED_DIFFUSION["llada"].block_length == 32
    policy = llada_of(tiny_llada, max_length=64, block_size=16)
    assert policy.schedule == Schedule(64, 64, 32, guide_steps=4)
    assert policy.unmasking == Unmasking(1.0, "low_confidence", 0.0, stop_at_end=False)
    assert llada_of(tiny_llada, max_length=40, block_size=20).schedule == Schedule(40, 40, 40, guide_steps=2)
    assert llada_of(tiny_llada).schedule == Schedule(4, 4, 4, guide_steps=2)


def test_guide_steps_may_be_given_instead_of_their_tokens(tiny_llada: Checkpoint) -> None:
    assert llada_of(tiny_llada, block_size=None, guide_steps=4).schedule == Schedule(4, 4, 4, guide_steps=4)
    assert llada_of(tiny_llada, block_size=None).schedule.guide_steps == 1  # a block of 64 tokens, or of all
    with pytest.raises(InputError, match="block_size is 2 and guide_steps 2; set one of the two"):
        llada_of(tiny_llada, guide_steps=2)


@pytest.mark.parametrize("engine", [None, "masked-diffusion"])
def test_the_limit_on_memory_reaches_both_kinds(
    tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint, engine: str | None
) -> None:
    for checkpoint, named in ((tiny_checkpoint, engine and "transformers"), (tiny_llada, engine)):
        with pytest.raises(InputError, match=r"memory_gib is -1"):
            policy_of(lambda opened=checkpoint: opened, engine=named, memory_gib=-1, **SMALL)  # type: ignore[misc]


def test_a_named_engine_refuses_a_model_of_the_other_kind(tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint) -> None:
    with pytest.raises(InputError, match="which does not unmask"):
        policy_of(lambda: tiny_checkpoint, engine="masked-diffusion", **SMALL)
    with pytest.raises(InputError, match="which is not autoregressive"):
        policy_of(lambda: tiny_llada, engine="transformers", **SMALL)


def test_a_server_is_an_engine_whose_policy_is_asked_for_by_name(tiny_checkpoint: Checkpoint) -> None:
    with TinyServer(tiny_checkpoint) as server:
        reached = {"endpoint": server.address, "served_model": "tiny", "connections": 3, "seconds": None}
        policy: Any = policy_of(lambda: tiny_checkpoint, engine="endpoint", top_k=3, **reached, **SMALL)
    assert type(policy) is EnginePolicy and policy.engine.model == "tiny"
    assert (policy.sampling, policy.horizon) == (Sampling(1.0, 3), Horizon(2, 4))
    with pytest.raises(InputError, match="endpoint is not set; give the server's address"):
        policy_of(lambda: tiny_checkpoint, engine="endpoint", **SMALL)


def test_an_engine_that_is_there_is_shared_and_has_its_resources(tiny_checkpoint: Checkpoint) -> None:
    with TinyServer(tiny_checkpoint) as server, Endpoint(server.address, tiny_checkpoint) as endpoint:
        policies: list[Any] = [policy_of(lambda: tiny_checkpoint, ready=endpoint, top_k=k, **SMALL) for k in (2, 3)]
        assert all(type(policy) is EnginePolicy and policy.engine is endpoint for policy in policies)
        assert [policy.sampling.top_k for policy in policies] == [2, 3]
        with pytest.raises(InputError, match="connections is 1, but the engine runs already; give it to the engine"):
            policy_of(lambda: tiny_checkpoint, ready=endpoint, connections=1, **SMALL)


def test_an_engine_that_holds_masked_diffusion_is_refused(tiny_llada: Checkpoint) -> None:
    message = "is a masked-diffusion model, which the engine endpoint does not have"
    with (
        TinyServer(tiny_llada) as server,
        Endpoint(server.address, tiny_llada) as endpoint,
        pytest.raises(InputError, match=message),
    ):
        policy_of(lambda: tiny_llada, ready=endpoint, **SMALL)


def test_what_belongs_to_another_engine_is_refused_by_name(tiny_checkpoint: Checkpoint) -> None:
    for engine, name, value in (
        ("endpoint", "replicas", 2),
        ("transformers", "tensor_parallel", 2),
        ("transformers", "connections", 3),
        ("masked-diffusion", "utilization", 0.5),
    ):
        with pytest.raises(InputError, match=f"{name} is {value!r}, which the engine {engine} does not have; leave it"):
            policy_of(lambda: tiny_checkpoint, engine=engine, **{name: value}, **SMALL)
    with pytest.raises(InputError, match="tempreature is no setting here; did you mean temperature"):
        policy_of(lambda: tiny_checkpoint, tempreature=1.0, **SMALL)


def test_a_user_s_engine_is_a_function_of_the_model_and_the_settings_that_it_takes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from ets.testing import TabularPolicy\n"
        "def table(model, *, max_length=3):\n    return TabularPolicy(vocabulary=3, max_length=max_length, seed=1)\n"
        "def nothing(model):\n    return model\n"
    )
    policy: Any = own_policy(f"{tmp_path}/mine.py:table", "any", {"max_length": 2})
    assert policy.max_length == 2
    with pytest.raises(InputError, match=r"top_k is 3, which the engine .*mine.py:table does not take; leave it out"):
        own_policy(f"{tmp_path}/mine.py:table", "any", {"top_k": 3})
    with pytest.raises(InputError, match="made a str; it must be a policy"):
        own_policy(f"{tmp_path}/mine.py:nothing", "any", {})


def test_equal_laws_have_equal_configurations(tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint) -> None:
    for checkpoint, default in ((tiny_checkpoint, {"top_p": 1.0}), (tiny_llada, {"steps": 4, "block_length": 4})):
        laws = [law_of(policy_of(lambda c=checkpoint: c, **SMALL, **more)) for more in ({}, default)]  # type: ignore[misc]
        assert laws[0] == laws[1] and laws[0]["temperature"] == 1.0


def test_the_least_votes_are_the_engine_s(tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint) -> None:
    found = [minimum_votes(policy_of(lambda c=c: c, **SMALL)) for c in (tiny_checkpoint, tiny_llada)]  # type: ignore[misc]
    assert found == [ENGINES["transformers"].minimum, ENGINES["masked-diffusion"].minimum] == [1, 2]


def test_unequal_guide_steps_are_refused_in_the_callers_words(tiny_llada: Checkpoint) -> None:
    with pytest.raises(InputError, match="block_size 4 does not divide max_length 9, and a masked-diffusion model"):
        llada_of(tiny_llada, max_length=9, block_size=4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 4),
        ("block_length", 2),
        ("cfg", 1.0),
        ("cfg", 0.0),
        ("remasking", "random"),
        ("stop_at_end", True),
        ("threshold", 0.9),
        ("factor", 1.0),
        ("cache", "dual"),
    ],
)
def test_what_autoregressive_models_lack_is_refused_by_name(tiny_checkpoint: Checkpoint, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}, which .* run by transformers, does not have"):
        policy_of(lambda: tiny_checkpoint, **SMALL, **{name: value})


@pytest.mark.parametrize(("name", "value"), [("top_k", 2), ("top_p", 0.9), ("top_p", 1.0)])
def test_what_masked_diffusion_lacks_is_refused_by_name(tiny_llada: Checkpoint, name: str, value: Any) -> None:
    message = f"{name} is {value!r}, which .* run by masked-diffusion, does not have"
    with pytest.raises(InputError, match=message) as caught:
        llada_of(tiny_llada, **{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 3}, "guide_steps 2 does not divide steps 3"),
        ({"steps": 8}, "steps 8 are more than the 4 tokens"),
        ({"block_length": 0}, "block_length is 0"),
        ({"block_length": 3}, "gen_length 4 is no multiple of block_length 3"),
        ({"remasking": ""}, "unknown remasking ''"),
        ({"remasking": "topk"}, "unknown remasking 'topk'"),
        ({"cfg": -1.0}, "cfg is -1.0"),
        ({"cfg": 1.0, "cache": "dual"}, "a cache holds no unguided canvases"),
        ({"cache": ""}, "unknown cache ''; choose from dual, prefix"),
        ({"refresh": 2}, "refresh is 2, but there is no cache to refresh"),
        ({"refresh": 0, "cache": "dual"}, "refresh is 0"),
        ({"threshold": 2.0}, "threshold is 2.0"),
        ({"factor": 0.0}, "factor is 0.0"),
        ({"threshold": 0.5, "remasking": "random"}, "threshold needs confidences"),
        ({"cfg": float("nan")}, "cfg is nan"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"block_size": 8}, "block_size 8 is longer than max_length 4"),
    ],
)
def test_values_out_of_range_are_named_before_the_weights_are_loaded(
    folder: Path, wrong: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 and empty text are values, not gaps that a default fills."""
    _last_checkpoint.cache_clear()
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
    with pytest.raises(InputError, match=message) as caught:
        ets.sample("ab", model=str(folder), reward=liking_b, **{**SMALL, **wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["temperature", "top_p", "block_size", "cfg", "remasking", "factor", "cache", "refresh"]
)
def test_arguments_are_checked_before_the_checkpoint_is_opened(name: str) -> None:
    with pytest.raises(InputError, match=name):
        policy_of(lambda: pytest.fail("opened"), **{**SMALL, name: -1})


def test_sample_works_alike_for_both_kinds(tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint, folder: Path) -> None:
    """The same type of result, with a trace and a cost, from a pair, a checkpoint or a path."""
    models: list[Any] = [tiny_checkpoint, (tiny_checkpoint.model, tiny_checkpoint.tokenizer)]
    models += [tiny_llada, (tiny_llada.model, tiny_llada.tokenizer), folder]
    results = [ets.sample("ab", model=m, reward=liking_b, candidates=3, rollouts=2, **SMALL) for m in models]
    for out in results:
        assert type(out) is Result and out.valid
        assert 1 <= len(out.trace) <= 2
        for step in out.trace:
            assert len(step.candidates) == 3 and step.log_rewards.shape == (3, 2)
            assert isinstance(step.cost, type(out.cost))
        last = out.trace[-1]
        assert out.text == last.candidates[last.choice].text
        assert out.cost.generated > 0 and out.cost.positions > 0 and out.cost.forwards > 0 and out.cost.seconds > 0
        assert out._repr_html_() and str(out)
    masked = results[2:]
    assert all(len(out.trace) == 2 and out.cost.row_forwards > 0 and out.cost.vocabulary > 0 for out in masked)
    assert masked[0].text == masked[1].text
    assert not results[0].cost.row_forwards


def test_sample_takes_the_options_of_masked_diffusion(tiny_llada: Checkpoint) -> None:
    options: dict[str, Any] = {"steps": 2, "block_length": 2, "cfg": 1.0, "remasking": "random", "temperature": 0}
    prompts = ["ab", "abba", "b"]
    outs = ets.sample(prompts, model=tiny_llada, reward=liking_b, progress=False, stop=["bb"], **{**SMALL, **options})
    assert [len(out.trace) for out in outs] == [2, 2, 2]
    assert not any("bb" in out.text for out in outs)


def test_sample_takes_a_fast_sampler_as_p_ref(tiny_llada: Checkpoint) -> None:
    """Level 0: nothing is weighed, and fewer positions are computed."""
    shape = {"block_size": 4, "max_length": 16, "block_length": 4, "temperature": 1.5, "candidates": 2, "rollouts": 2}

    def positions(**fast: Any) -> int:
        out = ets.sample("ab", model=tiny_llada, reward=liking_b, **shape, **fast)
        assert out.ratios is None and not any(step.log_ratios.any() for step in out.trace)
        return out.cost.positions

    exact, cached = positions(), positions(cache="dual")
    assert cached < exact and positions(cache="prefix", refresh=1) > cached
    assert positions(cache="dual", threshold=0.3) < cached > positions(cache="dual", factor=3.0)


def test_a_seed_decides_and_the_width_does_not(tiny_llada: Checkpoint) -> None:
    shape = {"block_size": 4, "max_length": 16, "temperature": 1.5, "candidates": 2, "rollouts": 1}

    def texts(**options: Any) -> list[str]:
        prompts = ["ab", "abba", "b"]
        outs = ets.sample(prompts, model=tiny_llada, reward=liking_b, progress=False, **shape, **options)
        return [text.text for out in outs for text in out.trace[0].candidates]

    assert texts() == texts(width=1) != texts(seed=1)


def test_several_candidates_at_temperature_zero_are_refused_before_the_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _last_checkpoint.cache_clear()
    options: dict[str, Any] = {"model": str(folder), "reward": liking_b, "progress": False, **SMALL, "temperature": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
        with pytest.raises(InputError, match="at temperature 0"):
            ets.sample("ab", **options)
    assert ets.sample("ab", remasking="random", **options).trace


@pytest.mark.parametrize(("kind", "least"), [("checkpoint", 1), ("llada", 2)])
def test_without_a_reward_masked_diffusion_rewards_no_answer_that_occurs_once(
    kind: str, least: int, tiny_checkpoint: Checkpoint, tiny_llada: Checkpoint
) -> None:
    """Two rollouts, whose answers are counted up and so all differ: one has the majority, or none."""
    answers = iter(range(100))
    pair = {"checkpoint": tiny_checkpoint, "llada": tiny_llada}[kind]
    options: dict[str, Any] = {"candidates": 2, "rollouts": 1, "block_size": 4, "max_length": 4, "seed": 3}
    found = ets.sample("ab", model=pair, extract=lambda text: next(answers), **options)
    assert isinstance(found, Result)
    assert len({rollout.text for row in found.trace[0].rollouts for rollout in row}) == 2
    assert np.count_nonzero(found.trace[0].log_rewards) == 2 - least
