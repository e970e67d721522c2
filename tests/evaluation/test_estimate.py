"""`ets estimate` against the runs that it foretells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ets.evaluation.estimate import Estimate, Estimation

from ets.cli import main
from ets.evaluation import estimate
from ets.policies import memory
from ets.policies.checkpoint import Checkpoint
from tests.test_cli import FAST, PROPOSED, command, diffusion_command

LONG = "1000"
"""Seconds of calibration in which each method ends all its problems: nothing then depends on the machine."""


def estimated(words: list[str], monkeypatch: pytest.MonkeyPatch, seconds: str = LONG) -> list[Estimate]:
    """What the command found, method by method."""
    found: list[Estimate] = []
    method = Estimation.estimates

    def kept(self: Estimation, *given: Any) -> list[Estimate]:
        found.extend(method(self, *given))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Estimation, "estimates", kept)
        assert main(["estimate", *words[1:], "--calibrate", seconds]) == 0
    return found


def actual(folder: Path) -> dict[str, dict[str, float]]:
    """By method, what a run's records add up to; a method's options are left out of its name."""
    totals: dict[str, dict[str, float]] = {}
    for line in (folder / "journal.jsonl").read_text().splitlines():
        record = json.loads(line)
        method = totals.setdefault(record["method"].split("-")[0], {})
        for name, amount in record["cost"].items():
            method[name] = method.get(name, 0) + amount
    return totals


def test_a_run_takes_what_was_expected_and_no_more_than_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(tmp_path, count="16", methods="ets,majority", max_length="64", width="8", temperature="1.5")
    found = estimated(words, monkeypatch)
    shown = capsys.readouterr().out
    assert "16 problems, with prompts of" in shown and "| at most |" in shown.replace("  ", "")
    assert main(words) == 0
    taken = actual(tmp_path)
    for name, line in zip(("ets", "majority"), found, strict=True):
        assert line.label.split(" (")[0] in shown and line.expected is not None and line.seconds is not None
        for kind in ("generated", "rollout"):
            assert taken[name][kind] <= getattr(line.most, kind)
            assert getattr(line.expected, kind) == pytest.approx(taken[name][kind], rel=0.25)
        assert line.expected.prompt == line.most.prompt == taken["ets"]["prompt"]


@pytest.mark.parametrize("options", [{}, {"cache": "dual", "stop_at_end": "True"}, FAST | {"level": "0"}])
def test_a_masked_diffusion_run_takes_what_was_measured(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All problems were measured, with the run's own keys."""
    own = {"ets-is": "ets-is"} if options.get("fast_cache") else {"ets": "ets", "plain": "plain"}
    words = diffusion_command(tmp_path, **{"methods": ",".join(own), "samples": "4", "width": "1"} | options)
    found = estimated(words, monkeypatch)
    assert main(words) == 0
    taken = actual(tmp_path)
    for name, line in zip(own, found, strict=True):
        for kind in ("candidate", "rollout", "row_forwards", "generated"):
            amount = taken[name.split("-")[0]][kind]
            assert line.expected is not None
            assert getattr(line.expected, kind) == pytest.approx(amount)
            assert amount <= getattr(line.most, kind)


def test_as_many_canvases_are_sampled_as_the_run_finds_to_cost_what_ets_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Samples share the canvases that are equal, so that more of them fit than by what one takes."""
    words = diffusion_command(tmp_path, methods="ets,majority", count="2", width="1")
    by_one, once, measured = (
        int(re.findall(r"\d+", estimated(words, monkeypatch, seconds)[-1].label)[0]) for seconds in ("0", "1e-9", LONG)
    )
    assert main(words) == 0
    assert f"majority voting ({measured} samples)" in (tmp_path / "table.md").read_text()
    assert by_one < once <= measured


@pytest.mark.parametrize(("gib", "said"), [("100", "is within it"), ("0.00001", "exceeds it: its rows may be split")])
def test_the_memory_line_tells_the_limit_and_whether_the_worst_case_exceeds_it(
    gib: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worst = max(line.cache or 0 for line in estimated(command(tmp_path, memory_gib=gib), monkeypatch, "0"))
    limit = estimate.size(float(gib) * 2**30)
    line = f"the limit of the rows' cache is {limit} (--memory-gib); the largest, {estimate.size(worst)}, {said}"
    assert line in capsys.readouterr().out


@pytest.mark.parametrize("calibrated", ["0", "0.01"])
def test_without_a_limit_it_is_half_of_what_the_weights_leave(
    calibrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded weights are in what is free already."""
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2.0**30)
    estimated(command(tmp_path, methods="ets"), monkeypatch, calibrated)
    shown = capsys.readouterr().out
    limit = "512 MiB" if calibrated != "0" else "511 MiB"
    assert f"the limit of the rows' cache is {limit} (half of what is free beside the weights)" in shown


def test_without_a_calibration_no_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Checkpoint, "model", property(lambda self: pytest.fail("the weights were loaded")))
    options = PROPOSED | {"methods": "ets,ets-is,plain,greedy,beam", "beams": "3"}
    ets, proposed, plain, greedy, beam = estimated(command(tmp_path, **options), monkeypatch, "0")
    assert "tokens, at most" in (shown := capsys.readouterr().out) and " time |" not in shown
    assert "6.34 MiB (float32)" in shown and not list(tmp_path.iterdir())
    assert ets.expected is None and ets.most.generated == 3 * 2 * (16 + 2 * 16 + 16)
    assert proposed.most.scored > 0 and proposed.most.prompt == 2 * ets.most.prompt
    assert plain.most.generated == 3 * 4 * 32  # as many as ETS takes, over the longest text
    assert greedy.most.generated == 3 * 32 and beam.most.generated == 3 * 3 * 32
    assert None not in (line.cache for line in (ets, proposed, plain, greedy, beam))


def test_repeats_share_their_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once, often = (
        estimated(command(tmp_path, methods="ets", repeats=repeats), monkeypatch, "0")[-1].most
        for repeats in ("1", "3")
    )
    assert often.generated == 3 * once.generated and often.prompt == once.prompt


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibrate", "-1"], "calibrate is -1.0"),
        (["--calibrate", "nan"], "calibrate is nan"),
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--width", "0"], "width is 0"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", *command(tmp_path)[1:], *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_problems_are_spread_over_the_task() -> None:
    plan = Estimation(None, None, list(range(10)), [], None, 3, 0)  # type: ignore[arg-type]
    assert plan.spread(3) == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]
    assert plan.spread(20) == list(range(10))


@pytest.mark.parametrize(("amount", "said"), [(3, "3 B"), (2**21, "2 MiB"), (2**34 * 1.5, "24.0 GiB")])
def test_sizes_are_readable(amount: float, said: str) -> None:
    assert estimate.size(amount) == said


@pytest.mark.parametrize(("seconds", "said"), [(3.21, "3.2 s"), (90.0 * 60, "90.0 min"), (7200.0, "2.0 h")])
def test_times_are_readable(seconds: float, said: str) -> None:
    assert estimate.duration(seconds) == said
