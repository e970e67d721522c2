"""One set of arguments for both kinds of model: the policy by the architecture, and what each kind refuses."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

import ets
from ets.api import Result, _last_checkpoint
from ets.models import MASKED_DIFFUSION
from ets.policies.autoregressive import Horizon, Sampling
from ets.policies.checkpoint import Checkpoint
from ets.policies.making import SETTINGS, policy_of
from ets.policies.masked_diffusion import MaskedDiffusionPolicy
from ets.policies.transformers import TransformersPolicy
from ets.policies.unmasking import Schedule, Unmasking
from ets.types import InputError

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


def test_masked_diffusion_gets_its_arguments(tiny_llada: Checkpoint) -> None:
    options: dict[str, Any] = {"steps": 8, "block_length": 8, "cfg": 1.5, "remasking": "margin", "temperature": 0.5}
    policy = llada_of(tiny_llada, max_length=16, block_size=4, **options)
    assert policy.unmasking == Unmasking(0.5, "margin", 1.5)
    assert policy.schedule == Schedule(16, 8, 8, guide_steps=4)


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
    for both in ({"block_size": None}, {"guide_steps": 2}):
        with pytest.raises(InputError, match=r"block_size is .* and guide_steps .*; set one of the two"):
            llada_of(tiny_llada, **both)


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


def test_every_setting_has_its_name_in_the_list() -> None:
    named = set(inspect.signature(policy_of).parameters) - {"checkpoint", "engine"}
    assert set(SETTINGS) == named


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
        ("guide_steps", 2),
    ],
)
def test_what_autoregressive_models_lack_is_refused_by_name(tiny_checkpoint: Checkpoint, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}, but .* is an autoregressive model"):
        policy_of(lambda: tiny_checkpoint, **SMALL, **{name: value})


@pytest.mark.parametrize(("name", "value"), [("top_k", 2), ("top_p", 0.9), ("top_p", 1.0)])
def test_what_masked_diffusion_lacks_is_refused_by_name(tiny_llada: Checkpoint, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name} is {value!r}, but .* is a masked-diffusion model") as caught:
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


@pytest.mark.parametrize("name", ["temperature", "top_p", "block_size", "cfg", "remasking"])
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
