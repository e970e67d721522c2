"""The benchmark suite: what its floor counts, that its dry run measures everything, and what it needs."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import warnings
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ets.kernel import energy_guided
from ets.policies.autoregressive.transformers import TransformersPolicy
from ets.policies.settings import Horizon, Sampling
from ets.rewards import per_text
from ets.runner import run
from ets.testing import check_policy
from ets.types import Problem

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "run.py"
NEEDED = ("torch", "transformers", "numpy", "tqdm")
CPU = torch.device("cpu")


@pytest.fixture
def conditions(load: Any) -> Any:
    return load("measuring").Conditions(CPU, torch.float32, load("floor").Peak(1e11, 1e10), repeats=1)


def test_a_pass_is_counted_by_hand(load: Any) -> None:
    floor = load("floor")
    shape = floor.Shape(layers=2, width=4, heads=2, groups=1, head=2, mlp=3, vocabulary=5, itemsize=2)
    assert shape.body == 2 * ((4 * 4 + 4 * 2 + 4 * 2 + 4 * 4) + 3 * 4 * 3)
    work = shape.work(floor.Forward(positions=3, pairs=6, kept=7, logits=1))
    attention, head, cache = 2 * 2 * (2 * 2 * 2) * 6, 2 * 4 * 5, 2 * 2 * 2 * (7 + 3)
    assert work.operations == 2 * 168 * 3 + attention + head
    assert work.bytes == 2 * (168 + 4 * 5 + cache)
    assert shape.work(floor.Forward(logits=2)) == floor.Work(2 * 2 * 20, 2 * 20)  # the layers' weights are not read


def test_rows_look_at_what_stands_before_them(load: Any) -> None:
    floor = load("floor")
    assert floor.reading(2, 3, context=5, kept=5, logits=2) == floor.Forward(6, 2 * (6 + 7 + 8), 5, 2)
    assert floor.drawing(2, 2, context=5, kept=5) == [floor.Forward(2, 12, 5, 2), floor.Forward(2, 14, 7, 2)]


def test_the_floor_takes_the_slower_of_operations_and_bytes_pass_by_pass(load: Any) -> None:
    floor = load("floor")
    shape = floor.Shape(layers=1, width=2, heads=1, groups=1, head=2, mlp=2, vocabulary=4, itemsize=4)
    few, many = floor.Forward(positions=1, pairs=1), floor.Forward(positions=100, pairs=100)
    works = [shape.work(few), shape.work(many)]
    found = floor.Floor.of(floor.Peak(operations=10.0, bytes=8.0), shape, [few, many])
    assert works[0].bytes / 8 > works[0].operations / 10 and works[1].bytes / 8 < works[1].operations / 10
    assert found.seconds == pytest.approx(works[0].bytes / 8 + works[1].operations / 10)


def test_the_peak_is_the_fastest_product_and_the_faster_of_a_copy_and_a_read(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy reads and writes each of 4 MiB; a product with a vector reads them."""
    floor = load("floor")
    monkeypatch.setattr(floor, "computes", lambda dtype: True)
    for plain, packed, copy, read, peak in (
        (0.5, 0.5, 1.0, 1.0, (4 * 256**3, 2 * 2**22)),
        (0.5, 0.25, 1.0, 0.25, (8 * 256**3, 4 * 2**22)),
        (0.125, 0.25, 1.0, 0.25, (16 * 256**3, 4 * 2**22)),
    ):
        seconds = iter((plain, packed, copy, read))
        monkeypatch.setattr(floor, "_least_seconds", lambda work, seconds=seconds: next(seconds))
        assert floor.measured_peak(CPU, torch.float32, dry=True) == floor.Peak(*peak)


def test_the_weights_that_are_counted_are_the_model_s(load: Any) -> None:
    models, floor, sizes = load("random_models"), load("floor"), load("suite").DRY
    for config in (sizes.causal.model, sizes.causal_is.proposal, sizes.canvas.model):
        model = models.random_checkpoint(config, CPU, torch.float32).model
        head = model.get_output_embeddings()
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
        assert floor.Shape.of(model).body == sum(module.weight.numel() for module in linear)


def test_the_passes_that_are_needed_are_those_that_ets_makes(load: Any) -> None:
    """As many positions by the formula as in the policies' ledgers: for Algorithm 1, and for both sides of 2."""
    benchmark, setting = load("autoregressive"), load("suite").DRY.causal
    model, small = (
        load("random_models").random_checkpoint(config, CPU, torch.float32)
        for config in (setting.model, setting.proposal)
    )
    way = benchmark.Run(setting, 12, model, small)

    def positions(passes: Any) -> int:
        return sum(forward.positions for forward in passes)

    assert way.ets().positions == positions(benchmark.needed(setting, 12))
    # 2 prompts: each once, M (2 B - 1) tokens of candidates, M K (B - 1) of rollouts after the first guide step
    assert positions(benchmark.needed(setting, 12)) == 2 * (12 + 2 * 7 + 4 * 3)
    sides = benchmark.needed_with_a_proposal(setting, 12)
    assert [cost.positions for cost in way.ets_is()] == [positions(passes) for passes in sides]


def test_an_engine_s_passes_that_follow_each_other_are_as_many(load: Any) -> None:
    """One for the prompt, seven in the first guide step, where rollouts go on to the end, and three in the second."""
    benchmark, setting = load("autoregressive"), load("suite").DRY.causal
    model = load("random_models").random_checkpoint(setting.model, CPU, torch.float32)
    policy = TransformersPolicy(model, Sampling(), Horizon(setting.block, setting.length))
    step = energy_guided(per_text(lambda _, text: float(len(text) % 7)), candidates=2, rollouts=2, lam=1.0)
    (chain,) = run(policy, step, [Problem("p", (1,) * 12)], width=1, seed=0)
    assert load("engines").serial_passes(chain) == len(benchmark.needed(setting, 12)) == 1 + 7 + 3


def test_recorded_canvases_are_those_that_masked_diffusion_needs(load: Any) -> None:
    """M 3, K 2, two guide steps of a block of four each: hardly two canvases are equal but those that rows share."""
    benchmark, floor, setting = load("masked_diffusion"), load("floor"), load("suite").DRY.canvas
    checkpoint = load("random_models").random_checkpoint(setting.model, CPU, torch.float32)
    with floor.Recorder(checkpoint.model, setting.length) as recorder:
        benchmark.ets(setting, checkpoint)
    canvases = (1 + 3 * 3) + (3 + 6 * 3) + 3 * 3
    positions = canvases * 16
    assert sum(forward.positions for forward in recorder.forwards) == positions
    assert sum(forward.pairs for forward in recorder.forwards) == positions * 16
    assert sum(forward.kept for forward in recorder.forwards) == 0
    assert sum(forward.logits for forward in recorder.forwards) == (4 + 3 * 6) + (3 * 4 + 6 * 6) + (4 + 3 * 6)
    benchmark.ets(setting, checkpoint)
    assert sum(forward.positions for forward in recorder.forwards) == positions  # nothing after its end


def test_no_repeat_begins_that_would_end_too_late(load: Any, conditions: Any) -> None:
    measuring, floor = load("measuring"), load("floor")
    patient = measuring.Conditions(CPU, torch.float32, floor.Peak(1.0, 1.0), repeats=3)
    late = measuring.Conditions(CPU, torch.float32, floor.Peak(1.0, 1.0), repeats=3, deadline=0.0)
    works = [lambda: None, lambda: None]
    assert [len(column) for column in patient.rounds(works)] == [3, 3]
    assert [len(column) for column in late.rounds(works)] == [1, 1]


def test_a_benchmark_is_left_out_by_name(load: Any) -> None:
    benchmark = load("suite").Benchmark
    slow = benchmark("slow", "", lambda *_: None, gpu_seconds=60)
    assert slow.why_not("gpu", 59.0) == "it takes about 60 s, and 59 were left"
    assert slow.why_not("gpu", 61.0) is None and slow.why_not("cpu", 59.0) is None
    needy = benchmark("needy", "", lambda *_: None, needs=("no_such_package",))
    assert needy.why_not("cpu", math.inf) == "no_such_package is not installed"
    assert "CPU suite alone" in str(needy.why_not("gpu", math.inf))


def test_a_wrong_law_is_red(load: Any) -> None:
    laws = load("laws")
    policy, law = laws._causal(CPU)
    policy.sampling = Sampling(temperature=1.5)
    check = lambda: check_policy(policy, law, laws.PROBLEMS, draws=2000, level=laws.LEVEL)  # noqa: E731
    assert laws._verdict(check).startswith("red: extend from ()")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert laws._verdict(lambda: laws._check_kernel(policy, law, 2000)).startswith("red:")


@pytest.fixture
def run_with(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a dry run over other benchmarks; returns the exit status and what was written."""

    def run(**tables: Any) -> tuple[int, Any]:
        suite = load("suite")
        entries = tuple(suite.Benchmark(name, "", lambda *_, made=made: made()) for name, made in tables.items())
        monkeypatch.setattr(suite, "BENCHMARKS", entries)
        status = load("run").main(["--suite", "cpu", "--dry-run", "--out", str(tmp_path)])
        return status, json.loads(next(tmp_path.glob("*.json")).read_text())

    return run


def test_where_a_law_is_red_nothing_is_timed(load: Any, run_with: Any) -> None:
    measuring = load("measuring")
    red = measuring.Table("laws", "", "", "", [measuring.Row("one", [1.0], counts={"law": "red: too hot"})])
    status, found = run_with(laws=lambda: red, speed=lambda: pytest.fail("it was timed"))
    assert status == 1 and [table["name"] for table in found["tables"]] == ["laws"]
    assert found["left_out"] == {"speed": "the laws do not hold on this device, or could not be tested"}


def test_where_the_laws_cannot_be_tested_nothing_is_timed(run_with: Any) -> None:
    status, found = run_with(laws=lambda: 1 / 0, speed=lambda: pytest.fail("it was timed"))
    assert status == 1 and found["tables"] == []
    assert found["left_out"]["laws"] == "it failed: division by zero" and "law" in found["left_out"]["speed"]


def test_a_benchmark_that_fails_leaves_the_others_their_tables(load: Any, run_with: Any) -> None:
    table = load("measuring").Table("good", "", "", "", [])
    status, found = run_with(bad=lambda: 1 / 0, good=lambda: table)
    assert status == 1 and [table["name"] for table in found["tables"]] == ["good"]
    assert found["left_out"] == {"bad": "it failed: division by zero"}


def test_a_machine_stands_in_the_index_once(load: Any, conditions: Any, tmp_path: Path) -> None:
    index = tmp_path / "index.md"
    index.write_text("# Benchmarks\n\n## Machines\n\n- old\n")
    outcome = load("page").Outcome("cpu", False, conditions)
    for _ in range(2):
        outcome.write(tmp_path)
    line = f"- [{outcome.device}]({outcome.slug}.md): the cpu suite"
    assert index.read_text() == f"# Benchmarks\n\n## Machines\n\n{line}\n"


def test_the_commands_of_the_page_are_commands(load: Any) -> None:
    page = (ROOT / "docs" / "benchmarks" / "index.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python benchmarks/run.py (.*?)(?: +#.*)?$", page, flags=re.MULTILINE)
    found = [load("run")._options(shlex.split(command)) for command in commands]
    assert [(options.suite, options.dry_run) for options in found] == [("cpu", False), ("gpu", False), ("gpu", True)]


def test_the_gpu_suite_without_a_gpu_ends_in_one_line() -> None:
    command = [sys.executable, str(SCRIPT), "--suite", "gpu"]
    done = subprocess.run(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: --suite gpu needs a GPU, and there is none here; add --dry-run to try it at tiny shapes\n"
    )


ONLY = """
import runpy, sys
from importlib.machinery import PathFinder

class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target)
        installed = spec is not None and "site-packages" in str(spec.origin or spec.submodule_search_locations)
        return None if installed and name.split(".")[0] not in ALLOWED else spec

sys.meta_path = [Only if finder is PathFinder else finder for finder in sys.meta_path]
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def modules_of(*names: str) -> set[str]:
    """Top-level modules of these distributions and of all that they require."""
    known: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in known:
            known.add(name)
            needed = [Requirement(line) for line in requires(name) or ()]
            waiting += [canonicalize_name(r.name) for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
    distributions = packages_distributions().items()
    return {module for module, owners in distributions if any(canonicalize_name(owner) in known for owner in owners)}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """The page and the JSON file of a dry run of the GPU suite, where only the four packages can be imported."""
    out = tmp_path_factory.mktemp("benchmarks")
    code = f"ALLOWED = {sorted(modules_of(*NEEDED))!r}\n{ONLY}"
    command = [sys.executable, "-c", code, str(SCRIPT), "--suite", "gpu", "--dry-run", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (page,), (data,) = out.glob("*.md"), out.glob("*.json")
    assert page.read_text() in done.stdout
    return page.read_text(), json.loads(data.read_text())


def test_other_packages_cannot_be_imported_in_the_dry_run() -> None:
    """Or the dry run would say nothing about what it needs."""
    allowed = modules_of(*NEEDED)
    assert {"torch", "transformers", "numpy", "tqdm", "tokenizers"} <= allowed
    assert not allowed & {"lm_eval", "vllm", "matplotlib", "datasets", "scipy", "pandas", "accelerate", "pytest"}
    code = f"ALLOWED = {sorted(allowed)!r}\n{ONLY}"
    done = subprocess.run([sys.executable, "-c", code, __file__], capture_output=True, text=True)
    assert "No module named 'pytest'" in done.stderr


def test_the_dry_run_measures_every_row(dry_run: tuple[str, Any]) -> None:
    page, data = dry_run
    rows = {table["name"]: table["rows"] for table in data["tables"]}
    assert list(data["left_out"]) == ["engines", "real_model", "serving"] and "`engines`: it needs vllm" in page
    assert {row["counts"]["law"] for row in rows.pop("laws")} == {"passes"}
    assert {name: len(found) for name, found in rows.items()} == {
        "autoregressive": 2, "masked_diffusion": 1, "autoregressive_proposal": 2, "fast_diffusion": 9,
        "truncation": 8, "kept_cache": 4, "growth": 3,
    }  # fmt: skip
    for name, row in ((name, row) for name, found in rows.items() for row in found):
        assert len(row["seconds"]) == len(row["against"]) == (1 if name == "growth" else 2)
        floor = row["floor"] or {"seconds": 1.0, "bytes": 1.0}  # none is counted for the hybrid model
        assert min(*row["seconds"], *row["against"], floor["seconds"], floor["bytes"]) > 0
        assert f"| {row['label']} |" in page


def test_the_dry_run_says_so_and_where_it_ran(dry_run: tuple[str, Any]) -> None:
    page, data = dry_run
    assert data["dry_run"] and "A dry run" in page
    assert data["dtype"] == "bfloat16" and data["device"] in page
    assert set(data["versions"]) == {"python", "torch", "transformers", "numpy"} and data["peak"]["operations"] > 0
