"""The engines' options: what belongs to which, and what vLLM refuses before it is loaded."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from ets.commands.engines import ENGINES, closed_after, engine_settings, served_settings

from ets import demo
from ets.cli import parser_of
from ets.policies.autoregressive.server import Connection
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.policies.registry import RESOURCES
from tests.conftest import Refused
from tests.laws.tabular import TabularModel
from tests.test_cli import PROPOSED, command

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")


def test_an_option_that_engines_share_stands_once_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of().parse_args(["eval", "--help"])
    shown = capsys.readouterr().out
    shared = shown.index("options of the engine transformers, vllm and endpoint:")
    own = shown.index("options of the engine vllm:")
    assert shared < shown.index("--top-k TOP_K", shared) < own < shown.index("--replicas REPLICAS", own)
    assert own < shown.index("--connections CONNECTIONS", shown.index("options of the engine endpoint:"))


def test_results_do_not_depend_on_what_an_engine_may_use(tmp_path: Path) -> None:
    found = [
        engine_settings(parser_of().parse_args(command(tmp_path, engine="vllm", **given)))
        for given in ({}, {"replicas": "2", "tensor_parallel": "2", "utilization": "0.5", "top_p": "1"})
    ]
    assert found[0] == found[1] == {"engine": "vllm", "block_size": 16, "max_length": 32, "top_k": None, "top_p": 1.0}
    for name, resources in RESOURCES.items():
        assert set(ENGINES[name].options) == {*ENGINES["transformers"].options, *resources}


def test_results_do_not_depend_on_where_a_server_is(tmp_path: Path) -> None:
    """Which model it serves, and whether it is exact, it says itself; results depend on that."""
    reached = {"endpoint": "http://there:1/v1", "connections": "3", "key_variable": "KEY", "seconds": "9"}
    found = [
        engine_settings(parser_of().parse_args(command(tmp_path, engine="endpoint", **given)))
        for given in ({"endpoint": "http://here:1/v1"}, reached | {"served_model": "other"})
    ]
    plain = engine_settings(parser_of().parse_args(command(tmp_path)))
    assert found[0] == found[1] == plain | {"engine": "endpoint"}
    assert served_settings(TabularModel()) == {}


@needs_vllm
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methods": "ets,beam", "beams": "2"}, "EnginePolicy has no beam search, which autoregressive models have in"),
        ({"temperature": "2.5"}, "temperature is 2.5, and vLLM samples at 0 and at 0.01 to 2"),
        ({"replicas": "0"}, "replicas is 0"),
        ({"replicas": "99"}, "replicas 99 · tensor_parallel 1 take 99 GPUs, but "),
        ({"tensor_parallel": "99"}, "replicas 1 · tensor_parallel 99 take 99 GPUs, but "),
        ({"utilization": "0"}, "utilization is 0.0"),
        ({"utilization": "90"}, "utilization is 90.0; give a share of at most 1"),
        ({"memory_gib": "-1"}, "memory_gib is -1.0"),
        ({"shots": "200"}, "leaves no room for a generation of 32 in the model's context of 8192"),
        ({"model": demo.model_path("diffusion")}, "is a masked-diffusion model, which the engine vllm does not have"),
        (PROPOSED, "the engine vllm takes no proposal"),
        ({"engine": "transformers", "replicas": "2"}, "--replicas is no option of the engine transformers"),
    ],
)
def test_what_vllm_does_not_do_is_one_line_before_it_is_loaded(
    changed: dict[str, str], message: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VLLMEngine, "load", lambda self: pytest.fail("the engine was loaded"))
    refused(command(tmp_path / "run", **{"engine": "vllm", **changed}), message)


HERE = {"endpoint": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "the engine endpoint needs --endpoint; see ets eval --help"),
        ({"endpoint": "localhost:8000"}, "'localhost:8000' is no address of a server"),
        (HERE | {"connections": "0"}, "connections is 0"),
        (HERE | {"seconds": "0"}, "seconds is 0"),
        (
            HERE | {"memory_gib": "2"},
            "memory_gib is 2.0, but the cache is the server's; say it in",
        ),
        (HERE | {"replicas": "2"}, "--replicas is no option of the engine endpoint; leave it out"),
        (HERE | {"engine": "transformers"}, "--endpoint is no option of the engine transformers; leave it out"),
        (HERE | {"engine": "vllm"}, "--endpoint is no option of the engine vllm; leave it out"),
        (HERE | {"temperature": "-1"}, "temperature is -1"),
        (HERE | {"model": demo.model_path("diffusion")}, "model, which the engine endpoint does not have"),
        (HERE | PROPOSED, "the engine endpoint takes no proposal"),
    ],
)
def test_what_a_server_need_not_be_asked_for_is_one_line_before_it_is(
    changed: dict[str, str], message: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "ask", lambda *_: pytest.fail("the server was asked"))
    refused(command(tmp_path / "run", **{"engine": "endpoint", **changed}), message)
    assert not (tmp_path / "run").exists()


def test_a_missing_httpx2_is_one_line_that_names_the_mend(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    words = command(tmp_path / "run", engine="endpoint", **HERE)
    refused(words, "run `bash scripts/setup.sh endpoint`")


def test_a_missing_vllm_is_one_line_that_names_the_mend(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm.platforms", None)
    monkeypatch.setitem(sys.modules, "vllm", None)
    words = command(tmp_path / "run", engine="vllm")
    refused(words, "run `bash scripts/setup.sh vllm`")
    assert not (tmp_path / "run").exists()


def test_an_engine_is_closed_however_the_run_ends() -> None:
    class Open(TabularModel):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    policy = Open()
    with closed_after(policy):
        pass
    with pytest.raises(KeyboardInterrupt), closed_after(policy):
        raise KeyboardInterrupt
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), closed_after(policy):
        signal.raise_signal(signal.SIGTERM)
    assert policy.closed == 3 and signal.getsignal(signal.SIGTERM) == before
    with closed_after(TabularModel()):
        pass
