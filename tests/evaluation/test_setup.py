"""Setups: everything is checked without weights, and records depend on what the configuration holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ets.evaluation.methods import MethodSettings
from ets.evaluation.ranks import Ranks
from ets.evaluation.setup import RunSettings, Setup, open_setup
from ets.exits import closed_after
from ets.path_weights import PathWeights
from ets.policies.checkpoint import Checkpoint
from ets.policies.diffusion.policy import MaskedDiffusionPolicy
from ets.types import InputError

SMALL = RunSettings(task="arithmetic", model="embedded-small", count=2, shots=0)
VALUES: Mapping[str, Any] = {"block_size": 8, "max_length": 16, "temperature": 1.9}
MASKED = RunSettings(task="sums", model="embedded", engine="masked-diffusion", count=2, shots=0)
CANVAS: Mapping[str, Any] = {"max_length": 24, "block_length": 8, "guide_steps": 4, "temperature": 2.4}
FAST = CANVAS | {"level": "1", "fast_cache": "dual", "fast_remasking": "largest", "fast_threshold": 0.9}
OWN = """
from ets.testing import TabularPolicy

def make(model, *, seed=0, max_length=4):
    return TabularPolicy(vocabulary=4, max_length=max_length, seed=seed)

def wrong(model):
    return model
"""


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))


def setup(
    asked: RunSettings = SMALL, values: Mapping[str, Any] = VALUES, methods: tuple[str, ...] = ("ets",), **settings: Any
) -> Setup:
    return open_setup(asked, values, MethodSettings(**settings), methods)


def test_the_configuration_holds_the_law_the_seed_and_the_prompt() -> None:
    found = setup()
    law = {"temperature": 1.9, "top_k": None, "top_p": None, "block_size": 8, "max_length": 16}
    method = {"rollouts": 3, "lam": 0.1, "pool": "chain", "reward": "majority", "minimum": 1}
    own = {"task": "arithmetic", "model": "embedded-small", "engine": "transformers", "seed": 0}
    assert (law | method | own).items() <= found.configuration.items()
    assert found.configuration["prompt"].startswith("Question: ") and found.configuration["model_revision"]
    assert json.loads(json.dumps(found.configuration)) == found.configuration
    assert found.per_token == 1 and found.notes == []


@pytest.mark.parametrize(
    "changed", [{"memory_gib": 1.0}, {"top_p": 1.0}, {"proposal": "embedded", "clip": (0.1, 10.0)}, {"level": "1"}]
)
def test_results_of_most_methods_do_not_depend_on_resources_and_on_ets_is(changed: dict[str, Any]) -> None:
    assert setup(values={**VALUES, **changed}).configuration == setup().configuration


@pytest.mark.parametrize(
    ("asked", "changed"),
    [({"seed": 1}, {}), ({}, {"block_size": 4}), ({}, {"top_p": 0.5}), ({"shots": 1}, {}), ({"model": "embedded"}, {})],
)
def test_results_depend_on_the_law(asked: dict[str, Any], changed: dict[str, Any]) -> None:
    other = open_setup(replace(SMALL, **asked), {**VALUES, **changed}, MethodSettings(), ["ets"])
    assert other.configuration != setup().configuration


def test_tasks_and_scans_of_a_command_share_the_weights() -> None:
    policies: list[Any] = [setup().policy, setup(replace(SMALL, task="sums"), {**VALUES, "block_size": 4}).policy]
    assert policies[0].checkpoint is policies[1].checkpoint


def test_the_policy_of_base_has_the_law_of_the_papers_row() -> None:
    base: Any = setup(methods=("base", "plain")).policies["base"]
    assert (base.sampling.temperature, base.sampling.top_k, base.sampling.top_p) == (0.7, 20, 0.8)
    with pytest.raises(InputError, match="MaskedDiffusionPolicy has no top-k and top-p; leave the method base out"):
        setup(MASKED, CANVAS, ("base",))


def test_the_pair_of_ets_is_has_the_proposals_law_and_longer_guide_steps() -> None:
    given = {"proposal": "embedded", "proposal_temperature": 0.7, "top_k": 5, "clip": (0.1, 10.0), "is_block_size": 16}
    found = setup(values={**VALUES, **given}, methods=("ets", "ets-is"))
    pair: Any = found.policies["ets-is"]
    assert pair.reference.horizon == pair.proposal.horizon and pair.proposal.horizon.block_size == 16
    assert (pair.proposal.sampling.temperature, pair.proposal.sampling.top_k, pair.clip) == (0.7, 5, (0.1, 10.0))
    assert found.policy.horizon.block_size == 8  # type: ignore[attr-defined]
    assert found.settings.weighing.startswith("embedded@")
    assert found.settings.weighing.endswith("-block16-T0.7-k5-pNone-clip(0.1, 10.0)")


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")
def test_the_proposal_runs_in_vllm_where_the_run_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded, and the end of the run closes the engine."""
    given = {**VALUES, "proposal": "embedded-small", "proposal_engine": "vllm"}
    found = setup(values=given, methods=("ets", "ets-is"))
    pair: Any = found.policies["ets-is"]
    assert pair.proposal.engine.arguments["gpu_memory_utilization"] == 0.3 and not pair.proposal.engine._loaded
    other: Any = setup(values={**given, "proposal_utilization": 0.5}, methods=("ets-is",)).policies["ets-is"]
    assert other.proposal.engine.arguments["gpu_memory_utilization"] == 0.5
    assert "-vllm-" in found.settings.weighing
    with closed_after(*found.policies.values()):
        pass
    assert not pair.proposal.engine._closing.alive
    with pytest.raises(InputError, match="proposal_engine is 'endpoint'; choose transformers or vllm"):
        setup(values={**given, "proposal_engine": "endpoint"}, methods=("ets-is",))
    with pytest.raises(InputError, match=r"proposal_utilization is 0.5, which vLLM alone has; set proposal_engine to"):
        setup(values={**VALUES, "proposal": "embedded-small", "proposal_utilization": 0.5}, methods=("ets-is",))
    monkeypatch.setattr("ets.evaluation.ranks.join", lambda: Ranks(0, 2))
    with pytest.raises(InputError, match="proposal_engine is vllm, which takes one process, not 2; leave it out"):
        setup(values=given, methods=("ets-is",))


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        (
            {**VALUES, "proposal": "embedded"},
            [
                {"proposal": "embedded-small"},
                {"proposal_temperature": 1.0},
                {"top_k": 3},
                {"top_p": 0.5},
                {"is_block_size": 16},
                {"clip": (0.1, 2.0)},
            ],
        ),
        (
            FAST,
            [{"fast_threshold": 0.8}, {"fast_temperature": 1.8}, {"clip": (0.1, 10.0)},
             {"fast_cache": "prefix"}, {"fast_refresh": 2}, {"level": "0"},
             {"level": "0", "fast_remasking": "low_confidence"}],
        ),
    ],
)  # fmt: skip
def test_every_setting_of_ets_is_is_in_the_names_of_its_records(
    values: Mapping[str, Any], changes: list[dict[str, Any]]
) -> None:
    asked = MASKED if values is FAST else SMALL
    found = {setup(asked, {**values, **change}, ("ets-is",)).settings.weighing for change in [{}, *changes]}
    assert len(found) == len(changes) + 1 and "" not in found


def test_a_default_of_the_fast_sampler_is_the_policys_setting() -> None:
    """So a default and the same value given are one method in the journal."""
    short = CANVAS | {"fast_cache": "dual", "fast_threshold": 0.9}
    whole = short | {"level": "0", "fast_temperature": 2.4, "fast_remasking": "low_confidence"}
    one, other = (setup(MASKED, values, ("ets-is",)) for values in (short, whole))
    assert one.settings.weighing == other.settings.weighing
    assert isinstance(one.policies["ets-is"], MaskedDiffusionPolicy)
    (note,) = one.notes
    assert note.startswith("ets-is: its target is the fast sampler itself")


def test_a_level_weighs_and_its_target_is_noted() -> None:
    found = setup(MASKED, FAST, ("ets-is",))
    assert isinstance(found.policies["ets-is"], PathWeights)
    assert "the order and groups that the fast model chose" in found.notes[0]
    assert found.per_token == 1.0 and found.engine.currency == "positions" and found.settings.minimum == 2


@pytest.mark.parametrize(
    ("asked", "values", "message"),
    [
        (SMALL, {**VALUES}, "for the method ets-is, there is no proposal; add --proposal"),
        (SMALL, {**VALUES, "proposal": "./nowhere"}, "for the method ets-is, no checkpoint at './nowhere'"),
        (SMALL, {**VALUES, "proposal": "embedded", "fast_cache": "dual"}, "fast_cache is 'dual', which only masked"),
        (SMALL, {**VALUES, "proposal": "embedded", "level": "1"}, "level is '1', which only masked diffusion has"),
        (MASKED, {**CANVAS}, "for the method ets-is, there is no faster sampler; give what makes it fast"),
        (MASKED, {**FAST, "proposal": "embedded"}, "proposal is 'embedded', which only a pair with a proposal has"),
        (MASKED, {**FAST, "is_block_size": 8}, "is_block_size is 8, which only a pair with a proposal has"),
        (MASKED, {**FAST, "level": "0", "clip": (0.1, 10.0)}, "but at level 0 every weight is exactly 1"),
        (MASKED, {**FAST, "fast_temperature": 0.0}, "at temperature 0 a path has probability 0 or 1"),
        (MASKED, {**FAST, "fast_remasking": None}, "level 1 takes the positions as given"),
    ],
)
def test_a_sampler_of_ets_is_that_cannot_be_weighed_is_refused(
    asked: RunSettings, values: Mapping[str, Any], message: str
) -> None:
    given = {name: value for name, value in values.items() if value is not None}
    with pytest.raises(InputError) as caught:
        setup(asked, given, ("ets-is",))
    assert message in str(caught.value)


def test_an_engine_of_a_user_is_a_function_that_makes_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(OWN)
    asked = RunSettings(task="arithmetic", model="any", engine=f"{file}:make", count=2, shots=0)
    found, other = (setup(asked, values) for values in ({"max_length": 3}, {"max_length": 4}))
    assert found.policy.max_length == 3 and found.configuration["max_length"] == 3  # type: ignore[attr-defined]
    assert found.configuration != other.configuration and found.configuration["model_revision"] is None
    file.write_text(f"{OWN}\n# changed\n")
    assert setup(asked, {"max_length": 3}).configuration["own_code"] != found.configuration["own_code"]


@pytest.mark.parametrize(
    ("engine", "values", "message"),
    [
        (
            "make",
            {"temperature": 0.5},
            "temperature is 0.5, which the engine .*own.py:make does not take; leave it out",
        ),
        ("wrong", {}, "made a str; it must be a policy: start, extend, finish"),
        ("absent", {}, "has no 'absent'; name a engine that is in it"),
    ],
)
def test_an_engine_of_a_user_that_makes_no_policy_is_refused(
    engine: str, values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(InputError, match=message):
        setup(replace(SMALL, engine=f"{tmp_path}/own.py:{engine}"), values)


def test_results_of_two_dtypes_are_not_mixed() -> None:
    assert setup(replace(SMALL, dtype="bfloat16")).configuration["placement"] == "cpu bfloat16"
    assert setup().configuration["placement"] == "cpu float32"


@pytest.mark.parametrize("engine", ["endpoint", "own.py:make"])
def test_an_engine_that_loads_the_weights_itself_takes_no_dtype(engine: str) -> None:
    with pytest.raises(InputError, match=f"dtype is bfloat16, but the engine {engine} loads the weights"):
        setup(replace(SMALL, engine=engine, dtype="bfloat16"), {})
