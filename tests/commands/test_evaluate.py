"""`ets eval` and `ets compare` from the command line: code of a user, scans, growth, and refusals in one line."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from ets import demo
from ets.cli import main, parser_of
from ets.commands import evaluate
from ets.connection import Connection
from ets.evaluation.methods import METHODS
from ets.evaluation.traces import read_traces
from ets.policies.autoregressive.vllm import VLLMEngine
from ets.rewards.registry import NAMES
from tests.conftest import Refused
from tests.test_cli import PROPOSED, command

OWN = """
import ets
from ets.testing import TabularPolicy
from ets.types import Problem


class Letters:
    name = "letters"

    def problems(self, count, shots):
        return [Problem(f"letters-{n}", (1, n)) for n in range(count or 3)]

    def extract(self, problem, text):
        return text[:1] or None

    def grade(self, problem, text):
        return text[:1] == "a"


class Others(Letters):
    name = "others"


def table(model, *, max_length=3, block_size=1):
    return TabularPolicy(vocabulary=4, max_length=max_length, block_size=block_size, seed=len(model))


def first(reward, *, candidates):
    return ets.energy_guided(reward, candidates=candidates, rollouts=1, lam=1.0)


def letters(prompt, text):
    return float(text.count("a"))
"""


@pytest.fixture(params=["eval", "compare"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A file with a user's task, engine, step function and reward."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def words(name: str, own: Path, *further: str, methods: str = "majority,ets") -> list[str]:
    """A command on the tasks, the engine and the models of a user."""
    engine = ["--task", f"{own}:Letters", "--model", "any", "--engine", f"{own}:table"]
    small = ["--candidates", "2", "--rollouts", "2", "--repeats", "2", "--width", "4"]
    return [name, *engine, *small, "--methods", methods, "--out", str(own.parent / "run"), *further]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def keys(folder: Path) -> Counter[str]:
    """Records by the names of their methods, without the settings."""
    records = [json.loads(line)["method"] for line in (folder / "journal.jsonl").read_text().splitlines()]
    return Counter(record.split("-rollouts=")[0] for record in records)


def test_the_code_of_a_user_is_engine_method_and_reward(
    name: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = words(name, own, "--step", f"{own}:first", "--reward", f"{own}:letters", "--max-length", "2")
    assert main(named) == 0
    folder = own.parent / "run"
    table = (folder / "table.md").read_text()
    assert "\n| first (M 2, K 2) " in table and "\n| first (M 2, K 2), vote " in table
    assert f"\n\nReward of all rows: {own}:letters\n\n| method" in table and " mean reward |" in table
    found = {(entry["method"], entry["readout"]): entry for entry in summary(folder)["entries"]}
    assert found["ets", "last"]["cost"]["generated"] > found[f"{own}:first", "last"]["cost"]["generated"] > 0  # K is 1
    assert (found["ets", "last"]["rival"] is None) == (name == "eval")
    configuration = json.loads((folder / "configuration.json").read_text())
    assert (
        configuration["own_code"].keys() == {f"{own}:{name}" for name in ("table", "Letters", "letters")}
        and configuration["max_length"] == 2
    )
    before = keys(folder)
    assert before[f"{own}:first-2"] == before["ets-2"] == 3 * 2
    assert main(named) == 0
    assert keys(folder) == before and "results: " in capsys.readouterr().out


def test_changed_code_of_a_user_is_another_run(name: str, own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A step function's records have other names; an engine or a reward is a configuration of the folder."""
    step = [name, *command(own.parent / "step", methods="ets", count="1", step=f"{own}:first")[1:]]
    step += ["--against", "ets"]
    for changed in ("", "# changed\n"):
        own.write_text(OWN + changed)
        assert main(step) == 0
    folder = own.parent / "step"
    assert keys(folder)[f"{own}:first-2"] == 2 * keys(folder)["ets-2"] > 0
    assert main(words(name, own)) == 0
    own.write_text(OWN)
    capsys.readouterr()
    assert main(words(name, own)) == 2
    error = capsys.readouterr().err
    assert f"was made with other code: {own} has changed (Letters, table); choose another folder" in error
    assert error.endswith("--out, or put the code back\n") and error.count("\n") == 1


def test_a_list_of_tasks_is_checked_before_the_first_one_runs(name: str, own: Path, refused: Refused) -> None:
    refused(words(name, own, "--task", f"{own}:Letters,chess"), "unknown task 'chess'; choose from arithmetic, sums")
    refused(words(name, own, "--task", f"{own}:Letters,{own}:Absent"), "has no 'Absent'; name a task that is in it")
    assert not (own.parent / "run").exists()


def test_every_task_of_a_list_has_a_folder(name: str, own: Path) -> None:
    assert main(words(name, own, "--task", f"{own}:Letters,{own}:Others", "--count", "1")) == 0
    for task in ("letters", "others"):
        assert summary(own.parent / "run" / task)["setting"]["task"] == task


def test_a_run_grows_by_problems_repeats_and_budgets(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, lines = own.parent / "run", list[set[str]]()
    for further in (
        ["--count", "2"],
        ["--count", "3"],
        ["--count", "3", "--repeats", "3"],
        ["--count", "3", "--repeats", "3", "--candidates", "2,4"],
    ):
        assert main(words("compare", own, *further)) == 0
        lines.append(set((folder / "journal.jsonl").read_text().splitlines()))
        assert lines[:-1] == [] or lines[-1] > lines[-2]
    assert keys(folder)["ets-2"] == keys(folder)["ets-4"] == 3 * 3
    assert "### Budget 2" in capsys.readouterr().out
    assert [len(entry["scores"]) for entry in summary(folder)["entries"]] == [3] * 6
    assert (folder / "accuracy_by_cost.png").exists()
    whole = own.parent / "whole"
    assert main(words("compare", own, *further, "--out", str(whole))) == 0
    grown, once = summary(folder)["entries"], summary(whole)["entries"]
    assert [(each["label"], each["scores"]) for each in grown] == [(each["label"], each["scores"]) for each in once]


def test_a_budget_of_tokens_stands_in_place_of_candidates(own: Path, refused: Refused) -> None:
    given = words("eval", own, "--tokens", "40", methods="majority,ets,refined")
    given = [word for n, word in enumerate(given) if "--candidates" not in (word, given[n - 1])]
    refused([*given, "--tokens", "2"], "the budget is 2 tokens, and a text may have 3; raise it, or lower max_length")
    assert not (own.parent / "run").exists()
    assert main(given) == 0
    entries = {entry["method"]: entry for entry in summary(own.parent / "run")["entries"] if entry["readout"] == "last"}
    assert entries["refined"]["size"] == 40 and 36 < entries["refined"]["cost"]["generated"] <= 40
    assert all(30 < entry["cost"]["generated"] < 50 for entry in entries.values())


def test_scans_are_panels_of_one_plot(name: str, own: Path) -> None:
    scans = ("--scan-rollouts", "1,3", "--scan-guide-steps", "1,3", "--max-length", "3", "--candidates", "2,3")
    assert main(words(name, own, *scans)) == 0
    folder = own.parent / "run"
    panels = summary(folder)["panels"]
    assert {panel: [x for x, _ in values] for panel, values in panels.items()} == {
        "M, candidates": [2, 3],
        "K, rollouts": [1, 3],
        "I, guide steps": [1, 3],
    }
    assert [entry["label"] for _, entry in panels["K, rollouts"]] == ["ETS (M 3, K 1)", "ETS (M 3, K 3)"]
    for guide_steps, block_size in ((1, 3), (3, 1)):
        stored = json.loads((folder / f"guide_steps={guide_steps}" / "configuration.json").read_text())
        assert stored["block_size"] == block_size
    assert (folder / "scaling.png").stat().st_size > 0 and "Scaling in K, rollouts" in (
        folder / "report.html"
    ).read_text()


def test_without_traces_a_run_goes_on_and_is_shown(name: str, own: Path) -> None:
    folder = own.parent / "run"
    assert main(words(name, own, "--traces", "0")) == 0
    before = (folder / "journal.jsonl").read_bytes()
    assert not (folder / "traces.jsonl").exists() and (folder / "report.html").exists()
    assert main(words(name, own, "--traces", "1", "--count", "3")) == 0
    assert (folder / "journal.jsonl").read_bytes() == before and read_traces(folder) == []
    assert main(words(name, own, "--traces", "4", "--count", "4")) == 0
    assert [trace["problem"] for trace in read_traces(folder)] == ["letters-3"]


def test_a_folder_of_another_version_is_one_line(
    name: str, own: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(name, own)) == 0
    capsys.readouterr()
    stored = own.parent / "run" / "configuration.json"
    content = json.loads(stored.read_text())
    stored.write_text(json.dumps({**content, "version": 1}))
    refused(words(name, own), "has version 1, and this ets reads version 4; finish it with the ets that began it")


def test_commands_differ_in_repeats_and_rivals_alone(own: Path) -> None:
    plans = [
        evaluate.plan_of(parser_of().parse_args([each, "--task", "sums", "--model", "m", "--methods", "majority,ets"]))
        for each in ("eval", "compare")
    ]
    assert [(plan.repeats, plan.against) for plan in plans] == [(1, None), (4, "majority")]
    assert {**vars(plans[0]), "repeats": 4, "against": "majority"} == vars(plans[1])


def test_a_comparison_without_methods_takes_what_the_engine_has() -> None:
    for engine, reward, left_out in (
        ("transformers", "majority", set()),
        ("masked-diffusion", "likelihood", {"beam", "ets-stopped"}),
    ):
        given = ["--task", "sums", "--model", "embedded", "--engine", engine, "--reward", reward]
        plan = evaluate.plan_of(parser_of().parse_args(["compare", *given]))
        assert {*METHODS} - {*plan.methods} == {"base", "ets-is"} | left_out


@pytest.mark.parametrize("engine", ["vllm", "endpoint", "own.py:table"])
def test_confident_majority_is_left_out_where_an_engine_records_no_certainty(engine: str, refused: Refused) -> None:
    given = ["compare", "--task", "sums", "--model", "embedded", "--engine", engine]
    plan = evaluate.plan_of(parser_of().parse_args(given))
    assert "confident-majority" not in plan.methods and "certainty" not in plan.values
    if ":" not in engine:
        message = f"confident-majority reads the certainty of tokens, which the engine {engine} does not record"
        refused([*given, "--methods", "ets,majority,confident-majority"], message)


def test_confident_majority_switches_the_record_of_certainty_on(
    tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(tmp_path / "run", methods="plain,confident-majority", samples="4", count="2")
    assert main(words) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert all(text["certainty"]["tokens"] > 0 for record in records for text in record["texts"])
    labels = [entry["label"] for entry in summary(tmp_path / "run")["entries"]]
    assert labels[1] == "majority of the most confident 50% (4)"
    before = command(tmp_path / "before", methods="plain,majority", samples="4", count="2")
    assert main(before) == 0  # samples without the record
    capsys.readouterr()
    refused(command(tmp_path / "before", methods="confident-majority", samples="4", count="2"), "no recorded certainty")


def test_help_names_every_method_and_reward(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help-all"])
    shown = capsys.readouterr().out
    joined = "".join(shown.split())  # lines break at hyphens
    assert ",".join(METHODS) in joined and ",".join(NAMES) in joined
    for option in ("--top-k", "--memory-gib", "--temperature", "--max-length"):
        assert len(re.findall(f"^  {option} ", shown, flags=re.MULTILINE)) == 1  # though engines share it


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (("--budgets", "100"), "give either --candidates, whose cost is the budget, or --tokens (--budgets), amounts"),
        (("--against", "plain"), "against is 'plain', which is not among the methods; add it, or name another"),
        (("--candidates", "2,2"), "argument --candidates: 2 is there twice"),
        (("--candidates", "2,x"), "argument --candidates: 'x' is no number"),
        (("--budgets", "nan"), "argument --budgets/--tokens: 'nan' is not above zero and finite"),
        (("--budgets", "100,inf"), "argument --budgets/--tokens: 'inf' is not above zero and finite"),
        (("--scan-rollouts", "0"), "argument --scan-rollouts: '0' is not above zero and finite"),
        (
            ("--scan-rollouts", "1", "--methods", "plain,majority", "--samples", "2"),
            "a scan needs the method ets and budgets in candidates",
        ),
        (("--scan-guide-steps", "4", "--max-length", "6"), "no block size gives 4 guide steps of 6 tokens"),
        (("--sizes", "majority"), "argument --sizes: 'majority' is no list of sizes; give N by name"),
        (("--sizes", "majority=2,majority=3"), "names a method twice; name it once"),
        (("--sizes", "ets=2"), "sizes names the method 'ets', which draws no N samples"),
        (("--sizes", "majority=0"), "the size of majority is 0"),
        (("--repeats", "0"), "repeats is 0"),
        (("--samples", "0"), "samples is 0"),
        (("--traces", "-1"), "traces is -1; give a number of problems, or 0 for none"),
        (("--reward", "magic"), "reward is 'magic'; choose from majority, share"),
        (("--confident-share", "0"), "--confident-share is 0.0; it must be a finite number above zero"),
        (("--confident-share", "1.5"), "--confident-share is 1.5; it must be a share, above 0 and at most 1"),
        (("--reward", "absent.py:f"), "cannot read the reward 'absent.py:f': there is no file absent.py"),
        (("--step", "absent.py:f"), "cannot read the step function 'absent.py:f': there is no file absent.py"),
        (("--step", "math:pi"), "the step function 'math:pi' takes no reward"),
        (("--step", "ets.types:Cost"), "the function 'ets.types:Cost' made a Cost; it must make a step function of"),
        (("--engine", "absent.py:f"), "cannot read the engine 'absent.py:f': there is no file absent.py"),
        (("--temperature", "0.5"), "temperature is 0.5, which the engine"),
        (("--model", ""), "--model is not given; add it, for example --model embedded"),
        (("--chat-template",), "the policy has no checkpoint, whose tokenizer holds the chat template"),
        (("--methods", "base,majority,ets"), "TabularPolicy has no top-k and top-p; leave the method base out"),
        (("--methods", "greedy,majority,ets"), "TabularPolicy has no greedy"),
    ],
)
def test_bad_input_is_one_line(name: str, further: tuple[str, ...], message: str, own: Path, refused: Refused) -> None:
    refused(words(name, own, *further), message)
    assert not (own.parent / "run").exists()


needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM here; `bash scripts/setup.sh vllm`")


@needs_vllm
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"methods": "ets,beam", "beams": "2"}, "EnginePolicy has no beam search, which autoregressive models have in"),
        ({"temperature": "2.5"}, "temperature is 2.5, and vLLM samples at 0 and at 0.01 to 2"),
        ({"replicas": "0"}, "replicas is 0"),
        ({"replicas": "99"}, "--replicas 99 · tensor_parallel 1 take 99 GPUs, but "),
        ({"tensor_parallel": "99"}, "replicas 1 · --tensor-parallel 99 take 99 GPUs, but "),
        ({"utilization": "0"}, "utilization is 0.0"),
        ({"utilization": "90"}, "utilization is 90.0; give a share of at most 1"),
        ({"memory_gib": "-1"}, "--memory-gib is -1.0"),
        ({"shots": "200"}, "leaves no room for a generation of 32 in the model's context of 8192"),
        ({"model": demo.model_path("diffusion")}, "is a masked-diffusion model, which the engine vllm does not have"),
        (PROPOSED, "EnginePolicy takes no proposal; leave it out, or use transformers"),
        ({"engine": "transformers", "replicas": "2"}, "replicas is 2, which the engine transformers does not have"),
    ],
)
def test_input_that_vllm_cannot_take_is_one_line_before_it_is_loaded(
    changed: dict[str, str], message: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VLLMEngine, "load", lambda self: pytest.fail("the engine was loaded"))
    refused(command(tmp_path / "run", **{"engine": "vllm", **changed}), message)


HERE = {"endpoint": "http://127.0.0.1:1/v1"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "endpoint is not set; give the server's address, such as http://localhost:8000/v1"),
        ({"endpoint": "localhost:8000"}, "'localhost:8000' is no address of a server"),
        (HERE | {"connections": "0"}, "connections is 0"),
        (HERE | {"seconds": "0"}, "seconds is 0"),
        (HERE | {"memory_gib": "2"}, "--memory-gib is 2.0, which the engine endpoint does not have; leave it out"),
        (HERE | {"replicas": "2"}, "replicas is 2, which the engine endpoint does not have; leave it out"),
        (HERE | {"engine": "transformers"}, "endpoint is 'http://127.0.0.1:1/v1', which the engine transformers does"),
        (HERE | {"temperature": "-1"}, "temperature is -1"),
        (HERE | {"model": demo.model_path("diffusion")}, "model, which the engine endpoint does not have"),
    ],
)
def test_input_that_needs_no_server_is_one_line_before_a_request(
    changed: dict[str, str], message: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "ask", lambda *_: pytest.fail("the server received a request"))
    refused(command(tmp_path / "run", **{"engine": "endpoint", **changed}), message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("engine", "module"), [("vllm", "vllm"), ("endpoint", "httpx2")])
def test_a_missing_library_is_one_line_that_names_the_remedy(
    engine: str, module: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("vllm.platforms", module):
        monkeypatch.setitem(sys.modules, each, None)
    words = command(tmp_path / "run", engine=engine, **(HERE if engine == "endpoint" else {}))
    refused(words, f"run `bash scripts/setup.sh {engine}`")
    assert not (tmp_path / "run").exists()
